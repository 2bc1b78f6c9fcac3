"""`wmss serve`: one command that runs a Ray head and the API, and takes both down again.

Both are children of this process. A dead API is started again and finds the cluster; when the supervisor ends, for
any reason, its children end with it, and processes that they left are adopted and ended.
"""

import contextlib
import ctypes
import fcntl
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType

import psutil
from pydantic import BaseModel
from sqlalchemy import make_url
from sqlalchemy.exc import SQLAlchemyError

from services.control.ray_temp import make_empty, ray_temp_folder
from services.settings import (
    MIN_FREE_BYTES,
    SUPERVISOR_PID,
    Settings,
    engine_environment,
    full_disk,
    ray_cpus,
    unusable_home,
)

logger = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 5.0
REAP_S = 2.0
"""Between two searches for orphans. Each looks at every process of the machine: at 0.2 s it took 3 % of a core."""
MAX_RAY_STARTS = 3
"""Ray's head ends by itself where its agents take more than 15 s to start, as on a slow or busy machine."""
API_STOP_S = 5
"""Time that requests under way have once the API is told to stop, whole seconds."""


class Endpoint(BaseModel):
    """How to reach a running service; written to `endpoint.json` in its home when it is ready."""

    base_url: str
    dashboard_url: str
    token_path: str
    pid: int


class ServeError(RuntimeError):
    """The service cannot start; the message says what to change."""


def endpoint_file(settings: Settings) -> Path:
    """Where a running service says how to reach it."""
    return settings.root / "endpoint.json"


