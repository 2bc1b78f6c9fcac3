"""Score sequences with vLLM in this process, and save what came back.

python -m tests.scoring.score_in_process CHECKPOINT SEQUENCES.json RESULT.npz
"""

import json
import sys
from pathlib import Path

import numpy as np

from wmss.scoring.vllm_scorer import VllmEntropyScorer

if __name__ == "__main__":
    checkpoint, sequences, result = (Path(argument) for argument in sys.argv[1:])
    scorer = VllmEntropyScorer(checkpoint, max_length=1024)
    np.savez(result, *scorer.score(json.loads(sequences.read_text(encoding="utf-8"))))
