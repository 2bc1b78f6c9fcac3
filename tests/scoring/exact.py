"""Random samples, and their entropies in float64 from full logits: what every scorer is compared with."""

from pathlib import Path

import numpy as np
import torch

from tests import reference
from wmss.models.loading import load_model
from wmss.records import TokenizedSample


def ragged(num_samples: int, *, seed: int, longest: int = 120, vocabulary: int = 277) -> list[TokenizedSample]:
    """Samples of 2 to `longest` - 1 random tokens, of which some 60 % are supervised, the last one always."""
    rng = np.random.default_rng(seed)
    samples = []
    for line in range(1, num_samples + 1):
        length = int(rng.integers(2, longest))
        mask = rng.random(length) < 0.6
        mask[0], mask[-1] = False, True
        ids = rng.integers(0, vocabulary, length).astype(np.int32)
        samples.append(TokenizedSample(line=line, input_ids=ids, target_mask=mask))
    return samples


def truth(checkpoint: Path, samples: list[TokenizedSample]) -> list[np.ndarray]:
    """Per sample float64 [targets, 2]: entropy and NLL at the predicting positions, from full logits."""
    model = load_model(checkpoint, dtype=torch.float64)
    results = []
    for sample in samples:
        ids = torch.from_numpy(sample.input_ids).long()
        with torch.no_grad():
            logits = model(ids[None]).logits[0]
        positions = torch.from_numpy(sample.predicting_positions)
        nll = torch.nn.functional.cross_entropy(logits[positions], ids[positions + 1], reduction="none")
        results.append(torch.stack([reference.entropy(logits[positions]), nll], dim=1).numpy())
    return results
