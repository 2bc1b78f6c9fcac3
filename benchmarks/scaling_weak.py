"""How a step's time grows with the number of weak models, held fixed and trained: each should cost what the first did.

python -m benchmarks.scaling_weak
"""

import statistics
from collections.abc import Iterator

from torch import Tensor
from torch.nn import functional

from benchmarks.measure import (
    REPETITIONS,
    Line,
    Target,
    gradients,
    interleave,
    line,
    log_slope,
    peak_bytes,
    print_lines,
    require_close,
)
from benchmarks.models import MIXING_WEIGHT, Shape, Step, loss_and_gradients, make_batch, make_model, make_samples
from wmss.training.batches import MicroBatch
from wmss.training.branches import Branches, WeakModel

SHAPE = Shape(vocabulary=8_192, width=256, layers=4)
TOKENS, NUMBERS = 512, (1, 2, 4)
TARGET = Target("P-T13", at_least=0.95, at_most=1.05)
TOLERANCE = 1e-4
"""Of gradients, float32 against float32, relative."""


def run(
    *,
    shape: Shape = SHAPE,
    tokens: int = TOKENS,
    numbers: tuple[int, ...] = NUMBERS,
    repetitions: int = REPETITIONS,
    device: str = "cpu",
) -> Iterator[Line]:
    """The slope of log(time − time without a weak model) against log(number of weak models)."""
    batch = make_batch(make_samples([tokens], vocabulary=shape.vocabulary), device=device)
    arms = {("strong only", 0): Step(make_branches(shape, 0, trained=False).to(device), batch)}
    for mode in ("frozen", "joint"):
        for number in numbers:
            branches = make_branches(shape, number, trained=mode == "joint").to(device)
            found, truth = loss_and_gradients(branches, batch), _full_logits(branches, batch)
            require_close(f"scaling_weak {mode} {number}", found, truth, tolerance=TOLERANCE)
            arms[mode, number] = Step(branches, batch)
    seconds = interleave(arms, repetitions=repetitions, device=device)
    alone = min(seconds["strong only", 0])
    for mode, number in arms:
        more = {n: min(seconds[mode, n]) - alone for n in numbers if (mode, n) in arms}
        last = number == numbers[-1]
        if last:
            slope = log_slope(numbers, list(more.values()))
            line_slope, _ = statistics.linear_regression(numbers, list(more.values()))
        yield line(
            "scaling_weak",
            mode if number == 0 else f"{mode} {number}",
            {**shape._asdict(), "tokens": tokens, "weak_models": number},
            seconds=seconds[mode, number],
            peak=peak_bytes(arms[mode, number]),
            figures={
                "time_over_strong_only": min(seconds[mode, number]) / alone,
                **({"log_slope": slope, "steps_a_weak_model": line_slope / alone} if last else {}),
            },
            targets={"log_slope": TARGET} if last else {},
        )


def make_branches(shape: Shape, number: int, *, trained: bool) -> Branches:
    """A strong model and `number` weak ones that share 1-λ equally."""
    weak = [WeakModel(make_model(shape, seed=1 + i), trained=trained) for i in range(number)]
    return Branches(
        make_model(shape, seed=0),
        weak,
        weak_shares=[1.0 / number] * number if weak else (),
    )


def _full_logits(branches: Branches, batch: MicroBatch) -> dict[str, Tensor]:
    logits = MIXING_WEIGHT * branches.strong(input_ids=batch.input_ids, use_cache=False).logits
    for weak, share in zip(branches.weak, branches.weak_shares, strict=True):
        other = weak.model(input_ids=batch.input_ids, use_cache=False).logits
        logits = logits + (1.0 - MIXING_WEIGHT) * share * other
    loss = functional.cross_entropy(logits[0, :-1], batch.input_ids[0, 1:])
    loss.backward()
    found: dict[str, Tensor] = {"loss": loss.detach(), **gradients(branches)}
    branches.zero_grad(set_to_none=True)
    return found


if __name__ == "__main__":
    print_lines(run())
