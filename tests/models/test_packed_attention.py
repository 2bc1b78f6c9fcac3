"""Packed rows against a dense mask and against samples run alone: outputs, gradients, and who sees whom."""

import contextlib

import pytest
import torch
from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM

from benchmarks.families.tiny import make_tiny
from tests import reference
from tests.models.families import make_family
from wmss.errors import ModelError
from wmss.models.loading import attention_unpacked, batch_states, hidden_states, load_model
from wmss.models.packed_attention import PACKED, Runs, packed_attention
from wmss.models.packing import check_packing, check_padding, packing_obstacle

LENGTHS = [9, 9, 6, 4, 4, 4, 1]


def test_runs_by_hand():
    assert Runs([5, 5, 3, 5]).pairs == ((2, 5), (1, 3), (1, 5))
    assert Runs([7]).pairs == ((1, 7),)
    assert Runs([]).pairs == ()


def heads(*, query_heads, key_heads, seed=0, width=8):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(1, n, sum(LENGTHS), width, generator=generator, dtype=torch.float64)
        for n in (query_heads, key_heads, key_heads)
    ]


@pytest.mark.parametrize("key_heads", [4, 2, 1])
@pytest.mark.parametrize("sliding_window", [None, 1, 3, 6, 100])
def test_equals_a_dense_mask(key_heads, sliding_window):
    tensors = [t.requires_grad_() for t in heads(query_heads=4, key_heads=key_heads)]
    output, _ = packed_attention(
        torch.nn.Module(), *tensors, None, packed_runs=Runs(LENGTHS), sliding_window=sliding_window
    )
    expected = reference.attention(*(t[0] for t in tensors), LENGTHS, sliding_window=sliding_window)
    torch.testing.assert_close(output[0].transpose(0, 1), expected, rtol=0, atol=1e-13)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = torch.autograd.grad((output[0].transpose(0, 1) * weights).sum(), tensors)
    for gradient, true in zip(gradients, torch.autograd.grad((expected * weights).sum(), tensors), strict=True):
        torch.testing.assert_close(gradient, true, rtol=0, atol=1e-12)


def test_without_runs_every_row_is_one_sample():
    query, key, value = (t.expand(3, -1, -1, -1) for t in heads(query_heads=2, key_heads=1))
    output, _ = packed_attention(torch.nn.Module(), query, key, value, None)
    expected = reference.attention(query[0], key[0], value[0], [sum(LENGTHS)])
    torch.testing.assert_close(output[2].transpose(0, 1), expected, rtol=0, atol=1e-13)


def test_scale_is_the_models_own():
    query, key, value = heads(query_heads=2, key_heads=2)
    runs = Runs(LENGTHS)
    scaled, _ = packed_attention(torch.nn.Module(), query, key, value, None, packed_runs=runs, scaling=0.7)
    plain, _ = packed_attention(torch.nn.Module(), query * 0.7 * 8**0.5, key, value, None, packed_runs=runs)
    torch.testing.assert_close(scaled, plain, rtol=0, atol=1e-13)


def pack(samples):
    return (
        torch.cat(samples)[None],
        torch.cat([torch.arange(len(sample)) for sample in samples])[None],
        Runs([len(sample) for sample in samples]),
    )


def random_samples(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(5, 200, (length,), generator=generator) for length in LENGTHS]


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_packed_states_and_gradients_are_those_of_samples_alone(checkpoints, family):
    samples = random_samples()
    weights = torch.randn(sum(LENGTHS), 64, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    packed_model = load_model(checkpoints[family], dtype=torch.float64, packing=True)
    assert packed_model.config.num_key_value_heads < packed_model.config.num_attention_heads
    packed = batch_states(packed_model, *pack(samples))[0]
    (packed * weights).sum().backward()
    model = load_model(checkpoints[family], dtype=torch.float64)
    alone = torch.cat([hidden_states(model, s[None], torch.ones(1, len(s), dtype=torch.long))[0] for s in samples])
    (alone * weights).sum().backward()
    torch.testing.assert_close(packed, alone, rtol=0, atol=1e-10)
    compared = 0
    for (name, parameter), other in zip(packed_model.named_parameters(), model.parameters(), strict=True):
        if other.grad is not None:
            torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-9, atol=1e-9, msg=name)
            compared += 1
    assert compared >= 20


