"""What every engine behind Ray Serve shares: its options, its thread, and how it is deployed and called."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.handle import DeploymentHandle

from services.failures import engine_error
from services.settings import Settings, engine_environment

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


def deploy(
    deployment: Any, app: str, *arguments: Any, use_gpu: bool, route_prefix: str | None = None
) -> DeploymentHandle[Any]:
    """One replica of an engine as an application of its own; blocks until it is healthy.

    Without a `route_prefix` it can be reached through its handle only, not over HTTP.
    """
    settings = Settings()
    # Whoever comes first starts Serve for the whole cluster, and its HTTP options cannot change afterwards.
    serve.start(proxy_location="HeadOnly", http_options={"host": settings.serve_host, "port": settings.serve_port})
    options = {
        "num_cpus": 1,
        "num_gpus": 1 if use_gpu else 0,
        "runtime_env": {"env_vars": engine_environment()},
    }
    bound = deployment.options(ray_actor_options=options).bind(*arguments)
    try:
        return serve.run(bound, name=app, route_prefix=route_prefix)
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
