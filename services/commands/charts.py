"""Pictures of how a self-improvement job went. Loads matplotlib."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wmss.errors import WmssError

SUFFIXES = (".png", ".svg", ".pdf")


def check_suffix(path: Path, *, param: str) -> None:
    """Raise `WmssError` unless pictures can be written to a file of this name."""
    if path.suffix not in SUFFIXES:
        raise WmssError(f"{param}: expected a file name ending in {', '.join(SUFFIXES)}, got {path.name}", param=param)


def draw_rounds(arms: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """The one chart that explains a run, a column for each arm {name: rounds as the service lists them}.

    Above, the acceptance of every level over the rounds with its 90 % interval, and what the rounds so far predicted:
    the take-off threshold V₋ below which acceptance cannot lift itself, and the ceiling V₊. Below, pass@1 on the
    held-out tasks after each round, ± 2 standard errors.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        2, len(arms), figsize=(5.2 * len(arms), 7.2), layout="constrained", sharex="col", sharey=True, squeeze=False
    )
    levels = sorted({each["level"] for rounds in arms.values() for one in rounds for each in one["levels"]})
    colors = {level: pyplot.get_cmap("viridis")(0.9 * i / max(1, len(levels) - 1)) for i, level in enumerate(levels)}
    for (name, rounds), (above, below) in zip(arms.items(), axes.T, strict=True):
        for level in levels:
            _acceptance(above, rounds, level, colors[level])
            _held_out(below, rounds, level, colors[level])
        _predictions(above, rounds)
        above.set(title=name, ylim=(-0.02, 1.02))
        below.set(xlabel="round", ylim=(-0.02, 1.02))
        below.xaxis.get_major_locator().set_params(integer=True)
    axes[0][0].set_ylabel("acceptance in the round")
    axes[1][0].set_ylabel("held-out pass@1 after the round")
    named = {label: line for column in axes[0] for line, label in zip(*column.get_legend_handles_labels(), strict=True)}
    figure.legend(list(named.values()), list(named), loc="outside right upper", frameon=False)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _acceptance(axes: Any, rounds: Sequence[Mapping[str, Any]], level: int, color: Any) -> None:
    points = [
        (one["round"], each["num_accepted"] / each["num_sampled"], *each["interval_90"])
        for one in rounds
        for each in one["levels"]
        if each["level"] == level and each["num_sampled"]
    ]
    if not points:
        return
    x, rate, low, high = (list(column) for column in zip(*points, strict=True))
    errors = [
        [max(0.0, r - a) for r, a in zip(rate, low, strict=True)],
        [max(0.0, b - r) for r, b in zip(rate, high, strict=True)],
    ]
    axes.errorbar(x, rate, yerr=errors, marker="o", capsize=3, color=color, label=f"level {level}")


def _held_out(axes: Any, rounds: Sequence[Mapping[str, Any]], level: int, color: Any) -> None:
    points = [
        (one["round"], each["pass_at_1"], 2 * each["standard_error"])
        for one in rounds
        for each in one["held_out"]["levels"]
        if each["level"] == level
    ]
    x, rate, error = (list(column) for column in zip(*points, strict=True))
    axes.errorbar(x, rate, yerr=error, marker="s", capsize=3, color=color)


def _predictions(axes: Any, rounds: Sequence[Mapping[str, Any]]) -> None:
    """A piece of each line for every round that has a prediction: it belongs to the levels in focus then."""
    readings = [(one["round"], one["reading"]) for one in rounds if one["reading"] and one["reading"]["v_plus"]]
    for key, style, label in (("v_plus", "-", "ceiling V₊"), ("v_minus", ":", "take-off V₋")):
        for place, (number, reading) in enumerate(readings):
            axes.hlines(
                reading[key],
                number - 0.45,
                number + 0.45,
                color="tab:red",
                linestyle=style,
                label=label if place == 0 else None,
            )
