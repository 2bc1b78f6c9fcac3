"""The process behind `wmss.models.limited`: it loads the libraries once, holds no state, and forks for each question.

python -m wmss.models.limited_process FD

FD is a socket. Each message is the name of a function of ours, MODULE:FUNCTION, with two files: the question as JSON,
and the write end of a pipe for the answer. A fork answers under limits, and a second fork watches the clock and says
how the first one ended.
"""

import contextlib
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from wmss.startup import quick_imports

with quick_imports():
    import torch
    from transformers.utils import logging

    import wmss.models.limited_answers  # noqa: F401 (what most questions are answered by)
    from wmss.errors import WmssError

IDLE_S = 600.0
"""Without a question for so long the process ends; the next question starts another."""
MAX_NAME_BYTES = 256
_POLL_S, _MAX_POLL_S = 0.005, 0.5
_NO_MEMORY = ("allocate memory", "bad_alloc", "not enough memory", "Unable to allocate")


def main(fd: int) -> None:
    """Answer until the other end is closed, or no question comes."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nothing waits for the forks that watch
    with socket.socket(fileno=fd) as questions:
        questions.send(b"ready")
        while select.select([questions], [], [], IDLE_S)[0]:
            name, fds, _, _ = socket.recv_fds(questions, MAX_NAME_BYTES, 2)
            if not name:
                return
            answering = _function(name.decode())
            if os.fork() == 0:
                _watch(answering, *fds)
            for each in fds:
                os.close(each)


def _function(name: str) -> Callable[..., Any]:
    """Imported here, once, so that no fork has to."""
    module, _, function = name.partition(":")
    if module not in sys.modules:
        with quick_imports():
            import_module(module)
    found: Callable[..., Any] = getattr(sys.modules[module], function)
    return found


def _watch(answering: Callable[..., Any], question: int, answer: int) -> None:
    """Fork the process that answers, end it when its time is up, and write how it ended as the last line."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with os.fdopen(question, encoding="utf-8") as file:
        asked = json.load(file)
    reader = select.poll()
    reader.register(answer, 0)  # tells when nothing reads it any more
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _answer(answering, asked, answer)
    in_time = True
    while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
        taken = time.monotonic() - started
        if taken > asked["time_s"] or reader.poll(0):
            in_time = False
            os.kill(pid, signal.SIGKILL)
            ended = os.waitpid(pid, 0)
            break
        time.sleep(min(max(_POLL_S, taken / 100), _MAX_POLL_S))
    code = os.waitstatus_to_exitcode(ended[1])
    with contextlib.suppress(BrokenPipeError):
        os.write(answer, b"\n" + json.dumps({"in_time": in_time, "code": code}).encode())
    os._exit(0)


def _answer(answering: Callable[..., Any], asked: dict[str, Any], answer: int) -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    # After a fork torch makes its thread pool again in the first thread that computes. Transformers loads weights in
    # several, and one that comes between is told "Invalid thread pool": so it is made here.
    torch.set_num_threads(1)
    try:
        _limit_memory(asked["memory_bytes"])
        said = {"returned": answering(**asked["arguments"])}
    except WmssError as error:
        said = (
            {"no_memory": True} if _ran_out(error) else {"raised": [type(error).__name__, error.message, error.param]}
        )
    except BaseException as error:  # the outermost frame of this process
        said = {"no_memory": True} if _ran_out(error) else {"failed": f"{type(error).__name__}: {error}"[:400]}
    with os.fdopen(answer, "wb") as pipe:
        pipe.write(json.dumps(said).encode())
    os._exit(0)


def _ran_out(error: BaseException) -> bool:
    return any(isinstance(each, MemoryError) or any(s in str(each) for s in _NO_MEMORY) for each in _causes(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _limit_memory(num_bytes: int) -> None:
    """Of memory that is written to, beside what the warm process has; files that are only read do not count."""
    data_pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[5])
    soft = data_pages * resource.getpagesize() + num_bytes
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (soft, resource.getrlimit(resource.RLIMIT_DATA)[1]))


if __name__ == "__main__":
    main(int(sys.argv[1]))
