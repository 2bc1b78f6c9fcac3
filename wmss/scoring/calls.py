"""Calls to an engine that has several replicas: as many under way together as it wants."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from itertools import islice
from typing import TypeVar

Question = TypeVar("Question")
Answer = TypeVar("Answer")


def answers(
    questions: Iterable[Question], ask: Callable[[Question], Answer], calls_at_once: int
) -> Iterator[tuple[Question, Answer]]:
    """Every question with its answer, in the order of the answers; no more of them are held than calls are under way.

    `ask` is called from as many threads as calls are under way together, where these are more than one.
    """
    if calls_at_once == 1:
        yield from ((question, ask(question)) for question in questions)
        return
    left = iter(questions)
    with ThreadPoolExecutor(calls_at_once, thread_name_prefix="engine-call") as threads:
        under_way = {threads.submit(ask, question): question for question in islice(left, calls_at_once)}
        while under_way:
            for answered in wait(under_way, return_when=FIRST_COMPLETED).done:
                question = under_way.pop(answered)
                under_way |= {threads.submit(ask, another): another for another in islice(left, 1)}
                yield question, answered.result()
