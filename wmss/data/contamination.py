"""Is a held-out prompt among the training prompts? Whole, or in a run of 13 words as evaluations are decontaminated."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from wmss.errors import DataError, shortened
from wmss.records import Task

NGRAM = 13
"""Words in a row, between spaces, that give a prompt away."""
TEMPLATE_NGRAM = 6
TEMPLATE_SHARE = 0.01
"""Six words in a row that stand in more than this share of all prompts, and in more than two, are template."""
MAX_REPORTED = 3


@dataclass(frozen=True)
class SharedPrompt:
    """A held-out prompt that a training prompt gives away."""

    training_line: int
    held_out_line: int
    words: str
    """What they share: the whole prompt, or the first run of 13 words."""


def prompt_text(task: Task) -> str:
    """A prompt as it is compared: all its turns, without case and with single spaces."""
    said = [message["content"] for message in task.messages] or [task.prompt]
    return " ".join(" ".join(said).split()).casefold()


def shared_prompts(training: Sequence[Task], held_out: Sequence[Task]) -> list[SharedPrompt]:
    """The held-out prompts that a training prompt gives away, in order, each with the first such line.

    A prompt is given away by an equal one (`prompt_text`), of any length, or by one with which it shares 13
    words in a row. Instructions and worked examples that many prompts have must not count: words that stand in a row
    of six which more than 1 % of all distinct prompts of both files have, and more than two, are template, and a run
    of 13 with any of them is no sign of anything. (A run of 12 template words and the one word that follows would
    otherwise tie together every two problems that begin alike.)
    """
    first_line: dict[str, int] = {}
    for task in training:
        first_line.setdefault(prompt_text(task), task.line)
    held_out_texts = [prompt_text(task) for task in held_out]
    template = _template({*first_line, *held_out_texts}, set(held_out_texts))
    runs_of = {
        text: [run for part in _without(text, template) for run in _runs(part, NGRAM)] for text in held_out_texts
    }
    # Only runs that a held-out prompt has are looked for, so memory is that of the smaller file.
    wanted = {run for runs in runs_of.values() for run in runs}
    first_line_with: dict[str, int] = {}
    for text, line in first_line.items():
        for run in wanted.intersection(_runs(text.split(), NGRAM)):
            first_line_with.setdefault(run, line)
    found = []
    for task, text in zip(held_out, held_out_texts, strict=True):
        if text in first_line:
            found.append(SharedPrompt(first_line[text], task.line, text))
        elif shared := next((run for run in runs_of[text] if run in first_line_with), ""):
            found.append(SharedPrompt(first_line_with[shared], task.line, shared))
    return found


def refuse_shared_prompts(
    training: Sequence[Task], held_out: Sequence[Task], *, param: str = "validation_file"
) -> None:
    """Raise `DataError` that lists the held-out prompts given away by training prompts (the first 3), if any are."""
    found = shared_prompts(training, held_out)
    if not found:
        return
    listed = "".join(
        f"\n  line {one.held_out_line} and training line {one.training_line} share {shortened(one.words)!r}"
        for one in found[:MAX_REPORTED]
    )
    more = f"\n  and {len(found) - MAX_REPORTED:,} more" if len(found) > MAX_REPORTED else ""
    raise DataError(
        f"{param}: expected prompts that are not trained on, got {len(found)} that are, whole or in {NGRAM} words in a "
        f"row; remove them from one of the files:{listed}{more}",
        param=param,
    )


def _runs(words: Sequence[str], length: int) -> list[str]:
    return [" ".join(words[start : start + length]) for start in range(len(words) - length + 1)]


def _template(texts: set[str], held_out_texts: set[str]) -> set[str]:
    """Runs of six words of held-out prompts that many of `texts` have."""
    wanted = {run for text in held_out_texts for run in _runs(text.split(), TEMPLATE_NGRAM)}
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(wanted.intersection(_runs(text.split(), TEMPLATE_NGRAM)))
    most = max(2, TEMPLATE_SHARE * len(texts))
    return {run for run, count in counts.items() if count > most}


def _without(text: str, template: set[str]) -> Iterator[list[str]]:
    """The stretches of words of a text that no template covers."""
    words = text.split()
    is_template = [False] * len(words)
    for start, run in enumerate(_runs(words, TEMPLATE_NGRAM)):
        if run in template:
            is_template[start : start + TEMPLATE_NGRAM] = [True] * TEMPLATE_NGRAM
    for covered, stretch in groupby(zip(is_template, words, strict=True), key=lambda pair: pair[0]):
        if not covered:
            yield [word for _, word in stretch]
