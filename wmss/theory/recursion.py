"""Where does a run of self-improvement end? The recursion of acceptance, its fixed points, and how fast it gets there.

Our reconstruction (in the spirit of arXiv 2602.10014; the theorem and constants of that paper are not known to us).
A round samples n responses, keeps the accepted ones, about n u of them, and refits by maximum likelihood:

    u' = f(u) = 1 − ε − (c/u)^α,   c = a/n

u is a guarantee on the acceptance rate V in [0, 1]; a is the difficulty of learning the task, in accepted samples; c is
the ratio of difficulty to budget; α in (0, 1] is the rate of learning (1 = fast, 1/2 = agnostic) and ε in [0, 1) the
failure that no model of the class can avoid. f has an unstable fixed point V₋, below which nothing takes off, and a
stable one V₊, at which the run saturates; both are gone where c is past the fold.
"""

import math

import numpy as np
import numpy.typing as npt

from wmss.core.arrays import FloatArray


def largest_ratio(*, alpha: float = 1.0, epsilon: float = 0.0) -> float:
    """The fold: the largest c with fixed points, A α/(1+α) · (A/(1+α))^(1/α) with A = 1 − ε; 1/4 for α = 1, ε = 0."""
    _check_rate(alpha, epsilon)
    best = 1.0 - epsilon
    return best * alpha / (1 + alpha) * math.pow(best / (1 + alpha), 1 / alpha)


def fixed_points(c: float, *, alpha: float = 1.0, epsilon: float = 0.0) -> tuple[float, float] | None:
    """(V₋, V₊), the roots of V (1 − ε − V)^(1/α) = c; None past the fold.

    V₋ is the take-off threshold, V₊ the ceiling. For α = 1: ((1−ε) ∓ √((1−ε)² − 4c)) / 2, so V₋ + V₊ = 1 − ε and
    V₋ V₊ = c.

    Raises:
        ValueError: c is negative or not finite, alpha not in (0, 1], or epsilon not in [0, 1).
    """
    check_at_least_zero("c", c)
    fold = largest_ratio(alpha=alpha, epsilon=epsilon)
    best = 1.0 - epsilon
    if alpha == 1.0:
        if best * best < 4 * c:
            return None
        v_plus = (best + math.sqrt(best * best - 4 * c)) / 2
        return c / v_plus, v_plus  # the difference of two nearly equal numbers would lose digits
    if c > fold:
        return None
    peak = best * alpha / (1 + alpha)
    return _root(c, 0.0, peak, alpha, best), _root(c, best, peak, alpha, best)


def _root(c: float, outer: float, peak: float, alpha: float, best: float) -> float:
    """Bisection of V (best − V)^(1/α) = c between an end of the interval, where it is 0, and its peak."""
    for _ in range(200):
        middle = (outer + peak) / 2
        if middle * (best - middle) ** (1 / alpha) < c:
            outer = middle
        else:
            peak = middle
    return (outer + peak) / 2


def closed_form(c: float, v0: float, t: npt.ArrayLike, *, epsilon: float = 0.0) -> FloatArray | float:
    """u_t of f from u_0 = v0 for α = 1, of the shape of `t`: (V₊ − V₋ r_t)/(1 − r_t), r_t = (V₋/V₊)^t r_0.

    r_0 = (v0 − V₊)/(v0 − V₋). It is the orbit of f itself: from below V₋ it leaves [0, 1], where the guarantee has
    ended; `iterate` stops at 0.

    Args:
        t: rounds, any real numbers >= 0.

    Raises:
        ValueError: c is past the fold, where there is no fixed point to approach, or a value is out of its range.
    """
    check_unit("v0", v0)
    points = fixed_points(c, epsilon=epsilon)
    if points is None:
        raise ValueError(f"c: expected at most {largest_ratio(epsilon=epsilon):g} (the fold), got {c:g}; use iterate")
    rounds = np.asarray(t, dtype=np.float64)
    if not (rounds >= 0).all():
        raise ValueError(f"t: expected rounds >= 0, got {t!r}")
    v_minus, v_plus = points
    above, below = v0 - v_minus, v0 - v_plus
    if v0 in points:
        u = np.full(rounds.shape, v0)
    elif v_minus == v_plus:  # at the fold 1/(u − V) grows by 1/V a round
        u = v_plus + 1 / (1 / below + rounds / v_plus)
    else:
        decay = (v_minus / v_plus) ** rounds
        u = (v_plus * above - v_minus * below * decay) / (above - below * decay)
    return u if u.ndim else float(u)


def iterate(c: float, v0: float, rounds: int, *, alpha: float = 1.0, epsilon: float = 0.0) -> FloatArray:
    """u_0 … u_rounds, float64 [rounds + 1]; 0 from the round on in which the guarantee ends."""
    check_at_least_zero("c", c)
    check_unit("v0", v0)
    check_count("rounds", rounds, least=0)
    _check_rate(alpha, epsilon)
    trace = np.zeros(rounds + 1)
    trace[0] = v0
    for t in range(rounds):
        if trace[t] > 0:
            trace[t + 1] = max(1 - epsilon - (c / float(trace[t])) ** alpha, 0.0)
    return trace


def slope_is_unstable(u: float, c: float, *, alpha: float = 1.0) -> bool:
    """Whether f'(u) > 1: u lies where a difference grows from round to round, below (α c^α)^(1/(1+α)); √c for α = 1."""
    return u < math.pow(alpha * math.pow(c, alpha), 1 / (1 + alpha))


def check_unit(name: str, value: float) -> None:
    """Refuse what is no rate in [0, 1]."""
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name}: expected a number between 0 and 1, got {value}")


def check_at_least_zero(name: str, value: float) -> None:
    """Refuse what is negative or not finite."""
    if not (math.isfinite(value) and value >= 0.0):
        raise ValueError(f"{name}: expected a finite number >= 0, got {value}")


def check_count(name: str, value: int, *, least: int = 1) -> None:
    """Refuse what is below `least`."""
    if value < least:
        raise ValueError(f"{name}: expected at least {least}, got {value}")


def check_alpha(alpha: float) -> None:
    """Refuse what is no rate of learning in (0, 1]."""
    if not 0.0 < alpha <= 1.0:
        raise ValueError(f"alpha: expected a number above 0 and at most 1, got {alpha}")


def _check_rate(alpha: float, epsilon: float) -> None:
    check_alpha(alpha)
    if not 0.0 <= epsilon < 1.0:
        raise ValueError(f"epsilon: expected a number from 0 to below 1, got {epsilon}")
