"""A pilot of a self-improvement job: how its start model does on its own tasks, before any round is paid for.

The gates are our reconstruction of when a loop of verified rounds can be expected to work; none of their numbers is
from arXiv 2602.10014.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import numpy as np

from wmss.config import SelfImprovementConfig, SelfImprovementMethod
from wmss.core.difficulty import levels_of
from wmss.core.estimators import Z_90, wilson_interval
from wmss.errors import ConfigError, raise_all
from wmss.rounds.before.preflight import examine
from wmss.rounds.before.task_files import TaskFile
from wmss.rounds.improvement.judging import JudgedRollouts, num_distinct, pass_rates
from wmss.rounds.improvement.responses import ResponseSampler, Wanted
from wmss.rounds.job import Checkpoint, Job, SamplingEngines
from wmss.rounds.journal import Journal
from wmss.verifiers.audit import Alarm, acceptance_alarms, constant_answer_alarms, failure_alarms

PILOT = -2
"""What stands for a round's number in the seeds of a pilot's responses and prompts: none of a job's own are used up."""
FIRST_LEVEL = (0.1, 0.8)
"""Acceptance of the first level between which a round has both something to learn from and something to learn."""
MAX_UNPARSEABLE = 0.05
MAX_TRUNCATED = 0.01


@dataclass(frozen=True)
class PilotLevel:
    """What became of one level's responses."""

    level: int
    num_prompts: int
    num_sampled: int
    num_accepted: int
    num_truncated: int
    """Cut at `max_new_tokens`."""
    num_unparseable: int
    """Of those that ended by themselves, the ones in which the verifier found no answer."""
    distinct_per_prompt: float
    """Mean number of different responses to a prompt, by text without case and spaces."""

    @property
    def acceptance(self) -> float:
        """Share of responses that are right and ended by themselves."""
        return self.num_accepted / self.num_sampled

    @property
    def interval_90(self) -> tuple[float, float]:
        """Of the acceptance, as if responses to one prompt were independent."""
        return wilson_interval(self.num_accepted, self.num_sampled, z=Z_90)


@dataclass(frozen=True)
class Gate:
    """A condition that a job should meet before its rounds begin."""

    name: str
    passed: bool
    found: str
    remedy: str
    """What to do where it is not met."""


@dataclass(frozen=True)
class Pilot:
    """All levels, easy to hard, with gates and alarms."""

    levels: tuple[PilotLevel, ...]
    gates: tuple[Gate, ...]
    alarms: tuple[Alarm, ...]
    samples_per_prompt: int
    """Responses to a prompt that the levels' figures are of."""
    mean_tokens: float
    """Of a response."""
    seconds: float
    """Of drawing all responses, the engine's start included."""


def run_pilot(job: Job, engines: SamplingEngines, journal: Journal, *, num_prompts: int, num_samples: int) -> Pilot:
    """Draw `num_samples` responses to each of up to `num_prompts` training prompts a level, and judge them.

    Where levels are to be estimated, the first half of a prompt's responses says its level and the second half is
    counted: a prompt that was lucky in the one need not be in the other.

    Raises:
        WmssError: the job, its model or its files would be refused, or the numbers do not fit the job.
    """
    method = job.spec.method
    if not isinstance(method, SelfImprovementMethod):
        raise ConfigError(
            f"method: expected self_improvement, got {method.type}; `wmss check` says what such a job would do",
            param="method",
        )
    knobs = method.self_improvement
    _check_numbers(knobs, num_samples)
    found = examine(job.sources, partial(engines.refusals, scoring=True))
    raise_all(found.problems)
    assert found.tasks is not None and found.max_length is not None
    file = found.tasks.training
    sampler = ResponseSampler(job, engines, knobs, max_length=found.max_length, end_token_ids=found.tasks.end_token_ids)
    wanted = list(_wanted(file, knobs, job.spec.seed, num_prompts, num_samples))
    began = time.monotonic()
    journal.start("generate")
    base = Checkpoint.whole(job.base)
    progress = partial(journal.progress, "generate")
    rollouts = sampler.ask(progress, file, wanted, base, round=PILOT, folder=job.folder / "pilot")
    journal.finish("generate", {})
    seconds = time.monotonic() - began
    journal.start("verify")
    judged = JudgedRollouts(rollouts, sampler.judge(partial(journal.progress, "verify"), file, rollouts))
    journal.finish("verify", {})
    if knobs.estimate_levels is not None:
        judged = _with_levels(judged, knobs.estimate_levels, num_samples)
    numbers = sorted({rollout.level for rollout in judged.rollouts})
    levels = tuple(_pilot_level(level, judged.of_level(level)) for level in numbers)
    return Pilot(
        levels=levels,
        gates=tuple(_gates(levels, knobs)),
        alarms=tuple(_alarms(file, judged)),
        samples_per_prompt=len(judged.rollouts) // len({rollout.line for rollout in judged.rollouts}),
        mean_tokens=float(np.mean([len(rollout.completion.token_ids) for rollout in rollouts])),
        seconds=seconds,
    )


