"""A driver's access to the engines: it uses one at a time and evicts idle ones where there is no room.

Two drivers can never wait for each other: one that waits for an engine uses none, and one that trains uses none.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from services.engines.engine_store import Engine, EngineStore, TakeResult, too_many
from services.engines.replicas import delete_apps
from services.jobs.fence import Fence, NewEvent

POLL_S = 0.5
REASONS = {
    TakeResult.STARTING: "another job is starting it",
    TakeResult.LEAVING: "it is just leaving",
    TakeResult.FULL: "every place is taken",
}

Deploy = Callable[[], DeploymentHandle[Any]]


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
    def use(self, engine: Engine, deploy: Deploy) -> Iterator[DeploymentHandle[Any]]:
        """The engine, deployed unless it is there; afterwards it is kept idle for reuse until it is evicted."""
        assert self._uses is None, f"{self._fence.job_id} uses {self._uses} and wants {engine.app}"
        found = self._take(engine)
        self._uses = engine.app
        try:
            yield self._handle(engine, found, deploy)
        finally:
            self._uses = None
            self._store.release(engine.app, self._fence)

    def make_room(self, needed: Mapping[str, float], *, purpose: str) -> None:
        """Evict idle engines, least recently used first, until `needed` CPUs and GPUs are free."""
        free = {kind: number - needed.get(kind, 0) for kind, number in self._free().items()}
        for engine in too_many(self._store.idle(), free):
            self._evict(engine, f"its place is needed for {purpose}")

    def _take(self, engine: Engine) -> TakeResult:
        told = None
        while (found := self._store.take(engine, self._fence, places=self._places)) not in (
            TakeResult.NEW,
            TakeResult.READY,
        ):
            if found is TakeResult.FULL and self._evict_oldest(engine):
                continue
            if found is not told:
                users = ", ".join(self._store.users()) or "no job any more"
                self._tell(f"waiting for the {engine.label}: {REASONS[found]}; engines are in use by {users}")
                told = found
            time.sleep(POLL_S)
        return found

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

    def _handle(self, engine: Engine, found: TakeResult, deploy: Deploy) -> DeploymentHandle[Any]:
        """A ready engine that Serve knows it also brings back if it does not run; calls wait for that. One that Serve
        does not know was lost with its cluster."""
        while found is TakeResult.READY:
            if engine.app in serve.status().applications:
                self._tell(f"the {engine.label} is there already")
                return serve.get_app_handle(engine.app)
            if self._store.restart(engine.app, self._fence):
                break
            time.sleep(POLL_S)
        self.make_room(engine.occupies, purpose=f"the {engine.label}")
        started = time.monotonic()
        try:
            handle = deploy()
        except BaseException:
            # Also where this driver is told to stop: another one may have taken the engine over by then, and keeps it.
            self._store.release(engine.app, self._fence)
            self._evict(engine)
            raise
        self._store.ready(engine.app, self._fence)
        self._tell(f"the {engine.label} started in {time.monotonic() - started:.1f} s")
        return handle

    def _tell(self, message: str) -> None:
        self._fence.record_events([NewEvent(message)])
