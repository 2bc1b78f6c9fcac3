"""Can a verifier be trusted? How often it errs on labelled responses, and what in a round's verdicts looks wrong.

An accepted error is learned again: with true-positive rate t_p and false-positive rate f_p, a round without end of data
multiplies the odds of a right response by t_p / f_p (our reconstruction). An audit reports that
ratio and corrects nothing.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from wmss.core.estimators import wilson_interval
from wmss.data.dataset import RowError, json_lines, parse_messages, parse_object, raise_rows, refuse_empty
from wmss.data.tasks import check_data
from wmss.errors import shown
from wmss.records import Progress, Task, Verdict
from wmss.verifiers.interfaces import Verifier

LOWEST_RATIO = 5.0
"""t_p / f_p below which improvement is slow, and what is learned is in good part wrong."""
MAX_FAILED = 0.02
MAX_UNPARSEABLE = 0.20
MAX_FRESH_ACCEPTANCE = 0.98
MAX_CONSTANT = 0.05
MIN_RESPONSES = 32
"""Below so many responses (or prompts), a rate is noise and sets off nothing."""

TASK_FIELDS = {"prompt", "messages", "answer", "level", "data"}

AlarmCode = Literal["low_ratio", "verifier_fails", "unparseable", "too_easy", "nothing_accepted", "constant_answer"]
JudgedResponse = tuple[Task, str, Verdict]
"""A task, the text of one response to it, and the verdict."""


@dataclass(frozen=True)
class Alarm:
    """Something that a person should look at."""

    code: AlarmCode
    message: str
    """What was found, and what to do."""
    data: dict[str, Any]
    """The figures behind it."""


@dataclass(frozen=True)
class Labelled:
    """A response of which it is known whether it is right."""

    task: Task
    response: str
    correct: bool


@dataclass(frozen=True)
class Misjudged:
    """A labelled response on which the verifier and the label differ."""

    labelled: Labelled
    verdict: Verdict


@dataclass(frozen=True)
class Audit:
    """How often a verifier accepted right and wrong responses. A rate of responses that there are none of is None, and
    so is every figure made from it; its interval is then [0, 1]."""

    version: str
    num_right: int
    num_right_accepted: int
    num_wrong: int
    num_wrong_accepted: int
    misjudged: tuple[Misjudged, ...] = ()
    """In the order of the file."""

    @property
    def true_positive_rate(self) -> float | None:
        return self.num_right_accepted / self.num_right if self.num_right else None

    @property
    def false_positive_rate(self) -> float | None:
        return self.num_wrong_accepted / self.num_wrong if self.num_wrong else None

    @property
    def missing(self) -> str | None:
        """Which kind of responses the file has none of: "right" or "wrong"."""
        return None if self.num_right and self.num_wrong else "wrong" if self.num_right else "right"

    @property
    def true_positive_interval(self) -> tuple[float, float]:
        """95 % Wilson interval."""
        return wilson_interval(self.num_right_accepted, self.num_right) if self.num_right else (0.0, 1.0)

    @property
    def false_positive_interval(self) -> tuple[float, float]:
        """95 % Wilson interval."""
        return wilson_interval(self.num_wrong_accepted, self.num_wrong) if self.num_wrong else (0.0, 1.0)

    @property
    def ratio(self) -> float | None:
        """t_p / f_p; None = no wrong response was accepted, or there are none of one kind."""
        if self.true_positive_rate is None or not self.false_positive_rate:
            return None
        return self.true_positive_rate / self.false_positive_rate

    @property
    def cautious_ratio(self) -> float:
        """The lower end of t_p's interval over the upper end of f_p's: finite, and small where little was labelled."""
        return self.true_positive_interval[0] / self.false_positive_interval[1]

    @property
    def alarms(self) -> list[Alarm]:
        if self.ratio is None or self.ratio >= LOWEST_RATIO:
            return []
        assert self.true_positive_rate is not None and self.false_positive_rate is not None
        message = (
            f"the verifier accepts {self.true_positive_rate:.1%} of the right and {self.false_positive_rate:.1%} of "
            f"the wrong responses: a ratio of {self.ratio:.2g}, expected at least {LOWEST_RATIO:g}; take a stricter "
            "verifier, or correct the references"
        )
        return [Alarm("low_ratio", message, {"ratio": self.ratio, "cautious_ratio": self.cautious_ratio})]


def audit_verifier(labelled: Sequence[Labelled], verifier: Verifier, *, name: str, progress: Progress) -> Audit:
    """Judge labelled responses; raises `DataError` for rows the verifier cannot judge, or if there are none."""
    raise_rows(name, verifier.problems([item.task for item in labelled]), "file")
    verdicts = verifier.verify([(item.task, item.response) for item in labelled], progress=progress)
    counts = Counter((item.correct, verdict.accepted) for item, verdict in zip(labelled, verdicts, strict=True))
    num_right, num_wrong = (counts[correct, True] + counts[correct, False] for correct in (True, False))
    refuse_empty(labelled, name, "file")
    misjudged = tuple(
        Misjudged(item, verdict)
        for item, verdict in zip(labelled, verdicts, strict=True)
        if verdict.accepted is not item.correct
    )
    return Audit(verifier.version, num_right, counts[True, True], num_wrong, counts[False, True], misjudged)


def read_labelled(path: Path) -> list[Labelled]:
    """Labelled responses of a JSON lines file: {"answer" or "task", "response", "correct"}; raises `DataError`."""
    labelled: list[Labelled] = []
    problems: list[str] = []
    for line, text in json_lines(path, param="file", name=path.name):
        try:
            labelled.append(_labelled(line, parse_object(text)))
        except RowError as error:
            problems.append(f"line {line}: {error}")
    raise_rows(path.name, problems, "file")
    return labelled


def _labelled(line: int, row: dict[str, Any]) -> Labelled:
    if set(row) not in ({"answer", "response", "correct"}, {"task", "response", "correct"}):
        raise RowError(f'expected the keys "answer" or "task", "response" and "correct", got {shown(sorted(row))}')
    if not isinstance(row["response"], str) or not isinstance(row["correct"], bool):
        raise RowError('"response": expected a string, and "correct": true or false')
    fields = row["task"] if "task" in row else {"answer": row["answer"]}
    if not isinstance(fields, dict) or not set(fields) <= TASK_FIELDS:
        raise RowError(f'"task": expected an object with some of {sorted(TASK_FIELDS)}, got {shown(fields)}')
    answer, prompt, level, data = (fields.get(key) for key in ("answer", "prompt", "level", "data"))
    if not all(value is None or isinstance(value, str) for value in (answer, prompt)):
        raise RowError('"answer" and "prompt": expected strings; write numbers as text')
    if not (level is None or type(level) is int):
        raise RowError(f'"level": expected a whole number, got {shown(level)}')
    check_data({} if data is None else data)
    messages = parse_messages(fields["messages"]) if fields.get("messages") is not None else ()
    return Labelled(
        Task(line, tuple(messages), prompt or "", answer, level, data or {}), row["response"], row["correct"]
    )


def round_alarms(judged: Sequence[JudgedResponse], *, fresh_levels: Collection[int | None]) -> list[Alarm]:
    """What in one round's verdicts looks wrong; `fresh_levels` are those that no earlier round has trained on."""
    return [
        *failure_alarms(judged),
        *unparseable_alarms(judged),
        *acceptance_alarms(judged, fresh_levels=fresh_levels),
        *constant_answer_alarms(judged),
    ]


