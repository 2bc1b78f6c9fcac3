"""Scoring through Ray Serve against the engine itself: what the handle, the copies and the second process cost.

The engine scores in this process, then the same samples in a replica of its own, in turn. Times are wall seconds,
because most of the second one passes in another process: on a machine that does other work they say little.

python -m benchmarks.serve_overhead
"""

import importlib.util
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from benchmarks.measure import REPETITIONS, Line, Target, line, print_lines, require_close, skipped
from benchmarks.models import Shape, make_model, make_samples
from wmss.scoring.interfaces import Scorer

SHAPE = Shape(vocabulary=4096, width=256, layers=4)
SIZES = (1, 16, 64, 256)
BATCHED = 64
"""Samples a call from which on the target holds; the product sends no fewer."""
SHORTEST, LONGEST = 16, 128
TARGET = Target("P-T14", at_most=1.10, aim=1.05)
TOLERANCE = 1e-6


def run(*, shape: Shape = SHAPE, sizes: tuple[int, ...] = SIZES, repetitions: int = 4 * REPETITIONS) -> Iterator[Line]:
    """One call after the other, and for batches also as the product does it: one under way, one at hand."""
    if not all(importlib.util.find_spec(name) for name in ("ray", "vllm")):
        yield skipped("serve_overhead", "all", "needs Ray and vLLM")
        return
    from services.control.supervisor import free_port
    from services.settings import engine_environment

    lengths = np.random.default_rng(0).integers(SHORTEST, LONGEST, max(sizes))
    ids = [sample.input_ids.tolist() for sample in make_samples(lengths.tolist(), vocabulary=shape.vocabulary)]
    with ExitStack() as stack:
        # A service on this machine may have the proxy's port.
        stack.enter_context(mock.patch.dict(os.environ, engine_environment() | {"WMSS_SERVE_PORT": str(free_port())}))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        make_model(shape, seed=0, attention="sdpa").save_pretrained(folder)
        engine, through_serve = _scorers(folder, stack)
        for size in sizes:
            sequences = ids[:size]
            arms = {"engine": partial(engine.score, sequences), "serve": partial(through_serve.score, sequences)}
            found, truth = (
                {str(number): torch.from_numpy(rows[:-1]) for number, rows in enumerate(arm())} for arm in arms.values()
            )
            require_close(f"serve_overhead {size}", found, truth, tolerance=TOLERANCE)
            seconds = _interleave(arms, repetitions)
            for name in arms:
                ratio = min(seconds[name]) / min(seconds["engine"])
                yield line(
                    "serve_overhead",
                    name,
                    {**shape._asdict(), "samples": size, "tokens": sum(map(len, sequences)), "clock": "wall"},
                    seconds=seconds[name],
                    figures={"time_over_engine": ratio, "load_1_min": os.getloadavg()[0]},
                    targets={"time_over_engine": TARGET} if name == "serve" and size >= BATCHED else {},
                )


def _scorers(checkpoint: Path, stack: ExitStack) -> tuple[Scorer, Scorer]:
    """The engine in this process, and one behind Serve on a cluster of this process's own."""
    import ray
    from ray import serve

    from services.engines.scorer import ServeScorer, deploy_scorer
    from wmss.scoring.vllm_scorer import VllmEntropyScorer

    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="error")
    stack.callback(ray.shutdown)
    handle = deploy_scorer("serve-overhead", max_length=LONGEST, use_gpu=False)
    stack.callback(serve.shutdown)
    return VllmEntropyScorer(checkpoint, max_length=LONGEST), ServeScorer(handle, checkpoint)


def _interleave(arms: dict[str, Callable[[], object]], repetitions: int) -> dict[str, list[float]]:
    """Wall seconds of every arm, in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for repetition in range(repetitions + 1):
        for name, arm in arms.items():
            started = time.perf_counter()
            arm()
            if repetition > 0:
                seconds[name].append(time.perf_counter() - started)
    return seconds


if __name__ == "__main__":
    print_lines(run())
