"""Verifiers whose judging can hang, crash or eat memory: in processes that their parent ends when time is up.

Threads cannot be ended, and Python's alarms work in a main thread only, so a response that hangs costs its process.
A process that is killed from outside has proved nothing about its response, which is therefore judged again.
"""

import json
import os
import select
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from itertools import islice
from types import TracebackType
from typing import Self

from wmss.config import Knobs
from wmss.errors import WmssError
from wmss.records import Progress, Task, Verdict
from wmss.startup import bare_environment
from wmss.verifiers.interfaces import REPORT_EVERY, CheckTask, Ruling, row_problems

START_TIMEOUT_S = 120.0
"""For a process to import its packages; seconds where the machine is idle."""
ATTEMPTS = 2
"""Processes that may die over one response before it counts as their killer."""
MAX_WAITING = 1024
"""Responses handed to the threads at once: many for each, so that a slow one keeps none idle, however large a round."""


class WorkerDied(Exception):
    """A process ended although it had time left."""


class WorkerTimeout(Exception):
    """A process gave no answer in time."""


class _Worker:
    """One process that judges one response at a time; started when it is made."""

    def __init__(self, setup: bytes) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "wmss.verifiers.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            cwd="/",
            env=bare_environment(),
            start_new_session=True,  # an interrupt from the keyboard is the parent's to handle
        )
        try:
            self.ask(setup, START_TIMEOUT_S)
        except WorkerDied:
            status = self._process.wait()
            self.end()
            if status < 0:
                raise  # killed from outside, as it may be later
            # A fault of the installation: no response is to blame.
            raise RuntimeError(
                f"expected a verifier process to start, got exit status {status}; see its error"
            ) from None

    def ask(self, request: bytes, timeout_s: float) -> bytes:
        """The line that answers; raises `WorkerTimeout` or `WorkerDied`."""
        assert self._process.stdin and self._process.stdout
        deadline = time.monotonic() + timeout_s
        try:
            self._process.stdin.write(request + b"\n")
        except BrokenPipeError:
            raise WorkerDied from None
        poll = select.poll()
        poll.register(self._process.stdout, select.POLLIN)
        answer = b""
        while not answer.endswith(b"\n"):
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise WorkerTimeout
            read = os.read(self._process.stdout.fileno(), 65536)
            if not read:
                raise WorkerDied
            answer += read
        return answer[:-1]

    def end(self) -> None:
        """End the process, whatever it does."""
        assert self._process.stdin and self._process.stdout
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()

    def kill(self) -> None:
        """Make whoever waits for an answer see the process die."""
        self._process.kill()


class PooledVerifier:
    """A `Verifier` from a function that makes a judge inside each of its processes.

    Args:
        maker: "module:function", which takes `config` as a dict and returns a `Judge`.
        timeout_s: time for one response, in seconds.
        check: what a task lacks, as far as can be told without a process.
        response_to_try: a response that gives a task's own answer, made from nothing else of the task, where only a
            process can tell whether it is accepted; None where that is certain. A task whose own answer is not
            accepted is a problem.
    """

    def __init__(
        self,
        config: Knobs,
        *,
        version: str,
        maker: str,
        timeout_s: float,
        num_processes: int,
        check: CheckTask,
        refuse: Callable[[], list[WmssError]] = lambda: [],
        response_to_try: Callable[[Task], str | None] = lambda task: None,
    ) -> None:
        self.version = version
        self._setup = json.dumps({"maker": maker, "config": config.model_dump(), "timeout_s": timeout_s}).encode()
        self._timeout_s = timeout_s
        self._check = check
        self._refuse = refuse
        self._response_to_try = response_to_try
        self._threads = ThreadPoolExecutor(num_processes, thread_name_prefix="verifier")
        self._idle: deque[_Worker] = deque()
        self._all: set[_Worker] = set()
        self._closed = False

    def refusals(self) -> list[WmssError]:
        return self._refuse()

    def problems(self, tasks: Sequence[Task]) -> list[str]:
        found = row_problems(self._check, tasks)
        if found:
            return found
        tried = [(task, response) for task in tasks if (response := self._response_to_try(task)) is not None]
        one_of_each = {task.answer: (task, response) for task, response in tried}
        verdicts = self.verify(list(one_of_each.values()), progress=lambda done, total: None)
        of_answer = dict(zip(one_of_each, verdicts, strict=True))
        return [
            f"line {task.line}: answer: expected something this verifier can read, got none "
            f"({of_answer[task.answer].detail}); correct it, or leave this row out"
            for task, _ in tried
            if not of_answer[task.answer].accepted
        ]

    def verify(self, pairs: Sequence[tuple[Task, str]], *, progress: Progress) -> list[Verdict]:
        waiting: deque[Future[Verdict]] = deque()
        rest = iter(pairs)
        verdicts: list[Verdict] = []
        while len(verdicts) < len(pairs):
            for task, response in islice(rest, MAX_WAITING - len(waiting)):
                waiting.append(self._threads.submit(self._verdict, task, response))
            verdicts.append(waiting.popleft().result())
            if len(verdicts) % REPORT_EVERY == 0:
                progress(len(verdicts), len(pairs))
        progress(len(pairs), len(pairs))
        return verdicts

    def _verdict(self, task: Task, response: str) -> Verdict:
        request = json.dumps({"task": asdict(task), "response": response}).encode()
        start = time.perf_counter()
        for _ in range(ATTEMPTS):
            start = time.perf_counter()
            try:
                ruling = self._judged(request)
                break
            except WorkerTimeout:
                ruling = Ruling("timeout", "time")
                break
            except WorkerDied:
                ruling = Ruling("error", "died")
        return Verdict(ruling.label, ruling.detail, ms=(time.perf_counter() - start) * 1000)

    def _judged(self, request: bytes) -> Ruling:
        worker = self._take()
        try:
            ruling = Ruling(*json.loads(worker.ask(request, self._timeout_s)))
        except BaseException:
            self._all.discard(worker)
            worker.end()
            raise
        self._idle.append(worker)
        return ruling

    def _take(self) -> _Worker:
        if self._closed:
            raise RuntimeError("expected a verifier that is open, got one that was left")
        try:
            return self._idle.pop()
        except IndexError:
            worker = _Worker(self._setup)
            self._all.add(worker)
            return worker

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        for worker in list(self._all):
            worker.kill()  # whoever waits for one of them goes on
        self._threads.shutdown(cancel_futures=True)
        while self._all:
            self._all.pop().end()
