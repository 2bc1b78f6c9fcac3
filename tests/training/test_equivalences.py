"""Runs that must agree: the same mathematics reached in another way, or a promise of what is left alone."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch._dynamo.utils import counters

from tests import reference
from tests.training.runs import SFT, LocalHost, last_weights, losses, make_run
from wmss.config import Hyperparameters, LoraConfig
from wmss.core.mixing import mixing_weight_at
from wmss.core.saturation import is_saturated
from wmss.core.telemetry import statistics_of
from wmss.data.sampler import micro_batches
from wmss.data.states import StateWriter
from wmss.data.tokenization import load_tokenized
from wmss.errors import TrainingError
from wmss.models.loading import checkpoint_digest, hidden_states, load_model
from wmss.training.loop import train
from wmss.training.run import ModelSource

LORA = LoraConfig(rank=4, alpha=8)
SCALED = {"phase": "scaled", "weak": (), "weak_shares": (), "mixing_weight": 0.5}


def knobs(**changes):
    return Hyperparameters(**({"learning_rate": 1e-3, "micro_batch_tokens": 200, "max_steps": 4} | changes))


def trained(run, folder):
    host = LocalHost(folder)
    train(run, host)
    return host


def assert_same_weights(one, other, **tolerance):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        if tolerance:
            torch.testing.assert_close(other[name], tensor, **tolerance, msg=lambda text, name=name: f"{name}: {text}")
        else:
            assert torch.equal(other[name], tensor), name


def norms(host, name="grad_norm"):
    return [m[name] for m in host.metrics]


def test_first_step_by_hand(checkpoints, samples_file, tmp_path):
    """Full float64 logits, the product of experts, joint clip and AdamW by its formula; both norms as reported."""
    run = make_run(
        checkpoints,
        samples_file,
        mixing_weight=0.3,
        hyperparameters=knobs(max_steps=1, warmup_ratio=0.0, gradient_clip=0.1, weight_decay=0.5),
    )
    host = trained(run, tmp_path)
    models = [load_model(checkpoints[name], dtype=torch.float64) for name in ("qwen3", "qwen3_wide")]
    samples, batch = load_tokenized(samples_file), run.sampler().batch(0)
    total = torch.zeros((), dtype=torch.float64)
    for index in batch:
        ids = torch.from_numpy(samples[index].input_ids).long()
        targets = torch.from_numpy(np.flatnonzero(samples[index].target_mask))
        strong, weak = (torch.log_softmax(model(ids[None]).logits[0, targets - 1], dim=-1) for model in models)
        experts = 0.3 * strong + 0.7 * weak
        total = total - (experts.gather(1, ids[targets, None])[:, 0] - experts.logsumexp(dim=-1)).sum()
    (total / sum(samples[index].num_targets for index in batch)).backward()
    expected = [math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters())) for model in models]
    [metrics] = host.metrics
    assert [metrics["grad_norm_strong"], metrics["grad_norm_weak"]] == pytest.approx(expected, rel=1e-4)
    assert metrics["grad_norm"] == pytest.approx(math.hypot(*expected), rel=1e-4)
    assert metrics["grad_norm"] > 0.1
    for model, saved in zip(models, last_weights(host), strict=True):
        compared = 0
        for name, parameter in model.named_parameters():
            clipped = parameter.grad * (0.1 / math.hypot(*expected))
            stepped = reference.adamw_first_step(
                parameter.detach(), clipped, learning_rate=1e-3, weight_decay=0.5 if parameter.dim() > 1 else 0.0
            )
            # The first step is almost a sign: where a gradient is rounding noise, so is its step.
            clear = clipped.abs() > 1e-6
            compared += int(clear.sum())
            torch.testing.assert_close(saved[name].double()[clear], stepped[clear], rtol=0, atol=3e-6)
        assert compared > 0.5 * model.num_parameters()


def test_no_weak_model_equals_a_weak_one_with_constant_logits(checkpoints, samples_file, tmp_path):
    """`strong_scaled` (D2): the weak's last norm is zero, so its logits are; frozen, or it would learn."""
    silent = load_model(checkpoints["qwen3_wide"])
    with torch.no_grad():
        silent.model.norm.weight.zero_()
    silent.save_pretrained(tmp_path / "silent")
    alone = trained(make_run(checkpoints, samples_file, **SCALED, hyperparameters=knobs()), tmp_path / "alone")
    weak = (ModelSource(folder=tmp_path / "silent"),)
    mixed = trained(
        make_run(checkpoints, samples_file, weak=weak, weak_frozen=True, hyperparameters=knobs()), tmp_path / "mixed"
    )
    assert losses(mixed) == pytest.approx(losses(alone), rel=1e-6)
    assert_same_weights(last_weights(alone)[0], last_weights(mixed)[0], rtol=0, atol=2e-5)
    assert losses(alone) != losses(
        trained(make_run(checkpoints, samples_file, **SFT, hyperparameters=knobs()), tmp_path / "sft")
    )


