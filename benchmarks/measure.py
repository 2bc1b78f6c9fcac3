"""What every benchmark shares: the equality gate, interleaved repetitions, peak memory, and the line it prints.

Times are CPU seconds of this process with one thread, because other processes on the machine do not count in them; on
a GPU they are wall seconds between synchronisations.
"""

import json
import math
import os
import platform
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from tests.memory import PeakTensorBytes

REPETITIONS = 5
"""Counted repetitions of every arm; one more comes first and is not counted."""

Line = dict[str, Any]
Key = TypeVar("Key")


class GateError(Exception):
    """Two computations that must agree do not, so a comparison of their costs would mean nothing."""


class Target(NamedTuple):
    """What a figure must be; `aim` is what it should be."""

    id: str
    """Its name in the table of targets in docs/benchmarks.md, e.g. `P-T1`."""
    at_most: float | None = None
    at_least: float | None = None
    aim: float | None = None

    def holds(self, value: float) -> bool:
        """Whether a measured value meets it."""
        above = self.at_least is None or value >= self.at_least
        return above and (self.at_most is None or value <= self.at_most)


def require_close(what: str, found: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, tolerance: float) -> float:
    """The largest relative error ‖found − expected‖ / ‖expected‖ over all names.

    Raises:
        GateError: names differ, or an error is above `tolerance` or not a number.
    """
    if found.keys() != expected.keys():
        raise GateError(f"{what}: one side lacks {sorted(found.keys() ^ expected.keys())[:4]}")
    errors = {name: _relative_error(found[name], expected[name]) for name in expected}
    worst = max(errors, key=lambda name: math.inf if math.isnan(errors[name]) else errors[name])
    if not errors[worst] <= tolerance:
        raise GateError(f"{what}: {worst} differs by {errors[worst]:.1e}, relative; at most {tolerance:.0e} is allowed")
    return errors[worst]


def _relative_error(found: Tensor, expected: Tensor) -> float:
    difference = (found.double() - expected.double()).norm()
    size = expected.double().norm()
    return float(difference / size if size > 0 else difference)


def gradients(module: nn.Module) -> dict[str, Tensor]:
    """A copy of every parameter's gradient, by name."""
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


class Seconds(float):
    """What an arm took; `user` of it in its own code, the rest in the operating system's, which hands out memory."""

    user: float

    @classmethod
    def of(cls, total: float, user: float) -> "Seconds":
        """Both together."""
        seconds = cls(total)
        seconds.user = user
        return seconds


def interleave(
    arms: Mapping[Key, Callable[[], object]], *, repetitions: int, device: str = "cpu"
) -> dict[Key, list[Seconds]]:
    """Seconds of every arm in every repetition, taken in turn: A B C A B C."""
    torch.set_num_threads(1)
    seconds: dict[Key, list[Seconds]] = {name: [] for name in arms}
    for repetition in range(repetitions + 1):
        for name, arm in arms.items():
            total, user = _clocks(device)
            arm()
            ended, user_ended = _clocks(device)
            if repetition > 0:
                seconds[name].append(Seconds.of(ended - total, user_ended - user))
    return seconds


def _clocks(device: str) -> tuple[float, float]:
    """CPU seconds of this process, and those in its own code; on a GPU wall seconds when all it was asked is done."""
    if device != "cpu":
        torch.cuda.synchronize()
        return time.perf_counter(), time.perf_counter()
    return time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_utime


def least_user(seconds: Sequence[Any]) -> float:
    """The shortest time in the arm's own code."""
    return min(float(each.user) for each in seconds)


def peak_bytes(arm: Callable[[], object]) -> int:
    """The most bytes that tensors made by `arm` held at one time; what existed before, such as weights, is left out."""
    with PeakTensorBytes() as tracker:
        arm()
    return int(tracker.peak)


def log_slope(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Least-squares slope of log value against log size: 1 where cost grows in proportion.

    Not a number where a value is not positive: a difference of times that noise hides.
    """
    if min(values) <= 0:
        return math.nan
    slope, _ = statistics.linear_regression([math.log(size) for size in sizes], [math.log(value) for value in values])
    return slope


def line(
    benchmark: str,
    arm: str,
    setting: Mapping[str, Any],
    *,
    seconds: Sequence[float] | None = None,
    peak: int | None = None,
    figures: Mapping[str, float] | None = None,
    targets: Mapping[str, Target] | None = None,
    note: str | None = None,
) -> Line:
    """What one arm gave, ready for JSON. `targets` belong to figures of the same name."""
    figures, targets = figures or {}, targets or {}
    result: Line = {"benchmark": benchmark, "arm": arm, "setting": dict(setting)}
    if seconds is not None:
        result |= {
            "s_min": _rounded(min(seconds)),
            "s_median": _rounded(statistics.median(seconds)),
            "repetitions": len(seconds),
        }
        if all(isinstance(each, Seconds) for each in seconds):
            result["s_user_min"] = _rounded(least_user(seconds))
    if peak is not None:
        result["peak_mib"] = _rounded(peak / 2**20)
    result["figures"] = {name: _rounded(value) for name, value in figures.items()}
    result["targets"] = {
        name: {key: value for key, value in target._asdict().items() if value is not None}
        | {"passed": target.holds(figures[name])}
        for name, target in targets.items()
    }
    return result if note is None else result | {"note": note}


def _rounded(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None


def print_lines(lines: Iterable[Line]) -> None:
    """One JSON line each."""
    for given in lines:
        print(json.dumps(given, ensure_ascii=False), flush=True)


def environment() -> dict[str, Any]:
    """What the figures were taken on."""
    return {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": f"{torch.cuda.device_count() or os.cpu_count()} x {_processor()}",
        "torch": torch.__version__,
        "load_1_min": round(os.getloadavg()[0], 2),
    }


def _processor() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.is_file() else ""
    names = [row.split(":", 1)[1].strip() for row in text.splitlines() if row.startswith("model name")]
    return names[0] if names else platform.machine()


def commit() -> str:
    """Short name of the commit that is checked out, with `+` if its code was changed since; "unknown" without git."""
    root = Path(__file__).parents[1]
    try:
        name = _git(root, "rev-parse", "--short", "HEAD")
        changed = _git(root, "status", "--porcelain", "--", "wmss", "tests", "benchmarks/*.py")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return name + ("+" if changed else "")


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


def skipped(benchmark: str, arm: str, reason: str) -> Line:
    """The line of an arm that cannot run here."""
    return {"benchmark": benchmark, "arm": arm, "skipped": reason}
