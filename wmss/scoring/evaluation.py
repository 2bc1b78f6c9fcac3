"""How good is a checkpoint on held-out samples: verified pass@1 of a greedy answer, with its interval."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wmss.core.estimators import wilson_interval
from wmss.data.dataset import Sample
from wmss.models.checkpoints import own_end_ids
from wmss.models.loading import load_tokenizer
from wmss.records import TokenizedSample
from wmss.scoring.interfaces import Progress, Sampler, Sampling
from wmss.scoring.rollouts import Request, sample_rollouts, shard_slices
from wmss.verifiers.final_value import verify

BATCH = 128


def answer_budget(tokenized: Sequence[TokenizedSample]) -> int:
    """Most tokens an answer may take: twice the longest reference completion, so that rambling ends."""
    return 2 * max(len(sample.input_ids) - sample.last_completion_start for sample in tokenized)


def verified_accuracy(
    samples: Sequence[Sample],
    tokenized: Sequence[TokenizedSample],
    checkpoint: Path,
    sampler: Sampler,
    *,
    end_token_ids: Sequence[int],
    progress: Progress,
) -> dict[str, Any]:
    """Greedy answers of a checkpoint to every sample, compared with the references, all of which must be verifiable.

    An answer ends at one of `end_token_ids` or of the checkpoint's own end tokens: a base model may end its answers
    with a token that no training sample ends with.

    Returns pass_at_1 in [0, 1], its 95 % Wilson interval, the counts, and the share of answers cut by the budget.
    """
    tokenizer = load_tokenizer(checkpoint)
    budget = answer_budget(tokenized)
    prompts = [sample.input_ids[: sample.last_completion_start].tolist() for sample in tokenized]
    drawn = sample_rollouts(
        [Request(tuple(prompt), seed=0) for prompt in prompts],
        sampler,
        checkpoint,
        sampling=Sampling(temperature=0.0, top_p=1.0, top_k=None, max_new_tokens=budget),
        end_token_ids=sorted({*end_token_ids, *own_end_ids(checkpoint)}),
        shard_size=BATCH,
    )
    slices = shard_slices(len(samples), BATCH)
    correct = truncated = done = 0
    for shard, completions in drawn:
        for sample, completion in zip(samples[slices[shard]], completions, strict=True):
            stopped = completion.finish_reason == "stop"
            # Not every end token is one that decoding skips.
            ids = completion.token_ids[:-1] if stopped else completion.token_ids
            correct += verify(str(tokenizer.decode(list(ids), skip_special_tokens=True)), sample.answer)
            truncated += not stopped
        done += len(completions)
        progress(done, len(samples))
    low, high = wilson_interval(correct, len(samples))
    return {
        "pass_at_1": correct / len(samples),
        "interval_95": [low, high],
        "num_correct": correct,
        "num_problems": len(samples),
        "truncated_share": truncated / len(samples),
        "max_new_tokens": budget,
    }