def write_states(path, checkpoint, samples_file):
    """Hidden states of a checkpoint at every predicting position, as scoring leaves them."""
    model, samples = load_model(checkpoint), load_tokenized(samples_file)
    writer = StateWriter(path, samples)
    for index, sample in enumerate(samples):
        ids = torch.from_numpy(sample.input_ids).long()[None]
        with torch.no_grad():
            states = hidden_states(model, ids, torch.ones_like(ids))[0]
        writer.write(index, states[sample.predicting_positions].numpy())
    writer.close()


@pytest.mark.parametrize("packing", [True, False])
def test_frozen_equals_cached_and_leaves_the_weak_folder_alone(checkpoints, samples_file, tmp_path, packing):
    before = {file.name: file.read_bytes() for file in checkpoints["qwen3_wide"].iterdir()}
    settings = {"weak_frozen": True, "hyperparameters": knobs(packing=packing)}
    live = trained(make_run(checkpoints, samples_file, **settings), tmp_path / "live")
    write_states(tmp_path / "states", checkpoints["qwen3_wide"], samples_file)
    source = ModelSource(folder=checkpoints["qwen3_wide"], states=tmp_path / "states")
    cached = trained(make_run(checkpoints, samples_file, weak=(source,), **settings), tmp_path / "cached")
    assert losses(cached) == pytest.approx(losses(live), rel=1e-6)
    assert norms(cached) == pytest.approx(norms(live), rel=1e-4)
    assert_same_weights(last_weights(live)[0], last_weights(cached)[0], rtol=0, atol=2e-5)
    assert {file.name: file.read_bytes() for file in checkpoints["qwen3_wide"].iterdir()} == before


def test_frozen_weak_has_no_dropout(checkpoints, samples_file, tmp_path):
    """It is held fixed, as it was scored: with dropout on, its states would not be those of the cache."""
    noisy = load_model(checkpoints["qwen3_wide"])
    noisy.config.attention_dropout = 0.9
    noisy.save_pretrained(tmp_path / "noisy")
    hosts = [
        trained(
            make_run(
                checkpoints,
                samples_file,
                weak=(ModelSource(folder=folder),),
                weak_frozen=True,
                hyperparameters=knobs(max_steps=2),
            ),
            tmp_path / folder.name / "run",
        )
        for folder in (checkpoints["qwen3_wide"], tmp_path / "noisy")
    ]
    assert losses(hosts[1]) == losses(hosts[0])


def test_accumulated_micro_batches_equal_one(checkpoints, samples_file, tmp_path):
    """8 samples at once, or one at a time."""
    hosts = []
    for name, budget in (("one", 100_000), ("eight", 1)):
        values = knobs(learning_rate=1e-5, micro_batch_tokens=budget)
        run = make_run(checkpoints, samples_file, hyperparameters=values)
        batch = run.sampler().batch(0).tolist()
        groups = micro_batches(batch, load_tokenized(samples_file), max_tokens=budget, packing=True)
        assert len(groups) == (1 if name == "one" else 8)
        hosts.append(trained(run, tmp_path / name))
    assert losses(hosts[1]) == pytest.approx(losses(hosts[0]), rel=1e-6)
    assert norms(hosts[1]) == pytest.approx(norms(hosts[0]), rel=1e-5)


