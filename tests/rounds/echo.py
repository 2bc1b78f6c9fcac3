"""Saying three or four words again: a task that a tiny model half knows after seconds of training."""

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from wmss.config import Hyperparameters
from wmss.data.dataset import Sample
from wmss.data.tokenization import tokenize_samples
from wmss.tasks.fitting import fit

WORDS = [f"w{i}" for i in range(16)]
LENGTHS = {1: 3, 2: 4, 3: 5}
"""Words to say again, by level."""
MAX_NEW_TOKENS = 8


def make_tasks(num, *, seed, levels=(1, 2), **more):
    """Distinct rows of a task file, of one level after the other."""
    rng = np.random.default_rng(seed)
    found = {}
    while len(found) < num:
        level = levels[len(found) % len(levels)]
        said = " ".join(rng.choice(WORDS, size=LENGTHS[level]))
        found.setdefault(said, {"prompt": f"{said} ?", "answer": said, "level": level} | more)
    return list(found.values())


def make_echo_base(folder, *, seed=0, num_steps=80):
    """Right about every second time."""
    torch.manual_seed(seed)
    words = ["<pad>", "<end>", "?", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>", model_max_length=32
    )
    config = Qwen3Config(
        vocab_size=len(words),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=32,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen3ForCausalLM(config)
    rows = make_tasks(2000, seed=seed + 100)
    samples = [Sample(i, prompt=row["prompt"], completion=row["answer"]) for i, row in enumerate(rows, start=1)]
    tokenized, _ = tokenize_samples(samples, tokenizer, max_length=32, source="echo")
    knobs = Hyperparameters(learning_rate=3e-3, lr_schedule="constant")
    fit(model, tokenized, knobs, batch_size=32, num_steps=num_steps, seed=seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
