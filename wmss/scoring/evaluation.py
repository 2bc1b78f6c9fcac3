"""How good is a checkpoint on held-out samples: verified pass@1 of a greedy answer, with its interval."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from wmss.core.estimators import wilson_interval
from wmss.data.dataset import Sample
from wmss.records import TokenizedSample
from wmss.scoring.interfaces import Generator, Progress
from wmss.verifiers.final_value import verify

BATCH = 128


def answer_budget(tokenized: Sequence[TokenizedSample]) -> int:
    """Most tokens an answer may take: twice the longest reference completion, so that rambling ends."""
    return 2 * max(len(sample.input_ids) - sample.last_completion_start for sample in tokenized)


def verified_accuracy(
    samples: Sequence[Sample],
    tokenized: Sequence[TokenizedSample],
    tokenizer: PreTrainedTokenizerBase,
    generator: Generator,
    *,
    end_token_ids: list[int],
    max_length: int,
    progress: Progress,
) -> dict[str, Any]:
    """Greedy answers to every sample, compared with the references, all of which must be verifiable.

    Returns pass_at_1 in [0, 1], its 95 % Wilson interval, the counts, and the share of answers cut by the budget.
    """
    budget = answer_budget(tokenized)
    prompts = [sample.input_ids[: sample.last_completion_start].tolist() for sample in tokenized]
    limits = [min(budget, max_length - len(prompt)) for prompt in prompts]
    correct = truncated = 0
    for start in range(0, len(samples), BATCH):
        chunk = slice(start, start + BATCH)
        answers = generator.generate(prompts[chunk], limits[chunk], end_token_ids=end_token_ids)
        for sample, ids, limit in zip(samples[chunk], answers, limits[chunk], strict=True):
            correct += verify(str(tokenizer.decode(ids, skip_special_tokens=True)), sample.answer)
            truncated += len(ids) >= limit
        progress(min(start + BATCH, len(samples)), len(samples))
    low, high = wilson_interval(correct, len(samples))
    return {
        "pass_at_1": correct / len(samples),
        "interval_95": [low, high],
        "num_correct": correct,
        "num_problems": len(samples),
        "truncated_share": truncated / len(samples),
        "max_new_tokens": budget,
    }
