"""Responses from models whose weights change, behind Ray Serve: one application per architecture."""

from collections.abc import Sequence
from typing import Any, NamedTuple

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
    named,
    scale_to_zero_options,
)
from wmss.records import Completion
from wmss.scoring.interfaces import Sampling, Weights
from wmss.startup import quick_imports


class Ragged(NamedTuple):
    """Several sequences of token ids as they travel."""

    ids: npt.NDArray[np.int32]
    """All ids, one sequence after the other."""
    lengths: npt.NDArray[np.int64]

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]]) -> "Ragged":
        """Pack them."""
        lengths = np.array([len(ids) for ids in sequences], dtype=np.int64)
        flat = np.fromiter((token for ids in sequences for token in ids), dtype=np.int32, count=int(lengths.sum()))
        return cls(flat, lengths)

    def lists(self) -> list[list[int]]:
        """The sequences again."""
        ends = np.cumsum(self.lengths)
        return [self.ids[end - length : end].tolist() for end, length in zip(ends, self.lengths, strict=True)]


class Responses(NamedTuple):
    """Completions as they travel."""

    token_ids: Ragged
    stopped: npt.NDArray[np.bool_]
    """Whether each ended by itself."""
    logprobs: npt.NDArray[np.float64]


@serve.deployment
class SamplerReplica(EngineReplica):
    """Samples with a vLLM engine."""

    def __init__(self, max_length: int, dtype: str) -> None:
        with quick_imports():
            from wmss.scoring.vllm_sampler import VllmSampler

        super().__init__(lambda weights: VllmSampler(weights, max_length=max_length, dtype=dtype))

    async def sample(
        self,
        named: NamedWeights,
        prompts: Ragged,
        seeds: Sequence[int],
        sampling: Sampling,
        end_token_ids: Sequence[int],
    ) -> Responses:
        """As `Sampler.sample`."""
        arguments = (named.weights, prompts.lists(), seeds)
        sample = lambda engine: engine.sample(*arguments, sampling=sampling, end_token_ids=end_token_ids)  # noqa: E731
        completions = await self.call(named, sample)
        return Responses(
            Ragged.of([completion.token_ids for completion in completions]),
            np.array([completion.finish_reason == "stop" for completion in completions], dtype=np.bool_),
            np.array([completion.logprob for completion in completions], dtype=np.float64),
        )


class ServeSampler(ServeEngine):
    """The driver's side: a `Sampler` whose engine lives in a Serve application."""

    def sample(
        self,
        weights: Weights,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        *,
        sampling: Sampling,
        end_token_ids: Sequence[int],
    ) -> list[Completion]:
        """As `Sampler.sample`; a call that dies with its replica is made again, and gives what it would have given."""
        mine = self._weights if weights == self._weights.weights else named(weights)
        found: Responses = call_replica(
            self._handle.sample, mine, Ragged.of(prompts), list(seeds), sampling, list(end_token_ids)
        )
        rows = zip(found.token_ids.lists(), found.stopped.tolist(), found.logprobs.tolist(), strict=True)
        return [Completion(tuple(ids), "stop" if stopped else "length", logprob) for ids, stopped, logprob in rows]


def deploy_sampler(
    app: str, *, max_length: int, use_gpu: bool, num_replicas: int = 1, num_cpus: int = 1, dtype: str = "float32"
) -> DeploymentHandle[Any]:
    """Deploy the application `app`, whose replicas make their engines for the weights of their first call."""
    deployment = SamplerReplica.options(**ENGINE_DEPLOYMENT | scale_to_zero_options(num_replicas))  # type: ignore[attr-defined]
    return deploy(deployment, app, max_length, dtype, use_gpu=use_gpu, num_cpus=num_cpus)
