"""When does learning from one's own accepted samples take off, where does it end, and which curriculum lifts the end?

Our reconstruction of a theory of self-improvement, in the spirit of arXiv 2602.10014, whose theorems and constants are
not known to us. Pure functions of numbers; see docs/self_improvement_theory.md for equations and symbols.
"""

from wmss.theory.bounds import (
    SampleThresholds,
    complexity_of,
    curriculum_thresholds,
    failure_bound,
    kept_per_prompt,
    level_to_train,
    log_odds_gain,
    noisy_step,
)
from wmss.theory.feedback import LoopLabel, LoopReading, RoundOutcome, classify
from wmss.theory.forecast import Forecast, PolicyForecast, forecast
from wmss.theory.ladder import Ladder, expected_levels, simulate_levels
from wmss.theory.learner import OneRound, one_round, schedule, simulate_learner, simulate_promotion
from wmss.theory.recursion import (
    closed_form,
    contraction_rate,
    fixed_points,
    iterate,
    largest_ratio,
    rounds_between,
)
from wmss.theory.simulation import simulate_acceptance, simulate_noisy_verifier

__all__ = [
    "Forecast",
    "Ladder",
    "LoopLabel",
    "LoopReading",
    "OneRound",
    "PolicyForecast",
    "RoundOutcome",
    "SampleThresholds",
    "classify",
    "closed_form",
    "complexity_of",
    "contraction_rate",
    "curriculum_thresholds",
    "expected_levels",
    "failure_bound",
    "fixed_points",
    "forecast",
    "iterate",
    "kept_per_prompt",
    "largest_ratio",
    "level_to_train",
    "log_odds_gain",
    "noisy_step",
    "one_round",
    "rounds_between",
    "schedule",
    "simulate_acceptance",
    "simulate_learner",
    "simulate_levels",
    "simulate_noisy_verifier",
    "simulate_promotion",
]
