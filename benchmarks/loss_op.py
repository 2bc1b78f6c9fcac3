"""The mixed loss alone, forward and backward: against plain cross-entropy of one model, and every other way to mix.

python -m benchmarks.loss_op
"""

import importlib.util
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.measure import (
    REPETITIONS,
    Line,
    Target,
    interleave,
    line,
    peak_bytes,
    print_lines,
    require_close,
    skipped,
)
from wmss.core.mixing import LogitBranch, branch_cross_entropy, mixed_linear_cross_entropy

MIXING_WEIGHT = 0.5
SETTINGS = (
    {"vocabulary": 32_768, "width": 256, "rows": 512},
    {"vocabulary": 151_936, "width": 256, "rows": 256},
)
TARGETS = {"joint": Target("P-T8", at_most=2.2, aim=2.05), "frozen": Target("P-T8", at_most=1.6, aim=1.4)}
TOLERANCE = 1e-5
"""Of float32 against float64, relative."""

Tensors = dict[str, Tensor]
Loss = Callable[[Tensors, Tensor], Tensor]


def plain_full_logits(tensors: Tensors, labels: Tensor) -> Tensor:
    """Cross-entropy of the strong model alone, as plain fine-tuning computes it."""
    return functional.cross_entropy(tensors["strong_hidden"] @ tensors["strong_head"].T, labels)


def plain_torch_fused(tensors: Tensors, labels: Tensor) -> Tensor:
    """The same by torch's own fused function."""
    return _torch_fused(tensors["strong_hidden"], tensors["strong_head"], labels)


def plain_ours(tensors: Tensors, labels: Tensor) -> Tensor:
    """The same by the product's loss with one branch."""
    return branch_cross_entropy([LogitBranch(tensors["strong_hidden"], tensors["strong_head"])], labels)


def ours(tensors: Tensors, labels: Tensor) -> Tensor:
    """The product's loss."""
    return mixed_linear_cross_entropy(**tensors, labels=labels, mixing_weight=MIXING_WEIGHT)


def naive_mix(strong_logits: Tensor, weak_logits: Tensor) -> Tensor:
    """Mixed logits as the official code's operations give them: a stacked copy, two scaled ones, their sum, float32."""
    stacked = torch.stack([weak_logits, strong_logits])
    scaled = [stacked[0] * (1.0 - MIXING_WEIGHT), stacked[1] * MIXING_WEIGHT]
    return (scaled[0] + scaled[1]).float()


def naive(tensors: Tensors, labels: Tensor) -> Tensor:
    """Both logit tensors, mixed, then cross-entropy."""
    strong = tensors["strong_hidden"] @ tensors["strong_head"].T
    weak = tensors["weak_hidden"] @ tensors["weak_head"].T
    return functional.cross_entropy(naive_mix(strong, weak), labels)


def torch_concat(tensors: Tensors, labels: Tensor) -> Tensor:
    """One linear cross-entropy over the concatenated states and heads, by torch's fused function."""
    return _torch_fused(*_concatenated(tensors), labels)


def trl_concat(tensors: Tensors, labels: Tensor) -> Tensor:
    """The same by TRL's chunked kernel, which off CUDA runs on torch operations."""
    from trl.kernels import ChunkedLogProbFunction

    hidden, head = _concatenated(tensors)
    log_probabilities = ChunkedLogProbFunction.apply(hidden, head, None, labels, 1.0, 32_768, None, 1.0, ())[0]
    return -log_probabilities.mean()


def _concatenated(tensors: Tensors) -> tuple[Tensor, Tensor]:
    hidden = torch.cat([tensors["strong_hidden"], tensors["weak_hidden"]], dim=1)
    head = torch.cat([MIXING_WEIGHT * tensors["strong_head"], (1.0 - MIXING_WEIGHT) * tensors["weak_head"]], dim=1)
    return hidden, head


def _torch_fused(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    # Its own choice of chunk falls to a few rows, several times slower than full logits.
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=128)
    loss: Tensor = functional.linear_cross_entropy(hidden, head, labels, options=options)
    return loss


