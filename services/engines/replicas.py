"""What every engine behind Ray Serve shares: its options, its thread, and how it is deployed and called."""

import asyncio
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.handle import DeploymentHandle

from services.failures import engine_error
from services.settings import Settings, engine_environment
from wmss.models.files import file_stamps
from wmss.scoring.interfaces import EngineDiedError

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


class EngineReplica:
    """An engine with one thread of its own: it is not thread-safe, and Serve's event loop must stay free."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")

    async def run(self, function: Any, *arguments: Any) -> Any:
        """Call `function` on the engine's thread."""
        with _ending_with_the_engine():
            return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    def build(self, function: Any) -> Any:
        """Make the engine on its thread; waits."""
        self._engine: Any = self._thread.submit(function).result()
        return self._engine

    async def provenance(self) -> dict[str, Any]:
        """Engine, version, precision."""
        return dict(self._engine.provenance())

    def check_health(self) -> None:
        """Called by Serve from time to time, also while a call is under way."""
        with _ending_with_the_engine():
            self._engine.check_alive()


@contextmanager
def _ending_with_the_engine() -> Iterator[None]:
    """A replica exits when its engine has died. Serve starts a new one, and the callers retry."""
    try:
        yield
    except EngineDiedError:
        logger.exception("the engine has died; this replica ends")
        os._exit(1)


def app_name(kind: str, checkpoint: Path, options: Mapping[str, Any]) -> str:
    """Name of the application of a checkpoint under these options: another one once the checkpoint's files change."""
    files = sorted(file_stamps(checkpoint.iterdir()).items())
    text = json.dumps([str(checkpoint), files, sorted(options.items())])
    return f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


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
    deployment: Any, app: str, *arguments: Any, use_gpu: bool, route_prefix: str | None = None
) -> DeploymentHandle[Any]:
    """An engine as an application of its own; blocks until it is healthy.

    Without a `route_prefix` it can be reached through its handle only, not over HTTP.
    """
    settings = Settings()
    # The first caller starts Serve for the whole cluster; its HTTP options cannot change afterwards.
    serve.start(proxy_location="HeadOnly", http_options={"host": settings.serve_host, "port": settings.serve_port})
    # Parts of vLLM compile themselves when first used (Cohere's norm, the ranking of log-probabilities). On a CPU that
    # takes a C++ compiler, which the image does not have, and a compilation that fails ends the engine's process.
    environment = engine_environment() | ({} if use_gpu else {"TORCHDYNAMO_DISABLE": "1"})
    options = {"num_cpus": 1, "num_gpus": 1 if use_gpu else 0, "runtime_env": {"env_vars": environment}}
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
    """The driver's side of an engine that lives in a Serve application."""

    def __init__(self, handle: DeploymentHandle[Any], *, num_replicas: int = 1) -> None:
        self._handle = handle
        self.calls_at_once = CALLS_PER_REPLICA * num_replicas

    def provenance(self) -> dict[str, Any]:
        """What the engine says of itself."""
        return dict(call_replica(self._handle.provenance))


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
