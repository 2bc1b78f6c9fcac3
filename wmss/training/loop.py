"""THE LOOP: supervised fine-tuning, or weak-driven training of a strong model on mixed logits.

    services.trainer runs `train` on every Ray Train worker; any other host that fulfils `Host` may run it.

A phase begins with a fresh optimizer and schedule. The loss of a step is the sum over all its target tokens, on all
workers, divided by their number, so neither the micro-batch split nor the number of workers changes the result.
"""

import contextlib
import logging
import math
import tempfile
import time
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from pydantic import ConfigDict
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from wmss.config import Hyperparameters, Knobs
from wmss.data.sampler import BatchSampler, micro_batches
from wmss.data.tokenization import load_tokenized
from wmss.errors import TrainingError
from wmss.models.checkpoints import (
    load_metrics,
    load_rng,
    load_strong_weights,
    load_training_state,
    save_metrics,
    save_model,
    save_rng,
    save_training_state,
)
from wmss.models.loading import check_output_head, load_model
from wmss.records import STRONG_FOLDER
from wmss.training.optim import make_optimizer, make_schedule
from wmss.training.step import Branches, collate, gradient_norm

logger = logging.getLogger(__name__)


class TrainingRun(Knobs):
    """One training phase, complete: its JSON is the `train_loop_config` of every worker."""

    model_config = ConfigDict(strict=False)  # paths and tuples travel as JSON strings and lists

    phase: Literal["sft", "joint"]
    """`sft` trains the strong model alone; `joint` on the mixed logits of strong and weak."""
    strong: Path
    """Checkpoint the strong branch starts from."""
    weak: Path | None = None
    """Checkpoint of the weak branch; required by `joint`, refused by `sft`."""
    samples: Path
    """Tokenized samples (parquet)."""
    indices: tuple[int, ...]
    """Which of them to train on, duplicates included."""
    mixing_weight: float
    """λ, the weight of the strong logits."""
    weak_frozen: bool
    """Hold the weak branch fixed."""
    batch_size: int
    """Samples per optimizer step over all workers."""
    num_epochs: int
    """Passes over `indices`."""
    hyperparameters: Hyperparameters
    """Learning rate, schedule, clipping, micro-batch budget, step cap."""
    seed: int
    """Order of the samples."""
    checkpoint_every: int
    """Steps between checkpoints."""

    def sampler(self) -> BatchSampler:
        """The order of batches, and with it the number of steps."""
        return BatchSampler(
            self.indices,
            batch_size=self.batch_size,
            num_epochs=self.num_epochs,
            max_steps=self.hyperparameters.max_steps,
            seed=self.seed,
        )


class Host(Protocol):
    """What the loop needs from whoever runs it."""

    rank: int
    world_size: int
    device: torch.device

    def latest_checkpoint(self) -> contextlib.AbstractContextManager[Path | None]:
        """A local folder with the newest complete checkpoint of this run, or None."""

    def log(self, metrics: dict[str, float]) -> None:
        """Record the metrics of one step; called by rank 0 only."""

    def checkpoint(self, folder: Path, metrics: dict[str, float]) -> None:
        """Publish a checkpoint folder; every rank calls it, with its own folder, equally often."""


