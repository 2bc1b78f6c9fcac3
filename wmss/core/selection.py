"""Which of a round's responses are learned from: a pure function of the set of candidates and a seed.

The steps and their order are a contract. Decontamination is not among them: prompts of the evaluation set are refused
when the task files are read (`wmss.data.contamination`), before anything is sampled.
"""

import bisect
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np

Key = tuple[int, ...]
Deduplicate = Literal["off", "exact", "normalized"]

_CAP, _LEVELS, _SHUFFLE = range(3)
"""Which step a random stream is for."""

_SPACED_MARK = re.compile(r"\s*([^\w\s])\s*")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_NUMBER = r"\d+(?:\.\d+)?"
_EQUATION = re.compile(rf"{_NUMBER}(?:[-+*/×÷]{_NUMBER})+=-?{_NUMBER}")


@dataclass(frozen=True)
class Candidate:
    """One response that may be learned from."""

    key: Key
    """Names it among all candidates, e.g. round, line of the task, number of the sample."""
    prompt: int
    """Names its task; duplicates and caps are counted per prompt."""
    level: int | None
    token_ids: tuple[int, ...]
    text: str
    finish_reason: Literal["stop", "length"]
    accepted: bool
    """The verifier's verdict."""


@dataclass(frozen=True)
class Selection:
    """What is learned from, in the order it is written down."""

    keys: tuple[Key, ...]
    counts: dict[str, int]
    """Candidates left after each step, in order: generated, finished, correct, distinct_tokens, distinct_text,
    capped, balanced."""


def select(
    candidates: Iterable[Candidate],
    *,
    seed: int,
    deduplicate: Deduplicate = "normalized",
    max_per_prompt: int | None = None,
    max_level_share: float = 1.0,
    min_kept: int = 0,
) -> Selection:
    """Choose from candidates, in any order, with distinct keys; the same set and seed give the same selection.

        finished         ended by an end token: a cut response is never learned from
        correct          accepted by the verifier
        distinct_tokens  of one prompt's responses with equal token ids, the one of the smallest key
        distinct_text    likewise of equal `normalized` texts
        capped           at most `max_per_prompt` of a prompt, see below
        balanced         no level above `max_level_share`, see below
        (then shuffled)

    Capped: responses whose `signature` no other chosen one has come first, then the others, both in random order and
    never by length. With a cap of 1, K samples and success rate p a prompt is chosen from with probability
    1 − (1 − p)^K.

    Balanced: the largest number c for which every level, cut at random to c responses, is at most `max_level_share` of
    what is left. Where a share of 1 / (number of levels) is above `max_level_share`, that is the bound instead: no cut
    could get below it. A single level is never cut.

    Args:
        deduplicate: `off` and `exact` leave out one or both of the distinct steps; their counts repeat then.
        max_per_prompt: >= 1; None = all.
        max_level_share: in (0, 1].
        min_kept: balancing does not go below this number in all. One lucky response of a hard level would otherwise
            cut a hundred of an easy one down to two.

    Source: our reconstruction of the paper's filtered distribution, with the practice of RFT and ReST-EM.
    """
    left = sorted(candidates, key=lambda candidate: candidate.key)
    assert len({candidate.key for candidate in left}) == len(left), "expected distinct keys"
    counts = {"generated": len(left)}
    steps: dict[str, Callable[[list[Candidate]], list[Candidate]]] = {
        "finished": lambda some: [c for c in some if c.finish_reason == "stop"],
        "correct": lambda some: [c for c in some if c.accepted],
        "distinct_tokens": lambda some: some if deduplicate == "off" else _distinct(some, lambda c: c.token_ids),
        "distinct_text": lambda some: (
            _distinct(some, lambda c: normalized(c.text)) if deduplicate == "normalized" else some
        ),
        "capped": lambda some: _capped(some, max_per_prompt, seed),
        "balanced": lambda some: _balanced(some, max_level_share, min_kept, seed),
    }
    for name, step in steps.items():
        left = step(left)
        counts[name] = len(left)
    order = np.random.default_rng([seed, _SHUFFLE]).permutation(len(left))
    return Selection(keys=tuple(left[i].key for i in order), counts=counts)


def normalized(text: str) -> str:
    """Text without what is only typography: case, spaces beside marks and repeated ones, commas between thousands."""
    plain = _SPACED_MARK.sub(r"\1", " ".join(text.split()))
    return _THOUSANDS.sub("", plain).casefold()


def signature(text: str) -> tuple[str, ...]:
    """The way a response takes: its equations between numbers in order, as RFT compares them, or else its text."""
    plain = normalized(text)
    return tuple(_EQUATION.findall(plain)) or (plain,)


def manifest_digest(keys: Sequence[Key], token_ids: Sequence[Sequence[int]]) -> str:
    """SHA-256 over keys and token ids, order and boundaries included: equal digests train alike."""
    digest = hashlib.sha256()
    for key, ids in zip(keys, token_ids, strict=True):
        for numbers in (key, ids):
            digest.update(len(numbers).to_bytes(8, "little") + np.asarray(numbers, dtype="<i8").tobytes())
    return digest.hexdigest()


def _distinct(candidates: list[Candidate], content: Callable[[Candidate], Hashable]) -> list[Candidate]:
    first = {(c.prompt, content(c)): c.key for c in reversed(candidates)}
    return [c for c in candidates if first[c.prompt, content(c)] == c.key]


def _capped(candidates: list[Candidate], most: int | None, seed: int) -> list[Candidate]:
    if most is None:
        return candidates
    kept: set[Key] = set()
    for prompt, group in groupby(sorted(candidates, key=lambda c: (c.prompt, c.key)), key=lambda c: c.prompt):
        responses = list(group)
        # A stream of its own for each prompt: what is chosen here does not depend on other prompts.
        order = np.random.default_rng([seed, _CAP, prompt]).permutation(len(responses))
        seen: Counter[tuple[str, ...]] = Counter()
        turns: list[tuple[int, int]] = []
        for place, i in enumerate(order):
            way = signature(responses[i].text)
            turns.append((seen[way], place))
            seen[way] += 1
        kept.update(responses[order[place]].key for _, place in sorted(turns)[:most])
    return [c for c in candidates if c.key in kept]


def _balanced(candidates: list[Candidate], max_share: float, min_kept: int, seed: int) -> list[Candidate]:
    sizes = Counter(c.level for c in candidates)
    if len(sizes) < 2:
        return candidates
    share = max(max_share, 1 / len(sizes))

    def is_too_much(cut: int) -> bool:
        total = sum(min(size, cut) for size in sizes.values())
        return total > min_kept and cut > share * total + 1e-9

    # The share of the largest level grows with the cut, so the last cut that is allowed can be searched for.
    smallest, largest = min(sizes.values()), max(sizes.values())
    cut = smallest + bisect.bisect_left(range(smallest, largest + 1), True, key=is_too_much) - 1
    kept: set[Key] = set()
    for level in sizes:
        keys = [c.key for c in candidates if c.level == level]
        order = np.random.default_rng([seed, _LEVELS, level or 0]).permutation(len(keys))
        kept.update(keys[i] for i in order[:cut])
    return [c for c in candidates if c.key in kept]
