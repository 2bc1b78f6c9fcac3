"""All benchmarks, or the named ones, one after the other: `make bench`, or `python -m benchmarks packing --save`."""

import argparse
import importlib
import inspect
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import report
from benchmarks.measure import REPETITIONS, GateError, Line, environment, print_lines, skipped

BENCHMARKS = (
    "loss_op",
    "entropy_op",
    "step_ratio",
    "vs_naive",
    "sft_parity",
    "packing",
    "loss_memory_flat",
    "curriculum_build",
    "simulation",
    "scaling_tokens",
    "scaling_weak",
    "scaling_workers",
    "score_throughput",
    "sampling",
    "serve_overhead",
    "scaling_samples",
    "growth_rows",
)


def run(name: str, *, device: str, repetitions: int) -> Iterator[Line]:
    """The lines of one benchmark; a gate that fails ends it with a line that says so."""
    try:
        benchmark = importlib.import_module(f"benchmarks.{name}").run
    except ModuleNotFoundError as error:  # some compare with what a machine for GPUs lacks
        yield skipped(name, "all", f"{error.name} is not installed")
        return
    knobs = {"repetitions": repetitions, "device": device}
    takes = inspect.signature(benchmark).parameters
    if device != "cpu" and "device" not in takes:
        yield skipped(name, "all", f"runs on the CPU only, not on {device}")
        return
    try:
        yield from benchmark(**{knob: value for knob, value in knobs.items() if knob in takes})
    except GateError as error:
        yield {"benchmark": name, "failed": str(error)}


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if every gate held; whether the targets were met is for the report to say."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(BENCHMARKS)}")
    parser.add_argument("--repetitions", type=int, default=REPETITIONS, help="of every arm (%(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda where there is a GPU")
    parser.add_argument("--save", action="store_true", help=f"write {report.RESULTS.name}/DEVICE-COMMIT.jsonl as well")
    parser.add_argument(
        "--report",
        nargs="*",
        metavar="FILE",
        help=f"measure nothing; write {report.PAGE.name} from the FILEs, or from all stored results",
    )
    given = parser.parse_args(arguments)
    unknown = sorted(set(given.names) - set(BENCHMARKS))
    if unknown:
        parser.error(f"NAME: expected some of {', '.join(BENCHMARKS)}, got {', '.join(unknown)}")
    if given.repetitions < 1:
        parser.error(f"--repetitions: expected a positive number, got {given.repetitions}")
    if given.report is not None:
        report.write([Path(file) for file in given.report] or report.stored())
        return 0
    lines: list[Line] = [{"environment": environment()}]
    print_lines(lines)
    for name in given.names or BENCHMARKS:
        for line in run(name, device=given.device, repetitions=given.repetitions):
            print_lines([line])
            lines.append(line)
    if given.save:
        report.RESULTS.mkdir(exist_ok=True)
        file = report.RESULTS / f"{given.device}-{lines[0]['environment']['commit']}.jsonl"
        file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return int(any("failed" in line for line in lines))


if __name__ == "__main__":
    sys.exit(main())
