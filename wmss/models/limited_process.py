"""The process behind `wmss.models.limited`: it loads the libraries once, holds no state, and forks for each question.

python -m wmss.models.limited_process FD

FD is a socket. Each message is a question as JSON with the write end of a pipe for the answer; a fork answers it under
limits, and a second fork watches the clock and says how the first one ended.
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
from dataclasses import asdict
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from wmss.startup import quick_imports

with quick_imports():
    import torch
    from transformers.utils import logging

    from wmss.config import LoraConfig
    from wmss.errors import ModelError, WmssError
    from wmss.models.examination import examine_stored, read_stored
    from wmss.models.loading import check_pair, check_same_tokenizer

IDLE_S = 600.0
"""Without a question for so long the process ends; the next question starts another."""
MAX_QUESTION_BYTES = 2**17
_POLL_S = 0.005
_MAX_POLL_S = 0.5
_NO_MEMORY = ("allocate memory", "bad_alloc", "not enough memory")


def main(fd: int) -> None:
    """Answer until the other end is closed, or nobody asks."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who watch
    with socket.socket(fileno=fd) as questions:
        questions.send(b"ready")
        while select.select([questions], [], [], IDLE_S)[0]:
            question, fds, _, _ = socket.recv_fds(questions, MAX_QUESTION_BYTES, 1)
            if not question:
                return
            if os.fork() == 0:
                _watch(question, fds[0])
            os.close(fds[0])


def _watch(question: bytes, answer: int) -> None:
    """Fork whoever answers, end it when its time is up, and write how it ended as the last line."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    asked = json.loads(question)
    reader = select.poll()
    reader.register(answer, 0)  # tells when nothing reads it any more
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _answer(asked, answer)
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


def _answer(asked: dict[str, Any], answer: int) -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    try:
        said = {"returned": _function(asked)(**asked["arguments"])}
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


def _function(asked: dict[str, Any]) -> Callable[..., Any]:
    module, _, name = asked["function"].rpartition(":")
    if not module:
        return partial(ANSWERS[name], memory_bytes=asked["memory_bytes"])
    _limit(_address_space() + asked["memory_bytes"])
    found: Callable[..., Any] = getattr(import_module(module), name)
    return found


def _folder(path: str, param: str, lora: dict[str, Any] | None, memory_bytes: int) -> dict[str, Any]:
    folder = Path(path)
    # Headers are read through a map of the whole file, which is address space but no memory.
    largest = max((file.stat().st_size for file in folder.glob("*.safetensors") if file.is_file()), default=0)
    used = _address_space()
    _limit(used + memory_bytes + largest)
    stored = read_stored(folder, param=param)
    _limit(used + memory_bytes)
    return asdict(examine_stored(stored, param=param, lora=None if lora is None else LoraConfig(**lora)))


def _pair(strong: str, weak: str, param: str, memory_bytes: int) -> None:
    _limit(_address_space() + memory_bytes)
    check_pair(Path(strong), Path(weak), param=param)


def _tokenizers(folders: dict[str, str], memory_bytes: int) -> None:
    _limit(_address_space() + memory_bytes)
    check_same_tokenizer({param: Path(folder) for param, folder in folders.items()})


ANSWERS: dict[str, Callable[..., Any]] = {"folder": _folder, "pair": _pair, "tokenizers": _tokenizers}


def _address_space() -> int:
    pages = Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]
    return int(pages) * resource.getpagesize()


def _limit(num_bytes: int) -> None:
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (num_bytes, resource.getrlimit(resource.RLIMIT_AS)[1]))
    except (ValueError, OSError) as error:  # a file of so many bytes that no limit can hold it
        raise ModelError(f"its files are larger than this machine can map: {error}; copy it again") from error


if __name__ == "__main__":
    main(int(sys.argv[1]))
