"""What tells one checkpoint from another: digests in two parts, and tokenizers that may not meet."""

import hashlib
import shutil

import pytest

from wmss.errors import ModelError
from wmss.models.loading import (
    check_digests,
    check_same_tokenizer,
    checkpoint_digest,
    checkpoint_digests,
    load_model,
    num_parameters,
)


@pytest.fixture
def folder(checkpoints, tmp_path):
    return shutil.copytree(checkpoints["llama"], tmp_path / "mine")


def append(file, text):
    file.write_bytes(file.read_bytes() + text)


def test_the_digest_that_caches_are_keyed_by_keeps_its_value(folder):
    digest = hashlib.sha256()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        digest.update(name.encode())
        digest.update(hashlib.sha256((folder / name).read_bytes()).digest())
    assert checkpoint_digest(folder) == digest.hexdigest()


@pytest.mark.parametrize(
    ("name", "changed"),
    [("config.json", "weights"), ("model.safetensors", "weights"), ("chat_template.jinja", "tokenizer")],
)
def test_a_change_is_told_by_its_half(folder, name, changed):
    before = checkpoint_digests(folder)
    check_digests(folder, before, param="model")
    append(folder / name, b" ")
    after = checkpoint_digests(folder)
    halves = ("weights", "tokenizer")
    assert [half for half in halves if getattr(before, half) != getattr(after, half)] == [changed]
    with pytest.raises(ModelError, match=f"^model: {changed} in .* changed since .*; register it again") as caught:
        check_digests(folder, before, param="model")
    assert caught.value.param == "model"


def test_what_is_no_part_of_a_model_changes_no_digest(folder):
    before = checkpoint_digests(folder)
    (folder / "README.md").write_text("mine")
    assert checkpoint_digests(folder) == before


def test_parameters_are_counted_as_stored(checkpoints):
    for name in ("qwen3", "llama"):  # tied, and not
        assert num_parameters(checkpoints[name]) == load_model(checkpoints[name]).num_parameters()


def test_tokenizers_that_differ_are_refused_by_both_fields(checkpoints, folder):
    others = {"strong_model": checkpoints["qwen3"], "weak_model": checkpoints["qwen3_other"]}
    check_same_tokenizer(others | {"more_weak_models.0": folder})
    tokenizer = folder / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"<|im_end|>"', '"<|turn_end|>"'))
    with pytest.raises(ModelError, match=r"'<\|im_end\|>' \(ids 2 and 277\)") as caught:
        check_same_tokenizer(others | {"more_weak_models.0": folder})
    assert caught.value.param == "more_weak_models.0"
    assert "more_weak_models.0: its tokenizer" in caught.value.message
    assert "differs from that of strong_model" in caught.value.message
