"""`wmss simulate`: with this start, difficulty and budget, which curriculum, and where does it end?"""

import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from services.commands.tables import show_table
from wmss.errors import WmssError
from wmss.theory import Forecast, PolicyForecast, closed_form, fixed_points, forecast, iterate, simulate_acceptance
from wmss.theory.forecast import INTERVAL

OPTIONS = {
    "starts": "--start",
    "complexity": "--complexity",
    "num_samples": "--samples",
    "rounds": "--rounds",
    "repetitions": "--repetitions",
    "alpha": "--alpha",
    "seed": "--seed",
}
"""Options of the command, by the names of `wmss.theory`."""
MOST = {"num_samples": 10**9, "rounds": 1000, "repetitions": 100_000}
MOST_ROUNDS_IN_ALL = 10**6
"""Rounds times repetitions; a minute or two."""
MOST_LEVELS = 20
COLUMNS = ("policy", "predicted", "simulated (90 %)", "needs", "verdict")
CAVEAT = (
    "These are bounds of a simple model of learning, our reconstruction: 0 means that nothing is guaranteed, and a "
    "neural network may do better or worse. All levels have one difficulty, harder ones keep at least their ratio to "
    "easier ones, and no budget is doubled."
)


def level_starts(start: Sequence[float], kappa: float | None, levels: int | None) -> list[float]:
    """Acceptance of every level: as given one by one, or the first with the ratio of each level to the one before."""
    if (kappa is None) != (levels is None):
        raise WmssError("--kappa, --levels: expected both or neither; without them give --start once for every level")
    if kappa is None or levels is None:
        if not 1 <= len(start) <= MOST_LEVELS:
            raise WmssError(f"--start: expected it 1 to {MOST_LEVELS} times, once for every level, got {len(start)}")
        return list(start)
    if len(start) != 1:
        raise WmssError(f"--start: expected it once with --kappa, the easiest level's, got {len(start)}")
    if not 0.0 < kappa <= 1.0:
        raise WmssError(f"--kappa: expected a number above 0 and at most 1, got {kappa}")
    if not 1 <= levels <= MOST_LEVELS:
        raise WmssError(f"--levels: expected 1 to {MOST_LEVELS}, got {levels}")
    return [start[0] * kappa**level for level in range(levels)]


def simulate(starts: Sequence[float], out: Path | None, console: Console, **numbers: Any) -> None:
    """Print the forecast as a table, and draw it where `out` says; `numbers` are those of `wmss.theory.forecast`."""
    for name, most in MOST.items():
        if numbers[name] > most:
            raise WmssError(f"{OPTIONS[name]}: expected at most {most:,}, got {numbers[name]:,}")
    if numbers["rounds"] * numbers["repetitions"] > MOST_ROUNDS_IN_ALL:
        raise WmssError(
            f"--repetitions: expected at most {MOST_ROUNDS_IN_ALL // numbers['rounds']:,} with {numbers['rounds']} "
            f"rounds, got {numbers['repetitions']:,}"
        )
    if numbers["seed"] < 0:
        raise WmssError(f"--seed: expected a number >= 0, got {numbers['seed']}")
    if out is not None:
        check_out(out)
    try:
        found = forecast(starts, **numbers)
        alone = _alone(starts[0], **numbers)
    except ValueError as error:  # all of them begin with the name of what is out of range
        name, _, message = str(error).partition(":")
        raise WmssError(f"{OPTIONS[name.split('[')[0]]}:{message}") from error
    summary = _summary(found, alone)
    _print(found, summary, console)
    if out is not None:
        write_chart({"": found}, [_html_table(found)], summary, out, title="wmss simulate")
        console.print(str(out), highlight=False, soft_wrap=True)


def check_out(out: Path) -> None:
    """Raise unless a chart can be written to a file of this name."""
    if out.suffix.lower() not in (".png", ".html"):
        raise WmssError(f"--out: expected a file that ends in .png or .html, got {out}")
    if not out.parent.is_dir():
        raise WmssError(f"--out: there is no folder {out.parent}; make it first")


def _row(policy: PolicyForecast) -> tuple[str, ...]:
    predicted = "none" if policy.predicted is None else f"{policy.predicted:.3f}"
    needed = "" if policy.needed is None else f"{policy.needed:,.0f}"
    low, high = policy.interval
    return policy.policy, predicted, f"{policy.end:.3f} ({low:.3f}-{high:.3f})", needed, policy.verdict


