"""Tiny random models: the default configuration of a family with its sizes shrunk, by the names of the fields."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from wmss.scoring.vllm_families import families
from wmss.tasks.base_model import make_tokenizer

WINDOW = 8
"""Tokens that a window of attention sees."""
MAX_LAYERS = 4
HIDDEN, HEADS, HEAD, INNER, EXPERT, EXPERTS, STATE, RANK, LENGTH = 64, 2, 32, 96, 32, 4, 16, 16, 256
"""Width, heads, head width, width within a block and within an expert, experts, recurrent state, low ranks, context.
vLLM's attention on a CPU takes heads of 32 and more."""

SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim"), HIDDEN),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "swa_num_attention_heads", "linear_num_heads"),
        HEADS,
    ),
    **dict.fromkeys(
        ("head_dim", "swa_head_dim", "v_head_dim", "global_head_dim", "index_head_dim", "linear_head_dim"),
        HEAD,
    ),
    **dict.fromkeys(
        ("linear_key_head_dim", "linear_value_head_dim", "attention_head_dim", "kv_channels", "swa_v_head_dim"), HEAD
    ),
    **dict.fromkeys(
        ("intermediate_size", "ffn_hidden_size", "ffn_dim", "intermediate_size_mlp", "shared_intermediate_size"), INNER
    ),
    **dict.fromkeys(
        ("moe_intermediate_size", "shared_expert_intermediate_size", "moe_shared_expert_intermediate_size"), EXPERT
    ),
    **dict.fromkeys(("expert_ffn_hidden_size", "dense_intermediate_size"), EXPERT),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), EXPERTS),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk", "num_experts_per_token"), 2),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"), 1),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "o_lora_rank", "laurel_rank", "adapter_rank", "hc_lowrank"), RANK),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "d_rel", "ple_embed_dim"), 16),
    "hidden_size_per_layer_input": 16,
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "model_max_length"), LENGTH),
    **dict.fromkeys(("sliding_window", "sliding_window_size", "attention_chunk_size", "index_topk"), WINDOW),
    **dict.fromkeys(("rel_extent", "chunk_size", "mamba_chunk_size"), 16),
    **dict.fromkeys(("state_size", "mamba_d_state", "ssm_state_size"), STATE),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "num_heads", "n_mamba_heads"), 4),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim", "mamba_headdim"), HEAD),
    **dict.fromkeys(("n_groups", "mamba_n_groups", "mamba_ngroups"), 1),
    **dict.fromkeys(("time_step_rank", "mamba_dt_rank"), 4),
    "num_attention_heads_per_layer": HEADS,
    "mamba_d_ssm": 2 * HIDDEN,
    "attention_hidden_size": 2 * HIDDEN,
    "index_n_heads": 16,  # where all of them give 0, which tokens are kept is for rounding to decide
    "rotary_dim": 16,
    "first_k_dense_replace": 1,
    "zero_expert_num": 2,
    "linear_num_key_heads": 2,
    "ngram_vocab_size_base": 64,
    "split_ngram_parts": 1,
    "num_kv_shared_layers": 0,
    "max_window_layers": 1,
    "use_sliding_window": True,
    "query_pre_attn_scalar": HEAD,
}
"""By name of the field, for every family that has it."""
LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "num_layers_per_stack")
SPECIAL: dict[str, dict[str, Any]] = {
    "cwm": {"bos_token_id": 1},
    "dbrx": {
        "attn_config": {"kv_n_heads": 1, "rope_theta": 1e4, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": INNER, "moe_num_experts": EXPERTS, "moe_top_k": 2},
    },
    "deepseek_v2": {"num_experts_per_tok": 2},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "hunyuan_v1_dense": {"head_dim": HEAD, "num_key_value_heads": 1},
    "hunyuan_v1_moe": {"head_dim": HEAD, "num_key_value_heads": 1},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "laguna": {"layer_types": ["sliding_attention", "full_attention"]},
    "lfm2": {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mellum": {"layer_types": ["sliding_attention", "full_attention"]},
    "nemotron": {"num_key_value_heads": 1},
    "qwen4_exp_text": {
        "indexer_n_heads": 16,
        "indexer_kv_heads": 1,
        "indexer_head_dim": HEAD,
        "indexer_budget": WINDOW,
        "indexer_compress_ratio": 2,
    },
}
"""What the names of fields do not tell."""


def names() -> dict[str, str]:
    """{architecture: model type} of the causal language models that both vLLM's registry and transformers list."""
    types: dict[str, str] = {}
    for model_type, classes in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items():
        for name in [classes] if isinstance(classes, str) else classes:
            if name not in types or model_type.endswith("_text"):
                types[name] = model_type
    return {name: types[name] for name in sorted(families() & types.keys())}


def tiny_config(model_type: str, *, windows: bool = True) -> PretrainedConfig:
    """The smallest configuration of a family that has a layer of each of its kinds, and windows of `WINDOW` tokens.

    Without `windows` those are left off that are off by default.
    """
    tokenizer = make_tokenizer()
    default = AutoConfig.for_model(model_type)
    default.allow_global_per_layer_attribute_access = True
    values = {name: size for name, size in SIZES.items() if _has(default, name)}
    for heads in ("num_key_value_heads", "num_kv_heads", "num_query_groups", "swa_num_key_value_heads"):
        if getattr(default, heads, None) is not None:
            values[heads] = HEADS if getattr(default, heads) == default.num_attention_heads else 1
    if getattr(default, "linear_num_value_heads", None) is not None:
        values["linear_num_value_heads"] = 2 if default.linear_num_value_heads == default.linear_num_key_heads else 4
    if not windows:
        values.pop("use_sliding_window", None)
    if "use_sliding_window" in values:  # unused by default, and then not even kept
        values["sliding_window"] = WINDOW
    if "qk_rope_head_dim" in values and "head_dim" in values:  # they are one, and only its rotated part
        values["head_dim"] = values["qk_rope_head_dim"]
    if (getattr(default, "n_group", None) or 1) > 1:
        values |= {"n_group": 2, "topk_group": 1}
    for vocabulary in ("vocab_size", "vocab_size_per_layer_input"):
        if hasattr(default, vocabulary):
            values[vocabulary] = len(tokenizer)
    values |= _layers(default)
    values |= {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    return AutoConfig.for_model(model_type, **values | SPECIAL.get(model_type, {}))


def _has(default: PretrainedConfig, name: str) -> bool:
    return getattr(default, name, None) is not None and not isinstance(getattr(type(default), name, None), property)


def _layers(default: PretrainedConfig) -> dict[str, Any]:
    """Of the default's layers one of each kind, as the lists that go layer by layer tell them apart."""
    count = next((name for name in LAYERS if isinstance(getattr(default, name, None), int)), None)
    if count is None:
        return {}
    number = getattr(default, count)
    lists: Mapping[str, list[Any]] = {
        name: value for name, value in default.to_dict().items() if isinstance(value, list) and len(value) == number
    }
    kinds: dict[str, int] = {}
    for layer in range(number):
        kinds.setdefault(repr([value[layer] for value in lists.values()]), layer)
    kept = sorted(kinds.values())[:MAX_LAYERS]
    kept += [min(kept[-1] + 1, number - 1)] * (len(kept) == 1)
    cut = {
        name: [SIZES[name]] * len(kept) if name in SIZES else [value[layer] for layer in kept]
        for name, value in lists.items()
    }
    if getattr(default, "use_sliding_window", None) is not None:  # then the family makes its own
        cut.pop("layer_types", None)
    return {count: len(kept)} | cut


def make_tiny(model_type: str, *, windows: bool = True) -> PreTrainedModel:
    """A random model, with weights large enough that what is left out of attention shows."""
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(tiny_config(model_type, windows=windows))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0, 0.15)
            else:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


def save_tiny(model_type: str, folder: Path, *, windows: bool = True) -> None:
    """The same as a model folder, with the tokenizer of the project's test checkpoints."""
    make_tiny(model_type, windows=windows).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
