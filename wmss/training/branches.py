"""The models of a training phase as one module: a micro-batch in, the summed loss of their mixed logits out.

Shape suffixes: N positions of a micro-batch, R supervised ones, V vocabulary, D hidden width.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from wmss.core.mixing import LogitBranch, branch_cross_entropy
from wmss.core.telemetry import mix_statistics
from wmss.models.adapters import adapter_parameters, using_adapter
from wmss.models.heads import HeadForm, known_form
from wmss.models.loading import batch_states, output_head
from wmss.training.batches import MicroBatch


class Weak(Protocol):
    """A weak model, wherever its hidden states come from."""

    trained: bool

    def states(self, branches: "Branches", batch: MicroBatch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Hidden states [R, D], output head [V, D] and bias [V] or None."""

    def form(self, branches: "Branches") -> HeadForm:
        """How its logits come from them."""


class WeakModel(nn.Module):
    """A checkpoint of its own."""

    def __init__(self, model: PreTrainedModel, *, trained: bool) -> None:
        super().__init__()
        self.model = model if trained else model.requires_grad_(False)
        self.trained = trained
        self._form = known_form(model)

    def form(self, branches: "Branches") -> HeadForm:
        return self._form

    def states(self, branches: "Branches", batch: MicroBatch) -> tuple[Tensor, Tensor, Tensor | None]:
        with contextlib.nullcontext() if self.trained else _held_fixed(self.model):
            return branches.states_of(self.model, batch), *output_head(self.model)


class WeakAdapter(nn.Module):
    """The strong model's own weights under another adapter, or under none: no second copy of them."""

    def __init__(self, adapter: str | None, *, trained: bool) -> None:
        super().__init__()
        self.adapter = adapter
        self.trained = trained

    def form(self, branches: "Branches") -> HeadForm:
        return branches.form

    def states(self, branches: "Branches", batch: MicroBatch) -> tuple[Tensor, Tensor, Tensor | None]:
        model = branches.strong
        with contextlib.nullcontext() if self.trained else _held_fixed(model), using_adapter(model, self.adapter):
            return branches.states_of(model, batch), *output_head(model)


@contextlib.contextmanager
def _held_fixed(model: PreTrainedModel) -> Iterator[None]:
    """Neither gradients nor dropout: the states are those that scoring saw."""
    training = model.training
    try:
        with torch.no_grad():
            model.eval()
            yield
    finally:
        model.train(training)


