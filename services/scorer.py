"""Entropy scoring behind Ray Serve: token ids in, arrays out, one application per job."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.handle import DeploymentHandle

from services.failures import engine_error
from services.settings import engine_environment

CALL_TIMEOUT_S = 3600.0
MAX_RETRIES = 3

ENGINE_DEPLOYMENT: dict[str, Any] = {
    "max_ongoing_requests": 8,
    # An engine may hold the interpreter for long stretches; a busy replica must not be taken for a dead one.
    "health_check_timeout_s": 120,
    "graceful_shutdown_wait_loop_s": 0.1,
    "graceful_shutdown_timeout_s": 2,
}
"""Serve options of every engine."""


class EngineReplica:
    """An engine with one thread of its own: it is not thread-safe, and Serve's event loop must stay free."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")

    async def run(self, function: Any, *arguments: Any) -> Any:
        """Call `function` on the engine's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    def build(self, function: Any) -> Any:
        """Make the engine on its thread; waits."""
        return self._thread.submit(function).result()


@serve.deployment(**ENGINE_DEPLOYMENT)
class ScorerReplica(EngineReplica):
    """Holds one checkpoint in a vLLM pooling engine."""

    def __init__(self, checkpoint: str, max_length: int, max_batched_tokens: int) -> None:
        super().__init__()
        from wmss.scoring.vllm_entropy import VllmEntropyScorer

        self._scorer = self.build(
            lambda: VllmEntropyScorer(Path(checkpoint), max_length=max_length, max_batched_tokens=max_batched_tokens)
        )

    async def score(self, token_ids: npt.NDArray[np.int32], lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Flat ids of several sequences and their lengths -> flat [sum(lengths), 2], entropy and next-token NLL."""
        sequences = [part.tolist() for part in np.split(token_ids, np.cumsum(lengths)[:-1])]
        return np.concatenate(await self.run(self._scorer.score, sequences))

    async def provenance(self) -> dict[str, Any]:
        """Engine, version, precision."""
        return dict(self._scorer.provenance())


class ServeScorer:
    """The driver's side: a `Scorer` whose engine lives in a Serve application."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle

    def score(self, sequences: list[list[int]]) -> list[npt.NDArray[np.float32]]:
        """Per sequence [T, 2]; a call that dies with its replica is made again."""
        lengths = np.array([len(ids) for ids in sequences], dtype=np.int64)
        flat = np.fromiter((token for ids in sequences for token in ids), dtype=np.int32, count=int(lengths.sum()))
        statistics = call_replica(self._handle.score, flat, lengths)
        return np.split(statistics, np.cumsum(lengths)[:-1])

    def provenance(self) -> dict[str, Any]:
        """What the engine says of itself."""
        return dict(call_replica(self._handle.provenance))


def deploy_scorer(
    app: str, checkpoint: Path, *, max_length: int, use_gpu: bool, max_batched_tokens: int = 8192
) -> ServeScorer:
    """Deploy one checkpoint as the application `app` and wait until it scores."""
    return ServeScorer(deploy(ScorerReplica, app, str(checkpoint), max_length, max_batched_tokens, use_gpu=use_gpu))


def deploy(deployment: Any, app: str, *arguments: Any, use_gpu: bool) -> DeploymentHandle[Any]:
    """One replica of an engine as an application of its own; blocks until it is healthy."""
    # Handles only: Serve's HTTP proxy would take a port, and nothing here speaks HTTP to an engine.
    serve.start(proxy_location="Disabled")
    options = {
        "num_cpus": 1,
        "num_gpus": 1 if use_gpu else 0,
        "runtime_env": {"env_vars": engine_environment()},
    }
    bound = deployment.options(ray_actor_options=options).bind(*arguments)
    try:
        return serve.run(bound, name=app, route_prefix=None)
    except RuntimeError as error:
        raise engine_error(app, error) from error


def call_replica(method: Any, *arguments: Any) -> Any:
    """One remote call, made again (a few times) when its replica dies under it; Serve starts a new replica."""
    for attempt in range(MAX_RETRIES + 1):
        try:
            return method.remote(*arguments).result(timeout_s=CALL_TIMEOUT_S)
        except RayTaskError:
            raise  # the engine refused this input; it would again
        except RayActorError as error:
            if attempt == MAX_RETRIES:
                raise engine_error(method.app_name, error) from error
    raise AssertionError("unreachable")