def test_packed_equals_padded(checkpoints, samples_file, tmp_path):
    hosts = [
        trained(
            make_run(checkpoints, samples_file, hyperparameters=knobs(packing=packing, learning_rate=1e-4)),
            tmp_path / str(packing),
        )
        for packing in (True, False)
    ]
    assert losses(hosts[1]) == pytest.approx(losses(hosts[0]), rel=1e-5)
    assert norms(hosts[1]) == pytest.approx(norms(hosts[0]), rel=1e-4)
    for packed, padded in zip(last_weights(hosts[0]), last_weights(hosts[1]), strict=True):
        assert_same_weights(packed, padded, rtol=0, atol=2e-5)


def test_activation_checkpointing_changes_nothing(checkpoints, samples_file, tmp_path):
    hosts = {
        how: trained(
            make_run(checkpoints, samples_file, hyperparameters=knobs(activation_checkpointing=how)), tmp_path / how
        )
        for how in ("none", "selective", "full")
    }
    for how in ("selective", "full"):
        assert losses(hosts[how]) == losses(hosts["none"])
        assert norms(hosts[how]) == norms(hosts["none"])
        for one, other in zip(last_weights(hosts["none"]), last_weights(hosts[how]), strict=True):
            assert_same_weights(one, other)


def test_bfloat16_is_near_float32_and_keeps_float32_weights(checkpoints, samples_file, tmp_path):
    hosts = [
        trained(make_run(checkpoints, samples_file, hyperparameters=knobs(precision=precision)), tmp_path / precision)
        for precision in ("float32", "bfloat16")
    ]
    assert losses(hosts[1]) == pytest.approx(losses(hosts[0]), rel=2e-2)
    assert losses(hosts[1]) != losses(hosts[0])
    for weights in last_weights(hosts[1]):
        assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    # An update far below bfloat16's resolution of the weights reaches them: they are the masters.
    small = trained(
        make_run(checkpoints, samples_file, hyperparameters=knobs(precision="bfloat16", learning_rate=1e-7)),
        tmp_path / "small",
    )
    start, end = load_model(checkpoints["qwen3"]).state_dict(), last_weights(small)[0]
    change = (end["model.norm.weight"] - start["model.norm.weight"]).abs()
    assert 0 < change.max() < 1e-6


def test_several_weak_models_share_their_part(checkpoints, samples_file, tmp_path):
    """One weak model given twice is that model once; two different ones have their shares, by hand."""
    one = ModelSource(folder=checkpoints["qwen3_wide"])
    other = ModelSource(folder=checkpoints["llama"])
    settings = {"weak_frozen": True, "mixing_weight": 0.4, "hyperparameters": knobs()}
    single = trained(make_run(checkpoints, samples_file, weak=(one,), **settings), tmp_path / "single")
    twice = trained(
        make_run(checkpoints, samples_file, weak=(one, one), weak_shares=(0.25, 0.75), **settings), tmp_path / "twice"
    )
    assert losses(twice) == pytest.approx(losses(single), rel=1e-6)
    run = make_run(
        checkpoints,
        samples_file,
        weak=(one, other),
        weak_shares=(0.25, 0.75),
        mixing_weight=0.4,
        hyperparameters=knobs(max_steps=1),
    )
    both = trained(run, tmp_path / "both")
    models = [load_model(checkpoints[name], dtype=torch.float64) for name in ("qwen3", "qwen3_wide", "llama")]
    total, count, samples = 0.0, 0, load_tokenized(samples_file)
    for index in run.sampler().batch(0):
        ids, positions = torch.from_numpy(samples[index].input_ids).long(), samples[index].predicting_positions
        with torch.no_grad():
            logits = [model(ids[None]).logits[0, positions] for model in models]
        mixed = sum(w * z for w, z in zip((0.4, 0.6 * 0.25, 0.6 * 0.75), logits, strict=True))
        total += float(torch.nn.functional.cross_entropy(mixed, ids[positions + 1], reduction="sum"))
        count += len(positions)
    assert losses(both) == pytest.approx([total / count], rel=2e-6)
    assert {name for name in both.metrics[0] if name.startswith("grad_norm_")} == {
        "grad_norm_strong",
        "grad_norm_weak",
        "grad_norm_weak_2",
    }
    saved = sorted((tmp_path / "both").glob("step-*/weak_*"))
    assert [folder.name for folder in saved] == ["weak_0", "weak_1"]


