"""Fill a virtual environment from the locks. `make setup` runs `.venv/bin/python requirements/install.py LOCK OLDEST`.

uv does the work, in a tenth of pip's CPU time. It does not read pip's configuration, so it is given the indexes and
wheel folders that pip is configured with. Where uv cannot be installed, or fails, pip does the same work.

Every step says what it is, and at least every five seconds for how long it has run and how far it is.
"""

import ast
import compileall
import importlib.util
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

TORCH_CPU_INDEX = os.environ["TORCH_CPU_INDEX"]
"""Index of torch's CPU build, named by the Makefile; asked if the configured places do not have that build."""
VENV = Path(sys.prefix)
PACKAGES = Path(sysconfig.get_path("purelib"))
EVERY_S = 4.0
"""Between two lines of a step in a log file: with the time that a line takes, under five seconds."""
UV_NAMES = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "trusted-host": "UV_INSECURE_HOST",
    "cert": "SSL_CERT_FILE",
}
"""pip's option, and the variable that tells uv the same."""
NOT_COMPILED = re.compile(r"/tests?/|/testing/|/rllib/|/transformers/models/")
"""A fifth of all code, of which a process imports little."""
PIP_NOISE = "is ignored: it is neither a file nor a directory"
"""pip warns so for each package that a `file://` index does not hold: some 200 lines."""

Install = Callable[..., bool]


