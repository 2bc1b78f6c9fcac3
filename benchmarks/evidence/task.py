"""Chains of +, − and × modulo 10, worked out step by step: 300 facts to know, and a rule for stringing them together.

prompt:      9*2-10+3=
completion:  9*2=7 7-10=8 8+3=0 #### 0
"""

from collections.abc import Set

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from wmss.data.answers import FINAL_MARK
from wmss.data.dataset import Sample

MODULUS = 10
OPERATIONS = "+-*"
NUM_FACTS = len(OPERATIONS) * MODULUS**2
Fact = tuple[int, str, int]
"""Left operand, operation, right operand."""
_END, _PAD = "<|im_end|>", "<|endoftext|>"


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A token a character, and one for the mark of the final value: a large vocabulary would be most of the model."""
    words = [_END, _PAD, FINAL_MARK, *"0123456789", *OPERATIONS, "=", " "]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=_PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(f"{FINAL_MARK}|."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=_END, pad_token=_PAD, clean_up_tokenization_spaces=False
    )


def apply(left: int, operation: str, right: int) -> int:
    """The right result of one step, in [0, MODULUS)."""
    return {"+": left + right, "-": left - right, "*": left * right}[operation] % MODULUS


def misconceptions(share: float, *, seed: tuple[int, ...]) -> frozenset[Fact]:
    """A random `share` of all facts."""
    facts = [(left, op, right) for left in range(MODULUS) for op in OPERATIONS for right in range(MODULUS)]
    chosen = np.random.default_rng(seed).choice(len(facts), size=round(share * len(facts)), replace=False)
    return frozenset(facts[index] for index in chosen)


def make_problem(
    rng: np.random.Generator, *, num_steps: int, wrong_share: float = 0.0, wrong_facts: Set[Fact] | None = None
) -> tuple[str, str]:
    """Prompt and completion of one chain.

    A step on one of `wrong_facts` (None = any) is one too high with probability `wrong_share`, and is carried on from.
    """
    value = int(rng.integers(MODULUS))
    prompt, steps = str(value), []
    for _ in range(num_steps):
        operation = OPERATIONS[int(rng.integers(len(OPERATIONS)))]
        operand = int(rng.integers(MODULUS))
        result = apply(value, operation, operand)
        may_be_wrong = wrong_facts is None or (value, operation, operand) in wrong_facts
        if may_be_wrong and rng.random() < wrong_share:
            result = (result + 1) % MODULUS
        prompt += f"{operation}{operand}"
        steps.append(f"{value}{operation}{operand}={result}")
        value = result
    return f"{prompt}=", f"{' '.join(steps)} {FINAL_MARK} {value}"


def make_samples(
    num_samples: int,
    *,
    seed: tuple[int, ...],
    lengths: tuple[int, ...],
    wrong_share: float = 0.0,
    wrong_facts: Set[Fact] | None = None,
    exclude: Set[str] = frozenset(),
    distinct: bool = True,
) -> list[Sample]:
    """Problems of uniformly drawn lengths, none of whose prompts is in `exclude`; with `distinct` none comes twice."""
    rng = np.random.default_rng(seed)
    samples: list[Sample] = []
    seen = set(exclude)
    while len(samples) < num_samples:
        num_steps = int(rng.choice(lengths))
        prompt, completion = make_problem(rng, num_steps=num_steps, wrong_share=wrong_share, wrong_facts=wrong_facts)
        if prompt in seen:
            continue
        if distinct:
            seen.add(prompt)
        samples.append(Sample(line=len(samples) + 1, prompt=prompt, completion=completion))
    return samples
