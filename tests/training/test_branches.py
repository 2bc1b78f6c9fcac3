"""NEFTune's noise by its definition, and only where a model learns."""

import numpy as np
import pytest
import torch

from tests.checkpoints import make_checkpoint
from wmss.core.mixing import LogitBranch
from wmss.models.loading import load_model
from wmss.records import TokenizedSample
from wmss.training.batches import collate
from wmss.training.branches import Branches, EmbeddingNoise, WeakModel

ALPHA, WIDTH = 5.0, 64
CPU = torch.device("cpu")


def noise_of(lengths, *, packing):
    """Noise on the embeddings of samples of these lengths, [positions, D], and the length at each position."""
    model = torch.nn.Module()
    model.embeddings = torch.nn.Embedding(10, WIDTH)
    model.get_input_embeddings = lambda: model.embeddings
    noise = EmbeddingNoise(model, ALPHA)
    samples = [
        TokenizedSample(line=1, input_ids=np.ones(n, dtype=np.int32), target_mask=np.arange(n) > 0) for n in lengths
    ]
    batch = collate(samples, device=CPU, packing=packing)
    noise.lengths = batch.lengths
    model.train()
    torch.manual_seed(0)
    noisy = model.embeddings(batch.input_ids)
    return (noisy - model.embeddings.weight[batch.input_ids]).detach().flatten(0, 1), batch.lengths.flatten()


@pytest.mark.parametrize("packing", [True, False])
def test_noise_is_uniform_within_alpha_over_root_of_length_times_width(packing):
    """It depends on a sample's own length, whatever it is packed or padded with."""
    noise, lengths = noise_of([400, 100, 100], packing=packing)
    for length in (400, 100):
        bound = ALPHA / (length * WIDTH) ** 0.5
        values = noise[lengths == length]
        count = values.numel()
        assert values.abs().max() <= bound * (1 + 1e-4)
        assert values.abs().max() > 0.99 * bound
        # A uniform variable has variance bound² / 3; the tolerance is five standard errors.
        assert float(values.square().mean()) == pytest.approx(bound**2 / 3, rel=5 * (4 / 5 / count) ** 0.5)
        assert abs(float(values.mean())) < 5 * bound / (3 * count) ** 0.5


def make_branches(checkpoints, *, trained):
    torch.manual_seed(1)
    models = [load_model(checkpoints[name], packing=True) for name in ("qwen3", "qwen3_wide")]
    return Branches(models[0], [WeakModel(models[1], trained=trained)], neftune_alpha=ALPHA).train()


@pytest.mark.parametrize("trained", [True, False])
def test_noise_is_on_models_that_learn_and_no_others(checkpoints, trained, monkeypatch):
    """And on none where no gradient is asked for."""
    from wmss.training import branches as module

    seen = []
    original = module.branch_cross_entropy

    def keep(parts: list[LogitBranch], *args, **kwargs):
        seen.append([part.hidden.detach().clone() for part in parts])
        return original(parts, *args, **kwargs)

    monkeypatch.setattr(module, "branch_cross_entropy", keep)
    branches = make_branches(checkpoints, trained=trained)
    ids = np.arange(10, 22, dtype=np.int32)
    batch = collate([TokenizedSample(line=1, input_ids=ids, target_mask=np.arange(12) > 5)], device=CPU, packing=True)
    branches(batch, mixing_weight=0.5)
    branches(batch, mixing_weight=0.5)
    with torch.no_grad():
        branches(batch, mixing_weight=0.5)
        branches(batch, mixing_weight=0.5)
    equal = [[torch.equal(a, b) for a, b in zip(*pair, strict=True)] for pair in (seen[:2], seen[2:])]
    assert equal == [[False, not trained], [True, True]]


@pytest.mark.parametrize("family", ["gemma2", "granite"])
def test_the_loss_is_that_of_the_models_own_logits(tmp_path, family):
    """Soft-capped and scaled ones, as the strong and as the weak branch."""
    models = [
        load_model(make_checkpoint(tmp_path / str(seed), family, seed=seed), dtype=torch.float64) for seed in (1, 2)
    ]
    ids = torch.arange(5, 45)[None] * 7 % 277
    sample = TokenizedSample(line=1, input_ids=ids[0].numpy().astype(np.int32), target_mask=np.arange(40) > 0)
    batch = collate([sample], device=CPU, packing=False)
    branches = Branches(models[0], [WeakModel(models[1], trained=True)], packed=False).eval()
    with torch.no_grad():
        loss, statistics = branches(batch, mixing_weight=0.3, telemetry_rows=100)
        strong, weak = (model(input_ids=ids, use_cache=False).logits[0, :-1] for model in models)
        expected = torch.nn.functional.cross_entropy(0.3 * strong + 0.7 * weak, ids[0, 1:], reduction="sum")
        alone = torch.nn.functional.cross_entropy(strong, ids[0, 1:], reduction="sum")
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)  # families round a little in float32
    assert float(statistics[0]) == pytest.approx(float(alone), rel=1e-6)
