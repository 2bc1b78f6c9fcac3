"""Entropy scoring behind Ray Serve: token ids in, arrays out, one application per checkpoint."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from ray import serve
from ray.serve.handle import DeploymentHandle

from services.engines.replicas import (
    ENGINE_DEPLOYMENT,
    EngineReplica,
    ServeEngine,
    call_replica,
    deploy,
    scale_to_zero_options,
)
from wmss.startup import quick_imports


@serve.deployment
class ScorerReplica(EngineReplica):
    """Holds one checkpoint in a vLLM pooling engine."""

    def __init__(
        self, checkpoint: str, max_length: int, keep_states: bool, dtype: str, max_batched_tokens: int
    ) -> None:
        super().__init__()
        with quick_imports():
            from wmss.scoring.vllm_scorer import VllmEntropyScorer

        self._scorer = self.build(
            lambda: VllmEntropyScorer(
                Path(checkpoint),
                max_length=max_length,
                keep_states=keep_states,
                dtype=dtype,
                max_batched_tokens=max_batched_tokens,
            )
        )

    async def score(
        self, token_ids: npt.NDArray[np.int32], lengths: npt.NDArray[np.int64], starts: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        """Flat ids of several sequences, their lengths and their first wanted positions -> the rows of `Scorer.score`,
        one after the other: [sum(lengths - starts), NUM_STATISTICS (+ D)]."""
        sequences = [part.tolist() for part in np.split(token_ids, np.cumsum(lengths)[:-1])]
        return np.concatenate(await self.run(self._scorer.score, sequences, starts.tolist()))


class ServeScorer(ServeEngine):
    """The driver's side: a `Scorer` whose engine lives in a Serve application."""

    def score(self, sequences: list[list[int]], starts: list[int] | None = None) -> list[npt.NDArray[np.float32]]:
        """As `Scorer.score`; a call that dies with its replica is made again."""
        lengths = np.array([len(ids) for ids in sequences], dtype=np.int64)
        flat = np.fromiter((token for ids in sequences for token in ids), dtype=np.int32, count=int(lengths.sum()))
        firsts = np.zeros_like(lengths) if starts is None else np.array(starts, dtype=np.int64)
        statistics = call_replica(self._handle.score, flat, lengths, firsts)
        return np.split(statistics, np.cumsum(lengths - firsts)[:-1])


def deploy_scorer(
    app: str,
    checkpoint: Path,
    *,
    max_length: int,
    use_gpu: bool,
    num_replicas: int = 1,
    keep_states: bool = False,
    dtype: str = "float32",
    max_batched_tokens: int = 8192,
) -> DeploymentHandle[Any]:
    """Deploy one checkpoint as the application `app` and wait until it scores."""
    deployment = ScorerReplica.options(**ENGINE_DEPLOYMENT | scale_to_zero_options(num_replicas))  # type: ignore[attr-defined]
    arguments = (str(checkpoint), max_length, keep_states, dtype, max_batched_tokens)
    return deploy(deployment, app, *arguments, use_gpu=use_gpu)
