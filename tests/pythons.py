"""Do the tests that need no torch pass on other Python versions? `python -m tests.pythons [VERSION ...]`

For each version found (default 3.12, 3.13 and 3.14) it makes an environment in a temporary folder, installs what those
tests need from the indexes that pip is configured with, and runs every test file whose imports are there. The CPU build
of torch that the locks name is for one Python version, so the other tests run on that one only.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VERSIONS = ("3.12", "3.13", "3.14")
NEEDED = ("numpy", "pyarrow", "pydantic", "pytest", "pytest-timeout", "hypothesis")


def interpreter(version: str) -> str | None:
    """A Python of this version: on PATH, or one that pyenv holds (its own commands on PATH run only when chosen)."""
    name = f"python{version}"
    places = [shutil.which(name), *Path.home().glob(f".pyenv/versions/{version}.*/bin/{name}")]
    works = (
        str(place)
        for place in places
        if place and subprocess.run([place, "-c", ""], capture_output=True).returncode == 0
    )
    return next(works, None)


def try_version(version: str, folder: Path) -> bool | None:
    """Whether the tests pass; None where there is no such Python."""
    found = interpreter(version)
    if found is None:
        print(f"python{version}: not installed", flush=True)
        return None
    subprocess.run([found, "-m", "venv", folder], check=True)
    python = folder / "bin/python"
    pins = (ROOT / "requirements/dev.lock").read_text(encoding="utf-8").splitlines()
    wanted = [pin for pin in pins if pin.partition("==")[0] in NEEDED]
    assert len(wanted) == len(NEEDED), f"{NEEDED}: expected a pin of each in requirements/dev.lock, got {wanted}"
    subprocess.run([python, "-m", "pip", "install", "-qq", "--only-binary=:all:", *wanted], check=True)
    print(f"python{version}: {', '.join(wanted)}", flush=True)
    command = [python, "-m", "pytest", "-q", "--importable", "-p", "no:cacheprovider", "tests"]
    status = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}).returncode
    print(f"python{version}: {'passed' if status == 0 else f'FAILED (status {status})'}", flush=True)
    return status == 0


def main(versions: list[str]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        results = [try_version(version, Path(scratch) / version) for version in versions or VERSIONS]
    if False in results or not any(results):
        sys.exit("pythons: a version failed, or none was found")


if __name__ == "__main__":
    main(sys.argv[1:])
