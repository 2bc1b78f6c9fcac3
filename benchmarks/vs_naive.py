"""A whole training step against the official code's sequence of operations, written anew from its description.

That sequence projects every position of both models, stacks both logit tensors, scales each, adds them, converts to
float32 and takes an ordinary cross-entropy, with all layers' hidden states collected. TRL, which runs around it, then
reads entropy and accuracy off a shifted copy of the logits; that part is an arm of its own.

python -m benchmarks.vs_naive
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from benchmarks.measure import (
    REPETITIONS,
    Line,
    Target,
    gradients,
    interleave,
    least_user,
    line,
    peak_bytes,
    print_lines,
    require_close,
)
from benchmarks.models import (
    KNOBS,
    MIXING_WEIGHT,
    Shape,
    Step,
    loss_and_gradients,
    make_batch,
    make_model,
    make_samples,
)
from wmss.choices import ActivationCheckpointing
from wmss.training.branches import Branches, WeakModel
from wmss.training.parallel import checkpoint_activations, models_of

SETTINGS: tuple[tuple[Shape, int, ActivationCheckpointing], ...] = (
    (Shape(vocabulary=32_768, width=256, layers=6), 512, "none"),
    (Shape(vocabulary=151_936, width=128, layers=4), 256, "none"),
    (Shape(vocabulary=8_192, width=384, layers=8), 512, "full"),
)
"""Model, tokens, activation checkpointing. In the last one the head is small, and nothing is asked."""
GATED_VOCABULARY = 32_768
TIME_TARGETS = {
    "joint": Target("P-T5", at_most=0.85, aim=0.75),
    "frozen": Target("P-T7", at_most=0.75),
}
PEAK_TARGETS = {
    "joint": Target("P-T6", at_most=0.5, aim=0.4),
    "frozen": Target("P-T7", at_most=0.35),
}
TOLERANCE = 1e-4
"""Of gradients, float32 against float32, relative."""
NOTE = (
    "user time leaves out what the operating system spends on handing out fresh memory, which is most of what full "
    "logits cost on a CPU; an allocator that keeps its memory would save it"
)
ENTROPY_ROWS = 128
"""TRL's slice for the entropy of the logits."""


class NaiveMix(nn.Module):
    """Both models as one module, mixed on full logits."""

    def __init__(self, strong: PreTrainedModel, weak: PreTrainedModel) -> None:
        super().__init__()
        self.models = nn.ModuleList([weak, strong])
        self.weights = (1.0 - MIXING_WEIGHT, MIXING_WEIGHT)

    def forward(self, input_ids: Tensor, *, metrics: bool = False) -> Tensor:
        """Mean cross-entropy of every token but the first, input_ids [B, T]."""
        collected, logits = [], []
        for model in self.models:
            output = model(input_ids=input_ids, output_hidden_states=True, use_cache=False)
            collected.append(output.hidden_states)
            logits.append(output.logits)
        stacked = torch.stack(logits)
        mixed = sum(weight * part for weight, part in zip(self.weights, stacked, strict=True))
        mixed = mixed.float()
        labels = functional.pad(input_ids, (0, 1), value=-100)[:, 1:]
        loss = functional.cross_entropy(mixed.flatten(0, 1), labels.flatten(), ignore_index=-100)
        if metrics:
            with torch.no_grad():
                read_metrics(mixed, input_ids)
        return loss


def read_metrics(logits: Tensor, input_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Mean entropy and accuracy off full logits, as TRL's trainer of that time reads them in every step."""
    shifted = logits[:, :-1].contiguous()
    entropy = []
    for rows in shifted.flatten(0, 1).split(ENTROPY_ROWS):
        log_probabilities = functional.log_softmax(rows, dim=-1)
        entropy.append(-(log_probabilities.exp() * log_probabilities).sum(-1))
    correct = (shifted.argmax(-1) == input_ids[:, 1:]).float()
    return torch.cat(entropy).mean(), correct.mean()


class NaiveStep:
    """Forward, backward, clip and AdamW as a plain trainer does them."""

    def __init__(self, module: NaiveMix, input_ids: Tensor, *, metrics: bool = False) -> None:
        self._module, self._input_ids, self._metrics = module, input_ids, metrics
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(self._parameters, lr=KNOBS.peak_learning_rate, weight_decay=0.0, fused=True)

    def __call__(self) -> None:
        self._module(self._input_ids, metrics=self._metrics).backward()
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)


