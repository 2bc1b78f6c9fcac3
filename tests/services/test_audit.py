"""`wmss audit`: verifiers by name, JSON and TOML, and the figures it prints."""

import json
from io import StringIO

import pytest
from rich.console import Console

from services.commands.audit import read_verifier, run_audit, show_audit
from wmss.config import ExactVerifier, FinalValueVerifier, MathVerifier
from wmss.errors import WmssError


def test_a_verifier_is_named_described_or_taken_from_a_job(tmp_path):
    job = tmp_path / "job.toml"
    job.write_text('[self_improvement.verifier]\ntype = "math"\ntimeout_s = 2.0\n', encoding="utf-8")
    assert read_verifier("exact") == ExactVerifier(type="exact")
    assert read_verifier('{"type": "exact", "ignore_case": true}') == ExactVerifier(type="exact", ignore_case=True)
    assert read_verifier(str(job)) == MathVerifier(type="math", timeout_s=2.0)
    job.write_text("[self_improvement]\n", encoding="utf-8")
    assert read_verifier(str(job)) == FinalValueVerifier()


@pytest.mark.parametrize(
    ("given", "message"),
    [("nope", "expected one of"), ("regex", "pattern: required"), ('{"type"', "JSON"), ("no.toml", "readable TOML")],
)
def test_other_verifiers_are_refused(given, message):
    with pytest.raises(WmssError, match=message):
        read_verifier(given)


def test_rates_intervals_and_the_warning_are_printed(tmp_path):
    file = tmp_path / "labelled.jsonl"
    rows = [("7", True), ("7 ", True), ("8", False), ("7", False)]
    lines = [json.dumps({"answer": "7", "response": text, "correct": correct}) for text, correct in rows]
    file.write_text("\n".join(lines), encoding="utf-8")
    output = StringIO()
    show_audit(run_audit(file, "exact", num_processes=1), Console(file=output, width=200))
    assert "0.500" in output.getvalue() and "t_p / f_p: 2;" in output.getvalue()
    assert "warning: the verifier accepts 100.0% of the right and 50.0% of the wrong" in output.getvalue()


def test_a_verifier_that_cannot_work_is_refused(tmp_path):
    file = tmp_path / "labelled.jsonl"
    file.write_text('{"answer": "7", "response": "7", "correct": true}', encoding="utf-8")
    with pytest.raises(WmssError, match="expected one group"):
        run_audit(file, '{"type": "regex", "pattern": "a"}', num_processes=1)


def shown_audit(tmp_path, verifier, *rows):
    file = tmp_path / "labelled.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    output = StringIO()
    show_audit(run_audit(file, verifier, num_processes=1), Console(file=output, width=200))
    return output.getvalue()


def test_misjudged_rows_and_what_a_file_of_one_kind_tells_are_printed(tmp_path):
    rows = [{"answer": "7", "response": text, "correct": True} for text in ("#### 7", "x" * 500 + " it is 7")]
    printed = shown_audit(tmp_path, "final_value", *rows)
    assert "t_p / f_p: unknown, the file has no wrong responses; add some" in printed and "0.500" in printed
    assert "1 misjudged:" in printed and "unparseable: no_final_value" in printed
    [line] = [line for line in printed.splitlines() if line.startswith("2 ")]
    assert "'7'" in line and line.endswith("x it is 7'") and len(line) < 250


def test_math_verify_says_nothing_of_its_own(tmp_path, capfd):
    rows = [{"answer": "x^2", "response": text, "correct": text == r"\boxed{xx}"} for text in (r"\boxed{xx}", "$y$")]
    assert "misjudged" not in shown_audit(tmp_path, "math", *rows)
    assert capfd.readouterr().err == ""