def _alone(
    start: float, *, complexity: float, num_samples: int, rounds: int, repetitions: int, alpha: float, seed: int
) -> str:
    """What the theory says of the easiest level if every round samples this level only."""
    ratio = complexity / num_samples
    points = fixed_points(ratio, alpha=alpha)
    if alpha == 1.0 and points is not None and start >= points[0]:
        way, end = "closed form", float(closed_form(ratio, start, rounds))
    else:  # the closed form leaves [0, 1] below the take-off threshold, and there is none past the fold
        way, end = "recursion", float(iterate(ratio, start, rounds, alpha=alpha)[-1])
    ends = simulate_acceptance(
        num_samples=num_samples,
        complexity=complexity,
        start=start,
        rounds=rounds,
        repetitions=repetitions,
        alpha=alpha,
        seed=seed,
    )[-1]
    low, high = np.quantile(ends, INTERVAL)
    return (
        f"The easiest level alone, from {start:.3f}, ends at {end:.3f} ({way}), simulated {ends.mean():.3f} "
        f"({low:.3f}-{high:.3f})."
    )


def _summary(found: Forecast, alone: str) -> list[str]:
    lines = [
        "Acceptance of the hardest level at the end: predicted by the bound where it holds, and simulated (mean, and "
        "what 90 % of the runs lie between). The bound holds above the samples a round that a policy needs."
    ]
    if found.v_minus is not None and found.v_plus is not None:
        lines.append(
            f"A level that gets all samples takes off above {found.v_minus:.3f} and saturates at {found.v_plus:.3f}."
        )
    lines += [alone, f"Recommended: {found.recommended or 'none'}"]
    return lines + [f"  {reason}" for reason in found.reasons] + [CAVEAT]


def _print(found: Forecast, summary: Sequence[str], console: Console) -> None:
    show_table(console, COLUMNS, [_row(policy) for policy in found.policies])
    for line in summary:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def write_chart(
    forecasts: Mapping[str, Forecast], tables: Sequence[str], lines: Sequence[str], out: Path, *, title: str
) -> None:
    """Draw forecasts, one row of panels for each {what it is for: forecast}, as a PNG, or as HTML with tables and text
    below them."""
    try:
        if out.suffix.lower() == ".png":
            out.write_bytes(_draw(forecasts, "png"))
        else:
            out.write_text(_page(forecasts, tables, lines, title), encoding="utf-8")
    except OSError as error:
        raise WmssError(f"--out: cannot write {out}: {error.strerror}") from error


def html_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of HTML from its texts."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f"<table><tr>{head}</tr>\n{body}</table>\n"


def _html_table(found: Forecast) -> str:
    return html_table(COLUMNS, [_row(policy) for policy in found.policies])


def _page(forecasts: Mapping[str, Forecast], tables: Sequence[str], lines: Sequence[str], title: str) -> str:
    """One HTML file that needs no other: the chart as SVG, tables, and text."""
    svg = _draw(forecasts, "svg").decode()
    text = "".join(f"<p>{escape(line.strip())}</p>\n" for line in lines)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title><style>'
        "body{font-family:sans-serif;margin:2em;max-width:75em}td,th{padding:.2em 1em;text-align:left}svg{width:100%;"
        "height:auto}</style></head><body>\n<h1>Acceptance per level over rounds</h1>\n"
        f"{svg[svg.index('<svg') :]}\n{''.join(tables)}{text}</body></html>\n"
    )


def _draw(forecasts: Mapping[str, Forecast], format: str) -> bytes:
    """Mean acceptance per level over rounds, a panel for each policy, with take-off threshold and ceiling."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    width, height = max(len(found.policies) for found in forecasts.values()), len(forecasts)
    figure, axes = pyplot.subplots(
        height, width, figsize=(3.4 * width, 3.4 * height), sharey=True, squeeze=False, layout="constrained"
    )
    for row, (name, found) in zip(axes, forecasts.items(), strict=True):
        for axis, policy in zip(row, found.policies, strict=False):
            _panel(axis, policy)
        row[0].set_ylabel(f"{name}\nacceptance, mean of the runs".strip())
    axes[0][-1].legend(frameon=False, fontsize="small")
    buffer = io.BytesIO()
    figure.savefig(buffer, format=format, dpi=120, metadata={"Date": None} if format == "svg" else None)
    pyplot.close(figure)
    return buffer.getvalue()


def _panel(axis: Any, policy: PolicyForecast) -> None:
    from matplotlib import pyplot

    num_levels = policy.trace.shape[1]
    for level in range(num_levels):
        color = pyplot.get_cmap("viridis")(0.9 * level / max(num_levels - 1, 1))
        axis.plot(policy.trace[:, level], color=color, label=f"level {level + 1}")
    labels = (("take-off V₋", ":"), ("ceiling V₊", "--"))
    for (label, style), value in zip(labels, policy.points or (), strict=False):
        axis.axhline(value, color="black", linewidth=0.8, linestyle=style, label=label)
    axis.set(title=f"{policy.policy}: {policy.end:.2f}", xlabel="round", ylim=(-0.02, 1.02))
    axis.xaxis.get_major_locator().set_params(integer=True)