def lora_run(checkpoints, samples_file, *, weak, frozen, **changes):
    return make_run(
        checkpoints,
        samples_file,
        weak=(ModelSource(folder=weak),),
        weak_frozen=frozen,
        hyperparameters=knobs(lora=LORA, **changes),
    )


def copied(checkpoint, folder):
    """The same weights at another path, so that they are not mistaken for the strong model's own."""
    load_model(checkpoint).save_pretrained(folder)
    return folder


def test_adapter_off_weak_equals_a_copy_of_the_base(checkpoints, samples_file, tmp_path):
    shared = trained(lora_run(checkpoints, samples_file, weak=checkpoints["qwen3"], frozen=True), tmp_path / "shared")
    apart = trained(
        lora_run(checkpoints, samples_file, weak=copied(checkpoints["qwen3"], tmp_path / "copy"), frozen=True),
        tmp_path / "apart",
    )
    assert losses(shared) == pytest.approx(losses(apart), rel=1e-6)
    assert norms(shared, "grad_norm_strong") == pytest.approx(norms(apart, "grad_norm_strong"), rel=1e-4)
    assert norms(shared, "grad_norm_weak") == [0.0] * 4
    assert losses(shared)[-1] < losses(shared)[0]
    # The adapter moved the strong model away from its own base, so the two branches are different functions.
    assert shared.metrics[0]["divergence"] == pytest.approx(0.0, abs=1e-7)


def test_joint_adapters_train_both_and_leave_the_base(checkpoints, samples_file, tmp_path):
    before = checkpoint_digest(checkpoints["qwen3"])
    run = lora_run(checkpoints, samples_file, weak=checkpoints["qwen3"], frozen=False)
    host = trained(run, tmp_path / "joint")
    assert all(m["grad_norm_strong"] > 0 and m["grad_norm_weak"] > 0 for m in host.metrics)
    folder = sorted((tmp_path / "joint").glob("step-*"))[-1]
    adapters = [load_file(folder / name / "adapter_model.safetensors") for name in ("adapter", "weak_0")]
    for adapter in adapters:
        assert all(tensor.any() for name, tensor in adapter.items() if "lora_B" in name)
    assert adapters[0].keys() == adapters[1].keys()
    assert any(not torch.equal(adapters[0][name], adapters[1][name]) for name in adapters[0])
    base, merged = load_model(checkpoints["qwen3"]).state_dict(), load_model(folder / "strong").state_dict()
    linear = [name for name in base if "_proj." in name]
    assert not any(torch.equal(base[name], merged[name]) for name in linear)
    assert all(torch.equal(base[name], merged[name]) for name in base if name not in linear)
    assert checkpoint_digest(checkpoints["qwen3"]) == before


@pytest.mark.parametrize("frozen", [False, True])
def test_two_adapters_on_one_base_equal_two_copies_of_it(checkpoints, samples_file, tmp_path, frozen):
    """From trained adapters, so that no draw of first weights matters."""
    first = trained(lora_run(checkpoints, samples_file, weak=checkpoints["qwen3"], frozen=False), tmp_path / "first")
    found = sorted(first.folder.glob("step-*"))[-1]
    strong = ModelSource(folder=checkpoints["qwen3"], adapter=found / "adapter")
    folders = (checkpoints["qwen3"], copied(checkpoints["qwen3"], tmp_path / "copy"))
    hosts = [
        trained(
            make_run(
                checkpoints,
                samples_file,
                strong=strong,
                weak=(ModelSource(folder=folder, adapter=found / "weak_0"),),
                weak_frozen=frozen,
                hyperparameters=knobs(lora=LORA, learning_rate=1e-4),
            ),
            tmp_path / f"run{number}",
        )
        for number, folder in enumerate(folders)
    ]
    assert losses(hosts[0]) == pytest.approx(losses(hosts[1]), rel=1e-5)
    for name in ("grad_norm_strong", "grad_norm_weak"):
        assert norms(hosts[0], name) == pytest.approx(norms(hosts[1], name), rel=1e-3)
    # The weak model is the base with its adapter, not the base.
    off = trained(
        make_run(
            checkpoints,
            samples_file,
            strong=strong,
            weak=(ModelSource(folder=checkpoints["qwen3"]),),
            weak_frozen=True,
            hyperparameters=knobs(lora=LORA, max_steps=1),
        ),
        tmp_path / "off",
    )
    assert losses(off)[0] != pytest.approx(losses(hosts[0])[0], rel=1e-3)


