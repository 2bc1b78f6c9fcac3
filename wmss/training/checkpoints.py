"""A training checkpoint on disk: the strong branch as an ordinary model folder, and the state to resume from.

strong/               config, safetensors, tokenizer: loads anywhere
adapter/              the same as an adapter in PEFT's format, where adapters are trained
weak_{i}/             weak branch i, where it is trained
training_state.pt     optimizer, schedule, step, readings of the margin (tensors and plain values only)
metrics.json          metrics of the checkpoint's step
rng_rank{r}.pt        random-number state of each worker
digests_rank{r}.json  SHA-256 of every file that worker wrote

Nothing in it depends on the number of workers but the random-number states.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule

from wmss.models.adapters import STRONG_ADAPTER, merged_model, save_adapter
from wmss.models.checkpoints import save_model
from wmss.records import ADAPTER_FOLDER, STRONG_FOLDER
from wmss.training.branches import Branches, WeakAdapter, WeakModel
from wmss.training.checkpoint_files import METRICS, STATE, TOTALS, MarginReading, file_digest, load_metrics, verify
from wmss.training.run import TrainingRun

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


@dataclass(frozen=True)
class Resumed:
    """A training checkpoint to go on from."""

    folder: Path
    step: int
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    readings: list[MarginReading]
    totals: dict[str, float]
    """What `TOTALS` names, of the whole run so far."""
    rng: dict[str, Tensor] | None
    """Of this worker; None if there was no such worker then."""

    def weak_folder(self, number: int) -> Path:
        """Where a trained weak branch lies."""
        return self.folder / _weak_name(number)

    def restore_rng(self) -> None:
        """Put this worker's random-number state back; a worker that did not exist then keeps its fresh one."""
        if self.rng is None:
            return
        torch.set_rng_state(self.rng["cpu"])
        if "cuda" in self.rng and torch.cuda.is_available():
            torch.cuda.set_rng_state(self.rng["cuda"])


def save(
    folder: Path,
    *,
    rank: int,
    run: TrainingRun,
    branches: Branches,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    step: int,
    readings: list[MarginReading],
    metrics: dict[str, float],
) -> None:
    """Write this worker's part of a checkpoint; every worker must call it, rank 0 writes all that is common."""
    state = _whole_state(branches)
    optimizer_state = get_optimizer_state_dict(branches, optimizer, options=_WHOLE)
    rng = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        rng["cuda"] = torch.cuda.get_rng_state()
    torch.save(rng, folder / _rng_name(rank))
    if rank == 0:
        _save_models(folder, run, branches, state)
        (folder / METRICS).write_text(json.dumps(metrics), encoding="utf-8")
        values = {
            "step": step,
            "optimizer": optimizer_state,
            "schedule": schedule.state_dict(),
            "readings": [tuple(reading) for reading in readings],
        }
        torch.save(values, folder / STATE)
    digests = {str(file.relative_to(folder)): file_digest(file) for file in sorted(folder.rglob("*")) if file.is_file()}
    (folder / f"digests_rank{rank}.json").write_text(json.dumps(digests, indent=1), encoding="utf-8")


def _whole_state(branches: Branches) -> dict[str, Tensor]:
    """All tensors of all branches, whole; where weights are divided among workers, on the CPU and for rank 0 only."""
    if not isinstance(branches, FSDPModule):
        return branches.state_dict()
    gathered: dict[str, Any] = get_model_state_dict(branches, options=_WHOLE)
    # Rows that do not divide evenly leave padding behind a gathered tensor, which safetensors refuses to write.
    return {
        name: tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor
        for name, tensor in gathered.items()
    }


def _save_models(folder: Path, run: TrainingRun, branches: Branches, state: dict[str, Tensor]) -> None:
    lora = run.hyperparameters.lora
    strong = _part(state, "strong.")
    if lora is None:
        save_model(branches.strong, strong, folder / STRONG_FOLDER, tokenizer_from=run.strong.folder)
    else:
        save_adapter(branches.strong, strong, folder / ADAPTER_FOLDER, STRONG_ADAPTER, base=run.strong.folder)
        merged = merged_model(branches.strong, strong, STRONG_ADAPTER, lora)
        save_model(merged, merged.state_dict(), folder / STRONG_FOLDER, tokenizer_from=run.strong.folder)
    for number, (weak, source) in enumerate(zip(branches.weak, run.weak, strict=True)):
        target = folder / _weak_name(number)
        if isinstance(weak, WeakModel) and weak.trained:
            weights = _part(state, f"weak.{number}.model.")
            if lora is not None:
                save_adapter(weak.model, weights, target, STRONG_ADAPTER, base=source.folder)
            else:
                save_model(weak.model, weights, target, tokenizer_from=source.folder)
        elif isinstance(weak, WeakAdapter) and weak.trained and weak.adapter is not None:
            save_adapter(branches.strong, strong, target, weak.adapter, base=source.folder)


def load(folder: Path, rank: int) -> Resumed:
    """Read a checkpoint and check that it is whole; only tensors and plain values are unpickled.

    Raises:
        TrainingError: a file is missing or is not what was written.
    """
    verify(folder)
    state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    metrics = load_metrics(folder)
    rng = folder / _rng_name(rank)
    return Resumed(
        folder=folder,
        step=state["step"],
        optimizer=state["optimizer"],
        schedule=state["schedule"],
        readings=[MarginReading(*reading) for reading in state["readings"]],
        totals={name: metrics[name] for name in TOTALS if name in metrics},
        rng=torch.load(rng, map_location="cpu", weights_only=True) if rng.is_file() else None,
    )


def restore_optimizer(resumed: Resumed, branches: Branches, optimizer: torch.optim.Optimizer) -> None:
    """Put the stored moments back, divided as this run divides them."""
    set_optimizer_state_dict(branches, optimizer, resumed.optimizer, options=StateDictOptions(full_state_dict=True))


def _part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _weak_name(number: int) -> str:
    return f"weak_{number}"


def _rng_name(rank: int) -> str:
    return f"rng_rank{rank}.pt"