def train(run: TrainingRun, host: Host) -> None:
    """Run one phase to its end, from the newest checkpoint of the run if there is one."""
    samples = load_tokenized(run.samples)
    sampler = run.sampler()
    strong = load_model(run.strong, param="model")
    check_output_head(strong, param="model")
    weak = None
    if run.weak is not None:
        weak = load_model(run.weak, param="method.wmss.weak_model")
        check_output_head(weak, param="method.wmss.weak_model")
    branches = Branches(strong, weak, mixing_weight=run.mixing_weight, weak_frozen=run.weak_frozen).to(host.device)
    optimizer = make_optimizer(branches, run.hyperparameters)
    schedule = make_schedule(optimizer, run.hyperparameters, num_steps=sampler.num_steps)
    with host.latest_checkpoint() as checkpoint:
        first_step = 0 if checkpoint is None else _resume(checkpoint, host, branches, optimizer, schedule)
        totals = {} if checkpoint is None else _totals(load_metrics(checkpoint))
    if first_step:
        logger.info("%s resumes at step %d of %d", run.phase, first_step, sampler.num_steps)
    parallel = DistributedDataParallel(branches) if host.world_size > 1 else branches
    branches.train()

    for step in range(first_step, sampler.num_steps):
        started = time.perf_counter()
        batch = sampler.batch(step)
        groups = micro_batches(
            batch,
            samples,
            max_tokens=run.hyperparameters.micro_batch_tokens,
            rank=host.rank,
            world_size=host.world_size,
        )
        # A worker without a sample of a small batch takes part with one that is masked: gradients are summed over
        # workers, and a missing one would leave the others waiting.
        supervised = bool(groups)
        groups = groups or [[int(batch[0])]]
        num_targets = sum(samples[index].num_targets for index in batch)

        loss_sum = torch.zeros((), dtype=torch.float64, device=host.device)
        for number, group in enumerate(groups):
            micro = collate([samples[i] for i in group], device=host.device, supervised=supervised)
            last = number == len(groups) - 1
            with contextlib.nullcontext() if last else _no_sync(parallel):
                loss = parallel(micro)
                # DistributedDataParallel averages gradients over workers; the loss is a sum over them.
                (loss * (host.world_size / num_targets)).backward()
            loss_sum += loss.detach()
        if host.world_size > 1:
            torch.distributed.all_reduce(loss_sum)

        mean_loss = float(loss_sum) / num_targets
        norms = _gradient_norms(branches)
        _stop_if_not_finite(mean_loss, norms["grad_norm"], step, host.rank, batch.tolist(), samples)
        if run.hyperparameters.gradient_clip is not None:
            _clip(branches, norms["grad_norm"], run.hyperparameters.gradient_clip)
        learning_rate = schedule.get_last_lr()[0]
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)

        done = step + 1
        num_tokens = sum(len(samples[index].input_ids) for index in batch)
        metrics = {
            "step": float(done),
            "num_steps": float(sampler.num_steps),
            "train_loss": mean_loss,
            "learning_rate": learning_rate,
            **norms,
            "num_targets": float(num_targets),
            "num_tokens": float(num_tokens),
            "tokens_per_s": num_tokens / (time.perf_counter() - started),
        }
        totals = {
            "first_loss": totals.get("first_loss", mean_loss),
            "total_tokens": totals.get("total_tokens", 0.0) + num_tokens,
            "total_s": totals.get("total_s", 0.0) + time.perf_counter() - started,
        }
        if host.rank == 0:
            host.log(metrics)
        if done == sampler.num_steps or done % run.checkpoint_every == 0:
            _save(run, host, branches, optimizer, schedule, done, metrics | totals)


def _save(
    run: TrainingRun,
    host: Host,
    branches: Branches,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    step: int,
    metrics: dict[str, float],
) -> None:
    with tempfile.TemporaryDirectory(prefix="wmss-checkpoint-") as folder_name:
        folder = Path(folder_name)
        save_rng(folder, host.rank)
        if host.rank == 0:
            save_model(branches.strong, folder / STRONG_FOLDER, tokenizer_from=run.strong)
            trained_weak = branches.weak is not None and not branches.weak_frozen
            save_metrics(folder, metrics)
            save_training_state(
                folder,
                {
                    "step": step,
                    "weak": branches.weak.state_dict() if trained_weak and branches.weak is not None else None,
                    "optimizer": optimizer.state_dict(),
                    "schedule": schedule.state_dict(),
                },
            )
        host.checkpoint(folder, metrics)


def _resume(
    checkpoint: Path,
    host: Host,
    branches: Branches,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> int:
    state = load_training_state(checkpoint)
    load_strong_weights(branches.strong, checkpoint)
    if state["weak"] is not None and branches.weak is not None:
        branches.weak.load_state_dict(state["weak"])
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    load_rng(checkpoint, host.rank)
    return int(state["step"])


def _totals(metrics: dict[str, float]) -> dict[str, float]:
    """What a checkpoint's metrics say of the whole run up to it: loss of the first step, tokens, seconds of steps."""
    return {name: metrics[name] for name in ("first_loss", "total_tokens", "total_s") if name in metrics}


def _no_sync(module: torch.nn.Module) -> contextlib.AbstractContextManager[Any]:
    return module.no_sync() if isinstance(module, DistributedDataParallel) else contextlib.nullcontext()


def _gradient_norms(branches: Branches) -> dict[str, float]:
    strong = float(gradient_norm(list(branches.strong.parameters())))
    if branches.weak is None:
        return {"grad_norm": strong}
    weak = float(gradient_norm(list(branches.weak.parameters())))
    return {"grad_norm": math.hypot(strong, weak), "grad_norm_strong": strong, "grad_norm_weak": weak}


def _clip(branches: Branches, norm: float, limit: float) -> None:
    """Scale all gradients so that their joint norm is at most `limit`."""
    if norm > limit:
        gradients: list[Tensor] = [p.grad for p in branches.parameters() if p.grad is not None]
        torch._foreach_mul_(gradients, limit / norm)


def _stop_if_not_finite(loss: float, norm: float, step: int, rank: int, indices: list[int], samples: list[Any]) -> None:
    if math.isfinite(loss) and math.isfinite(norm):
        return
    lines = sorted({samples[index].line for index in indices})
    raise TrainingError(
        f"loss {loss} and gradient norm {norm} at step {step + 1} on worker {rank}, before the update; lower "
        f"learning_rate, or look at these lines of the training file: {lines[:20]}",
        param="method",
    )
