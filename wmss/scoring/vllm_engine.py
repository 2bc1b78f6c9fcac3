"""What the scoring and the sampling engine share: vLLM in this process, with weights that change in place."""

import ctypes
import platform
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from typing import Any, Generic, TypeVar

from wmss.errors import ModelError, ScoringError
from wmss.scoring.interfaces import EngineDiedError, Line, Weights
from wmss.scoring.weights import check_same_architecture, config_folder, weights_id
from wmss.startup import quick_imports

_MALLOPT = {-1: -1, -2: 2**28, -3: 2**30}
"""glibc's M_TRIM_THRESHOLD (never), M_TOP_PAD and M_MMAP_THRESHOLD, in bytes."""

_ALWAYS = {"worker_extension_cls": "wmss.scoring.vllm_weights.WeightLoading", "use_tqdm_on_load": False}

Reference = TypeVar("Reference")
"""What PyTorch computes with certain weights, and an engine that has them must compute too."""


class VllmEngine(ABC, Generic[Reference]):
    """A vLLM engine in this process, made for one checkpoint, which takes the weights of every model of the same
    architecture and shows each time that it computes with them."""

    def __init__(
        self,
        weights: Weights,
        *,
        start: Callable[[Callable[..., Any]], Any],
        reference: Callable[[Weights], Reference],
        dtype: str,
    ) -> None:
        """`start` calls what it is given with further arguments of `vllm.LLM`; `reference` reads weights with PyTorch,
        in float32 on the CPU, perhaps in another process.

        Raises:
            ScoringError: the engine does not give what PyTorch does with the same weights.
        """
        self._dtype = dtype
        self._reference = reference
        self._folder = config_folder(weights)
        self._loaded: str | None = None
        self._before: Reference | None = None
        engine_class = load_vllm()
        wanted = weights_id(self._folder)
        # Before the engine is there: the two do not hold their weights at the same time, and where vLLM runs a family
        # on transformers' own classes, it changes these classes for good.
        first = self._reference(self._folder)
        keep_freed_memory()
        self._llm: Any = start(partial(engine_class, model=str(self._folder), dtype=dtype, **_ALWAYS))
        self._accept(first, self._folder, wanted)
        self.load(weights)

    def load(self, weights: Weights, *, expected: str | None = None) -> bool:
        """Compute with these weights from now on; False if the engine already does. `expected` is the `weights_id` that
        the caller has seen.

        Raises:
            ModelError: it is a model of another shape, or its files are not, or not any more, those that were expected.
            ScoringError: the engine does not give what PyTorch does with these weights; the next call loads them again.
        """
        wanted = weights_id(weights)
        _check_id(weights, wanted, expected)
        if wanted == self._loaded:
            return False
        check_same_architecture(self._folder, weights)
        reference = self._reference_apart(weights)
        self._loaded = None
        self._use_caches(reference)
        self._replace_weights(weights)
        self._reset()
        self._accept(reference, weights, wanted)
        return True

    def check_alive(self) -> None:
        """Raise `EngineDiedError` if the engine's process is gone."""
        check_alive(self._llm)

    @abstractmethod
    def _check(self, reference: Reference, before: Reference | None, weights: Weights) -> None:
        """Raise `ScoringError` unless the engine gives the same; `before` is of the weights it had until now."""

    def _use_caches(self, reference: Reference) -> None:
        """Let the engine cache what the check begins with, so that a cache that is not emptied shows."""

    def _reference_apart(self, weights: Weights) -> Reference:
        if not self._llm.llm_engine.model_config.using_transformers_backend():
            return self._reference(weights)
        # vLLM runs this family on transformers' own classes and has changed them for good: in this process they would
        # no longer be what the engine is compared with.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as apart:
            return apart.submit(self._reference, weights).result()

    def _replace_weights(self, weights: Weights) -> None:
        if isinstance(weights, Line):
            call: tuple[str, tuple[Any, ...]] = "load_line", (str(weights.strong), str(weights.weak), weights.step)
        else:
            call = "load_folder", (str(weights),)
        with telling_deaths():
            self._llm.collective_rpc(call[0], args=call[1])

    def _reset(self) -> None:
        with telling_deaths():
            emptied = self._llm.reset_prefix_cache()
        if not emptied:
            raise ScoringError(
                "prefix cache: the engine did not empty it, and would mix answers of different weights; try again with "
                "a new engine"
            )

    def _accept(self, reference: Reference, weights: Weights, wanted: str) -> None:
        self._check(reference, self._before, weights)
        _check_id(weights, weights_id(weights), wanted)
        self._before, self._loaded = reference, wanted


def _check_id(weights: Weights, found: str, expected: str | None) -> None:
    if expected is not None and found != expected:
        raise ModelError(
            f"weights: the files of {weights} are not those that were asked for: they were written to since; ask again "
            "when they are complete",
            param="weights",
        )


def keep_freed_memory() -> None:
    """Let this process keep what it frees, up to a gigabyte a piece, wherever its C library is glibc.

    An engine allocates the same large activations at every step. By default each goes back to the system and comes
    again page by page: of 6,500 tokens of a 12-layer model on a CPU that was 0.34 s in 1.21 s.
    """
    if platform.libc_ver()[0] == "glibc":
        for parameter, value in _MALLOPT.items():
            ctypes.CDLL(None).mallopt(parameter, value)


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
