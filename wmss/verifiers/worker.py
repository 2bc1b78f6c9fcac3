"""The process behind a pooled verifier: one request per line comes in, one ruling per line goes out.

Run by `wmss.verifiers.pool`, never by hand. It imports no more than its verifier needs, and no torch.
"""

import importlib
import json
import os
import signal
from collections.abc import Callable
from typing import Any

from wmss.records import Task
from wmss.verifiers.interfaces import Judge, Ruling

OUTLIVES_ITS_PARENT_S = 2.0
"""How long after a request's time this process ends itself, should nobody be left to end it."""


def main() -> None:
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", buffering=0)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(2, 1)  # what a package prints is no answer
    setup = json.loads(requests.readline())
    judge = _maker(setup["maker"])(setup["config"])
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    answers.write(b"ready\n")
    for line in requests:
        # No handler: the kernel ends the process even where a C function never returns to Python.
        signal.setitimer(signal.ITIMER_REAL, setup["timeout_s"] + OUTLIVES_ITS_PARENT_S)
        ruling = _judged(judge, json.loads(line))
        signal.setitimer(signal.ITIMER_REAL, 0)
        answers.write(json.dumps(ruling).encode() + b"\n")


def _maker(path: str) -> Callable[[dict[str, Any]], Judge]:
    module, _, name = path.partition(":")
    maker: Callable[[dict[str, Any]], Judge] = getattr(importlib.import_module(module), name)
    return maker


def _judged(judge: Judge, request: dict[str, Any]) -> Ruling:
    try:
        return judge(Task(**request["task"]), request["response"])
    except MemoryError:
        return Ruling("error", "memory")
    except Exception:  # the outermost loop of this process: any response may break a package in any way
        return Ruling("error", "raised")


if __name__ == "__main__":
    main()
