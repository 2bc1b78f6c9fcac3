"""Where the service keeps things and how it finds its parts: environment variables `WMSS_*`, read once."""

import difflib
import errno
import os
import re
import shutil
import tempfile
from pathlib import Path

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from wmss.errors import ConfigError

FIXED_ENVIRONMENT = {
    # Largest effect on CPU found: with more threads than cores to itself an engine falls 10-100x behind.
    "OMP_NUM_THREADS": "1",
    # One process per engine: a replica that dies takes its engine along.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",
}
DEFAULT_ENVIRONMENT = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    # An idle controller takes 5 % of a core at Ray's 0.1 s. An engine starts and ends up to half a second later.
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
    # How often the workers' reports are read: after the last step at least twice, at Ray's 2 s each.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Environment of the Ray node and everything it starts: what the design relies on, and what the operator's own
environment may override. No secrets: Ray shows both to every user of its dashboard."""

OTHER_VARIABLES = ("WMSS_BASE_URL", "WMSS_API_KEY")
"""Of the commands that talk to a service; all others are `Settings`."""
SUPERVISOR_PID = "WMSS_SUPERVISOR_PID"
"""Variable that `wmss serve` sets for all that runs below it: its own process id."""
_OF_TESTS = "WMSS_TEST_"
MIN_FREE_BYTES = 100 * 2**20
"""Less room is a full disk: Ray's logs alone need some of it at each start."""
FULL = (errno.ENOSPC, errno.EDQUOT)
"""What the system says where a disk or a quota is full."""

DATABASE_DRIVERS = ("sqlite", "postgresql", "postgresql+psycopg")


def engine_environment() -> dict[str, str]:
    """Environment of engines, drivers and workers."""
    return {name: os.environ.get(name, value) for name, value in DEFAULT_ENVIRONMENT.items()} | FIXED_ENVIRONMENT


def ray_cpus() -> int:
    """CPUs the local Ray node says it has. Two cores are oversubscribed on purpose: an engine and a trainer that wait
    must not block a third."""
    return max(4, os.cpu_count() or 1)


