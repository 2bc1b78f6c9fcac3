"""Many responses, in parts that are the same whoever draws them: what is finished need not be drawn again."""

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from wmss.records import Completion
from wmss.scoring.calls import answers
from wmss.scoring.interfaces import Sampler, Sampling


@dataclass(frozen=True)
class Request:
    """One response that is wanted."""

    prompt_ids: tuple[int, ...]
    seed: int
    """See `sample_seed`."""


def sample_seed(job_seed: int, round_number: int, line: int, index: int) -> int:
    """Seed in [0, 2**63) of response `index` to the task at `line` of its file, in a round of a job: the same on every
    machine, and another one for every response of a job."""
    text = f"{job_seed}/{round_number}/{line}/{index}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def shard_slices(num_requests: int, shard_size: int) -> list[slice]:
    """Which requests each shard holds; the last one may be smaller."""
    return [slice(start, start + shard_size) for start in range(0, num_requests, shard_size)]


def sample_rollouts(
    requests: Sequence[Request],
    sampler: Sampler,
    weights: Path,
    *,
    sampling: Sampling,
    end_token_ids: Sequence[int],
    shard_size: int,
    finished: Collection[int] = (),
) -> Iterator[tuple[int, list[Completion]]]:
    """Responses from the model in the folder `weights`, shard by shard as they come: (number of the shard, responses).

    Shard k holds `requests[shard_slices(...)[k]]`, however many engines there are: a shard that is
    written down is the same at every attempt, and `finished` ones are left out. A prompt is read once per call for all
    its responses where they stand together in one shard, so put them next to each other and choose a `shard_size` that
    is a multiple of their number.

    Raises:
        ScoringError: an engine does not compute with these weights.
    """

    slices = shard_slices(len(requests), shard_size)

    def ask(shard: int) -> list[Completion]:
        wanted = requests[slices[shard]]
        prompts, seeds = [request.prompt_ids for request in wanted], [request.seed for request in wanted]
        return sampler.sample(weights, prompts, seeds, sampling=sampling, end_token_ids=end_token_ids)

    left = (shard for shard in range(len(slices)) if shard not in finished)
    return answers(left, ask, sampler.calls_at_once)
