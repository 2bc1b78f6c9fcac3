"""Shards are the same whoever draws them, and one that is finished is not drawn again."""

import threading
from pathlib import Path

import pytest

from wmss.records import Completion
from wmss.scoring.interfaces import Sampling
from wmss.scoring.rollouts import Request, sample_rollouts, sample_seed, shard_slices

SAMPLING = Sampling(temperature=1.0, top_p=1.0, top_k=None, max_new_tokens=4)
REQUESTS = [Request((line, line + 1), sample_seed(42, 1, line, index)) for line in range(11) for index in range(4)]


class EchoSampler:
    """Answers with the prompt and the seed's last bits; later calls may answer first."""

    def __init__(self, calls_at_once=1, *, fails_at=None):
        self.calls_at_once = calls_at_once
        self.calls, self.most, self._fails_at = [], 0, fails_at
        self._under_way, self._lock = 0, threading.Lock()

    def sample(self, weights, prompts, seeds, *, sampling, end_token_ids):
        with self._lock:
            self.calls.append((weights, len(prompts), sampling, list(end_token_ids)))
            self._under_way += 1
            self.most = max(self.most, self._under_way)
        threading.Event().wait(0.01 * (prompts[0][0] % 3))
        with self._lock:
            self._under_way -= 1
        if prompts[0][0] == self._fails_at:
            raise ValueError("lost")
        return [Completion((*prompt, seed % 997), "stop", -1.0) for prompt, seed in zip(prompts, seeds, strict=True)]


def draw(sampler, **more):
    return sample_rollouts(
        REQUESTS, sampler, Path("weights"), sampling=SAMPLING, end_token_ids=[3], **{"shard_size": 8} | more
    )


@pytest.mark.parametrize("calls_at_once", [1, 2, 7])
def test_shards_do_not_depend_on_the_number_of_engines(calls_at_once):
    sampler = EchoSampler(calls_at_once)
    shards = dict(draw(sampler))
    assert sorted(shards) == list(range(len(shard_slices(len(REQUESTS), 8)))) == list(range(6))
    assert [c.token_ids for number in sorted(shards) for c in shards[number]] == [
        (*request.prompt_ids, request.seed % 997) for request in REQUESTS
    ]
    assert [len(shards[number]) for number in sorted(shards)] == [8] * 5 + [4]
    assert sampler.most <= calls_at_once
    assert {call[0] for call in sampler.calls} == {Path("weights")} and sampler.calls[0][2:] == (SAMPLING, [3])


def test_finished_shards_are_not_drawn_again():
    sampler = EchoSampler(2)
    whole = dict(draw(EchoSampler()))
    assert dict(draw(sampler, finished={0, 3, 4})) == {number: whole[number] for number in (1, 2, 5)}
    assert len(sampler.calls) == 3
    assert list(draw(sampler, finished=range(6))) == []


def test_what_came_before_a_failure_can_be_kept():
    kept = []

    def keep_all():
        for number, _ in draw(EchoSampler(fails_at=6)):
            kept.append(number)

    with pytest.raises(ValueError, match="lost"):
        keep_all()
    assert kept == [0, 1, 2]


def test_every_response_of_a_job_has_a_seed_of_its_own():
    seeds = {sample_seed(42, r, line, index) for r in range(4) for line in range(500) for index in range(8)}
    assert len(seeds) == 4 * 500 * 8
    assert all(0 <= seed < 2**63 for seed in seeds)
    # What a job has drawn stays what it is, in every release.
    assert sample_seed(42, 1, 7, 3) == 8374639183073611716
    assert len({sample_seed(1, 11, 1, 1), sample_seed(11, 1, 1, 1), sample_seed(1, 1, 11, 1)}) == 3
