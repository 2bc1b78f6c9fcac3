"""One optimizer step: samples in, gradients of the global token-mean loss out.

Shape suffixes: B samples of a micro-batch, T tokens, N = B·T rows, D hidden width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from wmss.core.mixing import mixed_linear_cross_entropy
from wmss.core.rows import DEFAULT_IGNORE_INDEX
from wmss.models.loading import hidden_states, output_head
from wmss.records import TokenizedSample


@dataclass(frozen=True)
class MicroBatch:
    """Right-padded samples. labels[b, t] is the token that position t must predict, -100 where nothing is."""

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor


def collate(samples: Sequence[TokenizedSample], *, device: torch.device, supervised: bool = True) -> MicroBatch:
    """Pad samples to the longest and shift their targets one to the left. `supervised=False` masks all of them."""
    longest = max(len(sample.input_ids) for sample in samples)
    input_ids_BT = torch.zeros(len(samples), longest, dtype=torch.long)
    mask_BT = torch.zeros_like(input_ids_BT)
    labels_BT = torch.full_like(input_ids_BT, DEFAULT_IGNORE_INDEX)
    for row, sample in enumerate(samples):
        ids_T = torch.from_numpy(sample.input_ids).long()
        input_ids_BT[row, : len(ids_T)] = ids_T
        mask_BT[row, : len(ids_T)] = 1
        if supervised:
            positions = torch.from_numpy(sample.predicting_positions)
            labels_BT[row, positions] = ids_T[positions + 1]
    return MicroBatch(input_ids_BT.to(device), mask_BT.to(device), labels_BT.to(device))


class Branches(nn.Module):
    """The strong model and, in the weak-driven phase, the weak one; forward gives the summed loss of a micro-batch.

    One module, so that data-parallel wrappers see one forward and one set of parameters. Without a weak model the
    same loss runs with λ = 1, which is plain supervised fine-tuning.
    """

    def __init__(
        self, strong: PreTrainedModel, weak: PreTrainedModel | None, *, mixing_weight: float, weak_frozen: bool
    ) -> None:
        super().__init__()
        self.strong = strong
        self.weak = weak
        self.mixing_weight = mixing_weight
        self.weak_frozen = weak_frozen
        if weak is not None and weak_frozen:
            weak.requires_grad_(False)

    def forward(self, batch: MicroBatch) -> Tensor:
        """Σ over targets of −log softmax(z_mix)[target], a scalar in nats."""
        labels_N = batch.labels.flatten()
        strong_head, strong_bias = output_head(self.strong)
        strong_ND = hidden_states(self.strong, batch.input_ids, batch.attention_mask).flatten(0, 1)
        if self.weak is None:
            weak_ND, weak_head, weak_bias, mixing_weight = strong_ND.detach(), strong_head.detach(), None, 1.0
        else:
            weak_head, weak_bias = output_head(self.weak)
            with torch.set_grad_enabled(not self.weak_frozen):
                weak_ND = hidden_states(self.weak, batch.input_ids, batch.attention_mask).flatten(0, 1)
            mixing_weight = self.mixing_weight
        return mixed_linear_cross_entropy(
            strong_ND,
            strong_head,
            weak_ND,
            weak_head,
            labels_N,
            mixing_weight=mixing_weight,
            strong_bias=strong_bias,
            weak_bias=weak_bias,
            reduction="sum",
        )


def gradient_norm(parameters: Sequence[Tensor]) -> Tensor:
    """Euclidean norm of all gradients together, a scalar."""
    norms = [p.grad.norm() for p in parameters if p.grad is not None]
    return torch.stack(norms).norm() if norms else torch.zeros(())
