"""Tiny random models (some 100,000 parameters) of architectures that treat experts or attention in their own way."""

import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

COMMON: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "eos_token_id": 2,
    "bos_token_id": None,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
WINDOWS = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
FAMILIES: dict[str, dict[str, Any]] = {
    "Mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "Qwen3Moe": {"head_dim": 16, **EXPERTS},
    "DeepseekV3": {
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "n_group": 1,
        "topk_group": 1,
        "kv_lora_rank": 16,
        "q_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 16,
        "first_k_dense_replace": 1,
    },
    "Qwen3Next": {
        "head_dim": 16,
        **EXPERTS,
        "shared_expert_intermediate_size": 32,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "GptOss": {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, **WINDOWS},
    "Qwen2Moe": {
        **EXPERTS,
        "shared_expert_intermediate_size": 32,
        "use_sliding_window": True,
        "max_window_layers": 1,
        **WINDOWS,
    },
    "VaultGemma": {"head_dim": 16, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 2.0, **WINDOWS},
    "Gemma2": {
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": None,
        **WINDOWS,
    },
    "Mistral": {"head_dim": 16, "sliding_window": 8},
}


def make_family(name: str) -> PreTrainedModel:
    """A random model of a family, with weights large enough that what is left out of attention shows."""
    config = getattr(transformers, f"{name}Config")(**(COMMON | FAMILIES[name]))
    torch.manual_seed(0)
    model: PreTrainedModel = getattr(transformers, f"{name}ForCausalLM")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0, 0.15)
    return model.eval()


def save_family(name: str, folder: Path, *, tokenizer_from: Path) -> Path:
    """The same as a model folder."""
    make_family(name).save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(tokenizer_from / file, folder / file)
    return folder