def run(
    *,
    settings: tuple[tuple[Shape, int, ActivationCheckpointing], ...] = SETTINGS,
    repetitions: int = REPETITIONS,
    device: str = "cpu",
) -> Iterator[Line]:
    """Joint and frozen, ours and naive, at every setting."""
    for shape, tokens, checkpointing in settings:
        yield from _run(shape, tokens, checkpointing, repetitions=repetitions, device=device)


def _run(
    shape: Shape, tokens: int, checkpointing: ActivationCheckpointing, *, repetitions: int, device: str
) -> Iterator[Line]:
    batch = make_batch(make_samples([tokens], vocabulary=shape.vocabulary), device=device)
    steps: dict[tuple[str, str], Step | NaiveStep] = {}
    for mode in TIME_TARGETS:
        ours = _ours(shape, checkpointing, frozen=mode == "frozen").to(device)
        naive = _naive(shape, checkpointing, frozen=mode == "frozen").to(device)
        found, truth = loss_and_gradients(ours, batch), _loss_and_gradients(naive, batch.input_ids)
        require_close(f"vs_naive {mode}", found, truth, tolerance=TOLERANCE)
        steps |= {(mode, "ours"): Step(ours, batch), (mode, "naive"): NaiveStep(naive, batch.input_ids)}
        if checkpointing == "none" and mode == "joint":
            steps[mode, "naive_with_metrics"] = NaiveStep(naive, batch.input_ids, metrics=True)
    seconds = interleave(steps, repetitions=repetitions, device=device)
    peaks = {key: peak_bytes(step) for key, step in steps.items()}
    gated = shape.vocabulary >= GATED_VOCABULARY
    for mode, name in steps:
        target = gated and name == "ours"
        yield line(
            "vs_naive",
            f"{mode} {name}",
            {**shape._asdict(), "tokens": tokens, "checkpointing": checkpointing},
            seconds=seconds[mode, name],
            peak=peaks[mode, name],
            figures={
                "time_over_naive": min(seconds[mode, name]) / min(seconds[mode, "naive"]),
                "user_time_over_naive": least_user(seconds[mode, name]) / least_user(seconds[mode, "naive"]),
                "peak_over_naive": peaks[mode, name] / peaks[mode, "naive"],
            },
            targets={"time_over_naive": TIME_TARGETS[mode], "peak_over_naive": PEAK_TARGETS[mode]} if target else {},
            note=NOTE if name == "ours" else None,
        )


def _ours(shape: Shape, checkpointing: ActivationCheckpointing, *, frozen: bool) -> Branches:
    weak = WeakModel(make_model(shape, seed=1), trained=not frozen)
    branches = Branches(make_model(shape, seed=0), [weak])
    for model in models_of(branches):
        checkpoint_activations(model, checkpointing)
    return branches


def _naive(shape: Shape, checkpointing: ActivationCheckpointing, *, frozen: bool) -> NaiveMix:
    strong, weak = (make_model(shape, seed=seed, attention="sdpa") for seed in (0, 1))
    checkpoint_activations(strong, checkpointing)
    if frozen:
        # Checkpointing would make transformers differentiate through the frozen model.
        weak.requires_grad_(False)
    else:
        checkpoint_activations(weak, checkpointing)
    return NaiveMix(strong, weak)


def _loss_and_gradients(naive: NaiveMix, input_ids: Tensor) -> dict[str, Tensor]:
    """The naive loss and gradients, under the names they have in the product."""
    loss = naive(input_ids)
    loss.backward()
    found = {
        name.replace("models.1.", "strong.").replace("models.0.", "weak.0.model."): gradient
        for name, gradient in gradients(naive).items()
    }
    naive.zero_grad(set_to_none=True)
    return {"loss": loss.detach(), **found}


if __name__ == "__main__":
    print_lines(run())
