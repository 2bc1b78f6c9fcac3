"""Small random checkpoints of real architectures."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from wmss.tasks.base_model import make_tokenizer

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "tie_word_embeddings": False},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": False},
    "qwen3": {"model_type": "qwen3", "tie_word_embeddings": True},
    "mistral": {"model_type": "mistral", "sliding_window": 24},
    "gemma2": {"model_type": "gemma2", "query_pre_attn_scalar": 32, "final_logit_softcapping": 4.0},
    "gemma3": {
        "model_type": "gemma3_text",
        "query_pre_attn_scalar": 32,
        "final_logit_softcapping": 4.0,
        "sliding_window": 24,
    },
    "granite": {"model_type": "granite", "logits_scaling": 3.0, "attention_multiplier": 0.2},
    "cohere": {"model_type": "cohere", "logit_scale": 0.25},
    "phi": {"model_type": "phi"},
    "gpt2": {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 256},
    "padded": {"model_type": "llama", "vocab_size": 515, "tie_word_embeddings": True},
    "aligned": {"model_type": "qwen2", "vocab_size": 512},
}
"""Configurations by name. Soft-capped logits: gemma2, gemma3; scaled ones: granite, cohere; a head with a bias: phi;
learned positions: gpt2; a sliding window: mistral, gemma3. vLLM pads vocabularies to multiples of 64: the tokenizer's
277 ids to 320, 515 to 576, and 512 not at all."""


def make_checkpoint(folder: Path, family: str, *, seed: int, hidden_size: int = 64, scale: float = 6.0) -> Path:
    """Save a random model with the demo's tokenizer. `scale` sharpens its distributions, so that entropies vary."""
    tokenizer = make_tokenizer()
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden_size,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 256,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = AutoConfig.for_model(**shape | FAMILIES[family])
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings()
    with torch.no_grad():
        head.weight.mul_(scale)
        if head.bias is not None:
            nn.init.normal_(head.bias)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
