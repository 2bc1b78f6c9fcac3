"""The whole method in one process: score, weigh, draw, train jointly, compare.

python examples/whole_method.py WEAK_FOLDER STRONG_FOLDER TRAIN.jsonl HELD_OUT.jsonl OUTPUT_FOLDER

WEAK is the checkpoint that fine-tuning began with (or an earlier one), STRONG the one at which it no longer helps.
"""

import sys

import wmss

weak, strong, train_file, held_out_file, output = sys.argv[1:]

# Score: the entropy of every sample's supervised tokens, under both. "vllm" is faster, but keeps a GPU's memory.
weak_scores, strong_scores = (wmss.score_file(train_file, folder, engine="torch") for folder in (weak, strong))
change = wmss.entropy_change(weak_scores, strong_scores)
print(f"{(change < 0).mean():.0%} of {len(change)} samples have become surer, by {-change.mean():.3f} nats on average")

# Weigh: which samples are worth another look (Eq. 8 and 9). Draw as many as there are, and take each once.
weights = wmss.sampling_weights(weak_scores.entropy, strong_scores.entropy)
drawn = wmss.draw(weights, num_draws=len(weights), seed=42, deduplicate=True)
print(f"{len(drawn)} of {len(weights)} samples drawn")

# Train both models on their mixed logits; the strong branch alone is saved.
wmss.train_jointly(
    train_file,
    strong=strong,
    weak=weak,
    output=output,
    mixing_weight=0.5,
    indices=drawn,
    hyperparameters=wmss.Hyperparameters(learning_rate=1e-5, n_epochs=1),
    report=lambda step: print(f"step {step['step']:.0f}/{step['num_steps']:.0f}: loss {step['train_loss']:.4f}"),
)

# Compare on samples that neither model was trained on.
for name, folder in [("weak", weak), ("strong", strong), ("result", output)]:
    held_out = wmss.score_file(held_out_file, folder, engine="torch")
    print(f"held-out NLL of {name}: {held_out.token_nll:.4f} nats a token")