class CachedWeak(nn.Module):
    """The output head of a frozen checkpoint; its hidden states come with the batch."""

    trained = False

    def __init__(self, head: Tensor, bias: Tensor | None, form: HeadForm, *, number: int) -> None:
        super().__init__()
        self._form = form
        self.head = nn.Parameter(head, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self._number = number

    def states(self, branches: "Branches", batch: MicroBatch) -> tuple[Tensor, Tensor, Tensor | None]:
        return batch.weak_states[self._number], self.head, self.bias

    def form(self, branches: "Branches") -> HeadForm:
        return self._form


class Branches(nn.Module):
    """The strong model and, in the weak-driven phase, the weak ones; forward gives the summed loss of a micro-batch.

    One module, so that data-parallel wrappers see one forward and one set of parameters. Without a weak model the
    loss is that of softmax(λ z_strong): plain supervised fine-tuning with λ = 1, else the matched-scale control.
    """

    def __init__(
        self,
        strong: PreTrainedModel,
        weak: Sequence[Weak] = (),
        *,
        weak_shares: Sequence[float] = (),
        bfloat16: bool = False,
        neftune_alpha: float | None = None,
        packed: bool = True,
    ) -> None:
        super().__init__()
        self.strong = strong
        self.form = known_form(strong)
        """How the strong model's logits come from its states."""
        self.packed = packed
        self._sources = tuple(weak)
        self.weak = nn.ModuleList(weak)  # type: ignore[arg-type]
        self.weak_shares = tuple(weak_shares) or (1.0 / max(1, len(weak)),) * len(weak)
        self._dtype = torch.bfloat16 if bfloat16 else None
        if neftune_alpha is not None:
            trained = [weak.model for weak in self.weak if isinstance(weak, WeakModel) and weak.trained]
            self._noise = [EmbeddingNoise(model, neftune_alpha) for model in (strong, *trained)]
        else:
            self._noise = []

    def forward(
        self, batch: MicroBatch, *, mixing_weight: float, telemetry_rows: int = 0, with_weak: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """Σ over targets of −log softmax(z_mix)[target], a scalar in nats; and `mix_statistics` of some of them.

        Args:
            batch: of this worker.
            mixing_weight: λ in [0, 1], the weight of the strong logits; the weak ones share 1-λ.
            telemetry_rows: most targets that `mix_statistics` looks at; 0 = none, and no statistics.
            with_weak: False leaves the weak models out: z_mix = λ z_strong.
        """
        weights = [(1.0 - mixing_weight) * share for share in self.weak_shares]
        head, bias = output_head(self.strong)
        branches = [LogitBranch(self.states_of(self.strong, batch), head, bias, mixing_weight, *self.form)]
        for weak, weight in zip(self._sources, weights, strict=True) if with_weak else ():
            hidden_RD, head, bias = weak.states(self, batch)
            branches.append(LogitBranch(hidden_RD, head, bias, weight, *weak.form(self)))
        statistics = mix_statistics(branches, batch.labels, max_rows=telemetry_rows) if telemetry_rows else None
        loss = branch_cross_entropy(branches, batch.labels, reduction="sum", operand_dtype=self._dtype)
        return loss, statistics

    def parameters_by_branch(self) -> list[list[Tensor]]:
        """Parameters of every branch, strong first. A weak adapter's lie on the strong model's modules."""
        weak: list[list[Tensor]] = [
            list(adapter_parameters(self.strong, source.adapter).values())
            if isinstance(source, WeakAdapter) and source.adapter is not None
            else list(module.parameters())
            for source, module in zip(self._sources, self.weak, strict=True)
        ]
        of_weak = {id(parameter) for parameters in weak for parameter in parameters}
        strong: list[Tensor] = [p for p in self.strong.parameters() if id(p) not in of_weak]
        return [strong, *weak]

    def states_of(self, model: PreTrainedModel, batch: MicroBatch) -> Tensor:
        """Hidden states [R, D] of a model at the batch's supervised positions."""
        for noise in self._noise:
            noise.lengths = batch.lengths
        device = batch.input_ids.device.type
        with contextlib.nullcontext() if self._dtype is None else torch.autocast(device, dtype=self._dtype):
            states_ND = batch_states(model, batch.input_ids, batch.position_ids, batch.runs).flatten(0, 1)
        return states_ND.index_select(0, batch.rows)


class EmbeddingNoise:
    """NEFTune: x + U(−1, 1) · α / √(L·D) on the embeddings of a model in training, L the sample's length.

    Source: NEFTune (arXiv 2310.05914), Algorithm 1.
    """

    def __init__(self, model: PreTrainedModel, alpha: float) -> None:
        self.lengths: Tensor | None = None
        """[B, T], of the sample at every position of the next forward pass."""
        self._alpha = alpha
        model.get_input_embeddings().register_forward_hook(self._add)

    def _add(self, module: nn.Module, _: Any, embeddings: Tensor) -> Tensor:
        if not (module.training and torch.is_grad_enabled()):
            return embeddings
        assert self.lengths is not None, "the batch's lengths come before its embeddings"
        size_BT1 = (self._alpha / (self.lengths * embeddings.shape[-1]).sqrt()).unsqueeze(-1)
        return embeddings + torch.empty_like(embeddings).uniform_(-1.0, 1.0) * size_BT1
