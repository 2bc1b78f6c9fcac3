"""THE LOOP: supervised fine-tuning, or weak-driven training of a strong model on mixed logits.

    services.driver.trainer runs `train` on every Ray Train worker; any other host that fulfils `Host` may run it.

A phase begins with a fresh optimizer and schedule. The loss of a step is the sum over all its target tokens, on all
workers, divided by their number, so neither the micro-batch split nor the number of workers changes the result.
"""

import contextlib
import logging
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from wmss.core.mixing import branch_names, mixing_weight_at
from wmss.core.saturation import is_saturated
from wmss.core.telemetry import statistics_of
from wmss.data.sampler import micro_batches
from wmss.data.states import StateCache
from wmss.data.tokenization import load_tokenized
from wmss.errors import TrainingError
from wmss.records import TokenizedSample
from wmss.training import checkpoints
from wmss.training.batches import MicroBatch, collate
from wmss.training.build import build_branches
from wmss.training.checkpoint_files import MarginReading
from wmss.training.optim import make_optimizer, make_schedule
from wmss.training.parallel import gradient_norm, no_sync, parallelise
from wmss.training.run import TrainingRun

logger = logging.getLogger(__name__)

TELEMETRY_ROWS = 256
"""Targets a worker looks at for one reading of `mix_statistics`."""


class Host(Protocol):
    """What the loop needs from the process that runs it."""

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
    with host.latest_checkpoint() as checkpoint:
        trainer = _Trainer(run, host, checkpoint)
    num_steps, step = trainer.num_steps, trainer.first_step
    while step < num_steps and not trainer.stopped:
        metrics = trainer.one_step(step)
        step += 1
        # All workers decide alike, from numbers that were summed over all: saving is a collective operation under FSDP.
        saves = trainer.stopped or step == num_steps or step % run.checkpoint_every == 0
        if run.held_out is not None and (saves or step % (run.hyperparameters.eval_every or num_steps) == 0):
            metrics["valid_loss"] = trainer.held_out_loss()
        if host.rank == 0:
            host.log(metrics)
        if saves:
            trainer.save(step, metrics)


