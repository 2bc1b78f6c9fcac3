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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wmss import errors
from wmss.errors import ModelError, WmssError
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

    def ask(self, question: bytes, time_s: float) -> bytes:
        """All that is written in answer; raises `_Gone`."""
        reading, writing = os.pipe()
        with os.fdopen(reading, "rb", buffering=0) as answer:
            try:
                socket.send_fds(self._questions, [question], [writing])
            except OSError:
                raise _Gone from None
            finally:
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


_start = threading.Lock()
_at_once = threading.BoundedSemaphore(MAX_AT_ONCE)
_warm: _Process | None = None


def check_checkpoint(path: Path, *, param: str, lora: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The fields of a `ModelFolder`, as `examine_folder` finds them; `lora` are those of a `LoraConfig`.

    Raises:
        ModelError: a job would fail on this folder, or it cannot be examined within the limits.
        ExtraError: `lora` needs a package that is not installed.
    """
    asked = {"path": str(path.absolute()), "param": param, "lora": None if lora is None else dict(lora)}
    found: dict[str, Any] = _answer("folder", asked, what=str(path), because=_FOLDER, param=param)
    return found


def check_pair(strong: Path, weak: Path, *, param: str) -> None:
    """As `loading.check_pair`."""
    asked = {"strong": str(strong.absolute()), "weak": str(weak.absolute()), "param": param}
    _answer("pair", asked, what=f"{strong} beside {weak}", because=_FOLDER, param=param)


def check_same_tokenizer(folders: Mapping[str, Path]) -> None:
    """As `loading.check_same_tokenizer`."""
    asked = {"folders": {param: str(folder.absolute()) for param, folder in folders.items()}}
    what = ", ".join(map(str, folders.values()))
    _answer("tokenizers", asked, what=what, because=_FOLDER, param=list(folders)[-1])


def ask(function: str, arguments: Mapping[str, Any], *, what: str, because: str, param: str, limits: Limits) -> Any:
    """What a function of ours, MODULE:FUNCTION, returns for JSON arguments, in the process with limits.

    `what` is asked about, and `because` says what may have gone beyond the limits, with {} for "work" or "memory": both
    stand in messages, whose field is `param`.

    Raises:
        WmssError: what the function raises; a `ModelError` where it goes beyond the limits or ends otherwise.
    """
    return _answer(function, arguments, what=what, because=because, param=param, limits=limits)


def _answer(
    function: str,
    arguments: Mapping[str, Any],
    *,
    what: str,
    because: str,
    param: str,
    limits: Limits | None = None,
) -> Any:
    limits = limits or Limits()
    asked = {
        "function": function,
        "arguments": arguments,
        "time_s": limits.time_s,
        "memory_bytes": limits.memory_bytes,
    }
    with _at_once:
        written = _ask(json.dumps(asked).encode(), limits.time_s)
    line, _, end = written.rpartition(b"\n")
    ended = json.loads(end)
    remedy = "correct it, or choose another model"
    if not ended["in_time"]:
        raise ModelError(
            f"{param}: {what} was not examined within {limits.time_s:.0f} s; {because.format('work')}, or a file "
            f"cannot be read to its end: {remedy}",
            param=param,
        )
    said = json.loads(line) if ended["code"] == 0 else {}
    if "returned" in said:
        return said["returned"]
    if "raised" in said:
        kind, message, field = said["raised"]
        raise _kinds()[kind](message, param=field)
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


def _ask(question: bytes, time_s: float) -> bytes:
    for _ in range(_ATTEMPTS):
        process = _process()
        try:
            return process.ask(question, time_s)
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
