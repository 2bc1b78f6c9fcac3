"""The database's tables."""

from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    BigInteger,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

Key = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts up only in a column declared INTEGER


class Characters(TypeDecorator[str]):
    """Text without NUL, which PostgreSQL cannot hold: U+FFFD stands for it, in what is stored and what is sought."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """The value as it goes to the database."""
        return None if value is None else value.replace("\0", "\ufffd")


class LongCharacters(Characters):
    """The same, of any length."""

    impl = Text
    cache_ok = True


class Base(DeclarativeBase):
    """Base of all tables; times are Unix seconds, ids strings with OpenAI's prefixes."""

    type_annotation_map: ClassVar = {dict[str, Any]: JSON, str: Characters(255)}


class FileRow(Base):
    """An uploaded file."""

    __tablename__ = "files"

    number: Mapped[int] = mapped_column(Key, primary_key=True)
    id: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[int]
    filename: Mapped[str]
    purpose: Mapped[str]
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str]


class JobRow(Base):
    """A job of one of the kinds in `services.jobs.kinds`.

    `attempt` is the fencing token: only the driver of the current attempt may write.

    `request_key` is the caller's Idempotency-Key, `request_digest` that of the body: a create that is sent again is
    answered with the job it made.

    `failed_attempts` counts the attempts that failed since the last progress (a phase finished, a newer checkpoint
    made); `lost_since` is when the first of those was followed that were lost, which do not count. `attempt_end` is how
    the current attempt ended, where somebody could say so (`services.jobs.attempts.AttemptEnd`).
    """

    __tablename__ = "jobs"

    number: Mapped[int] = mapped_column(Key, primary_key=True)
    id: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[int]
    finished_at: Mapped[int | None]
    kind: Mapped[str] = mapped_column(server_default="fine_tuning")
    state: Mapped[str] = mapped_column(index=True)
    spec: Mapped[dict[str, Any]]
    paths: Mapped[dict[str, Any]]
    fine_tuned_model: Mapped[str | None] = mapped_column(Characters(512), unique=True)
    error: Mapped[dict[str, Any] | None]
    trained_tokens: Mapped[int | None] = mapped_column(BigInteger)
    request_key: Mapped[str | None] = mapped_column(unique=True)
    request_digest: Mapped[str] = mapped_column(index=True)
    attempt: Mapped[int] = mapped_column(default=0)
    failed_attempts: Mapped[int] = mapped_column(default=0)
    lost_since: Mapped[float | None] = mapped_column(Float)
    attempt_end: Mapped[dict[str, Any] | None]
    claimed_at: Mapped[float | None] = mapped_column(Float)
    lease_expires_at: Mapped[float | None] = mapped_column(Float)


class PhaseRow(Base):
    """A phase of a job: how far it is and, once finished, what it left."""

    __tablename__ = "phases"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    started_at: Mapped[float]
    finished_at: Mapped[float | None]
    done: Mapped[int] = mapped_column(default=0)
    total: Mapped[int] = mapped_column(default=0)
    artifacts: Mapped[dict[str, Any] | None]


class EventRow(Base):
    """Something the owner of a job is told; `key` makes a repeated metric of a resumed run the same event."""

    __tablename__ = "events"
    __table_args__ = (UniqueConstraint("job_id", "key"), Index("events_of_job", "job_id", "number"))

    number: Mapped[int] = mapped_column(Key, primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    key: Mapped[str | None]
    created_at: Mapped[int]
    level: Mapped[str]
    type: Mapped[str]
    message: Mapped[str] = mapped_column(LongCharacters)
    data: Mapped[dict[str, Any] | None]


class CheckpointRow(Base):
    """A training checkpoint that exists."""

    __tablename__ = "checkpoints"
    __table_args__ = (UniqueConstraint("job_id", "phase", "step"),)

    number: Mapped[int] = mapped_column(Key, primary_key=True)
    id: Mapped[str] = mapped_column(unique=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), index=True)
    created_at: Mapped[int]
    phase: Mapped[str]
    step: Mapped[int]
    path: Mapped[str] = mapped_column(LongCharacters)
    model_name: Mapped[str] = mapped_column(Characters(640), unique=True)
    metrics: Mapped[dict[str, Any]]


class WeakCheckpointRow(Base):
    """A registered checkpoint: what lay in a folder when its name was registered.

    `content_key` is a digest of the name and of both halves of the checkpoint: the same thing is registered once.
    `files` holds size and time of change (ns) of every file that was digested, to see cheaply that none has changed.
    `labels` are the caller's metadata, a name that SQLAlchemy keeps for itself.
    """

    __tablename__ = "weak_checkpoints"

    number: Mapped[int] = mapped_column(Key, primary_key=True)
    id: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[int]
    name: Mapped[str] = mapped_column(Characters(1024))
    path: Mapped[str] = mapped_column(LongCharacters)
    revision: Mapped[str | None]
    content_key: Mapped[str] = mapped_column(unique=True)
    architecture: Mapped[str]
    num_parameters: Mapped[int] = mapped_column(BigInteger)
    vocab_size: Mapped[int]
    weights_digest: Mapped[str]
    tokenizer_digest: Mapped[str]
    files: Mapped[dict[str, Any]]
    labels: Mapped[dict[str, Any] | None]


class EngineRow(Base):
    """A scoring or sampling engine: a Serve application that jobs use in turn, each with weights of its own."""

    __tablename__ = "engines"

    app: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(index=True)
    weights: Mapped[str]
    label: Mapped[str] = mapped_column(LongCharacters)
    state: Mapped[str]
    num_replicas: Mapped[int]
    num_cpus: Mapped[int]
    use_gpu: Mapped[bool]
    used_at: Mapped[float]


class EngineUserRow(Base):
    """A driver that uses an engine, for as long as its attempt is the job's current one."""

    __tablename__ = "engine_users"

    app: Mapped[str] = mapped_column(ForeignKey("engines.app"), primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True)


class ChatEngineRow(Base):
    """The engine that answers chat requests. There is one place for it, so there is at most one row."""

    __tablename__ = "chat_engine"

    place: Mapped[int] = mapped_column(primary_key=True, autoincrement=False, default=1)
    app: Mapped[str]
    model: Mapped[str] = mapped_column(Characters(1024))
    path: Mapped[str] = mapped_column(LongCharacters)
    state: Mapped[str]
    since: Mapped[float]
    used_at: Mapped[float]
    error: Mapped[str | None] = mapped_column(LongCharacters)


class ChatRequestRow(Base):
    """A request that the chat engine is answering; its lease ends soon after the process that renews it."""

    __tablename__ = "chat_requests"

    id: Mapped[str] = mapped_column(primary_key=True)
    app: Mapped[str] = mapped_column(index=True)
    expires_at: Mapped[float]
