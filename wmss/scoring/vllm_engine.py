"""What the scoring and the generation engine share."""

from collections.abc import Iterator
from contextlib import contextmanager

from wmss.scoring.interfaces import EngineDiedError


@contextmanager
def telling_deaths() -> Iterator[None]:
    """Raise `EngineDiedError` where vLLM says that the process of its engine, or of one of its ranks, is gone."""
    from vllm.v1.engine.exceptions import EngineDeadError

    try:
        yield
    except EngineDeadError as error:
        raise EngineDiedError(str(error)) from error
