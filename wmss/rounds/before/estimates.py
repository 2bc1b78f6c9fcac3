"""What a job would cost: memory, disk, arithmetic and time, from shapes alone. Estimates, each with its formula.

Symbols: P parameters (tied weights once), D hidden width, F width of the feed-forward layer, L layers, V vocabulary,
A and K widths of queries and of keys, N tokens of a micro-batch. Everything is trained in float32, 4 bytes a number.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from wmss.config import LoraConfig
from wmss.core.rows import resolve_chunk_size
from wmss.errors import ModelError
from wmss.models.loading import model_config, num_parameters, tokenizer_files

FLOAT_BYTES = 4
MATRIX_SHARE = 0.7
"""Of a training step's processor time, what its matrix products take: 0.64 to 0.85 on Qwen3 of 3 and 42 million
parameters. The rest is attention, norms, the optimizer and Python."""
PROCESS_BYTES = 650 * 10**6
"""Python, torch, transformers and Ray in one training worker, measured."""
ENGINE_BYTES = 1100 * 10**6
"""The same with vLLM in an engine, measured."""


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a checkpoint, read from its configuration and the headers of its weights."""

    num_parameters: int
    stored_bytes: int
    """Of the weight files, in the precision they are stored in."""
    tokenizer_bytes: int
    hidden: int
    feed_forward: int
    layers: int
    queries: int
    keys: int
    vocabulary: int
    tied: bool
    """Whether the output head is the input embedding."""

    @property
    def head_parameters(self) -> int:
        """V·D."""
        return self.vocabulary * self.hidden

    @property
    def body_parameters(self) -> int:
        """Parameters that every token is multiplied with: all but the embedding and the output head."""
        return self.num_parameters - self.head_parameters * (1 if self.tied else 2)


