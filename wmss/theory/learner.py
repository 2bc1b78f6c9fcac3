"""A learner small enough to be exact: shared skills and maximum likelihood (simulation B). Our reconstruction.

A prompt of length L asks for L skills, drawn uniformly from S. A skill is executed correctly with probability 1 if it
is known and p₀ if not; a response is accepted if all its skills are right, and every skill seen in an accepted response
becomes known. `restart` learns each round from the start model, so that it forgets what is not seen again; `continue`
keeps what it knows.
"""

from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from wmss.core.levels import MIN_PROBES, Curriculum, start
from wmss.core.levels import observe as observe_levels
from wmss.core.levels import plan_round as plan_levels
from wmss.theory.recursion import FloatArray, check_count, check_unit

Mode = Literal["restart", "continue"]
LENGTHS = (1, 2, 4, 8)
NUM_SKILLS = 400


class OneRound(NamedTuple):
    """Expectations of one round on one level."""

    acceptance: float
    known_kept: float
    """Chance that a known skill is seen in an accepted response."""
    unknown_learned: float
    """The same of an unknown one."""

    def next_share(self, known: float, mode: Mode) -> float:
        """Expected share of known skills after the round."""
        kept = self.known_kept if mode == "restart" else 1.0
        return known * kept + (1 - known) * self.unknown_learned


def one_round(*, num_samples: int, length: int, known: float, guess: float, num_skills: int = NUM_SKILLS) -> OneRound:
    """What a round of `num_samples` responses of one length gives, up to the correlation between skills.

    With q = s + (1−s) p₀: acceptance q^L; a skill with success p is seen with chance 1 − (1 − P)^n,
    P = q^L − (q − p/S)^L.

    Args:
        known: s, share of known skills, in [0, 1].
        guess: p₀, success of an unknown skill, in [0, 1].
    """
    check_unit("known", known)
    check_unit("guess", guess)
    for name, value in (("num_samples", num_samples), ("length", length), ("num_skills", num_skills)):
        check_count(name, value)
    q = known + (1 - known) * guess

    def seen(success: float) -> float:
        shown = q**length - max(q - success / num_skills, 0.0) ** length
        return 1 - (1 - shown) ** num_samples

    return OneRound(q**length, seen(1.0), seen(guess))


def schedule(policy: str, *, num_levels: int, rounds: int, num_samples: int) -> npt.NDArray[np.int64]:
    """Samples per round and level, int64 [rounds, num_levels], of a policy that follows the number of the round."""
    if policy == "acceptance_target":
        raise ValueError("policy: expected one that follows the number of the round, got 'acceptance_target'")
    curriculum = Curriculum(policy, num_levels, rounds)
    state, plan = start(curriculum), np.zeros((rounds, num_levels), dtype=np.int64)
    for row in plan:
        for share in plan_levels(curriculum, state, num_groups=num_samples, group_size=1):
            row[share.level] += share.num_groups
        state = observe_levels(curriculum, state, [(0, int(sampled)) for sampled in row])
    return plan


def simulate_learner(
    plan: npt.NDArray[np.int64],
    *,
    guess: float,
    mode: Mode,
    repetitions: int,
    lengths: tuple[int, ...] = LENGTHS,
    num_skills: int = NUM_SKILLS,
    seed: int = 0,
) -> FloatArray:
    """Success on every level before the first and after each round, float64 [rounds + 1, repetitions, num_levels].

    Args:
        plan: samples per round and level, [rounds, num_levels], as `schedule` makes it.
        guess: p₀, success of an unknown skill, in [0, 1].
    """
    if plan.ndim != 2 or plan.shape[1] != len(lengths) or (plan < 0).any():
        raise ValueError(f"plan: expected counts >= 0 [rounds, {len(lengths)}], got shape {plan.shape}")
    learner = _Learner(guess, mode, repetitions, lengths, num_skills, seed)
    trace = [learner.success()]
    for samples in plan:
        learner.train(np.broadcast_to(samples, (repetitions, len(lengths))))
        trace.append(learner.success())
    return np.stack(trace)


def simulate_promotion(
    *,
    threshold: float,
    num_samples: int,
    rounds: int,
    guess: float,
    mode: Mode,
    repetitions: int,
    probes: int = MIN_PROBES,
    lengths: tuple[int, ...] = LENGTHS,
    num_skills: int = NUM_SKILLS,
    seed: int = 0,
) -> FloatArray:
    """The same, float64 [rounds + 1, repetitions, num_levels], where measured acceptance chooses the level.

    Each round probes the levels from the easiest up to the first whose acceptance is below `threshold`, and gives what
    is left of `num_samples` to the last that reached it, or to the easiest. Probes are trained on as well.
    """
    check_unit("threshold", threshold)
    check_count("probes", probes)
    num_levels = len(lengths)
    if num_samples < probes * num_levels:
        raise ValueError(
            f"num_samples: expected at least {probes} probes for each of {num_levels} levels, got {num_samples}"
        )
    learner = _Learner(guess, mode, repetitions, lengths, num_skills, seed)
    trace = [learner.success()]
    for _ in range(rounds):
        accepted = learner.accept(np.full((repetitions, num_levels), probes))
        num_reached = np.cumprod(accepted >= threshold * probes, axis=1).sum(axis=1)
        # The first level that falls short is the last that is probed.
        probed = np.arange(num_levels) <= num_reached[:, None]
        more = np.zeros_like(accepted)
        focus = np.maximum(num_reached - 1, 0)
        more[np.arange(repetitions), focus] = num_samples - probes * probed.sum(axis=1)
        learner.learn(accepted * probed + learner.accept(more))
        trace.append(learner.success())
    return np.stack(trace)


class _Learner:
    """Which skills are known, bool [repetitions, num_skills], and the generator."""

    def __init__(
        self, guess: float, mode: Mode, repetitions: int, lengths: tuple[int, ...], num_skills: int, seed: int
    ) -> None:
        check_unit("guess", guess)
        check_count("repetitions", repetitions)
        check_count("num_skills", num_skills)
        if mode not in ("restart", "continue"):
            raise ValueError(f"mode: expected 'restart' or 'continue', got {mode!r}")
        self._guess, self._mode, self._lengths = guess, mode, np.array(lengths)
        self._rng = np.random.default_rng(seed)
        self._known = np.zeros((repetitions, num_skills), dtype=bool)

    def success(self) -> FloatArray:
        """Of every level, [repetitions, num_levels]."""
        powers: FloatArray = self._executed().mean(axis=1)[:, None] ** self._lengths
        return powers

    def train(self, samples: npt.NDArray[np.int64]) -> None:
        """Samples [repetitions, num_levels] are drawn, and learned from where accepted."""
        self.learn(self.accept(samples))

    def accept(self, samples: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """How many of them are accepted, [repetitions, num_levels]."""
        return self._rng.binomial(samples, self.success())

    def learn(self, accepted: npt.NDArray[np.int64]) -> None:
        """Every skill in an accepted response becomes known.

        A response is accepted place by place, so the skills of the accepted ones are independent draws in proportion
        to their success: their counts are multinomial, and no response need be drawn.
        """
        executed = self._executed()
        weights = executed / np.maximum(executed.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
        seen = self._rng.multinomial((accepted * self._lengths).sum(axis=1), weights) > 0
        self._known = self._known | seen if self._mode == "continue" else seen

    def _executed(self) -> FloatArray:
        return np.where(self._known, 1.0, self._guess)