def failure_alarms(judged: Sequence[JudgedResponse]) -> list[Alarm]:
    """The verifier itself fails or runs out of time on more than 2 % of the responses."""
    found = _labelled_more_than(MAX_FAILED, judged, ("error", "timeout"))
    if found is None:
        return []
    message = (
        f"the verifier failed or ran out of time on {found['share']:.1%} of the responses (limit {MAX_FAILED:.0%}), "
        f"most often with {_most_often(found['reasons'])}; raise its limits, or correct the rows or the verifier"
    )
    return [Alarm("verifier_fails", message, found)]


def unparseable_alarms(judged: Sequence[JudgedResponse]) -> list[Alarm]:
    """More than 20 % of the responses hold no answer that the verifier can read."""
    found = _labelled_more_than(MAX_UNPARSEABLE, judged, ("unparseable",))
    if found is None:
        return []
    message = (
        f"{found['share']:.1%} of the responses hold no answer that the verifier finds (limit {MAX_UNPARSEABLE:.0%}), "
        f"most often with {_most_often(found['reasons'])}; say in the prompt how to write the answer, take another "
        "verifier, or allow more tokens"
    )
    return [Alarm("unparseable", message, found)]


def acceptance_alarms(judged: Sequence[JudgedResponse], *, fresh_levels: Collection[int | None]) -> list[Alarm]:
    """A fresh level is accepted above 98 %, or the whole round not at all."""
    if judged and not any(verdict.accepted for _, _, verdict in judged):
        reasons = _reasons(judged)
        message = (
            f"none of {len(judged)} responses was accepted, most often with {_most_often(reasons)}; begin with easier "
            "tasks, or see by `wmss audit` whether the verifier accepts right responses"
        )
        return [Alarm("nothing_accepted", message, {"num_responses": len(judged), "reasons": reasons})]
    by_level: dict[int | None, list[bool]] = defaultdict(list)
    for task, _, verdict in judged:
        by_level[task.level].append(verdict.accepted)
    alarms = []
    for level, accepted in by_level.items():
        share = sum(accepted) / len(accepted)
        if level not in fresh_levels or len(accepted) < MIN_RESPONSES or share <= MAX_FRESH_ACCEPTANCE:
            continue
        named = "the tasks" if level is None else f"level {level}"
        message = (
            f"{share:.1%} of the responses to {named}, not trained on before, were accepted (limit "
            f"{MAX_FRESH_ACCEPTANCE:.0%}): the verifier accepts too much, the answers are in the prompts, or there is "
            "nothing to learn; see by `wmss audit`, or leave the level out"
        )
        alarms.append(Alarm("too_easy", message, {"level": level, "share": share, "num_responses": len(accepted)}))
    return alarms


