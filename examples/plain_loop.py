"""Weak-driven training in plain PyTorch: any two causal LMs of one vocabulary, any optimizer.

python examples/plain_loop.py WEAK_FOLDER STRONG_FOLDER TEXT_FILE OUTPUT_FOLDER
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from wmss.core.mixing import mixed_linear_cross_entropy

weak_folder, strong_folder, text_file, output_folder = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(strong_folder)
strong, weak = (
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)  # bfloat16 weights would round small steps away
    for folder in (strong_folder, weak_folder)
)
optimizer = torch.optim.AdamW([*strong.parameters(), *weak.parameters()], lr=1e-5)

for line in Path(text_file).read_text(encoding="utf-8").splitlines():
    ids = tokenizer(line, return_tensors="pt").input_ids
    hidden = [model.base_model(ids[:, :-1]).last_hidden_state.flatten(0, 1) for model in (strong, weak)]
    loss = mixed_linear_cross_entropy(
        hidden[0], strong.lm_head.weight, hidden[1], weak.lm_head.weight, ids[0, 1:], mixing_weight=0.5
    )
    loss.backward()
    torch.nn.utils.clip_grad_norm_([*strong.parameters(), *weak.parameters()], 1.0)
    optimizer.step()
    optimizer.zero_grad()
    print(f"loss {loss.item():.4f}")

strong.save_pretrained(output_folder)  # the strong branch alone: same shape, no extra cost when it is used
tokenizer.save_pretrained(output_folder)