@pytest.mark.parametrize("side", ["strong", "weak"])
def test_adapter_without_lora_is_refused(checkpoints, samples_file, tmp_path, side):
    source = ModelSource(folder=checkpoints["qwen3"], adapter=tmp_path / "adapter")
    run = make_run(checkpoints, samples_file, **{side: source if side == "strong" else (source,)})
    with pytest.raises(TrainingError, match="an adapter to start from, but lora is not set"):
        train(run, LocalHost(tmp_path))


def test_merged_strong_equals_base_with_its_adapter_in_peft(checkpoints, samples_file, tmp_path):
    host = trained(lora_run(checkpoints, samples_file, weak=checkpoints["qwen3"], frozen=True), tmp_path / "run")
    folder = sorted(host.folder.glob("step-*"))[-1]
    ids = torch.arange(20)[None]
    with torch.no_grad():
        base = load_model(checkpoints["qwen3"])
        plain = base(ids).logits
        adapted = PeftModel.from_pretrained(base, folder / "adapter")(ids).logits
        merged = load_model(folder / "strong")(ids).logits
    torch.testing.assert_close(merged, adapted, rtol=0, atol=1e-4)
    # A set's order differs between processes; the same weights shall give the same files.
    layers = json.loads((folder / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))["target_modules"]
    assert layers == sorted(layers)
    assert len({layer.rsplit(".", 1)[1] for layer in layers}) == 7
    assert (merged - plain).abs().max() > 1e-2


def test_mixing_weight_follows_its_schedule_in_the_metrics(checkpoints, samples_file, tmp_path):
    run = make_run(
        checkpoints,
        samples_file,
        mixing_weight=0.9,
        mixing_weight_end=0.5,
        mixing_schedule="cosine",
        hyperparameters=knobs(max_steps=5),
    )
    host = trained(run, tmp_path / "scheduled")
    expected = [mixing_weight_at(k, num_steps=5, start=0.9, end=0.5, schedule="cosine") for k in range(5)]
    assert norms(host, "mixing_weight") == expected
    assert (expected[0], expected[-1]) == (0.9, 0.5)
    # And it is the λ that is trained with: the first loss is that of a constant 0.9, the last is not.
    constant = trained(
        make_run(checkpoints, samples_file, mixing_weight=0.9, hyperparameters=knobs(max_steps=5)), tmp_path / "same"
    )
    assert losses(constant)[0] == losses(host)[0]
    assert losses(constant)[1:] != losses(host)[1:]


@pytest.mark.parametrize("with_weak", [True, False])
def test_telemetry_comes_at_its_steps(checkpoints, samples_file, tmp_path, with_weak):
    run = make_run(
        checkpoints,
        samples_file,
        **({} if with_weak else SFT),
        hyperparameters=knobs(max_steps=7, telemetry_every=3, micro_batch_tokens=100_000),
    )
    host = trained(run, tmp_path)
    names = set(statistics_of(2 if with_weak else 1))
    assert [names <= m.keys() for m in host.metrics] == [True, False, False, True, False, False, True]
    assert not any(names & m.keys() for m in host.metrics if not names <= m.keys())
    # All of a batch's targets are looked at here, so the mix's own loss is the step's.
    for m in host.metrics[::3]:
        assert m["num_targets"] < 256
        assert m["nll_mix" if with_weak else "nll_strong"] == pytest.approx(m["train_loss"], rel=1e-5)
        if with_weak:
            weighted = 0.5 * m["nll_strong"] + 0.5 * m["nll_weak"] - m["divergence"]
            assert m["nll_mix"] == pytest.approx(weighted, rel=1e-5)


def test_telemetry_changes_nothing(checkpoints, samples_file, tmp_path):
    hosts = [
        trained(
            make_run(checkpoints, samples_file, hyperparameters=knobs(telemetry_every=every, neftune_alpha=5.0)),
            tmp_path / str(every),
        )
        for every in (None, 1)
    ]
    assert losses(hosts[0]) == losses(hosts[1])
    for one, other in zip(*(last_weights(host) for host in hosts), strict=True):
        assert_same_weights(one, other)