def read_shape(folder: Path) -> ModelShape:
    """Sizes of the checkpoint in `folder`; no weight is loaded. Raises `ModelError` where its config names none."""
    config = model_config(folder)
    try:
        hidden, layers, heads = (
            int(getattr(config, name)) for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")
        )
    except AttributeError as error:
        raise ModelError(f"model: no estimate of its cost: {folder}/config.json: {error}", param="model") from error
    head_dim = int(getattr(config, "head_dim", None) or hidden // heads)
    return ModelShape(
        num_parameters=num_parameters(folder),
        stored_bytes=sum(file.stat().st_size for file in folder.glob("*.safetensors")),
        tokenizer_bytes=sum(file.stat().st_size for file in tokenizer_files(folder)),
        hidden=hidden,
        feed_forward=int(getattr(config, "intermediate_size", None) or 4 * hidden),
        layers=layers,
        queries=heads * head_dim,
        keys=int(getattr(config, "num_key_value_heads", None) or heads) * head_dim,
        vocabulary=int(config.vocab_size),
        tied=bool(config.tie_word_embeddings),
    )


@dataclass(frozen=True)
class WorkerModel:
    """A model inside a training worker."""

    shape: ModelShape
    trained: bool = True
    lora: LoraConfig | None = None
    """Adapters are trained, not the weights."""
    shares_weights: bool = False
    """Runs on the weights of the first branch, under another adapter or none."""
    cached: bool = False
    """Only its output head is there; hidden states come from disk."""

    @property
    def trained_parameters(self) -> int:
        """Numbers with a gradient: all, or rank · (inputs + outputs) of every linear layer of the blocks."""
        if not self.trained:
            return 0
        if self.lora is None:
            return self.shape.num_parameters
        s = self.shape
        inputs_and_outputs = 2 * (s.hidden + s.queries) + 2 * (s.hidden + s.keys) + 3 * (s.hidden + s.feed_forward)
        return self.lora.rank * s.layers * inputs_and_outputs

    @property
    def held_parameters(self) -> int:
        """Numbers of its own in memory: weights and adapter."""
        adapter = self.trained_parameters if self.lora is not None else 0
        if self.shares_weights:
            return adapter
        return adapter + (self.shape.head_parameters if self.cached else self.shape.num_parameters)


def worker_tensor_bytes(branches: list[WorkerModel], *, micro_batch_tokens: int, num_workers: int, on_gpu: bool) -> int:
    """Tensors a training worker holds at its peak, the end of a forward pass.

    4·P for the weights of every branch and 12·P for what of it is trained (gradients, two Adam moments; 16·P with
    several workers, whose gradients lie a second time in communication buckets); activations kept for the backward,
    4·N·L·(6D + 4A + 4K + 4F) or with adapters 4·N·L·3(D + A + K + F), as counted on Llama and Qwen3 blocks, and
    4·N·(2D + 3F) of the layer at work; for the loss 4·4·N·D of hidden states and their gradients and 2·4·V·D of head
    gradients a trained branch, and once the chunk of logits, 4·C·V.
    """
    vocabulary = branches[0].shape.vocabulary
    total = FLOAT_BYTES * resolve_chunk_size(None, torch.device("cuda" if on_gpu else "cpu")) * vocabulary
    for branch in branches:
        shape, tokens = branch.shape, micro_batch_tokens
        total += FLOAT_BYTES * (branch.held_parameters + (4 if num_workers > 1 else 3) * branch.trained_parameters)
        if branch.cached:
            continue
        total += FLOAT_BYTES * tokens * (2 * shape.hidden + 3 * shape.feed_forward)
        if branch.trained:
            head_gradients = 0 if branch.lora is not None else 2 * shape.head_parameters
            kept = tokens * shape.layers * _kept_per_layer(branch) + 4 * tokens * shape.hidden
            total += FLOAT_BYTES * (kept + head_gradients)
    return total


def _kept_per_layer(branch: WorkerModel) -> int:
    """Numbers a token leaves behind in a layer for the backward pass; fewer where no weight wants a gradient."""
    shape = branch.shape
    if branch.lora is not None:
        return 3 * (shape.hidden + shape.queries + shape.keys + shape.feed_forward)
    return 6 * shape.hidden + 4 * (shape.queries + shape.keys + shape.feed_forward)


def engine_bytes(shape: ModelShape, *, kv_cache_bytes: int) -> int:
    """Memory of a vLLM engine: the process, 4·P for float32 weights, as much again for those that PyTorch reads when
    they change, and the cache it reserves."""
    return ENGINE_BYTES + 2 * FLOAT_BYTES * shape.num_parameters + kv_cache_bytes


def checkpoint_bytes(branches: list[WorkerModel]) -> int:
    """One training checkpoint: 4·P strong weights with its tokenizer, and of what is trained 8·P Adam moments and, for
    adapters and weak branches, 4·P weights (a frozen branch is not saved)."""
    strong, *others = branches
    floats = strong.shape.num_parameters + 2 * strong.trained_parameters
    floats += strong.trained_parameters if strong.lora is not None else 0
    floats += sum(3 * branch.trained_parameters for branch in others)
    tokenizers = 1 + sum(branch.trained and branch.lora is None for branch in others)
    return FLOAT_BYTES * floats + tokenizers * strong.shape.tokenizer_bytes


def pass_flops(shape: ModelShape, *, num_tokens: float, num_targets: float, squared_lengths: float) -> float:
    """Floating-point operations of one forward pass: 2 a token and body parameter, 4·A·L·Σ length² for attention, and
    2·V·D for every position whose logits are needed."""
    return (
        2.0 * shape.body_parameters * num_tokens
        + 4.0 * shape.queries * shape.layers * squared_lengths
        + 2.0 * shape.head_parameters * num_targets
    )


def training_flops(
    branches: list[WorkerModel], *, num_tokens: float, num_targets: float, squared_lengths: float
) -> float:
    """Three times a forward pass for a trained branch (backward takes the gradient of inputs and of weights), twice
    with adapters (of inputs only), once for a frozen branch, and nothing to speak of for a cached one."""
    return sum(
        _passes(branch)
        * pass_flops(branch.shape, num_tokens=num_tokens, num_targets=num_targets, squared_lengths=squared_lengths)
        for branch in branches
    )


def _passes(branch: WorkerModel) -> int:
    if branch.cached:
        return 0
    if not branch.trained:
        return 1
    return 3 if branch.lora is None else 2


MEASURE_S = 0.15
MAX_ROWS = 1024


def measure_flops(shape: ModelShape, *, rows: int, num_threads: int) -> float:
    """Operations a second of this machine's CPU in the model's own matrix product [rows, D] x [D, F], float32."""
    threads_before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        left = torch.randn(min(max(rows, 1), MAX_ROWS), shape.hidden)
        right = torch.randn(shape.hidden, shape.feed_forward)
        left @ right
        count, started = 0, time.perf_counter()
        while (taken := time.perf_counter() - started) < MEASURE_S:
            left @ right
            count += 1
    finally:
        torch.set_num_threads(threads_before)
    return 2.0 * left.shape[0] * shape.hidden * shape.feed_forward * count / taken
