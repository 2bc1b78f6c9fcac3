"""The engine's column for one model folder, in a process of its own: `python -m benchmarks.families.engine FOLDER`.

What PyTorch says comes first: where vLLM runs a family on transformers' own classes, it changes these for good.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import default_rng

from benchmarks.families.tiny import LENGTH
from wmss.errors import WmssError
from wmss.models.loading import model_config
from wmss.scoring.interfaces import Scorer
from wmss.scoring.self_check import EXACT
from wmss.scoring.torch_scorer import TorchEntropyScorer
from wmss.scoring.vllm_scorer import VllmEntropyScorer

LENGTHS = (40, 17, 5)
"""Of the rows; the first is longer than the window of a tiny model."""


def rows_of(vocab_size: int) -> list[list[int]]:
    """Token ids of the rows."""
    rng = default_rng(0)
    return [rng.integers(3, vocab_size, length).tolist() for length in LENGTHS]


def judge_engine(folder: Path) -> dict[str, Any]:
    """{"is", "why", "error"}: is the entropy of every token that of PyTorch, within the self-check's bound?"""
    rows = rows_of(int(model_config(folder).get_text_config().vocab_size))
    scorer: Scorer = TorchEntropyScorer(folder)
    expected = scorer.score(rows)
    if not all(np.isfinite(each[:-1, 0]).all() for each in expected):
        return {"is": "fails", "why": "PyTorch's entropy is not finite"}
    try:
        engine = VllmEntropyScorer(folder, max_length=LENGTH, gpu_memory_utilization=0.1)
        found = engine.score(rows)
    except WmssError as error:
        return {"is": "not shown here", "why": error.message}
    except Exception as error:  # vLLM refuses in errors of many kinds
        return {"is": "not shown here", "why": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    error = max(float(np.abs(a[:-1, 0] - b[:-1, 0]).max()) for a, b in zip(found, expected, strict=True))
    return {"is": "equal" if error <= EXACT["float32"] else "wrong", "error": error, "why": "nats, largest difference"}


if __name__ == "__main__":
    print("\n" + json.dumps(judge_engine(Path(sys.argv[1]))), flush=True)
