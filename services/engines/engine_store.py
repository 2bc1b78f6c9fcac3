"""Which engines are there and which drivers use them; kept in the job database.

An engine is made for a role, an architecture and options (`key`), and takes the weights of every model of these. Those
who use it at one time want the same weights. Which weights its replicas have, they alone know: each call names those it
wants, and a replica that has others, or half of them, loads first.

States of an engine, moved by conditional updates only:

    starting  the driver that took the place deploys it     -> ready (that driver, or the next user if it died)
    ready     answers its users, or is idle                 -> leaving (idle too long, evicted, abandoned)
    leaving   takes no new users                            -> gone (the process that evicted it, or the reconcile loop)

A driver's use of an engine lives as long as its attempt is its job's current one: nothing has to be renewed, and a
driver that dies gives up its engine.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import ColumnElement, Exists, and_, delete, exists, func, select, text, update
from sqlalchemy.orm import Session

from services.jobs.database import Database, changed_row
from services.jobs.fence import Fence
from services.jobs.states import State
from services.jobs.tables import EngineRow, EngineUserRow, JobRow

LEAVING_S = 180.0
"""Time to delete an application in: Serve's own limit and that of the reconcile loop's Ray job, one after the other."""


class EngineState(StrEnum):
    """State of an engine."""

    STARTING = "starting"
    READY = "ready"
    LEAVING = "leaving"


class TakeResult(StrEnum):
    """What a driver that wants an engine finds."""

    NEW = "new"
    """A place was free and is taken: deploy the engine."""
    READY = "ready"
    """It is there, and it is for these weights from now on."""
    STARTING = "starting"
    """Another driver is deploying it for the same weights: wait."""
    FULL = "full"
    """All places are taken: evict the least recently used idle engine, or wait for one to become idle."""


@dataclass(frozen=True)
class Engine:
    """One application of `num_replicas` replicas."""

    app: str
    """Its name; of an engine that is wanted, the name that it gets if it has to be deployed."""
    key: str
    """Role, architecture and options: engines of one key can take each other's weights."""
    weights: str
    """Which its users want: the `weights_id`, or the job that has the engine to itself."""
    label: str
    """What it does, for people: "scorer of models/qwen3"."""
    num_replicas: int
    num_cpus: int
    """Of Ray's CPUs, held by each replica."""
    use_gpu: bool
    """Whether each holds a GPU."""

    @property
    def occupies(self) -> dict[str, int]:
        """CPUs and GPUs that it holds, also when it is idle."""
        return {"CPU": self.num_replicas * self.num_cpus, "GPU": self.num_replicas if self.use_gpu else 0}


