"""Other weights into a living vLLM engine. Mixed into its workers by name, so that it works on every rank."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from wmss.scoring.interfaces import Line
from wmss.scoring.weights import line_tensors


class WeightLoading:
    """What a vLLM worker learns: see `worker_extension_cls` of `vllm.LLM`.

    The caller resets the caches afterwards, and checks what the engine computes: a tensor that was not loaded makes all
    of it NaN.
    """

    model_runner: Any

    def load_folder(self, folder: str) -> None:
        """Replace the weights by those in `folder`, in place."""
        self._load(weights_path=folder)

    def load_line(self, strong: str, weak: str, step: float) -> None:
        """Replace the weights by those of a `Line`, in place."""
        self._load(weights_iterator=line_tensors(Line(Path(weak), Path(strong), step)))

    def _load(self, **source: Any) -> None:
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

        model = self.model_runner.get_model()
        _forget(model)
        with _empty_is_nan():
            self.reload_weights(**source)  # type: ignore[attr-defined]
        # On a CPU, layers multiply by a packed copy. vLLM 0.32 packs anew what it has loaded, and a head that is tied
        # to the embedding is never loaded itself: it would go on with the old weights.
        for layer in model.modules():
            if isinstance(layer, ParallelLMHead):
                layer.quant_method.process_weights_after_loading(layer)


@torch.no_grad()
def _forget(model: Any) -> None:
    """Make every old weight NaN. vLLM only warns of a layer whose weights do not come, and keeps those it had."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.fill_(torch.nan)
    for layer in model.modules():
        if hasattr(layer, "cpu_linear"):  # multiplies by a packed copy of the weights, out of reach
            layer.cpu_linear = partial(_nan, layer.cpu_linear)


def _nan(product: Callable[..., torch.Tensor], *factors: Any) -> torch.Tensor:
    return product(*factors).fill_(torch.nan)


@contextmanager
def _empty_is_nan() -> Iterator[None]:
    """Memory that PyTorch allocates begins as NaN: of a layer that is loaded in part, the rest is not what by chance
    was there before."""
    deterministic, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
