"""Random inputs of the mixed loss, and the error that its tests measure."""

import torch
from torch import Tensor


def make_inputs(
    *,
    rows: int = 37,
    vocabulary: int = 53,
    strong_width: int = 12,
    weak_width: int = 7,
    bias: bool = True,
    seed: int = 0,
) -> tuple[dict[str, Tensor], Tensor]:
    """Hidden states, heads and biases in float64, and labels of which every fifth is ignored."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    tensors = {
        "strong_hidden": normal(rows, strong_width),
        "strong_head": normal(vocabulary, strong_width),
        "weak_hidden": normal(rows, weak_width),
        "weak_head": normal(vocabulary, weak_width),
    }
    if bias:
        tensors |= {"strong_bias": normal(vocabulary), "weak_bias": normal(vocabulary)}
    labels = torch.randint(vocabulary, (rows,), generator=generator)
    labels[::5] = -100
    return tensors, labels


def relative_error(value: Tensor, truth: Tensor) -> float:
    """|value − truth| / |truth|; of a truth of 0, |value|."""
    value, truth = value.detach(), truth.detach()
    scale = truth.double().norm()
    return float((value.double() - truth.double()).norm() / scale if scale > 0 else value.double().norm())