class Settings(BaseSettings):
    """Settings of every process of the service; each field is the variable `WMSS_<FIELD>`."""

    model_config = SettingsConfigDict(
        env_prefix="WMSS_",
        frozen=True,
        use_attribute_docstrings=True,
        hide_input_in_errors=True,  # the database's address may hold a password
    )

    home: Path = Path("~/.wmss")
    """Folder of the service's state."""
    database_url: str | None = Field(default=None, repr=False)
    """SQLAlchemy URL of the job database, sqlite:///PATH or postgresql+psycopg://...; default SQLite in the home."""
    model_roots: str = ""
    """Folders models may be taken from, separated by colons, besides the home's `models/`."""
    hub: bool = False
    """Whether weak checkpoints may be downloaded from the Hugging Face hub (`HF_ENDPOINT`) when they are registered."""
    ray_dashboard_url: str = "http://127.0.0.1:8265"
    """Address of the Ray dashboard; its Jobs API runs the drivers."""
    serve_url: str = "http://127.0.0.1:8001"
    """Where the API reaches Ray Serve's HTTP proxy, behind which the chat engine is."""
    serve_host: str = "127.0.0.1"
    """Address the proxy listens on, on the Ray head. It has no authentication: keep it off public networks."""
    serve_port: int = Field(default=8001, ge=1, le=65535)
    """Port the proxy listens on."""
    chat_idle_s: float = Field(default=300.0, gt=0)
    """Seconds after its last request that an idle chat engine is kept."""
    chat_start_s: float = Field(default=300.0, gt=0)
    """Longest start of a chat engine, and longest wait of a request for it."""
    max_engines: int = Field(default=2, ge=1)
    """Scoring and sampling engines that may exist at a time; the least recently used idle one is evicted."""
    engine_idle_s: float = Field(default=600.0, gt=0)
    """Seconds after its last use that an idle scoring or sampling engine is kept, unless it is evicted before. Longer
    than the training between two phases of a job that use it, and it need not start again."""
    max_running_jobs: int = Field(default=1, ge=1)
    """Jobs that run at a time; the others wait in order."""
    max_attempts: int = Field(default=3, ge=1)
    """Attempts at a job that may fail, without a phase or a newer checkpoint between them, before the job fails."""
    max_lost_hours: float = Field(default=72.0, gt=0)
    """Hours from the first attempt that was lost with its node, head, lease or service to the last, without a phase or
    a newer checkpoint between them, after which the job fails. Such attempts do not count towards `max_attempts`."""
    training_threads: int = Field(default=1, ge=1)
    """CPU threads of one training worker; more only where the machine has cores to spare."""
    lease_s: float = Field(default=30.0, gt=0)
    """Lease of a driver in seconds, renewed three times as often. A driver whose lease expired more than 4 × `lease_s`
    ago is considered hung."""
    reconcile_s: float = Field(default=2.0, gt=0)
    """Seconds between two comparisons of the database with Ray."""
    max_file_bytes: int = Field(default=2**30, ge=1)
    """Largest file an upload may have."""

    @field_validator("database_url")
    @classmethod
    def _is_a_known_database(cls, value: str | None) -> str | None:
        if value is not None and _driver(value) not in DATABASE_DRIVERS:
            raise ValueError("expected sqlite:///PATH or postgresql+psycopg://USER:PASSWORD@HOST:PORT/NAME")
        return value

    @property
    def root(self) -> Path:
        """The home as an absolute path."""
        return Path(os.path.realpath(self.home.expanduser()))  # `resolve` raises where links go in a circle

    @property
    def database(self) -> str:
        """The database URL in force."""
        path = str(self.database_file)
        return self.database_url or URL.create("sqlite", database=path).render_as_string(hide_password=False)

    @property
    def database_file(self) -> Path:
        """Where the job database lies, unless `database_url` names another."""
        return self.root / "wmss.db"

    @property
    def models(self) -> Path:
        """Where finished models lie; always an allowed root."""
        return self.root / "models"

    @property
    def hub_cache(self) -> Path:
        """Where downloads from the hub lie, in the layout of its own cache."""
        return self.root / "hub"

    @property
    def examined(self) -> Path:
        """Where answers about model folders are kept."""
        return self.root / "cache" / "examined"

    @property
    def allowed_roots(self) -> list[Path]:
        """Folders a model may be named from."""
        return [
            self.models,
            *(Path(os.path.realpath(Path(root).expanduser())) for root in self.model_roots.split(":") if root),
        ]

    def file_path(self, file_id: str) -> Path:
        """Where an uploaded file lies."""
        return self.root / "files" / f"{file_id}.jsonl"

    def job_folder(self, job_id: str) -> Path:
        """Where a job's artifacts lie."""
        return self.root / "jobs" / job_id

    def make_home(self) -> None:
        """Make the home and see that a file can be written there; raises `ConfigError` with what is in the way."""
        try:
            self.models.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root) as file:
                file.write(b"\n")
        except OSError as error:
            raise unusable_home(self.root, error) from error

    def for_clients(self, text: str) -> str:
        """`text` without where on this machine things lie: of a path below the home or a root of models the rest."""
        roots = {root for root in (*self.allowed_roots, self.hub_cache, self.root) if root != Path("/")}
        for root in sorted(roots, key=lambda root: len(str(root)), reverse=True):
            text = re.sub(
                rf"(?<![\w./-]){re.escape(str(root))}(/(?=\w)|(?![\w-]))",
                lambda found, name=root.name: "" if found[1] else name,  # type: ignore[misc]
                text,
            )
        return text

    @property
    def runs(self) -> Path:
        """Ray Train's storage path."""
        return self.root / "runs"


def unusable_home(home: Path, error: OSError) -> ConfigError:
    """Why nothing can be written to a home, and what to do."""
    if error.errno in FULL:
        return full_disk(home)
    return ConfigError(
        f"--home: {home} cannot be used ({error.strerror}); name a folder that this user may write to, with --home or "
        "WMSS_HOME",
        param="home",
    )


def full_disk(folder: Path) -> ConfigError:
    """That the disk of a folder is full, and what to do."""
    there = next(path for path in (folder, *folder.parents) if path.exists())  # a home may not have been made
    return ConfigError(
        f"the disk of {folder} is full ({shutil.disk_usage(there).free // 2**20} MB left, {MIN_FREE_BYTES // 2**20} "
        "needed); free some space there, or name a folder on another disk (--home or WMSS_HOME; TMPDIR for "
        "temporary files)",
        param="home",
    )


def unread_variables() -> list[str]:
    """A warning for each variable `WMSS_*` of the environment that nothing reads: a misspelt setting has no effect."""
    known = [*(f"WMSS_{name.upper()}" for name in Settings.model_fields), *OTHER_VARIABLES, SUPERVISOR_PID]
    warnings = []
    for name in sorted(os.environ):
        if name.upper().startswith("WMSS_") and name.upper() not in known and not name.startswith(_OF_TESTS):
            near = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.8)
            remedy = f"did you mean {near[0]}?" if near else "`wmss knobs` prints all variables"
            warnings.append(f"{name}: nothing reads this environment variable; {remedy}")
    return warnings


def _driver(url: str) -> str | None:
    try:
        return make_url(url).drivername
    except ArgumentError:
        return None
