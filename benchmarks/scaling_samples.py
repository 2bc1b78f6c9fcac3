"""Scoring a thousand, ten thousand and a hundred thousand tiny samples: time grows with them, memory does not.

Each file is scored by an engine in a process of its own; seconds are CPU seconds of that process from the file on disk
to the table on disk, memory is the most it ever held.

python -m benchmarks.scaling_samples
"""

import importlib.util
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from unittest import mock

import numpy as np

from benchmarks.measure import GateError, Line, Target, line, log_slope, print_lines, skipped
from benchmarks.models import Shape, make_model, make_samples
from wmss.scoring.interfaces import Scorer

SHAPE = Shape(vocabulary=1024, width=64, layers=2)
SIZES = (1_000, 10_000, 100_000)
SHORTEST, LONGEST = 8, 24
BATCH_TOKENS = 32_768
SLOPE = Target("P-T13", at_least=0.95, at_most=1.05, aim=1.0)
MEMORY = Target("flat memory", at_most=100.0)
"""MiB more for a hundred times the samples: a kilobyte each, of which their ids and the table are a tenth."""


def run(*, shape: Shape = SHAPE, sizes: tuple[int, ...] = SIZES, repetitions: int = 1) -> Iterator[Line]:
    """Every size `repetitions` times, each in a new process."""
    if importlib.util.find_spec("vllm") is None:
        yield skipped("scaling_samples", "all", "needs vLLM")
        return
    from services.settings import engine_environment
    from wmss.data.tokenization import save_tokenized

    with tempfile.TemporaryDirectory() as temporary, mock.patch.dict(os.environ, engine_environment()):
        folder = Path(temporary)
        make_model(shape, seed=0, attention="sdpa").save_pretrained(folder / "model")
        seconds: dict[int, list[float]] = {size: [] for size in sizes}
        peaks: dict[int, list[float]] = {size: [] for size in sizes}
        for name, size in [("warm", sizes[0]), *((str(size), size) for size in sizes)]:
            lengths = np.random.default_rng(0).integers(SHORTEST, LONGEST, size)
            samples = make_samples(lengths.tolist(), vocabulary=shape.vocabulary, prompt_share=0.5)
            save_tokenized(samples, folder / f"{name}.parquet")
        for _ in range(repetitions):
            for size in sizes:
                taken, peak = _score(folder, size)
                seconds[size].append(taken)
                peaks[size].append(peak)
        slope = log_slope(sizes, [min(seconds[size]) for size in sizes])
        growth = min(peaks[sizes[-1]]) - min(peaks[sizes[0]])
        for size in sizes:
            last = size == sizes[-1]
            yield line(
                "scaling_samples",
                f"{size} samples",
                {**shape._asdict(), "mean_length": (SHORTEST + LONGEST) / 2},
                seconds=seconds[size],
                figures={"samples_per_s": size / min(seconds[size]), "process_mib": min(peaks[size])}
                | ({"slope": slope, "mib_more": growth} if last else {}),
                targets={"slope": SLOPE, "mib_more": MEMORY} if last else {},
            )


def _score(folder: Path, size: int) -> tuple[float, float]:
    """CPU seconds and MiB of one process."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_work, args=(folder, size, there))
    process.start()
    there.close()
    try:
        taken, peak = here.recv()
    except EOFError:
        raise GateError(f"scaling_samples: the process that scores {size} samples died") from None
    finally:
        process.join()
    return float(taken), float(peak)


def _work(folder: Path, size: int, answer: Connection) -> None:
    from wmss.scoring.vllm_scorer import VllmEntropyScorer

    scorer = VllmEntropyScorer(folder / "model", max_length=LONGEST)
    # What is taken once, when engine, allocator and libraries are first used (0.2 s, 0.1 GiB), belongs to no size.
    for length in range(SHORTEST, LONGEST):
        scorer.score([[2] * length] * (BATCH_TOKENS // length // 4))
    _score_file(scorer, folder / "warm.parquet")
    started = time.process_time()
    _score_file(scorer, folder / f"{size}.parquet")
    answer.send((time.process_time() - started, peak_mib()))


def _score_file(scorer: Scorer, file: Path) -> None:
    from wmss.data.tokenization import load_tokenized
    from wmss.scoring.tables import score_samples

    samples = load_tokenized(file)
    table = score_samples(samples, scorer, batch_tokens=BATCH_TOKENS, progress=lambda done, total: None)
    table.save(file.with_suffix(".table"))
    assert np.array_equal(table.line, np.arange(1, len(samples) + 1)), "a sample is missing"


def peak_mib() -> float:
    """The most this process ever held; the kernel's `ru_maxrss` would begin with what its parent held."""
    [held] = [row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith("VmHWM:")]
    return int(held.split()[1]) / 1024


if __name__ == "__main__":
    print_lines(run())
