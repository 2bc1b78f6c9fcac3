"""Selection: steps and counts by hand, the rules as properties, the cap's tilt against its formula."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wmss.core.selection import Candidate, manifest_digest, normalized, select, signature


def candidate(prompt, number, text="1", *, ids=None, level=1, finish_reason="stop", accepted=True):
    ids = tuple(ids if ids is not None else map(ord, text))
    return Candidate((prompt, number), prompt, level, ids, text, finish_reason, accepted)


def test_counts_after_each_step_by_hand():
    """The order is the contract: a cut response that the verifier took is gone before the verdict is asked."""
    candidates = [
        candidate(1, 0, "4", finish_reason="length"),
        candidate(1, 1, "5", accepted=False),
        candidate(1, 2, "2+2=4"),
        candidate(1, 3, "2+2=4"),  # equal tokens
        candidate(1, 4, "2 + 2 = 4", ids=[9]),  # equal text
        candidate(1, 5, "1+3=4"),
        candidate(1, 6, "so 1+3=4"),  # a text of its own, but no way of its own
        candidate(2, 0, "2+2=4"),  # another prompt: no duplicate
        candidate(3, 0, "8", level=2),
    ]
    chosen = select(candidates, seed=0, max_per_prompt=2, max_level_share=0.7)
    assert chosen.counts == {
        "generated": 9,
        "finished": 8,
        "correct": 7,
        "distinct_tokens": 6,
        "distinct_text": 5,
        "capped": 4,
        "balanced": 3,  # 3 of level 1 and 1 of level 2: .75 > .7, and 2 of 3 is not
    }
    assert len(chosen.keys) == 3
    assert (3, 0) in chosen.keys
    assert list(chosen.counts) == [
        "generated",
        "finished",
        "correct",
        "distinct_tokens",
        "distinct_text",
        "capped",
        "balanced",
    ]


@pytest.mark.parametrize(("deduplicate", "left"), [("off", 3), ("exact", 2), ("normalized", 1)])
def test_duplicates_of_one_prompt(deduplicate, left):
    same = [candidate(1, 2, "a B"), candidate(1, 1, "a B"), candidate(1, 0, "A  b")]
    chosen = select(same, seed=0, deduplicate=deduplicate)
    assert len(chosen.keys) == left
    assert (1, 0) in chosen.keys
    if deduplicate == "exact":
        assert set(chosen.keys) == {(1, 0), (1, 1)}


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ("2 + 2 = 4", "2+2=4", True),
        ("The answer", "the\n answer ", True),
        ("1,234,567 clips", "1234567 clips", True),
        ("1, 2", "1,2", True),
        ("1 2", "12", False),
        ("1,23", "123", False),
        ("1,2345", "12345", False),
        ("(1,2)", "(12)", False),
    ],
)
def test_normalized_text(one, other, equal):
    assert (normalized(one) == normalized(other)) is equal


def test_signature_is_the_list_of_equations_or_else_the_text():
    assert signature("First 48 / 2 = 24. Then 48+24=72, so 72") == ("48/2=24", "48+24=72")
    assert signature("We take 48/2 = 24. and then 48 + 24 = 72 clips") == ("48/2=24", "48+24=72")
    assert signature("n3 N4") == ("n3 n4",)


def test_cap_prefers_distinct_ways_and_not_the_shortest():
    texts = ["1+3=4", "so 1+3=4", "thus 1+3=4", "hence 1+3=4", "2+2=4 of course, as everyone can see for himself"]
    chosen_texts = Counter()
    for seed in range(200):
        chosen = select([candidate(1, i, text) for i, text in enumerate(texts)], seed=seed, max_per_prompt=2)
        kept = {key[1] for key in chosen.keys}
        assert len(kept) == 2
        assert 4 in kept
        chosen_texts.update(kept)
    # Each of the four that go the same way is as likely as the others: 50 of 200, sd 6.
    assert all(25 < chosen_texts[i] < 75 for i in range(4))


def test_cap_does_not_look_at_other_prompts():
    mine = [candidate(1, i, f"way {i}") for i in range(8)]
    others = [candidate(2, i, f"way {i}") for i in range(5)]
    alone = set(select(mine, seed=3, max_per_prompt=3).keys)
    assert {key for key in select(mine + others, seed=3, max_per_prompt=3).keys if key[0] == 1} == alone


@pytest.mark.parametrize(
    ("sizes", "share", "left"),
    [
        ({1: 70, 2: 30}, 0.7, {1: 70, 2: 30}),
        ({1: 90, 2: 30}, 0.7, {1: 70, 2: 30}),
        ({1: 100, 2: 1}, 0.7, {1: 2, 2: 1}),
        ({1: 100, 2: 50, 3: 10}, 0.5, {1: 60, 2: 50, 3: 10}),
        ({1: 100, 2: 90, 3: 10}, 0.4, {1: 20, 2: 20, 3: 10}),
        ({1: 100, 2: 90}, 0.3, {1: 90, 2: 90}),  # two levels cannot both be below a half
        ({1: 100}, 0.5, {1: 100}),
        ({None: 100}, 0.5, {None: 100}),
    ],
)
def test_level_shares_by_hand(sizes, share, left):
    prompts = [(1000 * (level or 0) + i, level) for level, size in sizes.items() for i in range(size)]
    chosen = select([candidate(prompt, 0, level=level) for prompt, level in prompts], seed=1, max_level_share=share)
    assert Counter(key[0] // 1000 for key in chosen.keys) == {level or 0: size for level, size in left.items()}


def test_balancing_leaves_enough_to_train_on():
    candidates = [candidate(i, 0) for i in range(100)] + [candidate(100, 0, level=2)]
    assert len(select(candidates, seed=0, max_level_share=0.7, min_kept=64).keys) == 64
    assert len(select(candidates, seed=0, max_level_share=0.7, min_kept=500).keys) == 101


CANDIDATES = st.lists(
    st.builds(
        candidate,
        st.integers(1, 6),
        st.integers(0, 10**6),
        st.sampled_from(["a", "A", "b c", "b  c", "1+1=2", "so 1+1=2", "2"]),
        level=st.integers(1, 3),
        finish_reason=st.sampled_from(["stop", "stop", "stop", "length"]),
        accepted=st.sampled_from([True, True, False]),
    ),
    max_size=60,
    unique_by=lambda c: c.key,
)


@settings(max_examples=150, deadline=None)
@given(
    candidates=CANDIDATES,
    seed=st.integers(0, 2**32 - 1),
    cap=st.none() | st.integers(1, 3),
    share=st.floats(0.2, 1.0),
    shuffled=st.randoms(use_true_random=False),
)
def test_selection_keeps_its_promises(candidates, seed, cap, share, shuffled):
    knobs = {"seed": seed, "max_per_prompt": cap, "max_level_share": share}
    chosen = select(candidates, **knobs)
    by_key = {c.key: c for c in candidates}
    kept = [by_key[key] for key in chosen.keys]
    assert len(set(chosen.keys)) == len(kept) == chosen.counts["balanced"]
    assert all(c.accepted and c.finish_reason == "stop" for c in kept)
    assert len({(c.prompt, normalized(c.text)) for c in kept}) == len(kept)
    if cap is not None:
        assert max(Counter(c.prompt for c in kept).values(), default=0) <= cap
    levels = Counter(c.level for c in kept)
    if len(levels) > 1:
        assert max(levels.values()) <= max(share, 1 / len(levels)) * len(kept) + 1e-6
    assert list(chosen.counts.values()) == sorted(chosen.counts.values(), reverse=True)
    assert chosen.counts["generated"] == len(candidates)
    # The order in which responses came back is chance, and must not matter.
    other_order = list(candidates)
    shuffled.shuffle(other_order)
    assert select(other_order, **knobs) == chosen


def test_order_is_shuffled_by_the_seed():
    candidates = [candidate(i, 0) for i in range(50)]
    one, again, other = (select(candidates, seed=seed).keys for seed in (1, 1, 2))
    assert one == again
    assert one != other
    assert sorted(one) == sorted(other) == [(i, 0) for i in range(50)]
    assert one != tuple(sorted(one))


def test_cap_of_one_tilts_by_the_chance_of_any_success():
    """K samples of success rate p, at most one kept: weight 1 − (1 − p)^K; without a cap, K p."""
    rng = np.random.default_rng(0)
    rates, num_samples, num_prompts = (0.02, 0.1, 0.5), 8, 4000
    right = rng.random((len(rates), num_prompts, num_samples)) < np.array(rates)[:, None, None]
    candidates = [
        candidate(level * num_prompts + prompt, number, f"way {number}", level=level, accepted=bool(right[place]))
        for place in np.ndindex(right.shape)
        for level, prompt, number in [place]
    ]
    capped = Counter(key[0] // num_prompts for key in select(candidates, seed=0, max_per_prompt=1).keys)
    raw = Counter(key[0] // num_prompts for key in select(candidates, seed=0).keys)
    for level, rate in enumerate(rates):
        assert capped[level] / num_prompts == pytest.approx(1 - (1 - rate) ** num_samples, abs=0.02)
        assert raw[level] / num_prompts == pytest.approx(num_samples * rate, abs=0.1)


def test_manifest_digest_sees_order_keys_tokens_and_boundaries():
    keys, ids = [(1, 0), (2, 0)], [[1, 2], [3]]
    digests = {
        manifest_digest(keys, ids),
        manifest_digest(keys[::-1], ids[::-1]),
        manifest_digest(keys, [[1], [2, 3]]),
        manifest_digest(keys, [[1, 2], [4]]),
        manifest_digest([(1, 0), (2, 1)], ids),
    }
    assert len(digests) == 5
    assert manifest_digest(keys, ids) == manifest_digest([(1, 0), (2, 0)], [(1, 2), (3,)])


def test_two_candidates_of_one_name_are_a_bug():
    one = candidate(1, 0)
    with pytest.raises(AssertionError, match="distinct keys"):
        select([one, replace(one, text="other")], seed=0)
