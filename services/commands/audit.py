"""`wmss audit`: how often does a verifier err on responses of which it is known whether they are right?"""

import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from rich.console import Console

from services.commands.tables import show_table
from wmss.config import VerifierConfig, explain, read_toml
from wmss.errors import ConfigError, raise_all, shown
from wmss.verifiers.audit import Audit, audit_verifier, read_labelled
from wmss.verifiers.registry import make_verifier


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
        method = read_toml(Path(given)).get("method", {})
        return method.get("self_improvement", {}).get("verifier", {"type": "final_value"})
    if not given.lstrip().startswith("{"):
        return {"type": given}
    try:
        return json.loads(given)
    except ValueError as error:
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
    """Print the rates with their 95 % intervals, the ratio, and what is wrong with them."""
    rows = (
        ("right", audit.num_right, audit.num_right_accepted, audit.true_positive_rate, audit.true_positive_interval),
        ("wrong", audit.num_wrong, audit.num_wrong_accepted, audit.false_positive_rate, audit.false_positive_interval),
    )
    cells = [
        (name, str(number), str(accepted), f"{rate:.3f}", f"{low:.3f} to {high:.3f}")
        for name, number, accepted, rate, (low, high) in rows
    ]
    show_table(console, ("responses", "number", "accepted", "rate", "95 %"), cells)
    ratio = "no wrong response was accepted" if audit.ratio is None else f"{audit.ratio:.3g}"
    console.print(f"t_p / f_p: {ratio}; at least {audit.cautious_ratio:.3g} by the intervals", highlight=False)
    for alarm in audit.alarms:
        console.print(f"warning: {alarm.message}", highlight=False, markup=False, soft_wrap=True)