def _check_numbers(knobs: SelfImprovementConfig, num_samples: int) -> None:
    if knobs.sampling.temperature == 0 and num_samples > 1:
        raise ConfigError(
            f"--samples: expected 1, as all responses to a prompt are the same at sampling.temperature 0, got "
            f"{num_samples}; lower it or raise the temperature",
            param="samples",
        )
    if knobs.estimate_levels is not None and num_samples < 2:
        raise ConfigError(
            "--samples: expected at least 2 with estimate_levels, half of them to say how hard a prompt is and half "
            f"to count, got {num_samples}",
            param="samples",
        )


def _wanted(
    file: TaskFile, knobs: SelfImprovementConfig, seed: int, num_prompts: int, num_samples: int
) -> Iterator[Wanted]:
    pools = {level: file.of(level=level) for level in file.levels}
    if knobs.estimate_levels is not None:
        pools, num_prompts = {0: file.of()}, num_prompts * knobs.estimate_levels
    for level, pool in pools.items():
        rng = np.random.default_rng([seed, -PILOT, level])
        for index in rng.permutation(pool)[:num_prompts].tolist():
            yield from (Wanted(index, level, "pilot", sample) for sample in range(num_samples))


def _with_levels(judged: JudgedRollouts, num_levels: int, num_samples: int) -> JudgedRollouts:
    """The second half of the responses to each prompt, with the levels that the first half says."""
    half = num_samples // 2
    first, second = judged.where(lambda each: each.sample < half), judged.where(lambda each: each.sample >= half)
    rates = pass_rates(first)
    levels = dict(zip(rates, levels_of(list(rates.values()), num_levels).tolist(), strict=True))
    return JudgedRollouts([replace(each, level=levels[each.line]) for each in second.rollouts], second.verdicts)


def _pilot_level(level: int, judged: JudgedRollouts) -> PilotLevel:
    num_prompts = len({rollout.line for rollout in judged.rollouts})
    pairs = zip(judged.rollouts, judged.verdicts, strict=True)
    return PilotLevel(
        level=level,
        num_prompts=num_prompts,
        num_sampled=len(judged.rollouts),
        num_accepted=judged.num_accepted,
        num_truncated=judged.num_truncated,
        num_unparseable=sum(
            verdict.label == "unparseable" and rollout.completion.finish_reason == "stop" for rollout, verdict in pairs
        ),
        distinct_per_prompt=num_distinct(judged.rollouts) / num_prompts,
    )


def _gates(levels: Sequence[PilotLevel], knobs: SelfImprovementConfig) -> Iterator[Gate]:
    first = levels[0]
    low, high = FIRST_LEVEL
    yield Gate(
        name=f"level {first.level} is accepted {low:.0%} to {high:.0%} of the time",
        passed=low <= first.acceptance <= high,
        found=f"{first.acceptance:.1%}",
        remedy="add easier tasks below it, show a worked example in the prompt, or fine-tune on worked answers first"
        if first.acceptance < low
        else "little is left to learn there: leave the level out, or add harder ones",
    )
    num_sampled = sum(each.num_sampled for each in levels)
    num_truncated = sum(each.num_truncated for each in levels)
    unparseable = sum(each.num_unparseable for each in levels) / max(1, num_sampled - num_truncated)
    yield Gate(
        name=f"no more than {MAX_UNPARSEABLE:.0%} without an answer that the verifier finds",
        passed=unparseable <= MAX_UNPARSEABLE,
        found=f"{unparseable:.1%}",
        remedy="say in the prompt how to write the answer and show one, or take a verifier that reads this form",
    )
    truncated = num_truncated / num_sampled
    yield Gate(
        name=f"no more than {MAX_TRUNCATED:.0%} cut at max_new_tokens",
        passed=truncated <= MAX_TRUNCATED,
        found=f"{truncated:.2%}",
        remedy=f"raise sampling.max_new_tokens above {knobs.sampling.max_new_tokens}, ask for shorter answers, or take "
        "a model that ends its answers: what is cut is never learned from",
    )

    disordered = [
        f"level {harder.level} is accepted {harder.acceptance:.1%}, level {easier.level} {easier.acceptance:.1%}"
        for easier, harder in pairwise(levels)
        if harder.interval_90[0] > easier.interval_90[1]
    ]
    if len(levels) > 1:
        yield Gate(
            name="no level is surely easier than the one before it",
            passed=not disordered,
            found="; ".join(disordered) or "none",
            remedy="number the levels by how hard they are for this model, or leave them out and set estimate_levels",
        )


def _alarms(file: TaskFile, judged: JudgedRollouts) -> Iterator[Alarm]:
    """Those of a round, but for the one that a gate has in its place."""
    seen = [
        (replace(file.at_line[rollout.line], level=rollout.level), rollout.text, verdict)
        for rollout, verdict in zip(judged.rollouts, judged.verdicts, strict=True)
    ]
    yield from failure_alarms(seen)
    yield from acceptance_alarms(seen, fresh_levels={rollout.level for rollout in judged.rollouts})
    yield from constant_answer_alarms(seen)
