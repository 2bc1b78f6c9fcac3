"""A real PostgreSQL server for tests: initialised in a folder of its own, on a free port of this machine alone."""

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg

from services.control.supervisor import die_with_parent, free_port

PASSWORD = "not-4-logs"
"""The server trusts whoever reaches it; the password is there to be looked for where it must not appear."""
START_TIMEOUT_S = 30.0


def find_binaries() -> Path | None:
    """Folder of the newest installed server's programs, or None."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    on_path = shutil.which("initdb")
    found = installed[-1:] or ([Path(on_path).resolve()] if on_path else [])
    return found[0].parent if found else None


def _owner() -> str | None:
    """Whom the server runs as: it refuses to be root."""
    if os.geteuid() != 0:
        return None
    names = {user.pw_name for user in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


@dataclass
class Postgres:
    """A server that can be stopped and started again."""

    binaries: Path
    folder: Path
    port: int
    process: subprocess.Popen | None = None

    def start(self) -> None:
        """Start and wait until it answers."""
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    self.binaries / "postgres",
                    *("-D", self.folder / "data", "-k", self.folder, "-p", str(self.port)),
                    *("-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"),
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
                user=_owner(),
                cwd=self.folder,
                preexec_fn=die_with_parent,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                psycopg.connect(self._address("postgres")).close()
                return
            except psycopg.OperationalError:
                assert self.process.poll() is None and time.monotonic() < deadline, (self.folder / "log").read_text()
                time.sleep(0.05)

    def stop(self) -> None:
        """Stop as an administrator would: connections are closed, nothing is lost."""
        assert self.process is not None
        subprocess.run(
            [self.binaries / "pg_ctl", "stop", "--mode=fast", "--wait", "-D", self.folder / "data"],
            user=_owner(),
            cwd=self.folder,
            check=True,
            capture_output=True,
        )
        self.process.wait()

    @contextlib.contextmanager
    def database(self) -> Iterator[str]:
        """SQLAlchemy URL of a fresh database."""
        name = f"test_{uuid.uuid4().hex}"
        self._execute(f"CREATE DATABASE {name}")
        try:
            yield f"postgresql+psycopg://postgres:{PASSWORD}@127.0.0.1:{self.port}/{name}"
        finally:
            self._execute(f"DROP DATABASE {name} WITH (FORCE)")

    def _execute(self, statement: str) -> None:
        with psycopg.connect(self._address("postgres"), autocommit=True) as connection:
            connection.execute(statement)

    def _address(self, name: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{name}"


@contextlib.contextmanager
def running_postgres(binaries: Path) -> Iterator[Postgres]:
    """A new server, stopped and removed at the end."""
    # Not under pytest's folder, which only its owner may enter.
    folder = Path(tempfile.mkdtemp(prefix="wmss-postgres-"))
    try:
        owner = _owner()
        if owner:
            shutil.chown(folder, owner)
        subprocess.run(
            [binaries / "initdb", "-D", folder / "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"],
            user=owner,
            cwd=folder,
            check=True,
            capture_output=True,
        )
        server = Postgres(binaries, folder, free_port())
        server.start()
        try:
            yield server
        finally:
            if server.process is not None and server.process.poll() is None:
                server.stop()
    finally:
        shutil.rmtree(folder)
