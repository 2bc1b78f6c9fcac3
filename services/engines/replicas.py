"""What every engine behind Ray Serve shares: its options, its thread, and how it is deployed and called."""

import asyncio
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.handle import DeploymentHandle

from services.failures import engine_error
from services.settings import Settings, engine_environment
from wmss.errors import ScoringError, WmssError
from wmss.scoring.interfaces import EngineDiedError, Weights

if TYPE_CHECKING:
    from wmss.scoring.vllm_engine import VllmEngine

logger = logging.getLogger(__name__)

CALL_TIMEOUT_S = 24 * 3600.0
"""A call waits for the one before it and for its replica to be started again, and a slow engine is not a dead one."""
MAX_RETRIES = 3
CALLS_PER_REPLICA = 2

ENGINE_DEPLOYMENT: dict[str, Any] = {
    "max_ongoing_requests": 8,
    "health_check_period_s": 5,
    # An engine may hold the interpreter for long stretches; a busy replica must not be treated as dead.
    "health_check_timeout_s": 120,
    "graceful_shutdown_wait_loop_s": 0.1,
    "graceful_shutdown_timeout_s": 2,
}
"""Serve options of every engine."""


class NamedWeights(NamedTuple):
    """Weights as a driver names them: every call says which it wants."""

    weights: Weights
    id: str
    """Their `weights_id`, as the driver saw it: a replica that sees other files refuses."""


class EngineReplica:
    """An engine with one thread of its own: it is not thread-safe, and Serve's event loop must stay free.

    The engine is made for the weights of the first call. A replica that Serve starts again begins with those that are
    wanted then, whatever its predecessor had, and needs no folder but theirs.
    """

    def __init__(self, make: "Callable[[Weights], VllmEngine[Any]]") -> None:
        self._make = make
        self._engine: Any = None
        self._broken = False
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")

    async def load(self, named: NamedWeights) -> str:
        """Have these weights; says what it took, see `_have`."""
        return str(await self._run(self._have, named))

    async def call(self, named: NamedWeights, function: Callable[[Any], Any]) -> Any:
        """Call `function` with the engine, which computes with these weights then, on the engine's thread."""
        return await self._run(self._answer, named, function)

    async def provenance(self, named: NamedWeights) -> dict[str, Any]:
        """Engine, version, precision."""
        return dict(await self.call(named, lambda engine: engine.provenance()))

    def check_health(self) -> None:
        """Called by Serve from time to time, also while a call is under way."""
        with _ending_with_the_engine():
            if self._engine is not None:
                self._engine.check_alive()

    async def _run(self, function: Any, *arguments: Any) -> Any:
        with _ending_with_the_engine():
            return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    def _answer(self, named: NamedWeights, function: Callable[[Any], Any]) -> Any:
        self._have(named)
        return function(self._engine)

    def _have(self, named: NamedWeights) -> str:
        """ "started", "loaded", or "there" where the engine had them."""
        if self._broken:
            raise EngineDiedError("its engine could not be made")
        if self._engine is not None:
            return "loaded" if self._load(named) else "there"
        try:
            engine = self._make(named.weights)
            engine.load(named.weights, expected=named.id)
        except Exception:
            # What is left of an engine that was made in part stays in the process: the next call ends it.
            self._broken = True
            raise
        self._engine = engine
        return "started"

    def _load(self, named: NamedWeights) -> bool:
        try:
            return bool(self._engine.load(named.weights, expected=named.id))
        except ScoringError as error:
            # The call is made again, by the caller, in a replica that makes its engine for these weights.
            raise EngineDiedError(f"it did not take other weights: {error}") from error


@contextmanager
def _ending_with_the_engine() -> Iterator[None]:
    """A replica exits when its engine has died. Serve starts a new one, and the callers retry."""
    try:
        yield
    except EngineDiedError:
        logger.exception("the engine has died; this replica ends")
        os._exit(1)