class _Trainer:
    """One worker's state of a phase."""

    def __init__(self, run: TrainingRun, host: Host, checkpoint: Path | None) -> None:
        knobs = run.hyperparameters
        self._run, self._host, self._knobs = run, host, knobs
        # New adapters draw their weights from it, and every worker must begin with the same ones.
        torch.manual_seed(run.seed)
        self._samples = load_tokenized(run.samples)
        self._held_out = [] if run.held_out is None else load_tokenized(run.held_out)
        self._sampler = run.sampler()
        self._states = [StateCache(source.states) for source in run.weak if source.states is not None]
        resumed = None if checkpoint is None else checkpoints.load(checkpoint, host.rank)
        self._branches = build_branches(run, resumed).to(host.device)
        # The optimizer comes after: FSDP replaces the parameters by their shards.
        self._module = parallelise(self._branches, how=run.parallelism, world_size=host.world_size, device=host.device)
        self._optimizer = make_optimizer(self._branches, knobs)
        self._schedule = make_schedule(self._optimizer, knobs, num_steps=self._sampler.num_steps)
        self.num_steps = self._sampler.num_steps
        self.first_step = 0
        self._totals: dict[str, float] = {}
        self._readings: list[MarginReading] = []
        torch.manual_seed(run.seed + 1_000_003 * (host.rank + 1))  # noise and dropout differ between workers
        if resumed is not None:
            checkpoints.restore_optimizer(resumed, self._branches, self._optimizer)
            self._schedule.load_state_dict(resumed.schedule)
            self.first_step, self._totals = resumed.step, resumed.totals
            self._readings = resumed.readings
            # Dropout and NEFTune draw in every step, so the generator's state is part of a checkpoint: without it a
            # resumed run would not be bit-identical. (Batches are a function of seed and step and need no state.) It
            # is restored last, since building the models draws too.
            resumed.restore_rng()
            logger.info("%s resumes at step %d of %d", run.phase, self.first_step, self.num_steps)
        self._branches.train()

    @property
    def stopped(self) -> bool:
        """Whether the phase ends before its last step."""
        return self._run.stop_at_saturation and "saturated_at" in self._totals

    def one_step(self, step: int) -> dict[str, float]:
        """Optimizer step `step` (0-based), and its metrics, the same on every worker but for the time."""
        started = time.perf_counter()
        run, knobs = self._run, self._knobs
        batch = self._sampler.batch(step).tolist()
        # The loss is divided by the targets of the whole batch, on all workers. Divided by those of each micro-batch or
        # worker, a token would weigh more the fewer others it is grouped with, and the split would change the result.
        num_targets = sum(self._samples[index].num_targets for index in batch)
        mixing_weight = mixing_weight_at(
            step,
            num_steps=self.num_steps,
            start=run.mixing_weight,
            end=run.mixing_weight_end,
            schedule=run.mixing_schedule,
        )
        reads = knobs.telemetry_every is not None and step % knobs.telemetry_every == 0
        loss_sum, statistics = self._accumulate(batch, num_targets, mixing_weight=mixing_weight, telemetry=reads)
        mean_loss = loss_sum / num_targets

        # The check stands before the update: afterwards NaN would be in the weights, in AdamW's moments and in the next
        # checkpoint, and the run could not be resumed.
        norms = self._gradient_norms()
        self._stop_if_not_finite(mean_loss, norms["grad_norm"], step, batch)
        if knobs.gradient_clip is not None:
            self._clip(norms["grad_norm"], knobs.gradient_clip)
        learning_rate = float(self._schedule.get_last_lr()[0])  # torchao keeps it in a tensor
        self._optimizer.step()
        self._schedule.step()
        # Freed, not zeroed: the next forward pass has their memory for its activations.
        self._optimizer.zero_grad(set_to_none=True)

        num_tokens = sum(len(self._samples[index].input_ids) for index in batch)
        metrics = {
            "step": float(step + 1),
            "num_steps": float(self.num_steps),
            "train_loss": mean_loss,
            "learning_rate": learning_rate,
            "mixing_weight": mixing_weight,
            **norms,
            **statistics,
            **({"unpacked": 1.0} if self._knobs.packing == "auto" and not self._branches.packed else {}),
            "num_targets": float(num_targets),
            "num_tokens": float(num_tokens),
            "tokens_per_s": num_tokens / (time.perf_counter() - started),
        }
        # They go into checkpoints, so that a resumed run reports the whole run and not its last part.
        self._totals |= {
            "first_loss": self._totals.get("first_loss", mean_loss),
            "total_tokens": self._totals.get("total_tokens", 0.0) + num_tokens,
            "total_s": self._totals.get("total_s", 0.0) + time.perf_counter() - started,
        }
        if statistics:
            self._readings.append(MarginReading(step + 1, statistics["margin"], statistics["entropy_strong"]))
            if "saturated_at" not in self._totals and is_saturated([reading.margin for reading in self._readings]):
                self._totals["saturated_at"] = metrics["saturated_at"] = metrics["step"]
        return metrics

    def held_out_loss(self) -> float:
        """Mean loss of a held-out target under the strong model alone, as it will be used, in nats.

        It draws no random numbers, so a run that looks is bit-identical to one that does not.
        """
        loss_sum = torch.zeros((), dtype=torch.float64, device=self._host.device)
        everything = list(range(len(self._held_out)))
        self._branches.eval()
        with torch.no_grad():
            for group in self._groups(everything, self._held_out):
                micro = self._collate(group, self._held_out, of=everything)
                loss_sum += self._module(micro, mixing_weight=1.0, with_weak=False)[0]
        self._branches.train()
        if self._host.world_size > 1:
            torch.distributed.all_reduce(loss_sum)
        loss = float(loss_sum) / sum(sample.num_targets for sample in self._held_out)
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss of held-out rows is {loss}; lower learning_rate, or look at the validation file",
                param="validation_file",
            )
        return loss

    def _accumulate(
        self, batch: list[int], num_targets: int, *, mixing_weight: float, telemetry: bool
    ) -> tuple[float, dict[str, float]]:
        """Gradients of the step's mean loss; returns the loss summed over all workers' targets, and a reading."""
        host = self._host
        groups = self._groups(batch, self._samples)
        loss_sum = torch.zeros((), dtype=torch.float64, device=host.device)
        names = statistics_of(1 + len(self._run.weak))
        sums = torch.zeros(len(names) + 1, dtype=torch.float64, device=host.device)
        # From every micro-batch: the first one holds the longest samples.
        rows_each = -(-TELEMETRY_ROWS // len(groups))
        for number, group in enumerate(groups):
            weak_states = [cache.rows(group) for cache in self._states]
            micro = self._collate(group, self._samples, of=batch, weak_states=weak_states)
            rows = rows_each if telemetry else 0
            # Gradients travel between workers once a step, in the backward pass of the last micro-batch.
            last = number == len(groups) - 1
            with contextlib.nullcontext() if last else no_sync(self._module):
                loss, statistics = self._module(micro, mixing_weight=mixing_weight, telemetry_rows=rows)
                # Workers average their gradients; the loss is a sum over them.
                (loss * (host.world_size / num_targets)).backward()
            loss_sum += loss.detach()
            if statistics is not None:
                sums += statistics
        # Every worker needs the sums: the check for finite numbers and the stop at saturation must end alike on all.
        if host.world_size > 1:
            torch.distributed.all_reduce(loss_sum)
            torch.distributed.all_reduce(sums)
        if not telemetry:
            return float(loss_sum), {}
        return float(loss_sum), dict(zip(names, (sums[:-1] / sums[-1]).tolist(), strict=True))

    def _groups(self, batch: list[int], samples: Sequence[TokenizedSample]) -> list[list[int]]:
        """This worker's micro-batches of some samples; an empty one is a pass that only keeps the others company.

        Gradients are summed over workers, so one that has no sample of a small batch takes part all the same. Where
        weights are divided among workers, every pass gathers them from all, so all make the same number of passes.
        """
        host, divided = self._host, self._run.parallelism == "fsdp"
        shares = {
            rank: micro_batches(
                batch,
                samples,
                max_tokens=self._knobs.micro_batch_tokens,
                packing=self._branches.packed,
                rank=rank,
                world_size=host.world_size,
            )
            for rank in (range(host.world_size) if divided else [host.rank])
        }
        passes = max(1, *(len(groups) for groups in shares.values()))
        own = shares[host.rank]
        return own + [[]] * (passes - len(own))

    def _collate(
        self,
        group: list[int],
        samples: Sequence[TokenizedSample],
        *,
        of: list[int],
        weak_states: Sequence[Tensor] = (),
    ) -> MicroBatch:
        """Tensors of a group; of an empty one, those of the batch's shortest sample without its targets."""
        indices = group or [min(of, key=lambda index: len(samples[index].input_ids))]
        return collate(
            [samples[index] for index in indices],
            device=self._host.device,
            packing=self._branches.packed,
            supervised=bool(group),
            weak_states=weak_states,
        )

    def _gradient_norms(self) -> dict[str, float]:
        branches = self._branches
        names = branch_names(1 + len(branches.weak))
        norms = [gradient_norm(parameters) for parameters in branches.parameters_by_branch()]
        if len(norms) == 1:
            return {"grad_norm": norms[0]}
        return {"grad_norm": math.hypot(*norms)} | {
            f"grad_norm_{name}": norm for name, norm in zip(names, norms, strict=True)
        }

    def _clip(self, norm: float, limit: float) -> None:
        """Scale all gradients so that their joint norm is at most `limit`."""
        if norm > limit:
            gradients: list[Tensor] = [p.grad for p in self._branches.parameters() if p.grad is not None]
            torch._foreach_mul_(gradients, limit / norm)

    def _stop_if_not_finite(self, loss: float, norm: float, step: int, indices: list[int]) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            return
        lines = sorted({self._samples[index].line for index in indices})
        raise TrainingError(
            f"loss {loss} and gradient norm {norm} at step {step + 1} on worker {self._host.rank}, before the update; "
            f"lower learning_rate, or look at these lines of the training file: {lines[:20]}",
            param="method",
        )

    def save(self, step: int, metrics: dict[str, float]) -> None:
        """Publish a checkpoint; every worker writes its own part."""
        metrics = metrics | self._totals
        with tempfile.TemporaryDirectory(prefix="wmss-checkpoint-") as folder_name:
            folder = Path(folder_name)
            checkpoints.save(
                folder,
                rank=self._host.rank,
                run=self._run,
                branches=self._branches,
                optimizer=self._optimizer,
                schedule=self._schedule,
                step=step,
                readings=self._readings,
                metrics=metrics,
            )
            self._host.checkpoint(folder, metrics)
