"""One module on several workers, and what its blocks keep for the backward pass."""

import contextlib
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers import PreTrainedModel

from wmss.choices import ActivationCheckpointing, Parallelism
from wmss.training.branches import Branches, WeakModel

_MATRIX_PRODUCTS = frozenset(
    {
        torch.ops.aten.mm.default,
        torch.ops.aten.addmm.default,
        torch.ops.aten.bmm.default,
        torch.ops.aten._scaled_dot_product_flash_attention.default,
        torch.ops.aten._scaled_dot_product_efficient_attention.default,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
        torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    }
)
"""What selective checkpointing keeps: cheap to store beside what it costs to compute again."""
_VARLEN_ATTENTION = "torch_attn._varlen_attn.default"
"""Kept too. By name, because torch registers it when it is first used."""


def blocks_of(model: PreTrainedModel) -> nn.ModuleList:
    """The model's transformer blocks: its longest list of modules."""
    return max((module for module in model.modules() if isinstance(module, nn.ModuleList)), key=len)


def checkpoint_activations(model: PreTrainedModel, how: ActivationCheckpointing) -> None:
    """Make each block compute again in the backward pass what it does not keep; the result is the same."""
    if how == "none":
        return
    kwargs: dict[str, Any] = {"use_reentrant": False}
    if how == "selective":
        kwargs["context_fn"] = partial(create_selective_checkpoint_contexts, _keep_matrix_products)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)


def _keep_matrix_products(_: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    kept = operator in _MATRIX_PRODUCTS or str(operator) == _VARLEN_ATTENTION
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def models_of(branches: Branches) -> list[PreTrainedModel]:
    """Every model that runs, strong first."""
    return [branches.strong, *(weak.model for weak in branches.weak if isinstance(weak, WeakModel))]


def parallelise(branches: Branches, *, how: Parallelism, world_size: int, device: torch.device) -> nn.Module:
    """The module to call on each of `world_size` workers; both ways average gradients over them.

    `ddp` keeps everything on every worker. `fsdp` (FSDP2) divides weights, gradients and optimizer states: each block
    is gathered for its own pass, embeddings and output heads for the whole of it, so the loss sees plain tensors.
    """
    if world_size == 1:
        return branches
    if how == "ddp":
        return DistributedDataParallel(branches)
    mesh = init_device_mesh(device.type, (world_size,))
    for model in models_of(branches):
        for block in blocks_of(model):
            fully_shard(block, mesh=mesh)
    fully_shard(branches, mesh=mesh)
    return branches


def no_sync(module: nn.Module) -> contextlib.AbstractContextManager[Any]:
    """Gradients of a micro-batch that is not the step's last stay on their worker."""
    if isinstance(module, DistributedDataParallel):
        return module.no_sync()
    return _fsdp_no_sync(module) if isinstance(module, FSDPModule) else contextlib.nullcontext()


@contextlib.contextmanager
def _fsdp_no_sync(module: FSDPModule) -> Any:
    module.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        module.set_requires_gradient_sync(True)


def gradient_norm(parameters: Iterable[Tensor]) -> float:
    """Euclidean norm of all gradients together, over all workers' shards; 0 without any."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return 0.0
    norm: Tensor = torch.nn.utils.get_total_norm(gradients)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
