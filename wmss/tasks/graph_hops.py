"""Hops in a random map: a task of our own on which a tiny model improves itself in seconds, on a CPU.

Eight nodes, each with one successor. The prompt lists them in random order, then nodes that mean nothing, then where to
start; the answer is the nodes on the way, no two of them alike. One right answer, no partial credit, one skill for all
levels: to look up the successor of the node just said.

prompt:  n3: n1 n0: n5 n7: n2 n1: n0 n2: n4 n6: n3 n4: n6 n5: n2 ? n4 n4 n3
answer:  n1 n0 n5 n2

The nodes without meaning make every answer end at the same place, whatever its level. With the number of hops in the
prompt instead, training on one level made this model forget how long the answers of the others are, and no level above
was accepted any more: what was measured then was forgotten lengths, not the skill. The colon makes an entry of the map
another word than the node it leads to; without it more than twice the responses taught less.

`make_base` trains the model to start from; `success` measures a model without sampling noise.

Our reconstruction of a "synthetic graph task"; the paper's own (arXiv 2602.10014) could not be read.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from wmss.config import Hyperparameters
from wmss.data.dataset import Sample
from wmss.data.tokenization import tokenize_samples
from wmss.models.file_modes import share_weights
from wmss.records import TokenizedSample
from wmss.tasks.fitting import StepProgress, small_qwen3, steps
from wmss.training.batches import collate

NUM_NODES = 8
HOPS = (1, 2, 4, 6)
"""Hops of level 1, 2, 3, 4."""
PROMPT_TOKENS = 2 * NUM_NODES + 1 + HOPS[-1]
"""Tokens of the longest prompt, of level 1."""
MAX_NEW_TOKENS = HOPS[-1] + 1
"""Tokens of the longest answer, with its end token."""
END, PAD = "<end>", "<pad>"
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
"""Of a chat the bare text: a task asked in a chat is the prompt of its row."""

BASE_SUCCESS = 0.38
_BASE_KNOBS = Hyperparameters(learning_rate=1e-3, warmup_ratio=0.01, lr_schedule="constant", weight_decay=0.01)
_BASE_BATCH_SIZE = 64
_NUM_BASE_TASKS = 16_384
_STEPS_BETWEEN_CHECKS = 10


def make_task(rng: np.random.Generator, *, level: int) -> dict[str, Any]:
    """One row of a task file: a map drawn uniformly among those whose walk meets no node twice."""
    hops = HOPS[level - 1]
    successor = rng.integers(0, NUM_NODES, size=NUM_NODES)
    walk = rng.permutation(NUM_NODES)[: hops + 1]
    successor[walk[:-1]] = walk[1:]
    entries = " ".join(f"n{node}: n{successor[node]}" for node in rng.permutation(NUM_NODES))
    filler = rng.integers(0, NUM_NODES, size=HOPS[-1] - hops)
    return {"prompt": f"{entries} ? {_nodes([*filler, walk[0]])}", "answer": _nodes(walk[1:]), "level": level}


def _nodes(numbers: Iterable[int]) -> str:
    return " ".join(f"n{number}" for number in numbers)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word."""
    nodes = [f"n{node}" for node in range(NUM_NODES)]
    words = [PAD, END, "?", *nodes, *(f"{node}:" for node in nodes)]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        model_max_length=PROMPT_TOKENS + 2,
        clean_up_tokenization_spaces=False,
    )


def solved(rows: list[dict[str, Any]], tokenizer: PreTrainedTokenizerFast) -> list[TokenizedSample]:
    """Rows with their right answers, as samples to train on."""
    samples = [Sample(line, prompt=row["prompt"], completion=row["answer"]) for line, row in enumerate(rows, start=1)]
    return tokenize_samples(samples, tokenizer, max_length=64, source="graph_hops")[0]


@torch.no_grad()
def success(model: PreTrainedModel, samples: list[TokenizedSample]) -> float:
    """Mean probability of the right answer, end token included: what pass@1 at temperature 1 is in expectation."""
    model.eval()
    batch = collate(samples, device=torch.device("cpu"), packing=False)
    logprobs = torch.log_softmax(model(batch.input_ids, position_ids=batch.position_ids).logits.float(), -1)
    answer_of = torch.repeat_interleave(torch.tensor([sample.num_targets for sample in samples]))
    picked = logprobs.flatten(0, 1)[batch.rows, batch.labels]
    return float(torch.zeros(len(samples)).index_add(0, answer_of, picked).exp().mean())


def make_base(
    folder: Path,
    *,
    seed: int = 0,
    until: float = BASE_SUCCESS,
    max_steps: int = 2000,
    progress: StepProgress | None = None,
) -> list[float]:
    """Train a Qwen3-shaped model of 98,000 parameters on all levels alike until it succeeds on level 1; save it.

    About 300 to 500 steps, 20 to 40 s on one core. The same seed gives the same weights on one machine.

    Args:
        until: success on level 1 at which training ends, of 256 tasks, looked at every 10 steps.

    Returns:
        Success on every level, on 256 tasks each.

    Raises:
        RuntimeError: if `max_steps` do not get there.
    """
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    model = small_qwen3(tokenizer, width=64, num_layers=2, max_length=64)
    rng = np.random.default_rng([seed, 0])
    levels = rng.integers(1, len(HOPS) + 1, size=_NUM_BASE_TASKS)
    samples = solved([make_task(rng, level=int(level)) for level in levels], tokenizer)
    rng = np.random.default_rng([seed, 1])
    tests = [solved([make_task(rng, level=level) for _ in range(256)], tokenizer) for level in range(1, len(HOPS) + 1)]
    training = steps(model, samples, _BASE_KNOBS, batch_size=_BASE_BATCH_SIZE, num_steps=max_steps, seed=seed)
    for step, loss in enumerate(training, start=1):
        if progress is not None:
            progress(step, max_steps, loss)
        if step % _STEPS_BETWEEN_CHECKS == 0:
            if success(model, tests[0]) >= until:
                model.save_pretrained(folder, safe_serialization=True)
                share_weights(folder)
                tokenizer.save_pretrained(folder)
                return [success(model, test) for test in tests]
            model.train()
    raise RuntimeError(f"graph_hops: expected success {until} on level 1 within {max_steps} steps")
