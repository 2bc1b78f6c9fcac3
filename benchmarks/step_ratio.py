"""A whole training step of every weak mode against plain fine-tuning: forward, backward, clip and AdamW.

python -m benchmarks.step_ratio
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from benchmarks.measure import (
    REPETITIONS,
    Line,
    Target,
    gradients,
    interleave,
    line,
    peak_bytes,
    print_lines,
    require_close,
)
from benchmarks.models import MIXING_WEIGHT, Shape, Step, loss_and_gradients, make_batch, make_model, make_samples
from wmss.choices import ActivationCheckpointing
from wmss.config import LoraConfig
from wmss.models.adapters import STRONG_ADAPTER, add_adapter, switch_on, using_adapter
from wmss.models.heads import PLAIN
from wmss.models.loading import output_head
from wmss.training.batches import MicroBatch
from wmss.training.branches import Branches, CachedWeak, WeakAdapter, WeakModel
from wmss.training.parallel import checkpoint_activations, models_of

SHAPE = Shape(vocabulary=32_768, width=256, layers=6)
TOKENS = 512
RANK = 16
TARGETS = {
    "joint": Target("P-T1", at_most=2.15, aim=2.0),
    "frozen": Target("P-T2", at_most=1.45, aim=1.33),
    "frozen_cached": Target("P-T3", at_most=1.25, aim=1.1),
}
PEAK_TARGETS = {"frozen": Target("P-T4", at_most=1.1, aim=1.02)}
NOTES = {
    "sft_telemetry": "a step that reads the telemetry; one in ten does",
    "joint_telemetry": "a step that reads the telemetry; one in ten does",
    "lora_adapter_off": "the weak model is the strong one's base with its adapter switched off: no second copy of "
    "weights, and the shared head is projected once",
    "frozen_cached": "the weak states are in memory already; reading them from disk is not in the time",
}
TELEMETRY = ("sft", "joint")
TELEMETRY_ROWS, TELEMETRY_EVERY = 256, 10
"""The training loop's own: targets of one reading, and steps between readings by default."""
TOLERANCE = 1e-4
"""Of the product's packed chunks against full logits, both in float32, relative."""


def run(
    *, shape: Shape = SHAPE, tokens: int = TOKENS, repetitions: int = REPETITIONS, device: str = "cpu"
) -> Iterator[Line]:
    """All modes, without activation checkpointing and with all of it."""
    batch = make_batch(make_samples([tokens], vocabulary=shape.vocabulary), device=device)
    checkpointing: ActivationCheckpointing
    for checkpointing in ("none", "full"):
        modes = make_modes(shape, batch, checkpointing)
        _check(modes, batch)
        steps = {name: Step(branches, given) for name, (branches, given) in modes.items()}
        if checkpointing == "none":
            steps |= {f"{name}_telemetry": Step(*modes[name], telemetry_rows=TELEMETRY_ROWS) for name in TELEMETRY}
        seconds = interleave(steps, repetitions=repetitions, device=device)
        peaks = {name: peak_bytes(step) for name, step in steps.items()}
        for name in steps:
            yield line(
                "step_ratio",
                name,
                {**shape._asdict(), "tokens": tokens, "checkpointing": checkpointing},
                seconds=seconds[name],
                peak=peaks[name],
                figures={
                    "time_over_sft": min(seconds[name]) / min(seconds["sft"]),
                    "peak_over_sft": peaks[name] / peaks["sft"],
                }
                | _special_figures(name, seconds),
                targets={
                    **({"time_over_sft": TARGETS[name]} if name in TARGETS else {}),
                    **({"peak_over_sft": PEAK_TARGETS[name]} if name in PEAK_TARGETS else {}),
                },
                note=NOTES.get(name),
            )


def _special_figures(name: str, seconds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    if name.startswith("lora"):
        return {"time_over_lora_sft": min(seconds[name]) / min(seconds["lora_sft"])}
    if name.endswith("_telemetry"):
        step = min(seconds[name.removesuffix("_telemetry")])
        return {"share_of_a_run": (min(seconds[name]) - step) / (TELEMETRY_EVERY * step)}
    return {}


def make_modes(
    shape: Shape, batch: MicroBatch, checkpointing: ActivationCheckpointing
) -> dict[str, tuple[Branches, MicroBatch]]:
    """The product's branches of every mode, each with the batch it takes."""
    weak = make_model(shape, seed=1).to(batch.input_ids.device)
    with torch.no_grad():
        states = Branches(weak).states_of(weak, batch)
    cached = dataclasses.replace(batch, weak_states=(states,))
    head, bias = output_head(weak)
    modes = {
        "sft": (Branches(make_model(shape, seed=0)), batch),
        "joint": (_mixed(shape, WeakModel(make_model(shape, seed=1), trained=True)), batch),
        "frozen": (_mixed(shape, WeakModel(make_model(shape, seed=1), trained=False)), batch),
        "frozen_cached": (_mixed(shape, CachedWeak(head.detach(), bias, PLAIN, number=0)), cached),
        "lora_sft": (Branches(_with_adapter(shape)), batch),
        "lora_adapter_off": (
            Branches(_with_adapter(shape), [WeakAdapter(None, trained=False)]),
            batch,
        ),
    }
    for branches, _ in modes.values():
        branches.to(batch.input_ids.device)
        for model in models_of(branches):
            checkpoint_activations(model, checkpointing)
    return modes


def _mixed(shape: Shape, weak: WeakModel | CachedWeak) -> Branches:
    return Branches(make_model(shape, seed=0), [weak])


def _with_adapter(shape: Shape) -> PreTrainedModel:
    model = make_model(shape, seed=0)
    add_adapter(model, STRONG_ADAPTER, LoraConfig(rank=RANK, alpha=2 * RANK))
    switch_on(model, {STRONG_ADAPTER})
    # A new adapter is zero, and strong and weak would be one and the same.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    return model


def _check(modes: dict[str, tuple[Branches, MicroBatch]], batch: MicroBatch) -> None:
    """Loss and gradients of every mode against full logits of transformers' own forward."""
    found = {name: loss_and_gradients(*mode) for name, mode in modes.items()}
    for name in ("sft", "joint", "frozen", "lora_sft", "lora_adapter_off"):
        truth = _full_logits(modes[name][0], batch)
        require_close(f"step_ratio {name}", found[name], truth, tolerance=TOLERANCE)
    strong_only = {name: tensor for name, tensor in found["frozen"].items() if not name.startswith("weak.")}
    require_close("step_ratio frozen_cached", found["frozen_cached"], strong_only, tolerance=TOLERANCE)


def _full_logits(branches: Branches, batch: MicroBatch) -> dict[str, Tensor]:
    """What one writes without thinking of memory."""
    logits = branches.strong(input_ids=batch.input_ids, use_cache=False).logits
    for weak in branches.weak:
        with torch.set_grad_enabled(weak.trained):
            if isinstance(weak, WeakAdapter):
                with using_adapter(branches.strong, weak.adapter):
                    other = branches.strong(input_ids=batch.input_ids, use_cache=False).logits
            else:
                other = weak.model(input_ids=batch.input_ids, use_cache=False).logits
        logits = MIXING_WEIGHT * logits + (1.0 - MIXING_WEIGHT) * other
    loss = functional.cross_entropy(logits[0, :-1], batch.input_ids[0, 1:])
    loss.backward()
    found = {"loss": loss.detach(), **gradients(branches)}
    branches.zero_grad(set_to_none=True)
    return found


if __name__ == "__main__":
    print_lines(run())
