"""Models, samples and the optimizer step that the benchmarks of whole training steps share."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from benchmarks.measure import gradients
from wmss.config import Hyperparameters
from wmss.config.base import changed
from wmss.models.packed_attention import PACKED
from wmss.records import TokenizedSample
from wmss.training.batches import MicroBatch, collate
from wmss.training.branches import Branches
from wmss.training.optim import make_optimizer
from wmss.training.parallel import gradient_norm

KNOBS = Hyperparameters(learning_rate=1e-6)
"""A small learning rate, so that repetitions of a step compute about the same numbers."""
MIXING_WEIGHT = 0.5


class Shape(NamedTuple):
    """A Qwen3 model with tied embeddings; what is not said follows Qwen3's own proportions."""

    vocabulary: int
    width: int
    layers: int


def make_model(shape: Shape, *, seed: int, attention: str = PACKED) -> PreTrainedModel:
    """A model with random weights, in training mode."""
    head_width = min(64, shape.width // 2)
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=3 * shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.width // head_width,
        num_key_value_heads=shape.width // head_width // 2,
        head_dim=head_width,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
        tie_word_embeddings=True,
        attn_implementation=attention,
    )
    model: PreTrainedModel = Qwen3ForCausalLM(config)
    return model.train()


def make_samples(lengths: Iterable[int], *, vocabulary: int, prompt_share: float = 0.0) -> list[TokenizedSample]:
    """Samples of random tokens; after the prompt, and the first token, all are targets."""
    rng = np.random.default_rng(0)
    samples = []
    for number, length in enumerate(lengths):
        mask = np.arange(length) >= max(1, int(prompt_share * length))
        ids = rng.integers(2, vocabulary, length, dtype=np.int32)
        samples.append(TokenizedSample(line=number + 1, input_ids=ids, target_mask=mask))
    return samples


def make_batch(samples: Sequence[TokenizedSample], *, device: str = "cpu", packing: bool = True) -> MicroBatch:
    """All samples in one micro-batch, longest first as the training loop has them."""
    ordered = sorted(samples, key=lambda sample: -len(sample.input_ids))
    return collate(ordered, device=torch.device(device), packing=packing)


def weight_of(branches: Branches) -> float:
    """λ of a benchmark's step: the paper's in a mix, 1 for the strong model alone."""
    return MIXING_WEIGHT if len(branches.weak) else 1.0


def loss_and_gradients(branches: Branches, batch: MicroBatch) -> dict[str, Tensor]:
    """The mean loss over all targets and its gradients, by parameter."""
    branches.zero_grad(set_to_none=True)
    loss = branches(batch, mixing_weight=weight_of(branches))[0] / batch.labels.numel()
    loss.backward()
    found = {"loss": loss.detach(), **gradients(branches)}
    branches.zero_grad(set_to_none=True)
    return found


class Step:
    """One optimizer step of the product on one micro-batch: forward, backward, joint clip, AdamW."""

    def __init__(
        self,
        branches: Branches,
        batch: MicroBatch,
        *,
        telemetry_rows: int = 0,
        optimizer: str = KNOBS.optimizer,
    ) -> None:
        self._branches, self._batch, self._telemetry_rows = branches, batch, telemetry_rows
        self._optimizer = make_optimizer(branches, changed(KNOBS, optimizer=optimizer))

    def __call__(self) -> None:
        loss, _ = self._branches(
            self._batch, mixing_weight=weight_of(self._branches), telemetry_rows=self._telemetry_rows
        )
        (loss / self._batch.labels.numel()).backward()
        norm = gradient_norm(self._branches.parameters())
        assert KNOBS.gradient_clip is not None
        if norm > KNOBS.gradient_clip:
            found = [p.grad for p in self._branches.parameters() if p.grad is not None]
            torch._foreach_mul_(found, KNOBS.gradient_clip / norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