def scale_to_zero_options(num_replicas: int) -> dict[str, Any]:
    """Serve options: all replicas, or none after `WMSS_ENGINE_IDLE_S` without a call."""
    idle_s = Settings().engine_idle_s
    return {
        "autoscaling_config": {
            "min_replicas": 0,
            "initial_replicas": num_replicas,
            "max_replicas": num_replicas,
            "target_ongoing_requests": 1,
            "upscale_delay_s": 0,
            "downscale_delay_s": idle_s,
            "downscale_to_zero_delay_s": idle_s,
        },
        # One call under way and one at hand, so that a replica never waits for its next, and takes no more than that
        # from the others.
        "max_ongoing_requests": CALLS_PER_REPLICA,
    }


def deploy(
    deployment: Any, app: str, *arguments: Any, use_gpu: bool, num_cpus: int = 1, route_prefix: str | None = None
) -> DeploymentHandle[Any]:
    """An engine as an application of its own; blocks until it is healthy.

    `num_cpus` is what each replica holds of Ray's CPUs, see `cpus_held`. Without a `route_prefix` it can be reached
    through its handle only, not over HTTP.
    """
    settings = Settings()
    # The first caller starts Serve for the whole cluster; its HTTP options cannot change afterwards.
    serve.start(proxy_location="HeadOnly", http_options={"host": settings.serve_host, "port": settings.serve_port})
    # Parts of vLLM compile themselves when first used (Cohere's norm, the ranking of log-probabilities). On a CPU that
    # takes a C++ compiler, which the image does not have, and a compilation that fails ends the engine's process.
    environment = engine_environment() | ({} if use_gpu else {"TORCHDYNAMO_DISABLE": "1"})
    options = {"num_cpus": num_cpus, "num_gpus": 1 if use_gpu else 0, "runtime_env": {"env_vars": environment}}
    bound = deployment.options(ray_actor_options=options).bind(*arguments)
    try:
        return serve.run(bound, name=app, route_prefix=route_prefix)
    except RuntimeError as error:
        raise engine_error(app, RuntimeError(f"{error}\n{_last_traceback(app)}")) from error


def _last_traceback(app: str) -> str:
    """Why the replicas of an application do not start, which Serve's own exception does not say."""
    status = serve.status().applications.get(app)
    return "\n".join(deployment.message for deployment in status.deployments.values()) if status else ""


def delete_apps(apps: Iterable[str]) -> None:
    """Delete the applications that are there, and wait until they are gone."""
    deployed = serve.status().applications
    for app in apps:
        if app in deployed:
            serve.delete(app)


class ServeEngine:
    """The driver's side of an engine that lives in a Serve application, with the weights that it is used with."""

    def __init__(self, handle: DeploymentHandle[Any], weights: Weights, *, num_replicas: int = 1) -> None:
        self._handle = handle
        self._weights = named(weights)
        self._num_replicas = num_replicas
        self.calls_at_once = CALLS_PER_REPLICA * num_replicas

    def load(self) -> str:
        """Let the replicas have the weights; one that Serve gives no call now has them at its first one. Says what it
        took at most: an engine was "started" for them, they were "loaded", or "there"."""

        def ask(_: int) -> str:
            return str(call_replica(self._handle.load, self._weights))

        try:
            with ThreadPoolExecutor(self._num_replicas, thread_name_prefix="engine-load") as threads:
                answers = set(threads.map(ask, range(self._num_replicas)))
        except RayTaskError as error:
            if isinstance(error, WmssError):
                raise
            raise engine_error(str(self._handle.app_name), error) from error
        return next(answer for answer in ("started", "loaded", "there") if answer in answers)

    def provenance(self) -> dict[str, Any]:
        """What the engine says of itself."""
        return dict(call_replica(self._handle.provenance, self._weights))


def named(weights: Weights) -> NamedWeights:
    """Weights with their id as this process sees it."""
    from wmss.scoring.weights import weights_id

    return NamedWeights(weights, weights_id(weights))


def call_replica(method: Any, *arguments: Any) -> Any:
    """One remote call, retried `MAX_RETRIES` times if its replica dies; Serve starts a new replica."""
    for attempt in range(MAX_RETRIES + 1):
        try:
            return method.remote(*arguments).result(timeout_s=CALL_TIMEOUT_S)
        except RayTaskError:
            raise  # the engine refused this input; it would again
        except RayActorError as error:
            if attempt == MAX_RETRIES:
                raise engine_error(method.app_name, error) from error
    raise AssertionError("unreachable")
