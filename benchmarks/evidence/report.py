"""docs/evidence.md and its picture, from stored rows and nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.evidence.plan import ARMS, CHECKPOINTS, REFERENCE_ARM, SEEDS, SETTINGS, TESTS, Setting
from benchmarks.evidence.rows import Key, Row, missing
from benchmarks.evidence.statistics import Difference, paired_difference
from benchmarks.evidence.task import MODULUS, NUM_FACTS

NO_DIFFERENCE = "–"
OTHERS = tuple(name for name in ARMS if name != REFERENCE_ARM)
MIXED = tuple(name for name, arm in ARMS.items() if arm.mixing == "logits")


@dataclass(frozen=True)
class Measure:
    """A figure of a row, and how a difference of it is written."""

    name: str
    test: str
    unit: str
    higher_is_better: bool

    def of(self, row: Row) -> float:
        """Accuracy in percent, or mean NLL per target token in nats."""
        test = row["tests"][self.test]
        return 100.0 * test["num_correct"] / test["num_problems"] if self.unit == "points" else float(test["nll"])

    def verdict(self, difference: Difference) -> str:
        """`better`, `worse`, or `NO_DIFFERENCE` where the interval holds 0."""
        if not difference.is_clear:
            return NO_DIFFERENCE
        return "better" if (difference.mean > 0) == self.higher_is_better else "worse"


MEASURES = tuple(
    Measure(f"{kind}, {test}", test, unit, kind == "accuracy")
    for kind, unit in (("accuracy", "points"), ("NLL", "nats"))
    for test in TESTS
)
ACCURACIES = MEASURES[: len(TESTS)]


@dataclass(frozen=True)
class Comparison:
    """One arm against the reference arm by one measure."""

    arm: str
    measure: Measure
    difference: Difference


class Results:
    """The stored rows of one setting, complete or not."""

    def __init__(self, setting: Setting, rows: dict[Key, Row]) -> None:
        self.setting = setting
        names = (*CHECKPOINTS, *ARMS)
        keys = [(setting.digest, seed, arm) for seed in SEEDS for arm in names]
        self.missing = missing(keys, rows)
        self.seeds = [s for s in SEEDS if all((setting.digest, s, arm) in rows for arm in names)]
        self._rows = rows

    def rows(self, arm: str) -> list[Row]:
        """Of every complete seed, in order."""
        return [self._rows[(self.setting.digest, seed, arm)] for seed in self.seeds]

    def values(self, arm: str, measure: Measure) -> list[float]:
        """A measure over the complete seeds."""
        return [measure.of(row) for row in self.rows(arm)]

    def against(self, arm: str, reference: str, measure: Measure) -> Difference:
        """Paired difference of two arms."""
        return paired_difference(self.values(arm, measure), self.values(reference, measure))

    def comparisons(self) -> list[Comparison]:
        """Every other arm against the reference arm by every measure."""
        return [Comparison(a, m, self.against(a, REFERENCE_ARM, m)) for a in OTHERS for m in MEASURES]


def write_report(rows: dict[Key, Row], docs: Path) -> None:
    """Write evidence.md and evidence.png into `docs`.

    Raises:
        ValueError: a setting has fewer than two complete seeds.
    """
    results = [Results(setting, rows) for setting in SETTINGS]
    for result in results:
        if len(result.seeds) < 2:
            raise ValueError(
                f"setting {result.setting.name}: expected rows of at least two seeds, {len(result.missing)} of "
                f"{len(SEEDS) * (len(ARMS) + 2)} are missing; run python -m benchmarks.evidence first"
            )
    (docs / "evidence.md").write_text(report(results), encoding="utf-8")
    draw_picture(results, docs / "evidence.png")


def report(results: Sequence[Results]) -> str:
    """The whole page."""
    parts = [_INTRODUCTION, _summary(results), _what_was_done(results[0].setting), _arms()]
    for result in results:
        parts += [_setting(result)]
    parts += [_reading(results), _WHY, _CHOICE, _LIMITS, _provenance(results)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


_INTRODUCTION = """
# First evidence