class EngineStore:
    """The engines' part of the database; every method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._sessions = database.sessions

    def take(self, engine: Engine, fence: Fence, *, places: int) -> tuple[TakeResult, str]:
        """Become a user of an engine of this key, and the name of its application.

        In this order: one that is there for the same weights; an idle one, which is for these from now on; a new one in
        one of the `places`, if one is free.
        """
        with fence.transaction() as session:
            _lock(session)
            row, found = self._find(session, engine)
            if row is None:
                if (session.scalar(select(func.count()).select_from(EngineRow)) or 0) >= places:
                    return TakeResult.FULL, ""
                sizes = {"num_replicas": engine.num_replicas, "num_cpus": engine.num_cpus, "use_gpu": engine.use_gpu}
                row = EngineRow(app=engine.app, key=engine.key, state=EngineState.STARTING, **sizes)
                session.add(row)
            elif found is TakeResult.STARTING:
                return found, row.app
            row.weights, row.label, row.used_at = engine.weights, engine.label, time.time()
            session.flush()
            # What drivers that died have left would make it look abandoned once it is idle.
            session.execute(delete(EngineUserRow).where(EngineUserRow.app == row.app, ~_user_is_alive()))
            session.merge(EngineUserRow(app=row.app, job_id=fence.job_id, attempt=fence.attempt))
            return found, row.app

    @staticmethod
    def _find(session: Session, engine: Engine) -> tuple[EngineRow | None, TakeResult]:
        """Which engine of this key to use, and how it is found."""
        query = select(EngineRow).where(EngineRow.key == engine.key, EngineRow.state != EngineState.LEAVING)
        rows = session.scalars(query.order_by(EngineRow.used_at), execution_options={"populate_existing": True}).all()
        in_use = {row.app: bool(session.scalar(select(_in_use(row.app)))) for row in rows}
        for row in rows:
            if row.weights == engine.weights and (in_use[row.app] or row.state == EngineState.READY):
                return row, TakeResult(row.state)
        for row in rows:
            if not in_use[row.app]:  # it is idle, or the driver that was deploying it died
                return row, TakeResult.READY if row.state == EngineState.READY else TakeResult.NEW
        return None, TakeResult.NEW

    def ready(self, app: str, fence: Fence) -> None:
        """It answers."""
        with fence.transaction() as session:
            deployed = (EngineRow.app == app, EngineRow.state == EngineState.STARTING)
            found = changed_row(session, update(EngineRow).where(*deployed).values(state=EngineState.READY))
            assert found, f"{app} is not being started"

    def restart(self, app: str, fence: Fence) -> bool:
        """Become the one user that deploys a ready engine again; False if another one uses it or does so."""
        with fence.transaction() as session:
            _lock(session)
            others = _users(app).where((EngineUserRow.job_id != fence.job_id) & _is_alive())
            lost = (EngineRow.app == app, EngineRow.state == EngineState.READY, ~others)
            return changed_row(session, update(EngineRow).where(*lost).values(state=EngineState.STARTING))

    def release(self, app: str, fence: Fence) -> None:
        """This driver no longer uses it; it is kept idle."""
        user = (EngineUserRow.app == app, EngineUserRow.job_id == fence.job_id, EngineUserRow.attempt == fence.attempt)
        with self._sessions.begin() as session:
            session.execute(update(EngineRow).where(EngineRow.app == app).values(used_at=time.time()))
            session.execute(delete(EngineUserRow).where(*user))

    def idle(self) -> list[Engine]:
        """Idle engines, least recently used first."""
        with self._sessions() as session:
            query = select(EngineRow).where(EngineRow.state == EngineState.READY, ~_in_use(EngineRow.app))
            return [_engine(row) for row in session.scalars(query.order_by(EngineRow.used_at))]

    def users(self) -> list[str]:
        """Jobs that use an engine now."""
        with self._sessions() as session:
            query = select(EngineUserRow.job_id).join(JobRow, JobRow.id == EngineUserRow.job_id).where(_is_alive())
            return list(session.scalars(query.distinct()))

    def leave(self, app: str) -> bool:
        """Let an engine take no new users. After True, the caller deletes its application and then calls `remove`.

        False if it has a user, or another process is deleting it and began less than `LEAVING_S` ago.
        """
        now = time.time()
        with self._sessions.begin() as session:
            _lock(session)
            unused = (EngineRow.state != EngineState.LEAVING) & ~_in_use(app)
            mine = update(EngineRow).where(EngineRow.app == app, unused | _forgotten(now))
            return changed_row(session, mine.values(state=EngineState.LEAVING, used_at=now))

    def abandoned(self, *, idle_s: float) -> list[str]:
        """Engines to delete: idle for `idle_s`, left by a driver that died, or half deleted by one that died."""
        now = time.time()
        with self._sessions() as session:
            died = exists().where(EngineUserRow.app == EngineRow.app)  # one that ends well takes its row with it
            unused = (EngineRow.state != EngineState.LEAVING) & ~_in_use(EngineRow.app)
            expired = EngineRow.used_at < now - idle_s
            query = select(EngineRow.app).where((unused & (died | expired)) | _forgotten(now))
            return list(session.scalars(query))

    def remove(self, apps: Sequence[str]) -> None:
        """The applications of engines that were made to leave are gone."""
        with self._sessions.begin() as session:
            _lock(session)
            gone = (EngineRow.app.in_(apps), EngineRow.state == EngineState.LEAVING)
            session.execute(delete(EngineUserRow).where(EngineUserRow.app.in_(select(EngineRow.app).where(*gone))))
            session.execute(delete(EngineRow).where(*gone))


def too_many(idle: Sequence[Engine], free: Mapping[str, float]) -> list[Engine]:
    """Those of the `idle` engines, the first ones first, that must leave for the rest to fit into what is free. An
    engine that holds nothing of what is short stays."""
    leaving: list[Engine] = []
    for engine in idle:
        held = [each.occupies for each in idle if each not in leaving]
        short = [kind for kind in ("CPU", "GPU") if sum(each[kind] for each in held) > max(free.get(kind, 0), 0)]
        if any(engine.occupies[kind] for kind in short):
            leaving.append(engine)
    return leaving


def _engine(row: EngineRow) -> Engine:
    return Engine(
        app=row.app,
        key=row.key,
        weights=row.weights,
        label=row.label,
        num_replicas=row.num_replicas,
        num_cpus=row.num_cpus,
        use_gpu=row.use_gpu,
    )


def _is_alive() -> ColumnElement[bool]:
    """The user's attempt is its job's current one."""
    return and_(JobRow.state == State.RUNNING, JobRow.attempt == EngineUserRow.attempt)


def _users(app: object) -> Exists:
    return exists().where(EngineUserRow.app == app, JobRow.id == EngineUserRow.job_id)


def _in_use(app: object) -> Exists:
    return _users(app).where(_is_alive())


def _user_is_alive() -> Exists:
    """Of the row of a user that is looked at."""
    return exists().where(JobRow.id == EngineUserRow.job_id, _is_alive()).correlate(EngineUserRow)


def _forgotten(now: float) -> ColumnElement[bool]:
    """A process began to delete the engine, and died."""
    return (EngineRow.state == EngineState.LEAVING) & (EngineRow.used_at < now - LEAVING_S)


def _lock(session: Session) -> None:
    """One writer at a time: places are counted and taken in one step. SQLite has only one in any case."""
    if session.get_bind().dialect.name == "sqlite":
        session.execute(update(EngineRow).where(EngineRow.app == "").values(state=""))  # takes the write lock
    else:
        session.execute(text("LOCK TABLE engines IN SHARE ROW EXCLUSIVE MODE"))
