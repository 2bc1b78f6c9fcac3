"""Questions about model folders, answered in a process that may take 20 s and 4 GB, whatever the folder holds.

A template can ask for terabytes and a configuration for years; a thread cannot be ended, and a process with threads
cannot be forked safely. So one process of our own is kept warm, and forks for each question. This module loads
neither torch nor transformers.
"""

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wmss import errors
from wmss.errors import BusyError, ModelError, WmssError
from wmss.models.kept_answers import KeptAnswers
from wmss.startup import bare_environment

START_TIMEOUT_S = 120.0
"""For the process to load its libraries: 6 s on an idle core."""
TIME_S = 20.0
MEMORY_BYTES = 4 * 10**9
"""Of one answer about a folder."""
ANSWER_GRACE_S = 10.0
"""Beside the time an answer may take: a process that cannot even say how it ended is given up."""
MAX_AT_ONCE = 2
"""Answers under way: each may take 4 GB."""
MAX_WAITING = 16
"""Questions that wait for one of these places, each on a thread of the service; others are refused at once."""
_ATTEMPTS = 2
"""The process may have ended since, being idle, or been killed."""
_FOLDER = "its config.json, tokenizer or chat template asks for far more {} than a model needs"


@dataclass(frozen=True)
class Limits:
    """Of one answer."""

    time_s: float = TIME_S
    memory_bytes: int = MEMORY_BYTES


class _Gone(Exception):
    """The process ended before it answered."""


class _Process:
    """A running `limited_process`."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._questions = ours
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        with theirs:
            self.running = subprocess.Popen(
                [sys.executable, "-P", "-m", "wmss.models.limited_process", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                cwd="/",
                env=bare_environment() | threads | offline,
                start_new_session=True,  # an interrupt from the keyboard is the parent's to handle
            )
        ready, _, _ = select.select([ours], [], [], START_TIMEOUT_S)
        if not ready or not ours.recv(16):
            self.end()
            raise RuntimeError("expected a process that examines models to start, got none; see its error")

    def ask(self, function: str, question: bytes, time_s: float) -> bytes:
        """All that is written in answer; raises `_Gone`."""
        reading, writing = os.pipe()
        asked = os.memfd_create("question")
        with os.fdopen(reading, "rb", buffering=0) as answer:
            try:
                with os.fdopen(os.dup(asked), "wb") as file:
                    file.write(question)
                os.lseek(asked, 0, os.SEEK_SET)
                socket.send_fds(self._questions, [function.encode()], [asked, writing])
            except OSError:
                raise _Gone from None
            finally:
                os.close(asked)
                os.close(writing)
            deadline = time.monotonic() + time_s + ANSWER_GRACE_S
            parts = []
            while True:
                if not select.select([answer], [], [], max(0.0, deadline - time.monotonic()))[0]:
                    raise _Gone
                part = answer.read(65536)
                if not part:
                    break
                parts.append(part)
        if not parts:
            raise _Gone
        return b"".join(parts)

    def end(self) -> None:
        """End the process; what it was asked stays unanswered."""
        self._questions.close()
        self.running.kill()
        self.running.wait()


class _Places:
    """How many questions are under way, and how many may wait for their turn."""

    def __init__(self, number: int, waiting: int) -> None:
        self._free = threading.BoundedSemaphore(number)
        self._room = threading.BoundedSemaphore(number + waiting)

    def __enter__(self) -> None:
        if not self._room.acquire(blocking=False):
            raise BusyError("more models are being examined than this service has room for; try again in a minute")
        self._free.acquire()

    def __exit__(self, *_: object) -> None:
        self._free.release()
        self._room.release()


_start = threading.Lock()
_at_once = _Places(MAX_AT_ONCE, MAX_WAITING)
_long = _Places(MAX_AT_ONCE - 1, MAX_WAITING // 2)
"""Questions that may take longer than a folder's: one place is always left for those."""
_warm: _Process | None = None
_kept: KeptAnswers | None = None


def keep_answers(folder: Path) -> None:
    """From now on keep the answers of this process in a folder, and take those that are there."""
    global _kept
    _kept = KeptAnswers(folder)


