"""What the scoring and the sampling engine share."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from wmss.scoring.interfaces import EngineDiedError
from wmss.startup import quick_imports


def load_vllm() -> Any:
    """vLLM's class `LLM`; to be called before anything large is made in a process, see `quick_imports`."""
    with quick_imports():
        from vllm import LLM
    return LLM


@contextmanager
def telling_deaths() -> Iterator[None]:
    """Raise `EngineDiedError` where vLLM says that the process of its engine, or of one of its ranks, is gone."""
    from vllm.v1.engine.exceptions import EngineDeadError

    try:
        yield
    except EngineDeadError as error:
        raise EngineDiedError(str(error)) from error


def check_alive(llm: Any) -> None:
    """Raise `EngineDiedError` if an engine's process is gone.

    A call under way does not say so itself: vLLM 0.32 waits for the answer of a process that was killed for ever.
    """
    client = llm.llm_engine.engine_core
    if hasattr(client, "ensure_alive"):  # an engine in this very process has nothing of the kind
        with telling_deaths():
            client.ensure_alive()
