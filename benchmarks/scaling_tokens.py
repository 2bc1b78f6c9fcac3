"""How a step's time grows with the tokens of its micro-batch, at one sequence length.

python -m benchmarks.scaling_tokens
"""

from collections.abc import Iterator

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
from benchmarks.models import Shape, Step, loss_and_gradients, make_batch, make_model, make_samples, weight_of
from wmss.training.branches import Branches, WeakModel

SHAPE = Shape(vocabulary=8_192, width=256, layers=2)
LENGTH, COUNTS = 128, (4, 8, 16, 32)
TARGET = Target("P-T13", at_least=0.95, at_most=1.05)
TOLERANCE = 1e-4
"""Of gradients, float32 against float32, relative."""


def run(
    *,
    shape: Shape = SHAPE,
    length: int = LENGTH,
    counts: tuple[int, ...] = COUNTS,
    repetitions: int = REPETITIONS,
    device: str = "cpu",
) -> Iterator[Line]:
    """Plain fine-tuning, frozen and joint, over doubled numbers of samples."""
    batches = {
        count: make_batch(make_samples([length] * count, vocabulary=shape.vocabulary), device=device)
        for count in counts
    }
    modes = {name: make_mode(name, shape).to(device) for name in ("sft", "frozen", "joint")}
    for branches in modes.values():
        _check(branches, shape, length=length, count=counts[0], device=device)
    arms = {(name, count): Step(modes[name], batches[count]) for name in modes for count in counts}
    seconds = interleave(arms, repetitions=repetitions, device=device)
    for name in modes:
        slope = log_slope(counts, [min(seconds[name, count]) for count in counts])
        for count in counts:
            last = count == counts[-1]
            yield line(
                "scaling_tokens",
                name,
                {**shape._asdict(), "tokens": length * count, "length": length},
                seconds=seconds[name, count],
                peak=peak_bytes(arms[name, count]),
                figures={
                    "microseconds_a_token": 1e6 * min(seconds[name, count]) / (length * count),
                    **({"log_slope": slope} if last else {}),
                },
                targets={"log_slope": TARGET} if last else {},
            )


def make_mode(name: str, shape: Shape) -> Branches:
    """`sft`, or one weak model, `frozen` or `joint`."""
    strong = make_model(shape, seed=0)
    if name == "sft":
        return Branches(strong)
    return Branches(strong, [WeakModel(make_model(shape, seed=1), trained=name == "joint")])


def _check(branches: Branches, shape: Shape, *, length: int, count: int, device: str) -> None:
    """The whole micro-batch against its samples one at a time, gradients added up."""
    samples = make_samples([length] * count, vocabulary=shape.vocabulary)
    whole = loss_and_gradients(branches, make_batch(samples, device=device))
    total = 0.0
    for sample in samples:
        batch = make_batch([sample], device=device)
        loss = branches(batch, mixing_weight=weight_of(branches))[0] / (count * batch.labels.numel())
        loss.backward()
        total = total + loss.detach()
    parts = {"loss": total, **gradients(branches)}
    branches.zero_grad(set_to_none=True)
    require_close("scaling_tokens", parts, whole, tolerance=TOLERANCE)


if __name__ == "__main__":
    print_lines(run())
