"""What every demo shares: a service of its own that is started, timed and stopped, a home that keeps models, and how
to go on with them."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from rich.console import Console

from services.commands.tables import show_table
from services.control.supervisor import Endpoint, ServeError, die_with_parent, free_port, running_endpoint
from services.settings import Settings

START_TIMEOUT_S = 180.0
ONE_RUN = (
    "One run with one seed. Another machine rounds otherwise and prints other figures, and rows that are close may "
    "change places: this table does not say which of them is better."
)
"""Printed under every table."""


def home_of(settings: Settings) -> Settings:
    """The demos' own home, inside the one they are given."""
    home = Settings(home=settings.root / "demo")
    home.make_home()
    return home


def made_earlier(folder: Path, what: str, console: Console) -> bool:
    """Whether an earlier demo left this model; says so."""
    if not (folder / "config.json").is_file():
        return False
    console.print(f"{what}: {folder} (made earlier)", highlight=False, soft_wrap=True)
    return True


@contextlib.contextmanager
def timed(times: dict[str, float], name: str) -> Iterator[None]:
    """Put the seconds of the block into `times`."""
    started = time.perf_counter()
    yield
    times[name] = time.perf_counter() - started


def show_times(times: Mapping[str, float], console: Console, parts: Mapping[str, Mapping[str, float]]) -> None:
    """Print what took how long; `parts` are the seconds of the parts of some of them."""
    rows = []
    for name, seconds in times.items():
        rows.append((name, f"{seconds:.0f}"))
        rows += [(f"  {part}", f"{taken:.0f}") for part, taken in parts.get(name, {}).items()]
    show_table(console, ("where the time went", "s"), rows)


def next_steps(home: Settings, job_id: str, question: str) -> list[str]:
    """Three commands that serve the demo's home, ask the model of a succeeded job and copy it out, as a shell reads
    them. The first runs until Ctrl-C, the others in a second terminal, in the same folder."""
    command = Path(sys.executable).with_name("wmss")
    here = Path.cwd()
    wmss = str(command.relative_to(here) if command.is_relative_to(here) else command)
    place = f"WMSS_HOME={shlex.quote(str(home.root))} {shlex.quote(wmss)}"
    # A base URL in the environment may lead to another service.
    elsewhere = "env -u WMSS_BASE_URL " if "WMSS_BASE_URL" in os.environ else ""
    return [
        f"{elsewhere}{place} serve",
        f"{elsewhere}{place} chat {job_id} {shlex.quote(question)} --temperature 0",
        f"{elsewhere}{place} export {job_id} demo-{job_id}",
    ]


def show_next_steps(home: Settings, job_id: str, question: str, console: Console) -> None:
    """Print `next_steps`, each on a line that can be copied whole."""
    serve, chat, export = next_steps(home, job_id, question)
    for title, command in (
        ("start the service again, with the demo's models, until Ctrl-C", serve),
        ("in a second terminal: ask the result", chat),
        ("copy it: an ordinary model folder", export),
    ):
        console.print(f"{title}:", highlight=False, markup=False, soft_wrap=True)
        console.print(f"  {command}", highlight=False, markup=False, soft_wrap=True)


@contextlib.contextmanager
def running_service(
    home: Settings, console: Console, times: dict[str, float], **environment: str
) -> Iterator[Endpoint]:
    """`wmss serve` as a child, on a free port, stopped when the block is left; both are timed.

    `environment` is the service's, on top of this process's own.
    """
    with contextlib.ExitStack() as stack:
        with timed(times, "start of Ray and API"):
            console.print("starting Ray and the API")
            endpoint = stack.enter_context(_served(home, environment))
        console.print(f"  REST API {endpoint.base_url}   Ray dashboard {endpoint.dashboard_url}", highlight=False)
        yield endpoint
        with timed(times, "stop"):
            stack.close()


@contextlib.contextmanager
def _served(home: Settings, environment: Mapping[str, str]) -> Iterator[Endpoint]:
    command = [sys.executable, "-m", "services.cli", "serve", "--home", str(home.root), "--port", str(free_port())]
    log_path = home.root / "serve.log"
    with log_path.open("wb") as log:
        # A session of its own: Ctrl-C then reaches this process alone, which stops the child in order.
        child = subprocess.Popen(
            command,
            env=os.environ | dict(environment),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            if child.poll() is not None:
                raise ServeError(f"the service ended while starting: {log_path.read_text(encoding='utf-8').strip()}")
            if time.monotonic() > deadline:
                raise ServeError(f"the service was not ready within {START_TIMEOUT_S:.0f} s; see {log_path}")
            endpoint = running_endpoint(home)
            if endpoint is not None and endpoint.pid == child.pid:
                break
            time.sleep(0.2)
        yield endpoint
    finally:
        _stop(child)


def _stop(child: subprocess.Popen[bytes]) -> None:
    """A second Ctrl-C must not leave Ray behind: it is ignored while the child stops."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        if child.poll() is None:
            os.kill(child.pid, signal.SIGTERM)
            child.wait()
    finally:
        signal.signal(signal.SIGINT, before)
