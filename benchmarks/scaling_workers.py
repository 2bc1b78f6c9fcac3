"""Two training workers against one, each with the same share of tokens: how much more they do in the same time.

The workers are processes joined by gloo, as on a machine without GPUs, each with one thread. While one works alone the
other sleeps. Times are wall seconds, because a worker that waits for its peer burns none of its own: on a machine that
does other work they say little.

python -m benchmarks.scaling_workers
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.multiprocessing.spawn import start_processes

from benchmarks.measure import REPETITIONS, Line, Target, gradients, line, print_lines, require_close
from benchmarks.models import KNOBS, Shape, loss_and_gradients, make_batch, make_model, make_samples, weight_of
from wmss.training.batches import MicroBatch
from wmss.training.branches import Branches, WeakModel
from wmss.training.optim import make_optimizer
from wmss.training.parallel import gradient_norm, parallelise

SHAPE = Shape(vocabulary=32_768, width=256, layers=4)
LENGTH, COUNT = 128, 16
WORKERS = 2
TARGET = Target("training workers", at_least=1.6)
TOLERANCE = 1e-5
"""Of the two workers' averaged gradients against one worker's on all samples, relative."""


def run(
    *, shape: Shape = SHAPE, length: int = LENGTH, count: int = COUNT, repetitions: int = REPETITIONS
) -> Iterator[Line]:
    """Plain fine-tuning and joint training under DDP."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = (folder, shape, length, count, repetitions)
        start_processes(_worker, args=arguments, nprocs=WORKERS, start_method="spawn")
        results: dict[str, dict[int, list[float]]] = torch.load(Path(folder) / "results.pt")
    for mode, seconds in results.items():
        for workers, taken in seconds.items():
            gain = workers * min(seconds[1]) / min(taken)
            yield line(
                "scaling_workers",
                f"{mode}, workers: {workers}",
                {**shape._asdict(), "tokens_a_worker": length * count, "clock": "wall"},
                seconds=taken,
                figures={"throughput_over_one_worker": gain, "load_1_min": os.getloadavg()[0]},
                targets={"throughput_over_one_worker": TARGET} if workers == WORKERS else {},
            )


def _worker(rank: int, folder: str, shape: Shape, length: int, count: int, repetitions: int) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORKERS)
    samples = make_samples([length] * (count * WORKERS), vocabulary=shape.vocabulary)
    mine = make_batch(samples[rank * count : (rank + 1) * count])
    results = {}
    for mode in ("sft", "joint"):
        branches = _branches(mode, shape)
        module = parallelise(branches, how="ddp", world_size=WORKERS, device=torch.device("cpu"))
        optimizer = make_optimizer(branches, KNOBS)
        _check(mode, shape, branches, module, mine, make_batch(samples))
        together = _step(module, branches, optimizer, mine)
        alone = _step(branches, branches, optimizer, mine)
        results[mode] = {1: [], WORKERS: []} if rank == 0 else {}
        for repetition in range(repetitions + 1):
            for workers, step in ((1, alone), (WORKERS, together)):
                distributed.barrier()
                started = time.perf_counter()
                if rank < workers:
                    step()
                elapsed = time.perf_counter() - started
                if rank == 0 and repetition > 0:
                    results[mode][workers].append(elapsed)
    if rank == 0:
        torch.save(results, Path(folder) / "results.pt")
    distributed.barrier()
    distributed.destroy_process_group()


def _branches(mode: str, shape: Shape) -> Branches:
    if mode == "sft":
        return Branches(make_model(shape, seed=0))
    weak = WeakModel(make_model(shape, seed=1), trained=True)
    return Branches(make_model(shape, seed=0), [weak])


def _step(module: Any, branches: Branches, optimizer: Any, batch: MicroBatch) -> Callable[[], None]:
    def step() -> None:
        (module(batch, mixing_weight=weight_of(branches))[0] / batch.labels.numel()).backward()
        gradient_norm(branches.parameters())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _check(mode: str, shape: Shape, branches: Branches, module: Any, mine: MicroBatch, whole: MicroBatch) -> None:
    truth = loss_and_gradients(_branches(mode, shape), whole)
    loss = module(mine, mixing_weight=weight_of(branches))[0] / mine.labels.numel()
    loss.backward()
    total = loss.detach().clone()
    distributed.all_reduce(total)
    found = {"loss": total / WORKERS, **gradients(branches)}
    branches.zero_grad(set_to_none=True)
    require_close(f"scaling_workers {mode}", found, truth, tolerance=TOLERANCE)


if __name__ == "__main__":
    print_lines(run())
