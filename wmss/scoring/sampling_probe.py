"""Does an engine sample from the weights that it was given? Fixed sequences are read by it, and by plain PyTorch."""

import gc
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from wmss.errors import ConfigError, ScoringError
from wmss.models.loading import model_config
from wmss.scoring.interfaces import Weights
from wmss.scoring.self_check import EXACT, ROUNDED
from wmss.scoring.weights import config_folder, model_with

NUM_SEQUENCES = 8
PREFIX = 128
"""Tokens that all sequences begin with: one block of vLLM's cache on a CPU, eight on a GPU."""
CONTINUATION = 2
"""Tokens of each sequence that the engine generates: one from the prompt, one from the cache."""
ALLOWED = EXACT | ROUNDED
"""Mean difference of a token's log-probability allowed, in nats, by the engine's precision. SmolLM2-135M: 1e-5 in
float32, 0.1 in bfloat16."""

Forced = Callable[[Sequence[Sequence[int]], Sequence[int], int], list[list[float]]]
"""forced(prompts, tokens, count): log-probabilities of `tokens[i]` after `prompts[i]`, generated `count` times."""


class Probe(NamedTuple):
    """Sequences that begin alike, and what PyTorch makes of their ends in float32."""

    prompts: list[list[int]]
    tokens: list[int]
    """Each prompt is continued by a token of its own, again and again."""
    logprobs: list[list[float]]
    """Of these tokens, [NUM_SEQUENCES][CONTINUATION]."""


def check_room(max_length: int) -> None:
    """Raise `ConfigError` where a probe does not fit into `max_length` tokens."""
    if max_length < CONTINUATION + 2:
        raise ConfigError(
            f"max_length: expected at least {CONTINUATION + 2} tokens, got {max_length}; raise it", param="max_length"
        )


def make_probe(weights: Weights, *, max_length: int) -> Probe:
    """The sequences, read with these weights, in float32 on the CPU: 4 bytes a parameter, for a
    moment.

    Every probe begins with the same tokens, enough for a block of the prefix cache where `max_length` has room for one:
    an engine that answers from what it cached under other weights cannot pass.
    """
    # Multiples of a prime: ids spread over the whole vocabulary.
    vocab_size = int(model_config(config_folder(weights)).vocab_size)
    ids = [7919 * number % vocab_size for number in range(1, PREFIX + 2 * NUM_SEQUENCES + 1)]
    prefix = ids[: min(PREFIX, max_length - CONTINUATION - 1)]
    # No prompt ends in the token that follows: whatever their weights are, models like to say a thing again.
    lasts, tokens = ids[PREFIX:][:NUM_SEQUENCES], ids[-NUM_SEQUENCES:]
    logprobs = _continuations(weights, prefix, lasts, tokens)
    return Probe([[*prefix, last] for last in lasts], tokens, logprobs)


@torch.no_grad()
def _continuations(weights: Weights, prefix: list[int], lasts: list[int], tokens: list[int]) -> list[list[float]]:
    """Log-probabilities of each token, `CONTINUATION` times, after `prefix` and one of `lasts`."""
    model = model_with(weights).eval()
    # What all begin with is read once: 135 million parameters 0.5 s, not 3.
    cache = model(input_ids=torch.tensor([prefix]), use_cache=True, logits_to_keep=1).past_key_values
    cache.batch_repeat_interleave(len(tokens))
    repeated = torch.tensor(tokens)[:, None].expand(-1, CONTINUATION)
    read = torch.cat([torch.tensor(lasts)[:, None], repeated[:, 1:]], dim=1)
    logits = model(input_ids=read, past_key_values=cache, use_cache=True).logits
    logprobs: list[list[float]] = logits.log_softmax(dim=-1).gather(2, repeated[..., None])[..., 0].tolist()
    del model, cache
    gc.collect()
    return logprobs


def check_probe(forced: Forced, probe: Probe, before: Probe | None, *, weights: Weights, dtype: str) -> float:
    """Raise `ScoringError` unless an engine that computes in `dtype` gives the tokens the probe's log-probabilities;
    returns the mean difference in nats. `before` is the probe of the weights that the engine had until now: what is
    allowed for rounding may be more than lies between the two, so it must not be the nearer one by far."""
    found, wanted = np.array(forced(probe.prompts, probe.tokens, CONTINUATION)), np.array(probe.logprobs)
    difference = np.abs(found - wanted)
    mean = float(difference.mean())
    stale = before is not None and np.abs(found - before.logprobs).mean() < mean / 2
    if stale or not mean <= ALLOWED[dtype]:
        worst = np.unravel_index(np.nan_to_num(difference, nan=np.inf).argmax(), difference.shape)
        kept = "it has kept the weights before them" if stale else "it has kept other weights or cached what they gave"
        raise ScoringError(
            f"probe: the engine does not compute with the weights in {weights}: log p of token "
            f"{probe.tokens[worst[0]]} should be {wanted[worst]:.4f}, the engine says {found[worst]:.4f} ({mean:.2g} "
            f"nat apart on average, at most {ALLOWED[dtype]:g} is allowed in {dtype}); {kept}, and nothing it samples "
            "can be trusted: try again with a new engine, and report this architecture and vLLM's version"
        )
    return mean
