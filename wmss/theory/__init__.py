"""When does learning from one's own accepted samples take off, where does it end, and which curriculum lifts the end?

Our reconstruction of a theory of self-improvement, in the spirit of arXiv 2602.10014, whose theorems and constants are
not known to us. Pure functions of numbers; see docs/self_improvement_theory.md for equations and symbols.
"""

from wmss.theory.bounds import SampleThresholds, curriculum_thresholds
from wmss.theory.feedback import LoopLabel, LoopReading, RoundOutcome, classify
from wmss.theory.forecast import Forecast, PolicyForecast, forecast
from wmss.theory.ladder import Ladder, simulate_levels
from wmss.theory.recursion import closed_form, fixed_points, iterate, largest_ratio
from wmss.theory.simulation import simulate_acceptance

__all__ = [
    "Forecast",
    "Ladder",
    "LoopLabel",
    "LoopReading",
    "PolicyForecast",
    "RoundOutcome",
    "SampleThresholds",
    "classify",
    "closed_form",
    "curriculum_thresholds",
    "fixed_points",
    "forecast",
    "iterate",
    "largest_ratio",
    "simulate_acceptance",
    "simulate_levels",
]
