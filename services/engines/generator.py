"""Text generation behind Ray Serve, for evaluation."""

from functools import partial
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from services.engines.replicas import ENGINE_DEPLOYMENT, EngineReplica, call_replica, deploy, scale_to_zero_options


@serve.deployment
class GeneratorReplica(EngineReplica):
    """Holds one checkpoint in a vLLM generation engine."""

    def __init__(self, checkpoint: str, max_length: int) -> None:
        super().__init__()
        from wmss.scoring.vllm_generation import VllmGenerator

        self._generator = self.build(lambda: VllmGenerator(Path(checkpoint), max_length=max_length))

    async def generate(
        self, prompts: list[list[int]], max_tokens: list[int], end_token_ids: list[int]
    ) -> list[list[int]]:
        """Greedy continuations."""
        generate = partial(self._generator.generate, prompts, max_tokens, end_token_ids=end_token_ids)
        return list(await self.run(generate))


class ServeGenerator:
    """The driver's side: a `Generator` whose engine lives in a Serve application."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle

    def generate(self, prompts: list[list[int]], max_tokens: list[int], *, end_token_ids: list[int]) -> list[list[int]]:
        """Greedy continuation of each prompt, without the end token."""
        return list(call_replica(self._handle.generate, prompts, max_tokens, end_token_ids))


def deploy_generator(app: str, checkpoint: Path, *, max_length: int, use_gpu: bool) -> DeploymentHandle[Any]:
    """Deploy one checkpoint as the application `app` and wait until it generates."""
    deployment = GeneratorReplica.options(**ENGINE_DEPLOYMENT | scale_to_zero_options(1))  # type: ignore[attr-defined]
    return deploy(deployment, app, str(checkpoint), max_length, use_gpu=use_gpu)
