"""`wmss audit`: how often does a verifier err on responses of which it is known whether they are right?"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from rich.console import Console

from services.commands.tables import show_table
from wmss.config import VerifierConfig, explain, read_toml
from wmss.data.dataset import RowError, parse_json
from wmss.errors import MAX_REPEATED, ConfigError, raise_all, shown
from wmss.verifiers.audit import Audit, Misjudged, audit_verifier, read_labelled
from wmss.verifiers.registry import make_verifier

MAX_MISJUDGED = 50


def read_verifier(given: str) -> VerifierConfig:
    """A verifier from its name ("math"), its JSON object, or the path of a job's TOML file."""
    try:
        config: VerifierConfig = TypeAdapter(VerifierConfig).validate_python(_values(given))
    except ValidationError as error:
        raise ConfigError(
            f"--verifier: {explain(error.errors(include_url=False), VerifierConfig)}", param="verifier"
        ) from None
    return config


def _values(given: str) -> Any:
    if given.endswith(".toml"):
        knobs = read_toml(Path(given)).get("method", {}).get("self_improvement", {})
        if not isinstance(knobs, dict):
            raise ConfigError(f"--verifier: expected a table [self_improvement] in {given}, got {shown(knobs)}")
        return knobs.get("verifier", {"type": "final_value"})
    if not given.lstrip().startswith("{"):
        return {"type": given}
    try:
        return parse_json(given)
    except RowError as error:
        raise ConfigError(
            f"--verifier: expected a JSON object: {error}, got {shown(given)}", param="verifier"
        ) from None


def run_audit(file: Path, given: str, *, num_processes: int) -> Audit:
    """Judge a labelled file with the verifier; raises where either is of no use."""
    config = read_verifier(given)
    labelled = read_labelled(file)
    with make_verifier(config, num_processes=num_processes) as verifier:
        raise_all(verifier.refusals())
        return audit_verifier(labelled, verifier, name=file.name, progress=lambda done, total: None)


def show_audit(audit: Audit, console: Console) -> None:
    """Print the rates with their 95 % intervals, the ratio, what is wrong with them, and the misjudged rows."""
    rows = (
        ("right", audit.num_right, audit.num_right_accepted, audit.true_positive_rate, audit.true_positive_interval),
        ("wrong", audit.num_wrong, audit.num_wrong_accepted, audit.false_positive_rate, audit.false_positive_interval),
    )
    cells = [
        (name, str(number), str(accepted), f"{rate:.3f}", f"{low:.3f} to {high:.3f}")
        for name, number, accepted, rate, (low, high) in rows
        if rate is not None
    ]
    show_table(console, ("responses", "number", "accepted", "rate", "95 %"), cells)
    console.print(_ratio(audit), highlight=False, markup=False, soft_wrap=True)
    for alarm in audit.alarms:
        console.print(f"warning: {alarm.message}", highlight=False, markup=False, soft_wrap=True)
    _show_misjudged(audit.misjudged, console)


def _ratio(audit: Audit) -> str:
    if audit.missing is not None:
        rate = "f_p" if audit.missing == "wrong" else "t_p"
        return (
            f"t_p / f_p: unknown, the file has no {audit.missing} responses; add some, labelled by hand, to see {rate}"
        )
    ratio = "no wrong response was accepted" if audit.ratio is None else f"{audit.ratio:.3g}"
    return f"t_p / f_p: {ratio}; at least {audit.cautious_ratio:.3g} by the intervals"


def _show_misjudged(misjudged: Sequence[Misjudged], console: Console) -> None:
    """Row by row, as far as a person reads on; of a long response its end, where the answer stands."""
    if not misjudged:
        return
    console.print(f"{len(misjudged)} misjudged:", highlight=False)
    cells = [
        (
            str(each.labelled.task.line),
            "right" if each.labelled.correct else "wrong",
            f"{each.verdict.label}: {each.verdict.detail}",
            shown(each.labelled.task.answer),
            _end_of(each.labelled.response),
        )
        for each in misjudged[:MAX_MISJUDGED]
    ]
    show_table(console, ("line", "labelled", "verdict", "reference", "response"), cells, below=2)
    if len(misjudged) > MAX_MISJUDGED:
        console.print(f"and {len(misjudged) - MAX_MISJUDGED} more", highlight=False)


def _end_of(response: str) -> str:
    return repr(response) if len(response) <= MAX_REPEATED else f"...{response[-MAX_REPEATED:]!r}"
