"""Score sequences with vLLM engines, one after the other in one process: importing vLLM takes longer than an engine.

python -m tests.scoring.score_in_process PLAN.json RESULT.npz, or `score_with_vllm`, which runs it.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from services.settings import engine_environment
from wmss.errors import ScoringError
from wmss.scoring.vllm_scorer import VllmEntropyScorer

Engines = Mapping[str, Mapping[str, Any]]
"""Per name `checkpoint`, further arguments of `VllmEntropyScorer`, and for one that is broken on purpose `mistake`."""


class Answer(NamedTuple):
    """What an engine gave: the rows of every sequence, or the error of one that did not serve."""

    rows: list[np.ndarray]
    error: str
    num_prefills: int
    """How often the prefill of a sequence began: more than once where it was preempted."""


def score_with_vllm(
    engines: Engines, sequences: Sequence[list[int]], folder: Path, *, starts: Sequence[int] | None = None
) -> dict[str, Answer]:
    """Score the same sequences, twice in a row, with every engine; the second answers."""
    plan, result = folder / "plan.json", folder / "result.npz"
    named = {name: {key: _plain(value) for key, value in engine.items()} for name, engine in engines.items()}
    plan.write_text(json.dumps({"engines": named, "sequences": list(sequences), "starts": starts}), encoding="utf-8")
    command = [sys.executable, "-m", "tests.scoring.score_in_process", str(plan), str(result)]
    subprocess.run(command, env=os.environ | engine_environment(), check=True, timeout=1500)
    with np.load(result) as arrays:
        return {
            name: Answer(
                rows=[arrays[f"{name}/{number}"] for number in range(len(sequences)) if f"{name}/error" not in arrays],
                error=str(arrays.get(f"{name}/error", "")),
                num_prefills=int(arrays.get(f"{name}/prefills", 0)),
            )
            for name in engines
        }


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


@contextlib.contextmanager
def _mistake(name: str | None) -> Iterator[None]:
    """A plugin that is wrong in one place, for the engines made inside."""
    from vllm.model_executor.layers.logits_processor import LogitsProcessor

    from wmss.scoring import vllm_entropy

    labels, init = vllm_entropy.next_tokens, LogitsProcessor.__init__
    if name == "labels are those of the position itself":
        vllm_entropy.next_tokens = lambda ids, start, end: ids[start:end].long()
    elif name == "no soft cap":
        LogitsProcessor.__init__ = lambda self, *args, **named: init(self, *args, **named | {"soft_cap": None})
    elif name == "no scale":
        LogitsProcessor.__init__ = lambda self, *args, **named: init(self, *args, **named | {"scale": 1.0})
    try:
        yield
    finally:
        vllm_entropy.next_tokens, LogitsProcessor.__init__ = labels, init


def _count_prefills() -> list[int]:
    from wmss.scoring import vllm_entropy

    count, parts = [0], vllm_entropy._parts

    def counting(metadata: Any) -> Iterator[Any]:
        for part in parts(metadata):
            count[0] += part.is_first
            yield part

    vllm_entropy._parts = counting
    return count


def main(plan: Path, result: Path) -> None:
    given = json.loads(plan.read_text(encoding="utf-8"))
    arrays: dict[str, Any] = {}
    prefills = _count_prefills()
    for name, engine in given["engines"].items():
        checkpoint, mistake = Path(engine.pop("checkpoint")), engine.pop("mistake", None)
        try:
            with _mistake(mistake):
                scorer = VllmEntropyScorer(checkpoint, **{"max_length": 256} | engine)
        except ScoringError as error:
            arrays[f"{name}/error"] = str(error)
            continue
        scorer.score(given["sequences"], given["starts"])
        prefills[0] = 0
        for number, rows in enumerate(scorer.score(given["sequences"], given["starts"])):
            arrays[f"{name}/{number}"] = rows
        arrays[f"{name}/prefills"] = prefills[0]
        # An engine takes the process's groups along when it goes: it must be gone before the next one comes.
        del scorer
    np.savez(result, **arrays)


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:]))