def flat_run(checkpoints, samples_file, **changes):
    """A learning rate so small that the margin only wobbles from batch to batch: flat at the first chance."""
    return make_run(
        checkpoints,
        samples_file,
        **SFT,
        batch_size=2,
        num_epochs=1,
        checkpoint_every=7,
        hyperparameters=knobs(max_steps=None, learning_rate=1e-9, telemetry_every=1),
        **changes,
    )


def test_stops_at_saturation_and_stays_stopped(checkpoints, samples_file, tmp_path):
    run = flat_run(checkpoints, samples_file, stop_at_saturation=True)
    host = trained(run, tmp_path)
    margins = norms(host, "margin")
    # Stopped at the very step at which the rule first holds, and saved there.
    assert [is_saturated(margins[: k + 1]) for k in range(len(margins))] == [False] * (len(margins) - 1) + [True]
    assert host.metrics[-1]["saturated_at"] == len(margins) < run.sampler().num_steps
    assert sorted(tmp_path.glob("step-*"))[-1].name == f"step-{len(margins):04d}"
    again = trained(run, tmp_path)
    assert again.metrics == []


def test_saturation_is_reported_once_also_by_a_resumed_run(checkpoints, samples_file, tmp_path):
    run = flat_run(checkpoints, samples_file)
    whole = trained(run, tmp_path / "whole")
    reported = [m["step"] for m in whole.metrics if "saturated_at" in m]
    assert len(reported) == 1
    for die_at in (9, 18):
        cut = LocalHost(tmp_path / str(die_at), die_at=die_at)
        with pytest.raises(KeyboardInterrupt):
            train(run, cut)
        again = trained(run, tmp_path / str(die_at))
        first = again.metrics[0]["step"]
        assert [m["step"] for m in again.metrics if "saturated_at" in m] == [s for s in reported if s >= first]


@pytest.mark.parametrize("damage", ["flip", "remove"])
@pytest.mark.parametrize(
    "name", ["strong/model.safetensors", "weak_0/model.safetensors", "training_state.pt", "rng_rank0.pt"]
)
def test_damaged_checkpoint_is_refused_by_name(checkpoints, samples_file, tmp_path, damage, name, finished_run):
    run, folder = finished_run
    target = tmp_path / "step-0002"
    shutil.copytree(folder, target)
    file = target / name
    if damage == "flip":
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    else:
        file.unlink()
    word = "damaged" if damage == "flip" else "missing"
    with pytest.raises(TrainingError, match=rf"{name} is {word}; remove the checkpoint .*step-0002 to resume"):
        train(run, LocalHost(tmp_path))


@pytest.fixture(scope="module")
def finished_run(checkpoints, samples_file, tmp_path_factory):
    run = make_run(checkpoints, samples_file, hyperparameters=knobs(max_steps=2))
    folder = tmp_path_factory.mktemp("finished")
    train(run, LocalHost(folder))
    return run, folder / "step-0002"


def test_checkpoint_without_digests_is_refused(checkpoints, samples_file, tmp_path):
    (tmp_path / "step-0001").mkdir()
    with pytest.raises(TrainingError, match=r"step-0001 is no complete checkpoint: it has no digests"):
        train(make_run(checkpoints, samples_file), LocalHost(tmp_path))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own: it imports what is deprecated, and looks at gradients
@pytest.mark.parametrize("packing", [True, False])
@torch._dynamo.config.patch(fail_on_recompile_limit_hit=True)
def test_compiled_equals_eager(checkpoints, samples_file, tmp_path, packing):
    """And stays compiled: a block that is compiled again for each batch meets a limit, and runs eagerly from there."""
    torch._dynamo.reset()
    counters.clear()
    hosts = [
        trained(
            make_run(
                checkpoints,
                samples_file,
                hyperparameters=knobs(compile=compiled, packing=packing, learning_rate=1e-4, max_steps=10),
            ),
            tmp_path / str(compiled),
        )
        for compiled in (False, True)
    ]
    assert losses(hosts[1]) == pytest.approx(losses(hosts[0]), rel=1e-5)
    assert norms(hosts[1]) == pytest.approx(norms(hosts[0]), rel=1e-4)
    assert counters["stats"]["unique_graphs"] > 0
