"""Other weights into a living vLLM engine. Mixed into its workers by name, so that it works on every rank."""

from typing import Any


class WeightLoading:
    """What a vLLM worker learns: see `worker_extension_cls` of `vllm.LLM`."""

    model_runner: Any

    def load_checkpoint(self, folder: str) -> None:
        """Replace the weights by those in `folder`, in place. Whoever calls resets the caches afterwards."""
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

        self.reload_weights(weights_path=folder)  # type: ignore[attr-defined]
        # On a CPU, layers multiply by a packed copy. vLLM 0.32 packs anew what it has loaded, and a head that is tied
        # to the embedding is never loaded itself: it would go on with the old weights.
        for layer in self.model_runner.get_model().modules():
            if isinstance(layer, ParallelLMHead):
                layer.quant_method.process_weights_after_loading(layer)
