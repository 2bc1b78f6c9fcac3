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
from wmss.scoring.interfaces import Line
from wmss.scoring.vllm_scorer import VllmEntropyScorer
from wmss.scoring.vllm_weights import WeightLoading
from wmss.scoring.weights import line_tensors

Engines = Mapping[str, Mapping[str, Any]]
"""Per name `checkpoint`, further arguments of `VllmEntropyScorer`, for one that is broken on purpose `mistake`, and
`loads`: afterwards, one after the other, a name, other weights (a folder, or weak, strong and step), and a mistake."""


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
    asked = {"engines": engines, "sequences": list(sequences), "starts": starts}
    plan.write_text(json.dumps(asked, default=str), encoding="utf-8")
    command = [sys.executable, "-m", "tests.scoring.score_in_process", str(plan), str(result)]
    subprocess.run(command, env=os.environ | engine_environment(), check=True, timeout=1500)
    with np.load(result) as arrays:
        return {
            name: Answer(
                rows=[arrays[f"{name}/{number}"] for number in range(len(sequences)) if f"{name}/error" not in arrays],
                error=str(arrays.get(f"{name}/error", "")),
                num_prefills=int(arrays.get(f"{name}/prefills", 0)),
            )
            for name in [*engines, *(load[0] for engine in engines.values() for load in engine.get("loads", ()))]
        }


@contextlib.contextmanager
def _mistake(name: str | None) -> Iterator[None]:
    """A plugin that is wrong in one place, for the engines made inside."""
    from vllm.model_executor.layers.logits_processor import LogitsProcessor

    from wmss.scoring import vllm_entropy

    labels, init, load = vllm_entropy.next_tokens, LogitsProcessor.__init__, WeightLoading.load_folder
    if name == "labels are those of the position itself":
        vllm_entropy.next_tokens = lambda ids, start, end: ids[start:end].long()
    elif name == "no soft cap":
        LogitsProcessor.__init__ = lambda self, *args, **named: init(self, *args, **named | {"soft_cap": None})
    elif name == "no scale":
        LogitsProcessor.__init__ = lambda self, *args, **named: init(self, *args, **named | {"scale": 1.0})
    elif name == "no load":
        WeightLoading.load_folder = lambda self, folder: None
    elif name is not None and name.startswith("without "):
        WeightLoading.load_folder = lambda self, folder: _load_without(name.removeprefix("without "), self, folder)
    try:
        yield
    finally:
        vllm_entropy.next_tokens, LogitsProcessor.__init__, WeightLoading.load_folder = labels, init, load


def _load_without(tensor: str, worker: Any, folder: str) -> None:
    """All tensors of the folder but one, which must be there."""
    tensors = dict(line_tensors(Line(Path(folder), Path(folder), 0.0)))
    del tensors[tensor]
    worker._load(weights_iterator=tensors.items())


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

    def answer(name: str, scorer: VllmEntropyScorer) -> None:
        for number, rows in enumerate(scorer.score(given["sequences"], given["starts"])):
            arrays[f"{name}/{number}"] = rows

    for name, engine in given["engines"].items():
        checkpoint, mistake = Path(engine.pop("checkpoint")), engine.pop("mistake", None)
        loads = engine.pop("loads", ())
        try:
            with _mistake(mistake):
                scorer = VllmEntropyScorer(checkpoint, **{"max_length": 256} | engine)
        except ScoringError as error:
            arrays[f"{name}/error"] = str(error)
            continue
        scorer.score(given["sequences"], given["starts"])
        prefills[0] = 0
        answer(name, scorer)
        arrays[f"{name}/prefills"] = prefills[0]
        for other, weights, mistake in loads:
            try:
                with _mistake(mistake):
                    scorer.load(
                        Path(weights) if isinstance(weights, str) else Line(*map(Path, weights[:2]), weights[2])
                    )
            except ScoringError as error:
                arrays[f"{other}/error"] = str(error)
                continue
            answer(other, scorer)
        # An engine takes the process's groups along when it goes: it must be gone before the next one comes.
        del scorer
    np.savez(result, **arrays)


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:]))
