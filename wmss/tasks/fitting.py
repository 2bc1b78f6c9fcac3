"""Plain supervised steps on a small model, in this process: what makes the shipped base models and runs experiments."""

from collections.abc import Callable, Iterator, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from wmss.config import Hyperparameters
from wmss.data.sampler import BatchSampler
from wmss.records import TokenizedSample
from wmss.training.batches import collate
from wmss.training.branches import Branches
from wmss.training.optim import make_optimizer, make_schedule

StepProgress = Callable[[int, int, float], None]
"""progress(step, num_steps, loss), called after every step."""


def small_qwen3(
    tokenizer: PreTrainedTokenizerFast, *, width: int, num_layers: int, max_length: int
) -> Qwen3ForCausalLM:
    """A Qwen3 with random weights: four heads of 32, the smallest that vLLM takes on a CPU, and a tied head."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=max_length,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config)


def fit(
    model: PreTrainedModel,
    samples: Sequence[TokenizedSample],
    knobs: Hyperparameters,
    *,
    batch_size: int,
    num_steps: int,
    seed: int,
    progress: StepProgress | None = None,
) -> None:
    """`num_steps` optimizer steps on `samples`, epoch after epoch, with a new optimizer; updates `model` in place.

    The loss of a step is the mean negative log-likelihood of its supervised tokens, in nats.
    """
    for step, loss in enumerate(steps(model, samples, knobs, batch_size=batch_size, num_steps=num_steps, seed=seed)):
        if progress is not None:
            progress(step + 1, num_steps, loss)


def steps(
    model: PreTrainedModel,
    samples: Sequence[TokenizedSample],
    knobs: Hyperparameters,
    *,
    batch_size: int,
    num_steps: int,
    seed: int,
) -> Iterator[float]:
    """As `fit`, one step for each loss that is asked for, so that the caller can stop early."""
    model.train()
    branches = Branches(model)
    sampler = BatchSampler(
        range(len(samples)), batch_size=batch_size, num_epochs=num_steps, max_steps=num_steps, seed=seed
    )
    optimizer = make_optimizer(branches, knobs)
    schedule = make_schedule(optimizer, knobs, num_steps=num_steps)
    for step in range(num_steps):
        batch = [samples[i] for i in sampler.batch(step)]
        loss_sum, _ = branches(collate(batch, device=torch.device("cpu"), packing=False), mixing_weight=1.0)
        loss = loss_sum / sum(sample.num_targets for sample in batch)
        loss.backward()
        if knobs.gradient_clip is not None:
            torch.nn.utils.clip_grad_norm_(branches.parameters(), knobs.gradient_clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        yield loss.item()
