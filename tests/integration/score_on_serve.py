"""Run as a Ray job: score sequences through Ray Serve and vLLM, and save what came back.

python -m tests.integration.score_on_serve CHECKPOINT SEQUENCES.json RESULT.npz
"""

import json
import sys
from pathlib import Path

import numpy as np
import ray
from ray import serve

from services.engines.scorer import ServeScorer, deploy_scorer

if __name__ == "__main__":
    checkpoint, sequences, result = (Path(argument) for argument in sys.argv[1:])
    ray.init(address="auto")
    # Fewer tokens a step than most sequences have: prefill is chunked, within and across sequences.
    options = {"max_length": 256, "max_batched_tokens": 64}
    scorer = ServeScorer(deploy_scorer("test-scorer", use_gpu=False, **options), checkpoint, keep_states=True)
    arrays = scorer.score(json.loads(sequences.read_text()))
    np.savez(result, *arrays, provenance=json.dumps(scorer.provenance()))
    serve.delete("test-scorer")
