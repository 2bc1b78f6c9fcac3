"""One family in one process with limits: what crashes, grows or hangs costs one row."""

import json
import os
import resource
import select
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

MEMORY_BYTES = 4 * 10**9
"""Address space beside what the parent has."""
TIME_S = 120.0
ENGINE_TIME_S = 300.0
"""An engine starts in 20 s on an idle core."""


def forked(work: Callable[[], Iterator[tuple[str, Any]]]) -> dict[str, Any]:
    """{name: answer} of the pairs that `work` gives in a fork; what ended it early is told under "ended".

    The caller has its libraries loaded, and one thread.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _work(work, writing)
    os.close(writing)
    answers, in_time = _read(reading, pid)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if not in_time:
        answers["ended"] = f"after {TIME_S:.0f} s"
    elif code != 0:
        answers["ended"] = f"with {code}"
    return answers


def _work(work: Callable[[], Iterator[tuple[str, Any]]], writing: int) -> None:
    code = 1
    try:
        nothing = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(nothing, standard)
        used = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, resource.RLIM_INFINITY))
        for name, answer in work():
            os.write(writing, json.dumps([name, answer]).encode() + b"\n")
        code = 0
    finally:
        os._exit(code)


def _read(reading: int, pid: int) -> tuple[dict[str, Any], bool]:
    deadline = time.monotonic() + TIME_S
    parts = []
    in_time = True
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        while True:
            if not select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
                os.kill(pid, signal.SIGKILL)
                in_time = False
                break
            part = pipe.read(65536)
            if not part:
                break
            parts.append(part)
    lines = b"".join(parts).split(b"\n")
    return dict(json.loads(line) for line in lines[:-1]), in_time


def limited_command(command: list[str]) -> list[str]:
    """The same for a program: an engine maps far more than it uses, so its address space is bounded more loosely."""
    return ["prlimit", f"--as={10 * MEMORY_BYTES}", "--core=0", *command]