Does weak-driven training beat plain fine-tuning at equal steps, on a task small enough to try on two CPU cores? This
page is written by `python -m benchmarks.evidence --report` from the rows in `benchmarks/results/evidence/rows.jsonl`;
every figure and every verdict on it follows from those rows.
"""


def _summary(results: Sequence[Results]) -> str:
    lines = [
        f"In short, by accuracy against `{REFERENCE_ARM}` (better or worse: the 95 % interval of the paired difference",
        "leaves out 0 on one of the two tests or on both, the same way):",
        "",
    ]
    for result in results:
        groups: dict[str, list[str]] = {"better": [], "worse": [], "mixed": [], "no difference shown": []}
        for arm in OTHERS:
            verdicts = {m.verdict(result.against(arm, REFERENCE_ARM, m)) for m in ACCURACIES} - {NO_DIFFERENCE}
            word = "no difference shown" if not verdicts else verdicts.pop() if len(verdicts) == 1 else "mixed"
            groups[word].append(f"`{arm}`")
        found = "; ".join(f"{word}: {', '.join(arms)}" for word, arms in groups.items() if arms)
        lines.append(f"- `{result.setting.name}`: {found}.")
    lines += ["", "![Paired differences of every seed, with their intervals](evidence.png)"]
    return "\n".join(lines)


_WHY = """
A guess at why, which nothing here tests: a strong model that fits the data together with a fixed weak one ends at
P_s ∝ q^{1/λ} P_w^{−(1−λ)/λ} (q the data's distribution). It leans away from the weak model, also on the half of the
facts that M0 has right, and a few samples seen many times say nothing of most other facts. Only the strong model is
deployed, so nothing takes that lean back.
"""

_CHOICE = """
## How the settings came about

They were chosen by M0 and M1 alone, before any arm was run on them: M1 well under 100 % though its training loss has
flattened. Before that, single draws of four other regimes were tried with an earlier state of the code (modulo 11,
bases whose mistakes were random, 120 to 3,000 samples, 0 to 20 % wrong steps), six trials of the arms in all, at peak
learning rates of 1e-3 and 3e-4 for all arms alike. In each of the six, the arms with mixed logits that were run
answered fewer problems of the trained lengths right than plain fine-tuning. The search went on from there to a base
with systematic mistakes, because a weak model that knows which wrong answers are near should help most there. In the
last of the six a restart at 1e-3 made plain fine-tuning forget, so 3e-4 it is, again for all arms alike. The arms with
λ = 0.8 were added after the others had been seen, to learn whether their result hangs on λ = 0.5.
"""

_LIMITS = """
## What this does not show

- Anything about large models or natural language: half a million parameters and one task of symbols. The paper's
  claims are about models of 3 to 8 billion parameters on long reasoning traces, for two epochs.
- The paper's kind of saturation: there one or two passes over much data, here many passes over little.
- The best of every arm. All arms share one learning rate, schedule, λ and number of steps, and none was tuned for
  itself; a better λ, learning rate or weak checkpoint for an arm may exist.
- The effect of de-duplication on cost: at equal steps `joint_v2` goes round its smaller set more often, and a joint
  step costs about two plain ones. Equal compute would favour `sft` further.
- Small effects: with five pairs an interval reaches 1.24 standard deviations of the pairs' differences to each side.
  The intervals are not corrected for their number; one in twenty leaves out 0 by chance.
"""


def _what_was_done(setting: Setting) -> str:
    base, shape = setting.base.training, setting.base
    return f"""
## The experiment

The task: chains of +, − and × modulo {MODULUS}, worked out step by step, `9*2-10+3=` → `9*2=7 7-10=8 8+3=0 #### 0`.
An answer counts if its final value is right (`wmss.verifiers.final_value.verify`); answers are greedy.

Of every seed, and in this order, all with the product's own loop (`wmss.training.loop.train`, float32, one thread):

1. `base` (M0): a Qwen3 of {shape.num_layers} layers, width {shape.hidden_size}, from random weights; {base.num_steps} \
steps
   of {base.batch_size} fresh samples of {_range(shape.lengths)} steps. Its data have misconceptions: of \
{shape.misconceived_share:.0%} of the {NUM_FACTS} facts, drawn once a seed, the
   result is one too high in {shape.wrong_share:.0%} of the steps.
2. `strong` (M1): M0 after plain supervised fine-tuning on the setting's samples.
3. Each arm from that same M1, with the same samples, order of batches, number of steps, learning rate and schedule.
   Only `joint_v2` sees a part of the samples (those drawn, each once), and so goes round them more often.

Tests: {setting.num_problems} new problems with the lengths of the supervised samples (`trained`), and \
{setting.num_problems} that are longer (`harder`:
{_range(setting.harder_lengths)} steps, which only M0's training data had). Everything is drawn anew for each of \
{len(SEEDS)} seeds. NLL is of the right
completions, per target token, under the strong model alone: with λ < 1 that model is not what was fitted to the data,
so accuracy is the measure to compare arms by.
"""


def _arms() -> str:
    lines = [f"| `{arm.name}` | {arm.equation} |" for arm in ARMS.values()]
    return "\n".join(
        [
            "y is the target token, z_s and z_w are the logits of the strong and the weak model; λ = 0.5 unless named:",
            "",
            "| arm | loss of a target |",
            "|---|---|",
            *lines,
        ]
    )


def _setting(result: Results) -> str:
    setting = result.setting
    strong, arms = setting.strong, setting.arms
    saturated = [row["saturated_at"] for row in result.rows("strong")]
    flat = sum(step is not None for step in saturated)
    head = f"""
## Setting `{setting.name}`

{setting.num_rows} supervised samples of {_range(setting.lengths)} steps, {setting.wrong_share:.0%} of their steps \
one too high. M1: {strong.num_steps} steps
of up to {strong.batch_size} samples at a peak learning rate of {strong.learning_rate:g} ({strong.lr_schedule}); each \
arm: {arms.num_steps} more at {arms.learning_rate:g} ({arms.lr_schedule}).
While M1 was trained, the saturation detector called its margin flat in {flat} of \
{len(saturated)} seeds.
"""
    return "\n\n".join([head.strip(), _means_table(result), _difference_table(result), _row_table(result)])


def _means_table(result: Results) -> str:
    lines = [
        "Means over seeds (accuracy in %; NLL in nats):",
        "",
        "| | " + " | ".join(m.name for m in MEASURES) + " | NLL, training set | seconds |",
        "|---" * (len(MEASURES) + 3) + "|",
    ]
    for arm in (*CHECKPOINTS, *ARMS):
        cells = [_number(_mean(result.values(arm, m)), m) for m in MEASURES]
        rows = result.rows(arm)
        cells += [f"{_mean([r['training_nll'] for r in rows]):.4f}", f"{_mean([r['training_s'] for r in rows]):.0f}"]
        lines.append(f"| `{arm}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _difference_table(result: Results) -> str:
    lines = [
        f"Paired difference to `{REFERENCE_ARM}` over {len(result.seeds)} seeds, with its 95 % t interval; then the "
        "number of seeds above and below; a verdict where the interval leaves out 0:",
        "",
        "| | " + " | ".join(f"{m.name} ({m.unit})" for m in MEASURES) + " |",
        "|---" * (len(MEASURES) + 1) + "|",
    ]
    by_arm: dict[str, list[str]] = {arm: [] for arm in OTHERS}
    for comparison in result.comparisons():
        d, m = comparison.difference, comparison.measure
        digits = 1 if m.unit == "points" else 3
        by_arm[comparison.arm].append(
            f"{d.mean:+.{digits}f} ({d.low:+.{digits}f} to {d.high:+.{digits}f}), {d.above}↑ {d.below}↓ {m.verdict(d)}"
        )
    lines += [f"| `{arm}` | " + " | ".join(cells) + " |" for arm, cells in by_arm.items()]
    return "\n".join(lines)


def _row_table(result: Results) -> str:
    lines = [
        f"Every row: right answers of {result.setting.num_problems}, `trained` / `harder`:",
        "",
        "| seed | " + " | ".join(f"`{arm}`" for arm in (*CHECKPOINTS, *ARMS)) + " |",
        "|---" * (len(ARMS) + len(CHECKPOINTS) + 1) + "|",
    ]
    columns = [result.rows(arm) for arm in (*CHECKPOINTS, *ARMS)]
    for seed, rows in zip(result.seeds, zip(*columns, strict=True), strict=True):
        cells = [" / ".join(str(row["tests"][test]["num_correct"]) for test in TESTS) for row in rows]
        lines.append(f"| {seed} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _reading(results: Sequence[Results]) -> str:
    lines = ["## Read plainly", ""]
    for result in results:
        lines.append(f"Setting `{result.setting.name}`:")
        lines.append("")
        for arm in OTHERS:
            of_arm = [c for c in result.comparisons() if c.arm == arm]
            better = [c.measure.name for c in of_arm if c.measure.verdict(c.difference) == "better"]
            worse = [c.measure.name for c in of_arm if c.measure.verdict(c.difference) == "worse"]
            lines.append(f"- `{arm}` against `{REFERENCE_ARM}`: {_judgement(better, worse)}.")
        lines += ["", "Against M1 itself, that is against no second phase, by accuracy:", ""]
        lines += [f"- `{arm}`: {_moves([result.against(arm, 'strong', m) for m in ACCURACIES])}." for arm in ARMS]
        lines += ["", "Against `strong_scaled` of the same λ, which has no weak model, by accuracy:", ""]
        for arm in MIXED:
            control = "strong_scaled" if ARMS[arm].mixing_weight == 0.5 else f"strong_scaled_{ARMS[arm].mixing_weight}"
            moved = _moves([result.against(arm, control, m) for m in ACCURACIES])
            lines.append(f"- `{arm}`: {moved}.")
        lines.append("")
    return "\n".join(lines)


def _moves(differences: Sequence[Difference]) -> str:
    """Differences in accuracy, one for each test."""
    return ", ".join(
        f"{d.mean:+.1f} points ({d.low:+.1f} to {d.high:+.1f}) on `{test}`"
        for test, d in zip(TESTS, differences, strict=True)
    )


def _judgement(better: list[str], worse: list[str]) -> str:
    parts = [f"{word} by {'; '.join(names)}" for word, names in (("better", better), ("worse", worse)) if names]
    return " and ".join(parts) if parts else "no difference shown by any measure"


def _provenance(results: Sequence[Results]) -> str:
    rows = [row for result in results for arm in (*CHECKPOINTS, *ARMS) for row in result.rows(arm)]
    stamps = sorted({(row["commit"], row["machine"], row["torch"]) for row in rows})
    lines = [f"- commit `{commit}`, torch {torch}, {machine}" for commit, machine, torch in stamps]
    lost = sum(len(result.missing) for result in results)
    state = "all rows are there" if not lost else f"{lost} rows are still missing, whose seeds are left out above"
    hours = sum(row["row_s"] for row in rows) / 3600
    return "\n".join(
        [
            "## How it was run",
            "",
            "`python -m benchmarks.evidence`: two processes of one thread each, no Ray, no vLLM, on a machine that",
            "others used as well (the seconds above are no benchmark). It can be stopped and started again: a stored",
            "row is never computed again.",
            "",
            *lines,
            f"- {len(rows)} rows, {hours:.1f} hours of wall time over all processes; {state}",
        ]
    )


def draw_picture(results: Sequence[Results], file: Path) -> None:
    """Differences in accuracy to the reference arm: a dot a seed, mean and interval beside it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        len(results), len(ACCURACIES), figsize=(10, 3.6 * len(results)), squeeze=False, layout="constrained"
    )
    for line, result in zip(axes, results, strict=True):
        for axis, measure in zip(line, ACCURACIES, strict=True):
            axis.axhline(0.0, color="0.6", linewidth=1)
            for x, arm in enumerate(OTHERS):
                d = result.against(arm, REFERENCE_ARM, measure)
                pairs = zip(result.values(arm, measure), result.values(REFERENCE_ARM, measure), strict=True)
                axis.plot([x - 0.15] * len(result.seeds), [a - b for a, b in pairs], "o", color="0.55", markersize=4)
                axis.errorbar([x + 0.1], [d.mean], yerr=[[d.mean - d.low], [d.high - d.mean]], fmt="s", capsize=4)
            axis.set_xticks(range(len(OTHERS)), OTHERS, rotation=30, ha="right")
            axis.set_title(f"{result.setting.name}: {measure.name}")
            axis.set_ylabel(f"points above {REFERENCE_ARM}")
    figure.savefig(file, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def _range(lengths: tuple[int, ...]) -> str:
    return str(lengths[0]) if len(lengths) == 1 else f"{lengths[0]} to {lengths[-1]}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _number(value: float, measure: Measure) -> str:
    return f"{value:.1f}" if measure.unit == "points" else f"{value:.3f}"
