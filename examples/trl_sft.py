"""Weak-driven training in TRL's SFTTrainer: its batches, optimizer and schedule, our loss on the assistant's tokens.

python examples/trl_sft.py WEAK_FOLDER STRONG_FOLDER CHAT.jsonl OUTPUT_FOLDER
"""

import sys

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from wmss.data.tokenization import tokenize_file
from wmss.integrations.trainer import WeakDriven

MAX_LENGTH = 1024


class WeakDrivenSFTTrainer(WeakDriven, SFTTrainer):
    """Everything of TRL's but the loss."""


weak_folder, strong_folder, chat_file, output_folder = sys.argv[1:]
# Left to itself, TRL learns the user's tokens too, and its `assistant_only_loss` needs a chat template with
# {% generation %} marks, which few models have. Rows that have `labels` are taken as they are.
samples = tokenize_file(chat_file, AutoTokenizer.from_pretrained(strong_folder), max_length=MAX_LENGTH)
trainer = WeakDrivenSFTTrainer(
    model=strong_folder,
    weak_model=AutoModelForCausalLM.from_pretrained(weak_folder, dtype=torch.float32),  # as TRL loads the strong one
    mixing_weight=0.5,
    train_dataset=Dataset.from_list([{"input_ids": each.input_ids, "labels": each.labels} for each in samples]),
    args=SFTConfig(
        output_dir=output_folder,
        max_length=MAX_LENGTH,
        learning_rate=1e-5,
        num_train_epochs=1,
        per_device_train_batch_size=8,
        bf16=torch.cuda.is_available(),
        report_to="none",
    ),
)
trainer.train()
trainer.save_model(output_folder)
