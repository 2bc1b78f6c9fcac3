"""Where the Ray head of a home keeps its sessions, whose sockets take short ASCII paths only."""

import hashlib
import os
import re
import shutil
import stat
import tempfile
from pathlib import Path

MAX_SOCKET_ROOT = 40
"""Bytes: Ray's socket paths add some 65 to its temp folder, and Linux allows 107."""
_PLAIN = re.compile(r"[\w./-]+", re.ASCII)
"""Ray encodes paths as ASCII, and hands them from process to process as parts of command lines."""


def ray_temp_folder(home: Path) -> Path:
    """`ray` in the home where Ray can use it, or else below the system's temp folder, the same for each start.

    Ray opens its folder to everybody; the one above it, there, is for this user alone.
    """
    if _is_usable(own := home / "ray"):
        return own
    digest = hashlib.sha256(os.fsencode(home)).hexdigest()[:12]
    below = f"wmss-ray-{os.getuid()}-{digest}/ray"
    elsewhere = Path(tempfile.gettempdir()) / below
    return elsewhere if _is_usable(elsewhere) else Path("/tmp") / below


def make_empty(folder: Path) -> None:
    """Make a folder for this user alone; what a killed service left in it goes.

    Raises OSError where it is somebody else's, or no folder: others may write to the system's temp folder too.
    """
    try:
        folder.mkdir(mode=0o700)
        return
    except FileExistsError:
        found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise FileExistsError(f"{folder} is there and is not a folder of this user")
    folder.chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, exist_ok=True)


def _is_usable(folder: Path) -> bool:
    return _PLAIN.fullmatch(str(folder)) is not None and len(os.fsencode(folder)) <= MAX_SOCKET_ROOT
