"""A driver's access to the engines: it uses one at a time and evicts idle ones where there is no room.

Two drivers can never wait for each other: one that waits for an engine uses none, and one that trains uses none.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from ray import serve
from ray.serve.handle import DeploymentHandle

from services.engines.engine_store import Engine, EngineStore, TakeResult, too_many
from services.engines.replicas import ServeEngine, delete_apps
from services.jobs.fence import Fence, NewEvent

POLL_S = 0.5
MIN_FREE_MEMORY = 0.5
"""Share of the machine's memory that idle engines leave to training."""
REASONS = {
    TakeResult.STARTING: "another job is starting it",
    TakeResult.FULL: "every place is taken",
}

Deploy = Callable[[str], DeploymentHandle[Any]]
"""Deploys an application of this name."""
Client = TypeVar("Client", bound=ServeEngine)


class EnginePool:
    """The engines as one driver sees them. `free` says what the cluster has for this job and idle engines together."""

    def __init__(
        self, store: EngineStore, fence: Fence, *, places: int, free: Callable[[], Mapping[str, float]]
    ) -> None:
        self._store = store
        self._fence = fence
        self._places = places
        self._free = free
        self._uses: str | None = None

    @contextlib.contextmanager
    def use(
        self, wanted: Engine, deploy: Deploy, connect: Callable[[DeploymentHandle[Any]], Client]
    ) -> Iterator[Client]:
        """An engine of this key with these weights, deployed unless there is one; afterwards it is kept idle for reuse
        until it is evicted. `connect` makes what talks to it."""
        assert self._uses is None, f"{self._fence.job_id} uses {self._uses} and wants {wanted.key}"
        found, engine = self._take(wanted)
        self._uses = engine.app
        try:
            yield self._loaded(engine, found, deploy, connect)
        finally:
            self._uses = None
            self._store.release(engine.app, self._fence)

    def make_room(self, needed: Mapping[str, float], *, purpose: str) -> None:
        """Evict idle engines, least recently used first, until `needed` CPUs and GPUs are free."""
        free = {kind: number - needed.get(kind, 0) for kind, number in self._free().items()}
        for engine in too_many(self._store.idle(), free):
            self._evict(engine, f"its place is needed for {purpose}")

    def spare_memory(self, free_share: Callable[[], float], *, purpose: str) -> None:
        """Evict idle engines, least recently used first, until `MIN_FREE_MEMORY` of the machine's memory is free."""
        for engine in self._store.idle():
            if free_share() >= MIN_FREE_MEMORY:
                return
            self._evict(engine, f"its memory is needed for {purpose}")

    def _take(self, wanted: Engine) -> tuple[TakeResult, Engine]:
        told = None
        while True:
            found, app = self._store.take(wanted, self._fence, places=self._places)
            if found in (TakeResult.NEW, TakeResult.READY):
                return found, replace(wanted, app=app)
            if found is TakeResult.FULL and self._evict_oldest(wanted):
                continue
            if found is not told:
                users = ", ".join(self._store.users()) or "no job any more"
                self._tell(f"waiting for the {wanted.label}: {REASONS[found]}; engines are in use by {users}")
                told = found
            time.sleep(POLL_S)

    def _evict_oldest(self, engine: Engine) -> bool:
        reason = f"the {engine.label} needs its place ({self._places} in all)"
        return any(self._evict(idle, reason) for idle in self._store.idle()[:1])

    def _evict(self, engine: Engine, reason: str | None = None) -> bool:
        if not self._store.leave(engine.app):
            return False
        delete_apps([engine.app])
        self._store.remove([engine.app])
        if reason is not None:
            self._tell(f"the {engine.label} left: {reason}")
        return True

    def _loaded(
        self, engine: Engine, found: TakeResult, deploy: Deploy, connect: Callable[[DeploymentHandle[Any]], Client]
    ) -> Client:
        """The engine with the weights that are wanted.

        A ready engine that Serve knows it also brings back if it does not run; calls wait for that. One that Serve does
        not know was lost with its cluster.
        """
        started = time.monotonic()
        while found is TakeResult.READY:
            if engine.app in serve.status().applications:
                client = connect(serve.get_app_handle(engine.app))
                self._tell_of(engine, client.load(), time.monotonic() - started)
                return client
            if self._store.restart(engine.app, self._fence):
                break
            time.sleep(POLL_S)
        self.make_room(engine.occupies, purpose=f"the {engine.label}")
        started = time.monotonic()
        try:
            client = connect(deploy(engine.app))
            took = client.load()
        except BaseException:
            # Also where this driver is told to stop: another one may have taken the engine over by then, and keeps it.
            self._store.release(engine.app, self._fence)
            self._evict(engine)
            raise
        self._store.ready(engine.app, self._fence)
        self._tell_of(engine, took, time.monotonic() - started)
        return client

    def _tell_of(self, engine: Engine, took: str, seconds: float) -> None:
        told = {
            "started": f"the {engine.label} started in {seconds:.1f} s",
            "loaded": f"the {engine.label} has its weights after {seconds:.1f} s, in an engine that was there",
            "there": f"the {engine.label} is there already",
        }
        self._tell(told[took])

    def _tell(self, message: str) -> None:
        self._fence.record_events([NewEvent(message)])