def make_inputs(setting: dict[str, int], *, frozen: bool, device: str) -> tuple[Tensors, Tensor]:
    """Random states and heads with logits of order one."""
    generator = torch.Generator().manual_seed(0)
    rows, vocabulary, width = setting["rows"], setting["vocabulary"], setting["width"]
    tensors = {}
    for name, size in (
        ("strong_hidden", rows),
        ("strong_head", vocabulary),
        ("weak_hidden", rows),
        ("weak_head", vocabulary),
    ):
        values = (torch.randn(size, width, generator=generator) * width**-0.25).to(device)
        tensors[name] = values.requires_grad_(not (frozen and name.startswith("weak")))
    return tensors, torch.randint(vocabulary, (rows,), generator=generator).to(device)


def loss_and_gradients(loss: Loss, tensors: Tensors, labels: Tensor) -> Tensors:
    """The loss and the gradients of one forward and backward pass."""
    for tensor in tensors.values():
        tensor.grad = None
    value = loss(tensors, labels)
    value.backward()
    found = {name: tensor.grad for name, tensor in tensors.items() if tensor.grad is not None}
    return {"loss": value.detach(), **found}


def run(
    *, settings: tuple[dict[str, int], ...] = SETTINGS, repetitions: int = REPETITIONS, device: str = "cpu"
) -> Iterator[Line]:
    """All arms at every setting, with the weak branch trained (joint) and not (frozen)."""
    losses: dict[tuple[str, str], Loss] = {
        ("plain", "full_logits"): plain_full_logits,
        ("plain", "ours"): plain_ours,
        ("joint", "ours"): ours,
        ("joint", "naive"): naive,
        ("frozen", "ours"): ours,
        ("frozen", "naive"): naive,
    }
    # A concatenation cannot leave out the frozen half, so one mode says all.
    if hasattr(functional, "linear_cross_entropy"):
        losses |= {("plain", "torch_fused"): plain_torch_fused, ("joint", "torch_concat"): torch_concat}
    else:
        yield skipped("loss_op", "torch_concat", "this torch has no linear_cross_entropy")
    if importlib.util.find_spec("trl"):
        losses |= {("joint", "trl_concat"): trl_concat}
    else:
        yield skipped("loss_op", "trl_concat", "trl is not installed")
    for setting in settings:
        yield from _run(setting, losses, repetitions=repetitions, device=device)


def _run(
    setting: dict[str, int], losses: dict[tuple[str, str], Loss], *, repetitions: int, device: str
) -> Iterator[Line]:
    joint, frozen = (make_inputs(setting, frozen=frozen, device=device) for frozen in (False, True))
    inputs = {"plain": joint, "joint": joint, "frozen": frozen}
    truths = {
        kind: _truth(plain_full_logits if kind == "plain" else _exact_mix, *given) for kind, given in inputs.items()
    }
    errors = {
        key: require_close(
            " ".join(["loss_op", *key]), loss_and_gradients(loss, *inputs[key[0]]), truths[key[0]], tolerance=TOLERANCE
        )
        for key, loss in losses.items()
    }
    arms = {key: partial(loss_and_gradients, loss, *inputs[key[0]]) for key, loss in losses.items()}
    seconds = interleave(arms, repetitions=repetitions, device=device)
    # The product's own plain loss is no peer of its mixed one.
    floor = min(min(seconds["plain", name]) for kind, name in losses if kind == "plain" and name != "ours")
    for (kind, name), arm in arms.items():
        peak = peak_bytes(arm)
        gated = name == "ours" and kind in TARGETS
        yield line(
            "loss_op",
            f"{kind} {name}",
            setting,
            seconds=seconds[kind, name],
            peak=peak,
            figures={
                "time_over_best_plain": min(seconds[kind, name]) / floor,
                "peak_in_float32_logit_tensors": peak / (4 * setting["rows"] * setting["vocabulary"]),
                "error_against_float64": errors[kind, name],
            },
            targets={"time_over_best_plain": TARGETS[kind]} if gated else {},
        )


def _truth(loss: Loss, tensors: Tensors, labels: Tensor) -> Tensors:
    exact = {name: tensor.detach().double().requires_grad_(tensor.requires_grad) for name, tensor in tensors.items()}
    return loss_and_gradients(loss, exact, labels)


def _exact_mix(tensors: Tensors, labels: Tensor) -> Tensor:
    hidden, head = _concatenated(tensors)
    return functional.cross_entropy(hidden @ head.T, labels)


if __name__ == "__main__":
    print_lines(run())