@pytest.mark.parametrize("changed", [0, 2, 6])
def test_a_changed_sample_leaves_the_states_of_all_others_bit_equal(checkpoints, changed):
    samples = random_samples()
    model = load_model(checkpoints["qwen3"], packing=True)
    with torch.no_grad():
        before = batch_states(model, *pack(samples))[0].split(LENGTHS)
        samples[changed] = (samples[changed] + 17) % 200
        after = batch_states(model, *pack(samples))[0].split(LENGTHS)
    for number, (old, new) in enumerate(zip(before, after, strict=True)):
        assert torch.equal(old, new) == (number != changed), number


def test_a_model_that_would_mix_neighbours_is_refused(checkpoints):
    check_packing(load_model(checkpoints["llama"], packing=True), param="model")
    recurrent = RecurrentGemmaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        lru_width=16,
        attn_implementation=PACKED,
    )
    with pytest.raises(
        ModelError, match=r"RecurrentGemma\w+ does not keep packed samples apart.*; set packing to .*false"
    ):
        check_packing(RecurrentGemmaForCausalLM(recurrent), param="model")


UNPACKED = {
    "GptOss": "its attention needs s_aux, which packed rows lack",
    "Qwen2Moe": "only its mask knows the window of 4096 tokens, and packed rows have no mask",
    "VaultGemma": "its attention needs softcap, which packed rows lack",
    "Gemma2": "its attention needs softcap, which packed rows lack",
    "Qwen3Next": "it keeps a state along the row",
}
"""Why, as it shows without weights."""


@pytest.mark.parametrize("family", ["Mistral", "Mixtral", "Qwen3Moe", "DeepseekV3", *UNPACKED])
def test_a_family_packs_only_if_packed_rows_give_its_own_states(family):
    """Windows are as long as in real models, so that no short row could show what is wrong with them."""
    model = make_family(family)
    for holder in [model.config, *model.modules()]:
        if isinstance(getattr(holder, "sliding_window", None), int):
            holder.sliding_window = 4096
    obstacle = UNPACKED.get(family)
    with contextlib.nullcontext() if obstacle is None else pytest.raises(ModelError):
        check_packing(model, param="model")
    assert getattr(model.config, "sliding_window", None) in (None, 4096)
    assert model.config._attn_implementation == PACKED
    check_padding(model, param="model")
    assert model.config._attn_implementation == attention_unpacked(model.config)
    assert packing_obstacle(model.config) == obstacle


def test_a_model_whose_padded_rows_are_wrong_is_refused(checkpoints):
    model = load_model(checkpoints["llama"])
    check_padding(model, param="model")
    for layer in model.base_model.layers:
        layer.self_attn.is_causal = False  # SDPA then looks ahead, at the padding too
    with pytest.raises(ModelError, match="model: LlamaForCausalLM gives other states in padded rows than for each"):
        check_padding(model, param="model")


def test_arguments_of_attention_that_packed_rows_lack_are_refused():
    with pytest.raises(ModelError, match="Module needs is_causal=False, softcap, which they lack"):
        packed_attention(
            torch.nn.Module(), *heads(query_heads=2, key_heads=2), None, softcap=2.0, s_aux=None, is_causal=False
        )


def test_a_family_whose_code_needs_a_mask_is_not_packed():
    model = make_tiny("glm_moe_dsa")
    model.set_attn_implementation(PACKED)
    with pytest.raises(ModelError, match="GlmMoeDsaForCausalLM"):
        check_packing(model, param="model")
    assert model.config._attn_implementation == PACKED
