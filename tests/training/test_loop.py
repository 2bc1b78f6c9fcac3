"""The loop on the CPU: what it computes, that splits do not matter, and that a resumed run is the uninterrupted one."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.training.runs import NUM_SAMPLES, SFT, LocalHost, last_weights, losses, make_run
from wmss.config import Hyperparameters, LoraConfig
from wmss.core.telemetry import statistics_of
from wmss.data.tokenization import load_tokenized
from wmss.errors import ModelError, TrainingError
from wmss.models.loading import load_model
from wmss.training.loop import train
from wmss.training.run import ModelSource

RESUMED = {
    "joint": {},
    "padded": {"hyperparameters": {"packing": False}},
    "noise": {"hyperparameters": {"neftune_alpha": 5.0}},
    "adapters": {"own_weak": True, "hyperparameters": {"lora": LoraConfig(rank=4, alpha=8, dropout=0.2)}},
    "adapter_off": {
        "own_weak": True,
        "weak_frozen": True,
        "hyperparameters": {"lora": LoraConfig(rank=4, alpha=8, dropout=0.2), "neftune_alpha": 5.0},
    },
    "sft": SFT | {"hyperparameters": {"lora": LoraConfig(rank=4, alpha=8)}},
    "schedule": {"mixing_weight_end": 0.9, "mixing_schedule": "linear"},
}


@pytest.mark.parametrize("name", RESUMED)
def test_resumed_run_is_bit_identical(checkpoints, samples_file, tmp_path, name):
    """Noise and dropout included: the state of their generator is part of a checkpoint."""
    changes = dict(RESUMED[name])
    knobs = Hyperparameters(**{"learning_rate": 1e-3, "micro_batch_tokens": 200, **changes.pop("hyperparameters", {})})
    if changes.pop("own_weak", False):
        changes["weak"] = (ModelSource(folder=checkpoints["qwen3"]),)
    run = make_run(checkpoints, samples_file, hyperparameters=knobs, **changes)
    whole = LocalHost(tmp_path / "whole")
    train(run, whole)
    assert len(whole.metrics) == 10
    cut = LocalHost(tmp_path / "cut", die_at=6)
    with pytest.raises(KeyboardInterrupt):
        train(run, cut)
    again = LocalHost(tmp_path / "cut")
    train(run, again)
    assert [m["step"] for m in again.metrics] == [5, 6, 7, 8, 9, 10]
    assert without_clock(again.metrics) == without_clock(whole.metrics[4:])
    files = sorted(file.relative_to(whole.folder) for file in whole.folder.glob("step-0010/**/*.safetensors"))
    assert len(files) >= 1
    for file in files:
        assert (whole.folder / file).read_bytes() == (again.folder / file).read_bytes(), file
    assert whole.saved["first_loss"] == again.saved["first_loss"] == losses(whole)[0]
    assert whole.saved["total_tokens"] == again.saved["total_tokens"] == sum(m["num_tokens"] for m in whole.metrics)
    assert again.saved["total_s"] > sum(m["num_tokens"] / m["tokens_per_s"] for m in again.metrics)


def without_clock(metrics):
    return [{name: value for name, value in m.items() if name != "tokens_per_s"} for m in metrics]


def test_held_out_loss_is_the_strong_models_alone_and_changes_nothing(checkpoints, samples_file, tmp_path):
    """At its steps and at every checkpoint, against a float64 forward of the saved model on full logits."""
    knobs = {"learning_rate": 1e-3, "micro_batch_tokens": 200, "neftune_alpha": 5.0}
    plain, looking = LocalHost(tmp_path / "plain"), LocalHost(tmp_path / "looking")
    train(make_run(checkpoints, samples_file, hyperparameters=Hyperparameters(**knobs)), plain)
    knobs = Hyperparameters(**knobs, eval_every=3)
    train(make_run(checkpoints, samples_file, hyperparameters=knobs, held_out=samples_file), looking)
    read = {m["step"]: m.pop("valid_loss") for m in looking.metrics if "valid_loss" in m}
    assert list(read) == [3, 4, 6, 8, 9, 10]
    assert without_clock(looking.metrics) == without_clock(plain.metrics)
    assert looking.saved["valid_loss"] == read[10]
    model = load_model(looking.folder / "step-0004" / "strong", dtype=torch.float64)
    total, count = 0.0, 0
    for sample in load_tokenized(samples_file):
        ids = torch.from_numpy(sample.input_ids).long()
        positions = torch.from_numpy(sample.predicting_positions)
        with torch.no_grad():
            log_probs = model(ids[None]).logits[0].log_softmax(-1)
        total -= float(log_probs[positions, ids[positions + 1]].sum())
        count += len(positions)
    assert read[4] == pytest.approx(total / count, rel=1e-6)


def test_finished_run_started_again_does_nothing(checkpoints, samples_file, tmp_path):
    run = make_run(checkpoints, samples_file, num_epochs=1)
    train(run, LocalHost(tmp_path))
    again = LocalHost(tmp_path)
    train(run, again)
    assert again.metrics == []


def test_first_loss_is_the_mixed_loss_of_both_models(checkpoints, samples_file, tmp_path):
    """Against a float64 forward of both models on full logits, sample by sample, without padding."""
    host = LocalHost(tmp_path)
    knobs = Hyperparameters(max_steps=1)
    train(make_run(checkpoints, samples_file, mixing_weight=0.3, batch_size=NUM_SAMPLES, hyperparameters=knobs), host)
    models = [load_model(checkpoints[name], dtype=torch.float64) for name in ("qwen3", "qwen3_wide")]
    total, count = 0.0, 0
    for sample in load_tokenized(samples_file):
        ids = torch.from_numpy(sample.input_ids).long()
        strong, weak = (model(ids[None]).logits[0].detach() for model in models)
        positions = torch.from_numpy(sample.predicting_positions)
        mixed = (0.3 * strong + 0.7 * weak)[positions]
        total += float(torch.nn.functional.cross_entropy(mixed, ids[positions + 1], reduction="sum"))
        count += len(positions)
    assert host.metrics[0]["train_loss"] == pytest.approx(total / count, rel=2e-6)


def test_micro_batch_split_does_not_change_the_result(checkpoints, samples_file, tmp_path):
    hosts = []
    for name, budget in (("many", 60), ("one", 100_000)):
        host = LocalHost(tmp_path / name)
        knobs = Hyperparameters(learning_rate=1e-4, micro_batch_tokens=budget)
        train(make_run(checkpoints, samples_file, hyperparameters=knobs, num_epochs=1, batch_size=4), host)
        hosts.append(host)
    assert losses(hosts[0]) == pytest.approx(losses(hosts[1]), rel=1e-5)
    norms = [[m["grad_norm"] for m in host.metrics] for host in hosts]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    # A reading takes from all of them, not from the first, which holds the longest samples.
    names = statistics_of(2)
    readings = [{name: host.metrics[0][name] for name in names} for host in hosts]
    assert readings[0] == pytest.approx(readings[1], rel=1e-5)


def test_mixing_weight_one_is_plain_fine_tuning(checkpoints, samples_file, tmp_path):
    """On the same ordered samples, bit for bit."""
    plain, mixed = LocalHost(tmp_path / "plain"), LocalHost(tmp_path / "mixed")
    train(make_run(checkpoints, samples_file, **SFT), plain)
    train(make_run(checkpoints, samples_file, mixing_weight=1.0), mixed)
    assert losses(mixed) == losses(plain)
    weights, mixed_weights = last_weights(plain)[0], last_weights(mixed)[0]
    assert all(torch.equal(weights[name], mixed_weights[name]) for name in weights)


def test_joint_training_moves_both_and_frozen_only_the_strong(checkpoints, samples_file, tmp_path):
    joint, frozen = LocalHost(tmp_path / "joint"), LocalHost(tmp_path / "frozen")
    train(make_run(checkpoints, samples_file, num_epochs=1), joint)
    train(make_run(checkpoints, samples_file, num_epochs=1, weak_frozen=True), frozen)
    before = load_model(checkpoints["qwen3_wide"]).state_dict()
    trained = last_weights(joint)[1]
    assert any(not torch.equal(before[name], trained[name]) for name in trained)
    assert all(m["grad_norm_weak"] > 0 for m in joint.metrics)
    assert last_weights(frozen)[1] is None
    assert all(m["grad_norm_weak"] == 0 for m in frozen.metrics)
    assert losses(joint)[0] == losses(frozen)[0]
    assert losses(joint)[-1] != losses(frozen)[-1]


def test_training_lowers_the_loss_and_keeps_the_shape(checkpoints, samples_file, tmp_path):
    host = LocalHost(tmp_path)
    train(make_run(checkpoints, samples_file, **SFT, num_epochs=8), host)
    assert losses(host)[-1] < 0.5 * losses(host)[0]
    before, after = load_model(checkpoints["qwen3"]), load_model(sorted(tmp_path.glob("step-*"))[-1] / "strong")
    assert after.num_parameters() == before.num_parameters()


def test_gradient_clip_bounds_the_joint_norm(checkpoints, samples_file, tmp_path):
    free, clipped = LocalHost(tmp_path / "free"), LocalHost(tmp_path / "clipped")
    for host, limit in ((free, None), (clipped, 1e-3)):
        knobs = Hyperparameters(learning_rate=1e-3, gradient_clip=limit, max_steps=3)
        train(make_run(checkpoints, samples_file, hyperparameters=knobs), host)
    # The reported norm is the one before clipping; AdamW hides a common factor except through its epsilon.
    assert free.metrics[0]["grad_norm"] == clipped.metrics[0]["grad_norm"] > 1e-3
    assert losses(free)[1] != losses(clipped)[1]


def test_weights_that_do_not_fit_are_refused(checkpoints, samples_file, tmp_path):
    """transformers would make up the missing tensor, differently at every load."""
    broken = tmp_path / "broken"
    shutil.copytree(checkpoints["qwen3"], broken)
    weights = load_file(broken / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"do not fit its config.json: .*model.layers.1.mlp.up_proj.weight"):
        train(make_run(checkpoints, samples_file, weak=(ModelSource(folder=broken),)), LocalHost(tmp_path / "run"))


def test_non_finite_loss_stops_before_the_update(checkpoints, samples_file, tmp_path):
    broken = tmp_path / "broken"
    model = load_model(checkpoints["qwen3"])
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)
    model.save_pretrained(broken)
    with pytest.raises(TrainingError, match=r"loss nan .* at step 1 on worker 0, before the update; .*lines"):
        train(make_run(checkpoints, samples_file, strong=ModelSource(folder=broken)), LocalHost(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
