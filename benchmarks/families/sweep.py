"""The rows of the sweep, kept as JSON lines: those that are there are not made again."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from benchmarks.families import page
from benchmarks.families.children import ENGINE_TIME_S, forked, limited_command
from benchmarks.families.judge import judge
from benchmarks.families.tiny import names, save_tiny
from benchmarks.measure import commit
from benchmarks.report import RESULTS

Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """0, whatever the rows say: what they mean is for the page to tell."""
    known = names()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.families", description=__doc__)
    parser.add_argument("--family", nargs="*", default=[], metavar="NAME", help="architectures; default: all")
    parser.add_argument("--engine", action="store_true", help="the engine's column as well, some 20 s a family")
    parser.add_argument("--file", type=Path, help="of the rows; default: benchmarks/results/families-COMMIT.jsonl")
    parser.add_argument("--write-docs", action="store_true", help=f"write {page.PAGE.name} from the rows, make none")
    given = parser.parse_args(arguments)
    unknown = sorted(set(given.family) - known.keys())
    if unknown:
        parser.error(f"--family: expected some of {', '.join(known)}, got {', '.join(unknown)}")
    if given.write_docs:
        page.write(given.file or page.stored())
        return 0
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    file = given.file or RESULTS / f"families-{commit()}.jsonl"
    sweep(file, given.family or in_order(known), known, engine=given.engine)
    return 0


def in_order(known: dict[str, str]) -> list[str]:
    """The families that people train most first: the engine's column takes an hour."""

    def place(family: str) -> tuple[int, str]:
        ranks = [rank for rank, name in enumerate(POPULAR) if known[family].startswith(name)]
        return (min(ranks, default=len(POPULAR)), family)

    return sorted(known, key=place)


POPULAR = ("llama", "qwen2", "qwen3", "mistral", "gemma", "phi", "olmo", "granite", "gpt_oss", "deepseek", "mixtral")
POPULAR += ("glm", "smollm", "ministral", "gpt2", "nemotron", "cohere", "falcon", "starcoder", "stablelm", "opt")
"""Beginnings of model types."""


def sweep(file: Path, families: Sequence[str], known: dict[str, str], *, engine: bool) -> None:
    """Add the rows that `file` lacks: of every family one without the engine, and with `engine` one more with it."""
    kinds = ("model", "engine") if engine else ("model",)
    present = {
        (row["family"], kind)
        for row in page.load(file)
        for kind in kinds
        if kind in row and row[kind].get("is") != page.NOT_RUN  # a slow machine; tried again
    }
    for kind in kinds:
        for family in families:
            if (family, kind) in present:
                continue
            started = time.monotonic()
            with _scratch() as scratch:
                answers = (_judged if kind == "model" else _engine_judged)(known[family], scratch)
            row = {"family": family, "type": known[family], kind: answers, "s": round(time.monotonic() - started, 1)}
            file.parent.mkdir(exist_ok=True)
            with file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(row, ensure_ascii=False) + "\n")
            print(json.dumps(row, ensure_ascii=False), flush=True)


@contextmanager
def _scratch() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="wmss-family-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _judged(model_type: str, scratch: Path) -> Row:
    answers: Row = _without_paths(forked(lambda: judge(model_type, scratch)), scratch)
    return answers


def _engine_judged(model_type: str, scratch: Path) -> Row:
    try:
        # vLLM refuses the windows that Qwen has as an option, in some layers only.
        save_tiny(model_type, scratch / "model", windows=False)
    except Exception as error:  # told in the other row
        return {"is": "not shown here", "why": f"{type(error).__name__}: the tiny model cannot be made"}
    # One process, no compiler: as the service runs its engines on a CPU.
    settings = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "TORCHDYNAMO_DISABLE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    command = limited_command([sys.executable, "-m", "benchmarks.families.engine", str(scratch / "model")])
    try:
        ended = subprocess.run(
            command, capture_output=True, text=True, env=os.environ | settings, timeout=ENGINE_TIME_S, cwd=Path.cwd()
        )
    except subprocess.TimeoutExpired:
        return {"is": page.NOT_RUN, "why": f"no answer within {ENGINE_TIME_S:.0f} s"}
    lines = [line for line in ended.stdout.splitlines() if line.startswith('{"is"')]
    if not lines:
        last = " ".join(ended.stderr.split())[-300:]
        return {"is": "not shown here", "why": f"the engine's process ended with {ended.returncode}: {last}"}
    answer: Row = _without_paths(json.loads(lines[-1]), scratch)
    return answer


def _without_paths(value: Any, scratch: Path) -> Any:
    return json.loads(json.dumps(value).replace(str(scratch), "FOLDER"))