def check_checkpoint(path: Path, *, param: str, lora: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The fields of a `ModelFolder`, as `examine_folder` finds them; `lora` are those of a `LoraConfig`.

    Raises:
        ModelError: a job would fail on this folder, or it cannot be examined within the limits.
        ExtraError: `lora` needs a package that is not installed.
        BusyError: as `ask`, and so the next two.
    """
    asked = {"path": str(path.absolute()), "param": param, "lora": None if lora is None else dict(lora)}
    found: dict[str, Any] = _ask_folders("folder", asked, [path], what=str(path), param=param)
    return found


def check_pair(strong: Path, weak: Path, *, param: str) -> None:
    """As `loading.check_pair`."""
    asked = {"strong": str(strong.absolute()), "weak": str(weak.absolute()), "param": param}
    _ask_folders("pair", asked, [strong, weak], what=f"{strong} beside {weak}", param=param)


def check_same_tokenizer(folders: Mapping[str, Path]) -> None:
    """As `loading.check_same_tokenizer`."""
    asked = {"folders": {param: str(folder.absolute()) for param, folder in folders.items()}}
    paths = list(folders.values())
    _ask_folders("tokenizers", asked, paths, what=", ".join(map(str, paths)), param=list(folders)[-1])


def _ask_folders(name: str, arguments: Mapping[str, Any], folders: Sequence[Path], *, what: str, param: str) -> Any:
    """The answer that is kept, if nothing changed since; else a new one. Limits that were passed are not kept: on a
    busy machine a good folder may meet them."""
    key = None if _kept is None else _kept.key({name: arguments}, [folder.absolute() for folder in folders])
    said = None if key is None or _kept is None else _kept.get(key)
    if said is None:
        said = _answer(f"wmss.models.limited_answers:{name}", arguments, what=what, because=_FOLDER, param=param)
        if key is not None and _kept is not None:
            _kept.put(key, said)
    return _told(said)


def ask(function: str, arguments: Mapping[str, Any], *, what: str, because: str, param: str, limits: Limits) -> Any:
    """What a function of ours, MODULE:FUNCTION, returns for JSON arguments, in the process with limits.

    `what` is asked about, and `because` says what may have gone beyond the limits, with {} for "work" or "memory": both
    stand in messages, whose field is `param`.

    Raises:
        WmssError: what the function raises; a `ModelError` where it goes beyond the limits.
        BusyError: too many questions wait.
    """
    with _long:
        return _told(_answer(function, arguments, what=what, because=because, param=param, limits=limits))


def _told(said: Mapping[str, Any]) -> Any:
    if "raised" in said:
        kind, message, field = said["raised"]
        raise _kinds()[kind](message, param=field)
    return said["returned"]


def _answer(
    function: str,
    arguments: Mapping[str, Any],
    *,
    what: str,
    because: str,
    param: str,
    limits: Limits | None = None,
) -> dict[str, Any]:
    """What was `returned` or `raised`."""
    limits = limits or Limits()
    asked = {"arguments": arguments, "time_s": limits.time_s, "memory_bytes": limits.memory_bytes}
    with _at_once:
        written = _ask(function, json.dumps(asked).encode(), limits.time_s)
    line, _, end = written.rpartition(b"\n")
    ended = json.loads(end)
    remedy = "correct it, or choose another model"
    if not ended["in_time"]:
        raise ModelError(
            f"{param}: {what} was not examined within {limits.time_s:.0f} s; {because.format('work')}, or a file "
            f"cannot be read to its end: {remedy}",
            param=param,
        )
    said: dict[str, Any] = json.loads(line) if ended["code"] == 0 else {}
    if said.keys() & {"returned", "raised"}:
        return said
    if "no_memory" in said or ended["code"] == -signal.SIGABRT:
        raise ModelError(
            f"{param}: {what} needs more than {limits.memory_bytes / 1e9:.0f} GB of memory to be examined; "
            f"{because.format('memory')}: {remedy}",
            param=param,
        )
    cause = said.get("failed", f"the process that examined it ended with {ended['code']}")
    raise ModelError(f"{param}: {what} cannot be examined: {cause}; save the model again", param=param)


def _kinds() -> dict[str, type[WmssError]]:
    found = vars(errors).values()
    return {each.__name__: each for each in found if isinstance(each, type) and issubclass(each, WmssError)}


def _ask(function: str, question: bytes, time_s: float) -> bytes:
    for _ in range(_ATTEMPTS):
        process = _process()
        try:
            return process.ask(function, question, time_s)
        except _Gone:
            _forget(process)
    raise RuntimeError("expected an answer about a model's folder, got none: the process that examines it was killed")


def _process() -> _Process:
    global _warm
    with _start:
        if _warm is not None and _warm.running.poll() is not None:
            _warm.end()
            _warm = None
        if _warm is None:
            _warm = _Process()
        return _warm


@atexit.register
def close() -> None:
    """End the warm process; the next question starts another."""
    if _warm is not None:
        _forget(_warm)


def _forget(process: _Process) -> None:
    global _warm
    with _start:
        if _warm is process:
            _warm = None
            process.end()