def constant_answer_alarms(judged: Sequence[JudgedResponse]) -> list[Alarm]:
    """One and the same text is accepted for more than 5 % of the prompts, although their references differ."""
    num_prompts = len({task.line for task, _, _ in judged})
    if num_prompts < MIN_RESPONSES:
        return []
    accepted: dict[str, dict[int, str]] = defaultdict(dict)  # text -> line of the task -> its reference
    for task, response, verdict in judged:
        if verdict.accepted:
            accepted[response.strip()][task.line] = _reference(task)
    alarms = []
    for text, references in accepted.items():
        largest_group = max(Counter(references.values()).values())
        # One reference in two spellings is no exploit.
        if len(references) <= MAX_CONSTANT * num_prompts or len(references) - largest_group < 2:
            continue
        message = (
            f"the response {shown(text)} was accepted for {len(references)} of {num_prompts} prompts whose answers "
            "differ: the verifier can be satisfied without solving the task; take a stricter one, and leave out what "
            "was accepted so far"
        )
        data = {"response": text, "num_prompts": num_prompts, "lines": sorted(references)}
        alarms.append(Alarm("constant_answer", message, data))
    return alarms


def _reference(task: Task) -> str:
    """What the task is compared with, as one text: its data may name the row, and counts only without an answer."""
    if task.answer is not None:
        return task.answer.strip().casefold()
    return json.dumps(task.data, sort_keys=True)


def _labelled_more_than(
    limit: float, judged: Sequence[JudgedResponse], labels: Collection[str]
) -> dict[str, Any] | None:
    """The share of verdicts with one of the labels and their reasons, if there are more than allowed."""
    found = [item for item in judged if item[2].label in labels]
    if len(judged) < MIN_RESPONSES or len(found) <= limit * len(judged):
        return None
    return {"share": len(found) / len(judged), "num_responses": len(judged), "reasons": _reasons(found)}


def _reasons(judged: Sequence[JudgedResponse]) -> dict[str, int]:
    """Counts of "label: detail", the most frequent first."""
    return dict(Counter(f"{verdict.label}: {verdict.detail}" for _, _, verdict in judged).most_common())


def _most_often(reasons: dict[str, int]) -> str:
    return shown(next(iter(reasons)))
