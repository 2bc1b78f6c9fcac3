"""Weak-driven training in TRL's SFTTrainer: its data handling, our loss.

python examples/trl_sft.py WEAK_FOLDER STRONG_FOLDER CHAT.jsonl OUTPUT_FOLDER
"""

import sys

import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer

from wmss.integrations.trainer import WeakDriven


class WeakDrivenSFTTrainer(WeakDriven, SFTTrainer):
    """Everything of TRL's but the loss."""


weak_folder, strong_folder, data_file, output_folder = sys.argv[1:]
trainer = WeakDrivenSFTTrainer(
    model=strong_folder,
    weak_model=AutoModelForCausalLM.from_pretrained(weak_folder, dtype=torch.float32),  # as TRL loads the strong one
    mixing_weight=0.5,
    train_dataset=load_dataset("json", data_files=data_file, split="train"),
    args=SFTConfig(
        output_dir=output_folder,
        learning_rate=1e-5,
        num_train_epochs=1,
        per_device_train_batch_size=8,
        bf16=torch.cuda.is_available(),
        report_to="none",
    ),
)
trainer.train()
trainer.save_model(output_folder)