def running_endpoint(settings: Settings) -> Endpoint | None:
    """The service that runs in this home, or None; the file of one that was killed counts as none."""
    try:
        endpoint = Endpoint.model_validate_json(endpoint_file(settings).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return endpoint if psutil.pid_exists(endpoint.pid) else None


class Supervisor:
    """Starts, watches and stops the children."""

    def __init__(self, settings: Settings, *, host: str, port: int) -> None:
        self._settings = settings
        self._host = host
        self._port = port
        self._stop_requested = False
        self._disk_is_full = False
        self._ray: subprocess.Popen[bytes] | None = None
        self._api: subprocess.Popen[bytes] | None = None
        self._logs = settings.root / "logs"
        self._cleanup = contextlib.ExitStack()
        self._ray_address = ""
        self._serve_port = free_port()

    def run(self, on_ready: Callable[[Endpoint], None]) -> None:
        """Start everything, call `on_ready`, and keep it running until SIGTERM or Ctrl-C."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._request_stop)
        # Orphans of dead children (Ray's workers) become our children: none can be left behind.
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        token_path = self._prepare_home()
        end_leftovers(self._settings.root)  # the API of a service that was killed may still have the port
        self._check_port()
        self._check_database()
        try:
            dashboard_url = self._start_ray(token_path)
            environment = self._environment(token_path)
            environment |= {"WMSS_RAY_DASHBOARD_URL": dashboard_url, "RAY_ADDRESS": self._ray_address}
            self._api = self._start_api(environment)
            reachable = "127.0.0.1" if self._host == "0.0.0.0" else self._host
            base_url = f"http://{reachable}:{self._port}"
            self._wait_until_ready(base_url)
            endpoint = Endpoint(
                base_url=f"{base_url}/v1", dashboard_url=dashboard_url, token_path=str(token_path), pid=os.getpid()
            )
            if not self._stop_requested and self._ray is not None and self._ray.poll() is None:
                _write_atomically(endpoint_file(self._settings), endpoint.model_dump_json(indent=2) + "\n")
                on_ready(endpoint)
            self._watch(environment)
        finally:
            endpoint_file(self._settings).unlink(missing_ok=True)
            self._stop_children()
            self._cleanup.close()

    def _request_stop(self, number: int, frame: FrameType | None) -> None:
        self._stop_requested = True

    def _check_port(self) -> None:
        if self._host not in ("127.0.0.1", "localhost"):
            logger.warning("listening on %s: anyone who reaches it can use this service", self._host)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self._host, self._port))
            except OSError as error:
                raise ServeError(
                    f"--port: {self._host}:{self._port} cannot be used ({error.strerror}); stop what listens there or "
                    "choose another port"
                ) from error

    def _prepare_home(self) -> Path:
        """Make and lock what the service writes to, on disks with room; returns the path of Ray's token."""
        root = self._settings.root
        self._settings.make_home()
        for folder in (root, Path(tempfile.gettempdir())):
            if shutil.disk_usage(folder).free < MIN_FREE_BYTES:
                raise full_disk(folder)
        try:
            self._logs.mkdir(exist_ok=True)
            self._lock_home()
            return self._make_token()
        except OSError as error:
            raise unusable_home(root, error) from error

    def _check_database(self) -> None:
        """A database that does not answer is said now, not by the API after Ray has started."""
        if self._settings.database_url is None:
            return
        logging.getLogger("alembic").setLevel(logging.WARNING)  # it tells of each of its plugins when it is imported
        from services.jobs.database import Database  # with alembic, which other commands start without

        database = Database(self._settings.database)
        try:
            database.ping()
        except SQLAlchemyError as error:
            address = make_url(self._settings.database)
            reason = str(getattr(error, "orig", None) or error).splitlines()[0]
            if address.password:
                reason = reason.replace(str(address.password), "***")
            raise ServeError(
                f"WMSS_DATABASE_URL: {address.render_as_string(hide_password=True)} does not answer ({reason}); start "
                "the database or correct the address"
            ) from error
        finally:
            database.close()

    def _warn_of_full_disk(self) -> None:
        """The API cannot write to its own log then; this process's goes to the terminal."""
        root = self._settings.root
        is_full = shutil.disk_usage(root).free < MIN_FREE_BYTES
        if is_full and not self._disk_is_full:
            logger.warning("%s", full_disk(root).message)
        self._disk_is_full = is_full

    def _lock_home(self) -> None:
        """Two clusters on one database would each consider the other's drivers lost. The lock goes with the process."""
        self._lock = (self._settings.root / "lock").open("a+")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ServeError(
                f"--home: another service runs in {self._settings.root}; stop it or choose another folder"
            ) from error

    def _make_token(self) -> Path:
        path = self._settings.root / "ray_token"
        if not path.is_file():
            _write_atomically(path, secrets.token_hex(32))
        return path

    def _environment(self, token_path: Path) -> dict[str, str]:
        # Ray picks "auto" clusters from RAY_ADDRESS and a file of the machine; another cluster's must not leak in.
        inherited = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        exempt = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
        no_proxy = ",".join(filter(None, (exempt, "127.0.0.1,localhost")))
        return (
            inherited
            | engine_environment()
            | {
                # A proxy for the outside world must not be asked for this machine.
                "NO_PROXY": no_proxy,
                "no_proxy": no_proxy,
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN_PATH": str(token_path),
                "WMSS_HOME": str(self._settings.root),
                SUPERVISOR_PID: str(os.getpid()),
                "WMSS_DATABASE_URL": self._settings.database,
                "WMSS_MODEL_ROOTS": self._settings.model_roots,
                "WMSS_SERVE_HOST": "127.0.0.1",
                "WMSS_SERVE_PORT": str(self._serve_port),
                "WMSS_SERVE_URL": f"http://127.0.0.1:{self._serve_port}",
            }
        )

    def _start_ray(self, token_path: Path) -> str:
        temp_dir = ray_temp_folder(self._settings.root)
        if not temp_dir.is_relative_to(self._settings.root):
            try:
                make_empty(temp_dir.parent)
            except OSError as error:
                raise ServeError(
                    f"Ray's folder cannot be made ({error}); remove what is there or set TMPDIR"
                ) from error
            self._cleanup.callback(shutil.rmtree, temp_dir.parent, ignore_errors=True)
        for attempt in range(1, MAX_RAY_STARTS):
            try:
                return self._start_ray_head(token_path, temp_dir)
            except ServeError as error:
                if self._ray is None or self._ray.poll() is None:
                    raise
                logger.warning("%s; starting it again (%d of %d)", error, attempt + 1, MAX_RAY_STARTS)
                self._stop_children()
        return self._start_ray_head(token_path, temp_dir)

    def _start_ray_head(self, token_path: Path, temp_dir: Path) -> str:
        gcs, dashboard, agent, client = (free_port() for _ in range(4))
        self._ray = self._spawn(
            "ray",
            [
                str(Path(sys.executable).with_name("ray")),
                "start",
                "--head",
                "--block",
                "--node-ip-address=127.0.0.1",
                f"--port={gcs}",
                f"--dashboard-port={dashboard}",
                "--dashboard-host=127.0.0.1",
                f"--dashboard-agent-listen-port={agent}",
                f"--ray-client-server-port={client}",
                f"--temp-dir={temp_dir}",
                f"--num-cpus={ray_cpus()}",
                "--disable-usage-stats",
            ],
            self._environment(token_path),
        )
        self._ray_address = f"127.0.0.1:{gcs}"
        url = f"http://127.0.0.1:{dashboard}"
        # The dashboard answers before the node can run anything, and also when the node could not start.
        node_url = f"http://127.0.0.1:{agent}/api/local_raylet_healthz"
        self._wait_for("the Ray head", self._ray, lambda: _answers(url) and _answers(node_url), "ray.log")
        return url

    def _start_api(self, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "uvicorn", "services.api.app:create_app", "--factory"]
        command += ["--host", self._host, "--port", str(self._port), "--log-level", "warning"]
        command += ["--timeout-graceful-shutdown", str(API_STOP_S)]
        return self._spawn("api", command, environment)

    def _spawn(self, name: str, command: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        with (self._logs / f"{name}.log").open("ab") as log:
            # A session of its own: Ctrl-C reaches the supervisor alone, which then stops the children in order.
            return subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    def _wait_until_ready(self, base_url: str) -> None:
        """The API is ready once the head node is alive, which may have ended since Ray said so."""
        assert self._api is not None and self._ray is not None
        ray = self._ray
        self._wait_for(
            "the API", self._api, lambda: ray.poll() is not None or _answers(f"{base_url}/readyz"), "api.log"
        )

    def _wait_for(self, what: str, process: subprocess.Popen[bytes], answers: Callable[[], bool], log: str) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._stop_requested and not answers():
            if process.poll() is not None:
                raise ServeError(f"{what} ended while starting (code {process.returncode}); see {self._logs / log}")
            if time.monotonic() > deadline:
                raise ServeError(f"{what} did not answer within {START_TIMEOUT_S:.0f} s; see {self._logs / log}")
            time.sleep(0.2)

    def _watch(self, environment: dict[str, str]) -> None:
        assert self._ray is not None and self._api is not None
        reaped_at = time.monotonic()
        while not self._stop_requested:
            if self._ray.poll() is not None:
                raise ServeError(
                    f"the Ray head ended (code {self._ray.returncode}); see {self._logs / 'ray.log'}. Jobs are kept: "
                    "`wmss serve` again goes on with them"
                )
            if self._api.poll() is not None:
                logger.warning("the API ended (code %s); starting it again", self._api.returncode)
                time.sleep(0.5)
                self._api = self._start_api(environment)
            if time.monotonic() - reaped_at >= REAP_S:
                _reap_adopted(self._ray.pid, self._api.pid)
                self._warn_of_full_disk()
                reaped_at = time.monotonic()
            time.sleep(0.2)

    def _stop_children(self) -> None:
        """SIGTERM to API and Ray, then all that still runs below this process; SIGKILL after a while."""
        for child in (self._api, self._ray):
            if child is not None and child.poll() is None:
                child.terminate()
                try:
                    child.wait(STOP_TIMEOUT_S)
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()
        rest = psutil.Process().children(recursive=True)
        for process in rest:
            _ignore_gone(process.terminate)
        _, alive = psutil.wait_procs(rest, timeout=3)
        while alive:
            for process in alive:
                _ignore_gone(process.kill)
            psutil.wait_procs(alive, timeout=3)
            alive = psutil.Process().children(recursive=True)


def _write_atomically(path: Path, text: str) -> None:
    """Readable by its owner alone, and never half there."""
    partial = path.with_name(path.name + ".partial")
    partial.touch(mode=0o600)
    partial.write_text(text, encoding="utf-8")
    partial.rename(path)


def free_port() -> int:
    """A free port; above 32767, outside the range Ray gives to its workers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def die_with_parent() -> None:
    """For `preexec_fn`: the child gets SIGTERM when the thread that started it ends, even by SIGKILL."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _reap_adopted(*own: int) -> None:
    """Collect adopted orphans that have ended, or they would stay as zombies."""
    for process in psutil.Process().children():
        if process.pid not in own and process.status() == psutil.STATUS_ZOMBIE:
            _ignore_gone(partial(os.waitpid, process.pid, os.WNOHANG))


def end_leftovers(home: Path) -> None:
    """End what a killed service of this home left: two drivers must never feed one training run.

    The caller holds the home's lock, so that no other supervisor of it lives.
    """
    left = [process for process in psutil.process_iter() if _is_leftover(process, home)]
    if not left:
        return
    logger.warning("ending %d processes of a service of this home that was killed", len(left))
    for process in left:
        _ignore_gone(process.kill)
    psutil.wait_procs(left, timeout=STOP_TIMEOUT_S)


def _is_leftover(process: psutil.Process, home: Path) -> bool:
    try:
        environment = process.environ()
    except (psutil.Error, OSError):  # it is gone, or another user's
        return False
    supervisor = environment.get(SUPERVISOR_PID)
    own = (str(os.getpid()), None)
    return supervisor not in own and environment.get("WMSS_HOME") == str(home)


def _ignore_gone(action: Callable[[], object]) -> None:
    try:
        action()
    except (psutil.NoSuchProcess, ChildProcessError):
        return


def _answers(url: str) -> bool:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=2) as response:
            return bool(response.status == 200)
    except OSError as error:
        # With a token on, the dashboard answers 401 to us: it is up.
        return getattr(error, "code", None) == 401
