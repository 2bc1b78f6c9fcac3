"""Fill a virtual environment from the locks. `make setup` runs `.venv/bin/python requirements/install.py LOCK OLDEST`.

uv does the work, in a tenth of pip's CPU time. It does not read pip's configuration, so it is given the indexes and
wheel folders that pip is configured with. Where uv cannot be installed, or fails, pip does the same work.
"""

import ast
import compileall
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

TORCH_CPU_INDEX = os.environ["TORCH_CPU_INDEX"]
"""Index of torch's CPU build, named by the Makefile; asked if the configured places do not have that build."""
VENV = Path(sys.prefix)
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
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-compile", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if PIP_NOISE not in line:
                print(line, end="", file=sys.stderr, flush=True)
    return process.returncode == 0


def uv_installer(pin: str) -> Install | None:
    """`uv pip install`, or None where uv cannot be had. With `no-index` pip is left to it: uv would go to an index."""
    configured = pip_configuration()
    if "no-index" in configured or not with_pip("--quiet", pin):
        return None
    command = [VENV / "bin" / "uv", "pip", "install", "--python", sys.executable, "--no-deps"]
    environment = uv_environment(configured)
    return lambda *arguments: subprocess.run([*command, *arguments], env=environment).returncode == 0


def fill(install: Install, torch: str, lock: str, oldest: str) -> bool:
    """Everything, by one installer. The pin of torch names the CPU build, so that no other one can be chosen."""

    def step(what: str, *arguments: str) -> bool:
        print(f"setup: {what}", flush=True)
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
    print("setup: byte-compile the packages, about a minute", flush=True)
    compileall.compile_dir(sysconfig.get_path("purelib"), quiet=2, workers=0, rx=NOT_COMPILED)


def main(lock: str, oldest: str) -> None:
    pins = {line.partition("==")[0]: line for line in Path(lock).read_text().split()}
    uv = uv_installer(pins["uv"])
    if uv is None or not fill(uv, pins["torch"], lock, oldest):
        print(f"setup: uv {'cannot be used' if uv is None else 'failed'}; pip installs, some minutes", flush=True)
        if not fill(with_pip, pins["torch"], lock, oldest):
            sys.exit("setup: neither uv nor pip could install all packages; the lines above say what failed")
    compile_packages()


if __name__ == "__main__":
    main(*sys.argv[1:])
