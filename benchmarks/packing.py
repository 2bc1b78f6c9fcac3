"""What packing gains on samples of ragged lengths: the product's packed rows against its padded ones.

Padding can only be saved where it is computed. The blocks of the model run over all positions, so their gain should be
that of the positions; the output head projects supervised rows only, packed or padded, and gains nothing. The target
is therefore on the blocks, forward and backward; the whole step is there to read.

python -m benchmarks.packing
"""

import math
from collections.abc import Callable, Iterator

import numpy as np

from benchmarks.measure import REPETITIONS, Line, Target, interleave, line, peak_bytes, print_lines, require_close
from benchmarks.models import Shape, Step, loss_and_gradients, make_batch, make_model, make_samples
from wmss.training.batches import MicroBatch
from wmss.training.branches import Branches

SHAPE = Shape(vocabulary=8_192, width=256, layers=4)
SAMPLES, SHORTEST, LONGEST = 16, 16, 512
TARGET = Target("packing", at_least=0.9)
TOLERANCE = 1e-4
"""Of gradients, float32 against float32, relative."""


def ragged_lengths(num_samples: int, *, shortest: int, longest: int) -> list[int]:
    """Log-normal lengths, cut at both ends."""
    rng = np.random.default_rng(0)
    lengths = rng.lognormal(math.log(math.sqrt(shortest * longest)), 0.9, num_samples)
    return [int(length) for length in np.clip(lengths, shortest, longest)]


def run(
    *,
    shape: Shape = SHAPE,
    num_samples: int = SAMPLES,
    longest: int = LONGEST,
    repetitions: int = REPETITIONS,
    device: str = "cpu",
) -> Iterator[Line]:
    """Blocks alone and whole steps, packed and padded."""
    lengths = ragged_lengths(num_samples, shortest=SHORTEST, longest=longest)
    samples = make_samples(lengths, vocabulary=shape.vocabulary)
    batches = {
        "packed": make_batch(samples, device=device),
        "padded": make_batch(samples, device=device, packing=False),
    }
    branches = {name: Branches(make_model(shape, seed=0)).to(device) for name in batches}
    found = {name: loss_and_gradients(branches[name], batch) for name, batch in batches.items()}
    require_close("packing", found["packed"], found["padded"], tolerance=TOLERANCE)
    arms: dict[tuple[str, str], Callable[[], object]] = {}
    for name, batch in batches.items():
        arms["blocks", name] = _blocks(branches[name], batch)
        arms["step", name] = Step(branches[name], batch)
    seconds = interleave(arms, repetitions=repetitions, device=device)
    positions = {name: batch.input_ids.numel() for name, batch in batches.items()}
    ideal = positions["padded"] / positions["packed"]
    for part, name in arms:
        gain = min(seconds[part, "padded"]) / min(seconds[part, name])
        yield line(
            "packing",
            f"{part} {name}",
            {**shape._asdict(), "samples": num_samples, "lengths": f"{min(lengths)}-{max(lengths)}"},
            seconds=seconds[part, name],
            peak=peak_bytes(arms[part, name]),
            figures={
                "positions": positions[name],
                "gain": gain,
                "share_of_ideal_gain": gain / (positions["padded"] / positions[name]),
                "ideal_gain": ideal,
            },
            targets={"share_of_ideal_gain": TARGET} if (part, name) == ("blocks", "packed") else {},
        )


def _blocks(branches: Branches, batch: MicroBatch) -> Callable[[], None]:
    def forward_and_backward() -> None:
        branches.states_of(branches.strong, batch).sum().backward()
        branches.zero_grad(set_to_none=True)

    return forward_and_backward


if __name__ == "__main__":
    print_lines(run())
