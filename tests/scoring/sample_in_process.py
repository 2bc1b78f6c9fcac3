"""Put vLLM samplers through what a job does to them, one after the other in one process: importing vLLM takes longest.

python -m tests.scoring.sample_in_process PLAN.json RESULT.json, or `run_samplers`, which runs it.
"""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from services.settings import engine_environment
from wmss.errors import WmssError
from wmss.records import Completion
from wmss.scoring.interfaces import Sampling
from wmss.scoring.vllm_sampler import VllmSampler
from wmss.scoring.vllm_weights import WeightLoading

Steps = Sequence[Mapping[str, Any]]
"""One after the other: `engine` makes a new one for a checkpoint, with further arguments; `sample` draws from weights,
with the arguments of `Sampler.sample`; `mistake` is what is wrong with the engine while it does."""


def run_samplers(steps: Steps, folder: Path) -> list[list[Completion] | str]:
    """What each step gave: responses (none of a new engine), or the message of the error that it ended with."""
    plan, result = folder / "plan.json", folder / "result.json"
    plan.write_text(json.dumps(list(steps), default=_plain), encoding="utf-8")
    command = [sys.executable, "-m", "tests.scoring.sample_in_process", str(plan), str(result)]
    environment = os.environ | engine_environment() | {"TORCHDYNAMO_DISABLE": "1"}  # as a replica has on a CPU
    subprocess.run(command, env=environment, check=True, timeout=900)
    answers = json.loads(result.read_text(encoding="utf-8"))
    return [
        found if isinstance(found, str) else [Completion(tuple(ids), reason, logprob) for ids, reason, logprob in found]
        for found in answers
    ]


def _plain(value: Any) -> Any:
    return dataclasses.asdict(value) if isinstance(value, Sampling) else str(value)


@contextlib.contextmanager
def _mistake(name: str | None) -> Iterator[None]:
    """A sampler that is wrong in one place."""
    reset, load = VllmSampler._reset, WeightLoading.load_folder
    if name == "no reset":
        VllmSampler._reset = lambda self: None
    elif name == "no load":
        WeightLoading.load_folder = lambda self, folder: None
    elif name == "no tied head":
        WeightLoading.load_folder = lambda self, folder: self.reload_weights(weights_path=folder)
    try:
        yield
    finally:
        VllmSampler._reset, WeightLoading.load_folder = reset, load


def main(plan: Path, result: Path) -> None:
    answers: list[Any] = []
    sampler: Any = None
    for step in json.loads(plan.read_text(encoding="utf-8")):
        answer: Any = []
        try:
            with _mistake(step.get("mistake")):
                if "engine" in step:
                    # An engine takes the process's groups along when it goes: before the next one comes.
                    sampler = None
                    sampler = VllmSampler(Path(step["engine"]), **{"max_length": 256} | step.get("arguments", {}))
                if "sample" in step:
                    answer = [dataclasses.astuple(found) for found in _sample(sampler, step)]
        except WmssError as error:
            answer = str(error)
        answers.append(answer)
    result.write_text(json.dumps(answers), encoding="utf-8")


def _sample(sampler: VllmSampler, step: Mapping[str, Any]) -> list[Completion]:
    sampling = Sampling(**step["sampling"])
    return sampler.sample(
        Path(step["sample"]), step["prompts"], step["seeds"], sampling=sampling, end_token_ids=step["end_token_ids"]
    )


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:]))
