"""Exact entropy of every row alone: against the head's product without it, and every other way to compute it.

python -m benchmarks.entropy_op
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
from wmss.core.entropy import token_entropy
from wmss.core.rows import resolve_chunk_size

SETTINGS = (
    {"vocabulary": 32_768, "width": 256, "rows": 512},
    {"vocabulary": 151_936, "width": 256, "rows": 256},
)
TARGET = Target("P-T10", at_most=1.45, aim=1.3)
TOLERANCE = 1e-5
"""Of float32 against float64, relative."""

Entropy = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Entropy [N] and NLL [N] of hidden [N, D], head [V, D] and labels [N]."""


def ours(hidden: Tensor, head: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The product's pass, which also gives logsumexp and top-1."""
    statistics = token_entropy(hidden, head, labels)
    assert statistics.nll is not None
    return statistics.entropy, statistics.nll


def naive(hidden: Tensor, head: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Full logits and the formula as it is written: softmax, log-softmax, product, sum."""
    logits = hidden @ head.T
    log_probabilities = torch.log_softmax(logits, dim=-1)
    entropy = -(torch.softmax(logits, dim=-1) * log_probabilities).sum(dim=-1)
    return entropy, -log_probabilities.gather(1, labels[:, None])[:, 0]


def trl(hidden: Tensor, head: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Full logits, then TRL's entropy and log-probability."""
    from trl.trainer.utils import entropy_from_logits, selective_log_softmax

    logits = hidden @ head.T
    return entropy_from_logits(logits), -selective_log_softmax(logits, labels)


def head_product(hidden: Tensor, head: Tensor, labels: Tensor) -> None:
    """What no exact entropy can do without, in the product's chunks of rows."""
    for rows in hidden.split(resolve_chunk_size(None, hidden.device)):
        _ = rows @ head.T


def make_inputs(setting: dict[str, int], *, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Random hidden states, head and labels; entropies spread over some nats."""
    generator = torch.Generator().manual_seed(0)
    width = setting["width"]
    hidden = (
        torch.randn(setting["rows"], width, generator=generator)
        * torch.rand(setting["rows"], 1, generator=generator)
        * 6
    )
    head = torch.randn(setting["vocabulary"], width, generator=generator) * width**-0.5
    labels = torch.randint(setting["vocabulary"], (setting["rows"],), generator=generator)
    return hidden.to(device), head.to(device), labels.to(device)


def run(
    *, settings: tuple[dict[str, int], ...] = SETTINGS, repetitions: int = REPETITIONS, device: str = "cpu"
) -> Iterator[Line]:
    """All arms at every setting."""
    ways: dict[str, Entropy] = {"ours": ours, "naive": naive}
    if importlib.util.find_spec("trl"):
        ways["trl"] = trl
    else:
        yield skipped("entropy_op", "trl", "trl is not installed")
    for setting in settings:
        yield from _run(setting, ways, repetitions=repetitions, device=device)


@torch.no_grad()
def _run(setting: dict[str, int], ways: dict[str, Entropy], *, repetitions: int, device: str) -> Iterator[Line]:
    hidden, head, labels = make_inputs(setting, device=device)
    exact = _named(_truth(hidden, head, labels))
    errors = {
        name: require_close(f"entropy_op {name}", _named(way(hidden, head, labels)), exact, tolerance=TOLERANCE)
        for name, way in ways.items()
    }
    arms = {name: partial(way, hidden, head, labels) for name, way in {"head_product": head_product, **ways}.items()}
    seconds = interleave(arms, repetitions=repetitions, device=device)
    for name, arm in arms.items():
        peak = peak_bytes(arm)
        figures = {
            "time_over_head_product": min(seconds[name]) / min(seconds["head_product"]),
            "peak_in_float32_logit_tensors": peak / (4 * setting["rows"] * setting["vocabulary"]),
        }
        yield line(
            "entropy_op",
            name,
            setting,
            seconds=seconds[name],
            peak=peak,
            figures=figures | ({"error_against_float64": errors[name]} if name in errors else {}),
            targets={"time_over_head_product": TARGET} if name == "ours" else {},
        )


def _named(statistics: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    return dict(zip(("entropy", "nll"), statistics, strict=True))


def _truth(hidden: Tensor, head: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Row by row in float64, without the product's code: full float64 logits of 152k words would be gigabytes."""
    entropies, losses = [], []
    wide = head.double()
    for row, label in zip(hidden.double(), labels, strict=True):
        logits = wide @ row
        entropies.append(torch.distributions.Categorical(logits=logits).entropy())
        losses.append(functional.cross_entropy(logits, label))
    return torch.stack(entropies), torch.stack(losses)


if __name__ == "__main__":
    print_lines(run())
