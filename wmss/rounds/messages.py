"""What a job's owner is told: plain sentences of at most some 120 characters, made from what the phases found."""

from collections.abc import Mapping, Sequence

from wmss.core.arrays import FloatArray
from wmss.core.estimators import difference_interval
from wmss.core.saturation import MIN_ENTROPY_GAP
from wmss.rounds.before.report import FileFigures
from wmss.rounds.phase_records import Accuracy, Evaluation
from wmss.rounds.phases import PURPOSES, kind_and_round
from wmss.training.run import TrainingRun
from wmss.units import duration

EXCERPT = 40
TERM_MEANINGS = {
    "drop": "what strong has learned",
    "rise": "what strong has become less sure of",
    "strong": "what strong is unsure of",
    "weak": "what weak is unsure of",
}
"""What mass on a term of the curriculum stands for."""


def phase_done(phases: Sequence[str], phase: str, seconds: float) -> str:
    """That one of the `phases` is over, and which one comes next."""
    following = phases[phases.index(phase) + 1 :]
    upcoming = (
        f"; next is {following[0]}: {PURPOSES[kind_and_round(following[0])[0]]}" if following else ", the last phase"
    )
    return f"{phase} took {duration(seconds)}{upcoming}"


def file_read(name: str, figures: FileFigures) -> str:
    """What is in a file."""
    cut = f", {figures.num_cut:,} rows cut" if figures.num_cut else ", none cut"
    dropped = f", {figures.num_dropped:,} too long and left out" if figures.num_dropped else ""
    return (
        f"{name}: {figures.num_rows:,} rows, {figures.num_tokens:,} tokens, {figures.supervised_share:.0%} of them "
        f"supervised{cut}{dropped}"
    )


def about_to_train(run: TrainingRun) -> str:
    """What a training phase is going to do."""
    num_steps, knobs = run.sampler().num_steps, run.hyperparameters
    at_most = "at most " if run.stop_at_saturation else ""
    start, end = run.mixing_weight, run.mixing_weight_end
    to = "" if end is None else f" to {end:g}"
    mix = "" if start == 1.0 and end is None and not run.weak else f", mixing weight {start:g}{to}"
    return (
        f"{run.phase}: {at_most}{num_steps:,} steps, {len(run.indices):,} samples an epoch, learning rate up to "
        f"{knobs.peak_learning_rate:g}{mix}"
    )


def saturation(saturated_at: float | None, weak_step: int | None, gap: float | None) -> str:
    """Whether the margin has flattened, and what could be the weak model from here."""
    flat = "the logit margin has not flattened" if saturated_at is None else f"margin flat at step {saturated_at:.0f}"
    if weak_step is None or gap is None:
        return f"sft: {flat}; no stored checkpoint is far enough from this one to be a weak model"
    which = "the start checkpoint" if weak_step == 0 else f"the checkpoint of step {weak_step}"
    return f"sft: {flat}; useful weak model: {which}, {gap:.3f} nat of entropy above"


def close_pair(gap: float) -> str:
    """That weak and strong hardly differ."""
    return (
        f"weak and strong are close: {gap:.4f} nat of mean entropy apart; below {MIN_ENTROPY_GAP:g} there is little to "
        "gain"
    )


def trained(phase: str, metrics: Mapping[str, float]) -> str:
    """How a training phase went, from the metrics of its last checkpoint."""
    tokens, seconds = metrics["total_tokens"], metrics["total_s"]
    return (
        f"{phase}: {metrics['step']:.0f} steps, loss {metrics['first_loss']:.4f} → {metrics['train_loss']:.4f}, "
        f"{tokens:,.0f} tokens in {duration(seconds)} ({tokens / seconds:,.0f} tokens/s)"
    )


def keeps(phase: str, best: Mapping[str, float], last: Mapping[str, float]) -> str:
    """Which checkpoint of a training phase goes on, by its loss on held-out rows."""
    of_last = "" if best["step"] == last["step"] else f"; {last['valid_loss']:.4f} at its end"
    return f"{phase}: keeps step {best['step']:.0f} of {last['step']:.0f}, valid_loss {best['valid_loss']:.4f}{of_last}"


def unpacked(phase: str) -> str:
    """That a phase did not pack, though it was to."""
    return (
        f"{phase}: samples were padded, not packed: packed rows do not give this family's own states; it costs time, "
        "the result is the same"
    )


def scoring_cost(phase: str, num_tokens: int, seconds: float) -> str:
    """What scoring took; no tokens = everything was known already."""
    if not num_tokens:
        return f"{phase}: from the cache, these samples were scored under this checkpoint before"
    return f"{phase}: {num_tokens:,} tokens in {duration(seconds)} ({num_tokens / seconds:,.0f} tokens/s)"


def entropy_shift(weak: FloatArray, strong: FloatArray, names: str = "weak → strong") -> str:
    """How the entropies of all samples changed from one model to the other."""
    fell, rose = int((strong < weak).sum()), int((strong > weak).sum())
    return (
        f"entropy {names}: {weak.mean():.4f} → {strong.mean():.4f} nat a sample; it fell on {fell:,}, rose on {rose:,}"
    )


def term_masses(masses: Mapping[str, float]) -> str:
    """What the curriculum gives its weight to."""
    return "weight: " + ", ".join(f"{share:.1%} {TERM_MEANINGS[name]}" for name, share in masses.items())


def drawn(num_drawn: int, num_unique: int, num_samples: int) -> str:
    """What the draw came to."""
    return (
        f"drawn: {num_unique:,} of {num_samples:,} samples ({num_unique / num_samples:.0%}) at least once; an epoch "
        f"has {num_drawn:,}"
    )


def one_sample(label: str, *, line: int, weak: float, strong: float, text: str) -> str:
    """A sample for a person to look at."""
    flat = " ".join(text.split())
    excerpt = flat if len(flat) <= EXCERPT else flat[: EXCERPT - 3] + "..."
    return f"{label}: line {line}, entropy {weak:.3f} → {strong:.3f} nat: {excerpt!r}"


def judged(label: str, result: Evaluation) -> str:
    """How good one model is on the validation file."""
    said = ""
    if result.accuracy is not None:
        low, high = result.accuracy.interval_95
        said = f"pass@1 {result.accuracy.pass_at_1:.1%} ({low:.1%} to {high:.1%}), "
    return f"{label}: {said}NLL {result.nll:.4f} nat/token on the validation file"


def compared(before: str, results: Mapping[str, Evaluation]) -> str:
    """The result beside the model it was made from, and whether the difference may be chance."""
    old, new = results[before], results["result"]
    change = f"NLL {new.nll - old.nll:+.4f} nat/token"
    if new.accuracy is not None and old.accuracy is not None:
        points = 100 * (new.accuracy.pass_at_1 - old.accuracy.pass_at_1)
        low, high = difference_interval(*_counts(new.accuracy), *_counts(old.accuracy))
        verdict = "may be chance" if low <= 0 <= high else "hardly chance"
        change = (
            f"pass@1 {points:+.1f} points (95 % interval {100 * low:+.1f} to {100 * high:+.1f}: {verdict}), {change}"
        )
    return f"result against {before}: {change}"


def _counts(accuracy: Accuracy) -> tuple[int, int]:
    return accuracy.num_correct, accuracy.num_problems