class Progress:
    """Prints what goes on. On a terminal the last line is rewritten every second; elsewhere lines follow each other."""

    def __init__(self) -> None:
        self._rewrites = sys.stdout.isatty()
        self._every_s = 1.0 if self._rewrites else EVERY_S
        self._lock = threading.Lock()

    def say(self, text: str) -> None:
        """Print a line that stays."""
        with self._lock:
            print(("\r\x1b[K" if self._rewrites else "") + text, flush=True)

    @contextmanager
    def step(self, what: str, how_far: Callable[[], str]) -> Iterator[None]:
        """Say that `what` has begun, then again and again its seconds and `how_far` it is, until the block is left."""
        self.say(f"setup: {what}")
        started = time.monotonic()
        ended = threading.Event()

        def follow() -> None:
            while not ended.wait(self._every_s):
                text = f"setup: {what}: {time.monotonic() - started:.0f} s{how_far()}"
                with self._lock:
                    if self._rewrites:
                        print(f"\r{text[: shutil.get_terminal_size().columns - 1]}\x1b[K", end="", flush=True)
                    else:
                        print(text, flush=True)

        thread = threading.Thread(target=follow)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            if self._rewrites:
                print("\r\x1b[K", end="", flush=True)

    def run(self, command: list[str | Path], environment: dict[str, str] | None = None) -> bool:
        """Run an installer and pass its lines on; whether it succeeded."""
        pipe = subprocess.PIPE
        with subprocess.Popen(command, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if PIP_NOISE not in line:
                    self.say(line.rstrip())
        return process.returncode == 0


progress = Progress()


def pip_configuration() -> dict[str, str]:
    """pip's options for `install` from its files and the environment, of which the strongest wins, as in pip."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        section, _, option = name.rpartition(".")
        if section in found:
            found[section][option] = ast.literal_eval(value)
    return found["global"] | found["install"] | found[":env:"]


def uv_environment(configured: dict[str, str]) -> dict[str, str]:
    """Environment in which uv looks for packages where pip does, and chooses among all indexes, as pip does.

    uv's default is to look no further than the first index that has any release of a package.
    """
    given = {
        variable: ("," if option == "find-links" else " ").join(configured[option].split())
        for option, variable in UV_NAMES.items()
        if option in configured
    }
    return os.environ | given | {"UV_INDEX_STRATEGY": "unsafe-best-match"}


def with_pip(*arguments: str) -> bool:
    """`pip install`, without its byte-compilation, which uses one core: `compile_packages` uses all."""
    return progress.run([sys.executable, "-m", "pip", "install", "--no-deps", "--no-compile", *arguments])


def uv_installer(pin: str) -> Install | None:
    """`uv pip install`, or None where uv cannot be had. With `no-index` pip is left to it: uv would go to an index."""
    configured = pip_configuration()
    if "no-index" in configured or not with_pip("--quiet", pin):
        return None
    command = [VENV / "bin" / "uv", "pip", "install", "--no-progress", "--python", sys.executable, "--no-deps"]
    environment = uv_environment(configured)
    return lambda *arguments: progress.run([*command, *arguments], environment)


def growth(num_packages: int) -> Callable[[], str]:
    """How far an installation of so many packages is. uv and pip download them all before the first is in place."""
    used = shutil.disk_usage(VENV).used

    def how_far() -> str:
        num_found = sum(1 for _ in PACKAGES.glob("*.dist-info"))
        written = max(0, shutil.disk_usage(VENV).used - used) // 10**6
        return f", {num_found} of {num_packages} packages in place, {written:,} MB more on its disk"

    return how_far


def fill(install: Install, torch: str, lock: str, oldest: str, num_packages: int) -> bool:
    """Everything, by one installer. The pin of torch names the CPU build, so that no other one can be chosen."""
    how_far = growth(num_packages)

    def step(what: str, *arguments: str) -> bool:
        with progress.step(what, how_far):
            return install(*arguments)

    return (
        (step(torch, torch) or step(f"{torch} from {TORCH_CPU_INDEX}", "--index-url", TORCH_CPU_INDEX, torch))
        and step(f"all of {lock}", "--requirement", lock)
        and step("wmss, editable", "--no-build-isolation", "--editable", ".")
        and step(f"{oldest}, beside the rest", "--upgrade", "--target", str(VENV / "openai-oldest"), "-r", oldest)
    )


def compile_packages() -> None:
    """Byte-compile what is installed, a minute on two cores; errors are of Python 2 files that nothing imports.

    Left to the first import it comes at a bad time: Ray gives its agents 15 s to start, and eight processes of a new
    head compile the same modules. Where PYTHONDONTWRITEBYTECODE is set, every process would do so, always.
    """
    files = [str(file) for file in PACKAGES.rglob("*.py") if not NOT_COMPILED.search(str(file))]
    num_compiled = 0
    # Not forked: the thread that prints may hold a lock, which a fork would keep for ever.
    pool = ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn"))
    with pool, progress.step("byte-compile", lambda: f", {num_compiled:,} of {len(files):,} files"):
        for _ in pool.map(partial(compileall.compile_file, quiet=2), files, chunksize=32):
            num_compiled += 1


def add_pip() -> None:
    """pip, from the wheel that comes with Python."""
    if importlib.util.find_spec("ensurepip") is None:
        sys.exit("setup: this Python lacks ensurepip; install the package python3.11-venv and run `make setup` again")
    with progress.step("pip", lambda: ""):
        if not progress.run([sys.executable, "-Im", "ensurepip", "--upgrade", "--default-pip"]):
            sys.exit("setup: pip could not be installed; the lines above say why")


def main(lock: str, oldest: str) -> None:
    if importlib.util.find_spec("pip") is None:
        add_pip()
    pins = {line.partition("==")[0]: line for line in Path(lock).read_text().split()}
    with progress.step(f"{pins['uv']}, the installer", lambda: ""):
        uv = uv_installer(pins["uv"])
    rest = (pins["torch"], lock, oldest, len(pins) + 1)  # and wmss itself
    if uv is None or not fill(uv, *rest):
        progress.say(f"setup: uv {'cannot be used' if uv is None else 'failed'}; pip installs, some minutes")
        if not fill(with_pip, *rest):
            sys.exit("setup: neither uv nor pip could install all packages; the lines above say what failed")
    compile_packages()
    progress.say("setup: done")


if __name__ == "__main__":
    main(*sys.argv[1:])
