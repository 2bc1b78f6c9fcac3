"""A small base checkpoint of a real architecture (Qwen3), with a tokenizer of its own, trained here in a minute.

It knows the arithmetic task a little: enough for fine-tuning to help, not enough to be done.
"""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from wmss.config import Hyperparameters
from wmss.data.dataset import Sample
from wmss.data.tokenization import tokenize_samples
from wmss.models.file_modes import share_weights
from wmss.tasks.arithmetic import make_problems
from wmss.tasks.fitting import StepProgress, fit, small_qwen3

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with ChatML turns; digits stay single tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=280,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["system\nuser\nassistant\n #### "] * 8, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHAT_TEMPLATE,
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )


def make_base_model(
    folder: Path,
    *,
    num_steps: int = 300,
    batch_size: int = 48,
    seed: int = 0,
    progress: StepProgress | None = None,
) -> None:
    """Train the base checkpoint and save it to `folder`; `progress(step, num_steps, loss)` is called every step."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    model = small_qwen3(tokenizer, width=128, num_layers=3, max_length=256)
    rows = make_problems(num_steps * batch_size, seed=seed, min_steps=1, max_steps=3)
    samples = [Sample(line=i, messages=tuple(row["messages"])) for i, row in enumerate(rows, start=1)]
    tokenized, _ = tokenize_samples(samples, tokenizer, max_length=256, source="base problems")
    knobs = Hyperparameters(learning_rate=2e-3, warmup_ratio=0.1, lr_schedule="cosine")
    fit(model, tokenized, knobs, batch_size=batch_size, num_steps=num_steps, seed=seed, progress=progress)
    model.save_pretrained(folder, safe_serialization=True)
    share_weights(folder)
    tokenizer.save_pretrained(folder)
