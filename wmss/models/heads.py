"""What a causal LM does to its hidden states to make logits of them.

z = cap(scale · (h Wᵀ + b)), cap(x) = c · tanh(x / c): families scale their logits (Cohere, Granite, MiniCPM) or cap
them softly (Gemma 2). No list of config fields would ever be complete, so the model itself is asked.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from wmss.errors import ModelError
from wmss.models.loading import body_of, loader_errors

_WIDTH, _LENGTH = 4, 4
_TOLERANCE = 1e-5
"""Relative: some families round their logits to float32."""
_SMALL, _LARGE = 1e-4, 1e9
"""Sizes of logits that no cap changes, and that any cap flattens."""


class HeadForm(NamedTuple):
    """What happens to the product of states and head."""

    scale: float = 1.0
    cap: float | None = None
    """None = no cap."""

    def logits(self, product: Tensor) -> Tensor:
        """Logits of h Wᵀ + b."""
        scaled = product if self.scale == 1.0 else product * self.scale
        return scaled if self.cap is None else torch.tanh(scaled / self.cap) * self.cap


PLAIN = HeadForm()


class _States(BaseModelOutputWithPastAndCrossAttentions):
    """What a body returns: states, and None for whatever else a family looks for (router logits, shared caches)."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


@torch.no_grad()
def head_form(model: PreTrainedModel) -> HeadForm | None:
    """How the model makes logits of the states that enter its head; None if in no way known here.

    Its weights do not matter, and need not be there: it runs on a head of a few columns, without its body.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        return None
    generator = torch.Generator().manual_seed(0)
    states, weight, bias = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((1, _LENGTH, _WIDTH), (head.out_features, _WIDTH), (head.out_features,))
    )
    if head.bias is None:
        bias = torch.zeros_like(bias)
    product = states @ weight.t() + bias

    def found(size: float) -> Tensor:
        """Logits of the same product times `size`."""
        with _only_head(model, weight, bias * size if head.bias is not None else None):
            output: Tensor = _logits(model, states * size)
        return output.double()

    small, large = found(_SMALL), found(_LARGE)
    if small.shape != product.shape:  # padding is cut off
        return None
    scale = float((small * product).sum() / (_SMALL * (product * product).sum()))
    if abs(scale - 1.0) < _TOLERANCE:
        scale = 1.0
    capped = bool(large.abs().max() < 1e-3 * abs(scale) * _LARGE)
    form = HeadForm(scale, float(large.abs().max()) if capped else None)
    for size in (1.0, 1.0 if form.cap is None else form.cap / abs(scale)):
        expected = form.logits(product * size)
        if not float((found(size) - expected).norm() / expected.norm()) <= _TOLERANCE:
            return None
    return form


@contextmanager
def _only_head(model: PreTrainedModel, weight: Tensor, bias: Tensor | None) -> Iterator[None]:
    head = model.get_output_embeddings()
    small = nn.Linear(_WIDTH, len(weight), bias=bias is not None, device="meta")
    small.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        small.bias = nn.Parameter(bias, requires_grad=False)
    try:
        model.set_output_embeddings(small)
        yield
    finally:
        model.set_output_embeddings(head)


def _logits(model: PreTrainedModel, states: Tensor) -> Tensor:
    # OPT asks its body's decoder directly.
    bodies: dict[Any, Any] = {body: body.forward for body in (body_of(model), model.get_decoder()) if body is not model}
    try:
        for body in bodies:
            body.forward = lambda *_, **__: _States(last_hidden_state=states)
        logits: Tensor = model(input_ids=torch.zeros(1, _LENGTH, dtype=torch.long), use_cache=False).logits
    finally:
        for body, original in bodies.items():
            body.forward = original
    return logits


def known_form(model: PreTrainedModel) -> HeadForm:
    """As `head_form`, of a model that `check_output_head` let pass."""
    form = head_form(model)
    assert form is not None, f"{type(model).__name__}: its head was not checked"
    return form


def check_output_head(model: PreTrainedModel, *, param: str) -> HeadForm:
    """The form of the model's head; raises `ModelError` unless the losses know it: training on other logits would
    silently be another objective."""
    with loader_errors(
        f"the output head of {type(model).__name__} cannot be run", param=param, remedy="choose another model"
    ):
        form = head_form(model)
    if form is None:
        raise ModelError(
            f"{param}: {type(model).__name__} makes its logits in another way than a linear head, a scale and a soft "
            "cap; choose another model",
            param=param,
        )
    return form
