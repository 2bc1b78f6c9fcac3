"""Weak-driven training in plain PyTorch: any two causal LMs of one vocabulary, any optimizer.

python examples/plain_loop.py WEAK_FOLDER STRONG_FOLDER CHAT.jsonl OUTPUT_FOLDER
"""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from wmss.core.mixing import mixed_linear_cross_entropy
from wmss.data.tokenization import tokenize_file

weak_folder, strong_folder, chat_file, output_folder = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(strong_folder)
strong, weak = (
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)  # bfloat16 weights would round small steps away
    for folder in (strong_folder, weak_folder)
)
optimizer = torch.optim.AdamW([*strong.parameters(), *weak.parameters()], lr=1e-5)

for sample in tokenize_file(chat_file, tokenizer, max_length=1024):
    ids, labels = torch.tensor(sample.input_ids), torch.tensor(sample.labels)  # -100 but for the assistant's tokens
    hidden = [model.base_model(ids[None, :-1]).last_hidden_state[0] for model in (strong, weak)]
    loss = mixed_linear_cross_entropy(
        hidden[0], strong.lm_head.weight, hidden[1], weak.lm_head.weight, labels[1:], mixing_weight=0.5
    )
    loss.backward()
    torch.nn.utils.clip_grad_norm_([*strong.parameters(), *weak.parameters()], 1.0)
    optimizer.step()
    optimizer.zero_grad()
    print(f"loss {loss.item():.4f}")

strong.save_pretrained(output_folder)  # the strong branch alone: same shape, no extra cost when it is used
tokenizer.save_pretrained(output_folder)
