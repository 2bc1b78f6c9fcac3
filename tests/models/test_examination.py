"""What a model folder must be before a job may name it; asked in the process with limits, which the tests share."""

import json
import os
import shutil

import pytest
from safetensors.torch import load_file, save_file

from benchmarks.families.tiny import save_tiny
from tests.models import hostile_folders
from tests.models.hostile_folders import INDEX, SINGLE, edit, examine_many, index
from wmss.errors import ModelError
from wmss.models import limited
from wmss.models.limited import check_checkpoint
from wmss.models.loading import check_digests, check_pair, checkpoint_digests, load_model
from wmss.records import CheckpointDigests


@pytest.fixture
def folder(checkpoints, tmp_path):
    return shutil.copytree(checkpoints["llama"], tmp_path / "mine")


def refusal(folder, **options):
    with pytest.raises(ModelError) as caught:
        check_checkpoint(folder, param="model", **options)
    assert caught.value.param == "model"
    assert str(folder) in caught.value.message
    return caught.value.message


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_what_is_told_of_a_good_folder(checkpoints, family):
    model = load_model(checkpoints[family])
    assert check_checkpoint(checkpoints[family], param="model", lora={"rank": 2, "alpha": 4}) == {
        "architecture": type(model).__name__,
        "num_parameters": model.num_parameters(),
        "vocab_size": 277,
        "num_tokens": 277,
        "context_length": 256,
    }


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("adapter", "is a LoRA adapter, not a model; merge it into its base first"),
        ("adapter_beside", "has an adapter beside the model's own weights"),
        ("no_index", "but neither model.safetensors nor model.safetensors.index.json"),
        ("pickle_behind_index", "got 'pytorch_model.bin'; other weights are not read"),
        ("outside", "expected names of *.safetensors in the same folder"),
        ("index_of_lies", "names tensors that its files lack"),
        ("fifo", "is neither a file nor a folder"),
        ("device", "is neither a file nor a folder"),
        ("empty", "hold no tensors"),
        ("lost_tensor", "do not fit its config.json: missing model.layers."),
        ("strange_tensor", "do not fit its config.json: unexpected v_head.weight"),
        ("cut", "model.safetensors cannot be read"),
        ("layer_count", "expected no more layers than the weights have tensors, 21, got 10000000"),
        ("rope", "KeyError: 'foo'"),
        ("other_weights", "names its weights itself (transformers_weights)"),
        ("generation", "num_return_sequences"),
        ("memory", "needs more than 4 GB of memory to be examined"),
        ("broken_json", ".json"),
        pytest.param("loops", "was not examined within 20 s", marks=pytest.mark.slow),
    ],
)
def test_what_no_job_may_take(checkpoints, tmp_path, name, said):
    assert said in refusal(hostile_folders.make(checkpoints["llama"], tmp_path / "mine", name, seed=1))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vocab_size": 400}, "mismatched lm_head.weight [277, 64] for [400, 64]"),
        ({"vocab_size": 10**12}, "mismatched lm_head.weight [277, 64] for [1000000000000, 64]"),
        ({"hidden_size": 2**40}, "in "),
        ({"num_hidden_layers": 1}, "unexpected model.layers.1."),
    ],
)
def test_sizes_that_are_not_the_weights(folder, changes, said):
    edit(folder, "config.json", **changes)
    assert said in refusal(folder)


def test_attention_that_the_config_asks_for_is_not_used(folder):
    edit(folder, "config.json", attn_implementation="flash_attention_2", _attn_implementation="flash_attention_2")
    check_checkpoint(folder, param="model")
    assert load_model(folder).config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    "content",
    [
        {"bos_token_id": 1, "eos_token_id": 2, "do_sample": False, "temperature": 0.9, "top_p": 0.6},
        {"eos_token_id": 2, "num_beams": 1, "length_penalty": 2.0, "early_stopping": True},
    ],
)
def test_generation_that_only_saving_refuses_does_not_matter(folder, content):
    (folder / "generation_config.json").write_text(json.dumps(content))
    check_checkpoint(folder, param="model")
    load_model(folder)


def test_forms_of_weights_that_are_taken(checkpoints, tmp_path):
    """Links as in the hub's cache, shards, a single file left beside them, a tied head stored twice."""
    good = checkpoints["llama"]
    linked = tmp_path / "linked"
    linked.mkdir()
    for file in good.iterdir():
        (linked / file.name).symlink_to(file)
    sharded = shutil.copytree(good, tmp_path / "sharded")
    (sharded / SINGLE).unlink()
    load_model(good).save_pretrained(sharded, max_shard_size="100KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    stale = shutil.copytree(sharded, tmp_path / "stale")
    shutil.copy(good / SINGLE, stale)
    twice = shutil.copytree(checkpoints["qwen3"], tmp_path / "twice")
    tensors = load_file(twice / SINGLE)
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, twice / SINGLE)
    for folder in (linked, sharded, stale, twice):
        check_checkpoint(folder, param="model")


@pytest.mark.parametrize(
    "model_type", ["mixtral", "gpt_oss", "mamba", "opt", "llama4_text", "gemma2", "cohere", "deepseek_v32"]
)
def test_families_that_preflight_must_not_refuse(tmp_path, model_type):
    """Experts, no SDPA attention, no longest sequence, a decoder within the body, no body of its own, capped and scaled
    logits, an index of tokens."""
    save_tiny(model_type, tmp_path)
    found = check_checkpoint(tmp_path, param="model", lora={"rank": 2, "alpha": 4})
    assert found["context_length"] == (2**20 if model_type == "mamba" else 256)


def test_the_index_is_part_of_the_digest(folder):
    index(folder)
    before = checkpoint_digests(folder)
    (folder / INDEX).write_text((folder / INDEX).read_text() + " ")
    with pytest.raises(ModelError, match=r"model: weights in .* changed since"):
        check_digests(folder, before, param="model")


def test_a_digest_of_an_earlier_release_says_so(folder):
    index(folder)
    written = (folder / INDEX).read_text()
    (folder / INDEX).unlink()
    earlier = checkpoint_digests(folder)
    (folder / INDEX).write_text(written)
    with pytest.raises(ModelError, match=r"taken by a release that left out model.safetensors.index.json.*again"):
        check_digests(folder, CheckpointDigests(earlier.weights, earlier.tokenizer), param="model")


def test_padding_of_other_size_is_named(checkpoints, folder):
    model = load_model(folder)
    model.resize_token_embeddings(320)
    model.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"rows 277 to 319 of the larger head are padding .*_embeddings\(277\)"):
        check_pair(checkpoints["llama"], folder, param="weak")


def test_what_the_loader_raises_is_told(folder):
    (folder / SINGLE).write_bytes(b"x")
    with pytest.raises(ModelError, match=rf"model: the model in {folder} cannot be loaded: .*; save it again"):
        load_model(folder)


def test_the_process_is_started_again(checkpoints):
    check_checkpoint(checkpoints["llama"], param="model")
    os.kill(limited._warm.running.pid, 9)
    limited._warm.running.wait()
    check_checkpoint(checkpoints["llama"], param="model")


def test_it_forks_from_one_thread(checkpoints):
    check_checkpoint(checkpoints["llama"], param="model")
    with open(f"/proc/{limited._warm.running.pid}/status") as status:
        assert "Threads:\t1\n" in status.readlines()


@pytest.mark.slow
def test_hostile_folders_cost_this_process_nothing(checkpoints):
    refused, escaped, grown = examine_many(checkpoints["llama"], 200, seed=0)
    assert escaped == []
    assert sum(refused.values()) == 200
    assert grown < 100
