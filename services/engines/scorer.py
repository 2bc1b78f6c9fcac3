"""Entropy scoring behind Ray Serve: token ids in, arrays out, one application per architecture."""

from typing import Any

import numpy as np
import numpy.typing as npt
from ray import serve
from ray.serve.handle import DeploymentHandle

from services.engines.replicas import (
    ENGINE_DEPLOYMENT,
    EngineReplica,
    NamedWeights,
    ServeEngine,
    call_replica,
    deploy,
    scale_to_zero_options,
)
from wmss.scoring.interfaces import Weights
from wmss.startup import quick_imports


@serve.deployment
class ScorerReplica(EngineReplica):
    """Scores with a vLLM pooling engine."""

    def __init__(self, max_length: int, dtype: str, max_batched_tokens: int) -> None:
        with quick_imports():
            from wmss.scoring.vllm_scorer import VllmEntropyScorer

        super().__init__(
            lambda weights: VllmEntropyScorer(
                weights, max_length=max_length, max_batched_tokens=max_batched_tokens, dtype=dtype
            )
        )

    async def score(
        self,
        named: NamedWeights,
        token_ids: npt.NDArray[np.int32],
        lengths: npt.NDArray[np.int64],
        starts: npt.NDArray[np.int64],
        keep_states: bool,
    ) -> npt.NDArray[np.float32]:
        """Flat ids of several sequences, their lengths and their first wanted positions -> the rows of `Scorer.score`,
        one after the other: [sum(lengths - starts), NUM_STATISTICS (+ D)]."""
        sequences = [part.tolist() for part in np.split(token_ids, np.cumsum(lengths)[:-1])]
        score = lambda engine: engine.score(sequences, starts.tolist(), keep_states=keep_states)  # noqa: E731
        return np.concatenate(await self.call(named, score))


class ServeScorer(ServeEngine):
    """The driver's side: a `Scorer` whose engine lives in a Serve application."""

    def __init__(
        self, handle: DeploymentHandle[Any], weights: Weights, *, num_replicas: int = 1, keep_states: bool = False
    ) -> None:
        super().__init__(handle, weights, num_replicas=num_replicas)
        self._keep_states = keep_states

    def score(self, sequences: list[list[int]], starts: list[int] | None = None) -> list[npt.NDArray[np.float32]]:
        """As `Scorer.score`; a call that dies with its replica is made again."""
        lengths = np.array([len(ids) for ids in sequences], dtype=np.int64)
        flat = np.fromiter((token for ids in sequences for token in ids), dtype=np.int32, count=int(lengths.sum()))
        firsts = np.zeros_like(lengths) if starts is None else np.array(starts, dtype=np.int64)
        statistics = call_replica(self._handle.score, self._weights, flat, lengths, firsts, self._keep_states)
        return np.split(statistics, np.cumsum(lengths - firsts)[:-1])


def deploy_scorer(
    app: str,
    *,
    max_length: int,
    use_gpu: bool,
    num_replicas: int = 1,
    num_cpus: int = 1,
    dtype: str = "float32",
    max_batched_tokens: int = 8192,
) -> DeploymentHandle[Any]:
    """Deploy the application `app`, whose replicas make their engines for the weights of their first call."""
    deployment = ScorerReplica.options(**ENGINE_DEPLOYMENT | scale_to_zero_options(num_replicas))  # type: ignore[attr-defined]
    return deploy(deployment, app, max_length, dtype, max_batched_tokens, use_gpu=use_gpu, num_cpus=num_cpus)
