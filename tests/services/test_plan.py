"""`wmss plan` on a tiny model and its own tasks, in this process."""

import json
import re
import subprocess
import sys
import tomllib

import pytest

from tests.rounds import echo
from tests.rounds.test_improvement import echo_base  # noqa: F401
from wmss.config import parse_job, read_toml
from wmss.errors import WmssError


@pytest.fixture
def job(tmp_path, echo_base):  # noqa: F811
    """A job's file beside its tasks; lines are added to [self_improvement]."""
    for name, num, seed in (("train.jsonl", 80, 1), ("held_out.jsonl", 24, 2)):
        tasks = echo.make_tasks(num, seed=seed)
        (tmp_path / name).write_text("".join(json.dumps(task) + "\n" for task in tasks))

    def write(*lines, model=echo_base, verifier='{type = "exact"}', top=""):
        (tmp_path / "job.toml").write_text(
            f'model = "{model}"\ntraining_file = "train.jsonl"\nvalidation_file = "held_out.jsonl"\n{top}\n'
            f"[self_improvement]\nverifier = {verifier}\nsampling = {{max_new_tokens = 8}}\nsamples_per_round = 512\n"
            + "\n".join(lines)
        )
        return tmp_path / "job.toml"

    return write


@pytest.fixture
def plan(run):
    return lambda file, *options: run("plan", file, "--engine", "torch", "--prompts", 16, "--samples", 4, *options)


def cells(said, first):
    """The row of a table that begins so."""
    rows = [re.split(r" {2,}", line) for line in said.splitlines()]
    return next(row for row in rows if row[0] == first)


def test_pilot_outlook_and_recommendation(plan, job):
    said = plan(job())
    accepted, rate, interval = cells(said, "1")[2:5]
    num_accepted, num_sampled = map(int, accepted.split("/"))
    assert num_sampled == 64 and rate == f"{num_accepted / 64:.1%}"
    low, high = map(float, interval.split("-"))
    assert low < 100 * num_accepted / 64 < high
    assert len(re.findall(r"^(?:passed|failed)  ", said, flags=re.M)) == 4
    assert len(cells(said, "acceptance_target*")) == 4 and len(cells(said, "best")) == 4
    assert "our reconstruction" in said and "10% left" in said
    assert cells(said, "V₊ of 512")[1] < cells(said, "V₊ of 1,024")[1]
    # The hardest level is accepted more than 20 % of the time: stages would waste rounds.
    recommended = said[said.index("[self_improvement.curriculum]") :]
    policy = tomllib.loads(recommended)["self_improvement"]["curriculum"]["policy"]
    assert policy in ("hard_only", "uniform") and f"Recommended: {policy}" in said
    file = job()
    file.write_text(file.read_text() + "\n" + recommended)
    assert parse_job(read_toml(file)).method.self_improvement.curriculum.policy == policy


def test_a_known_difficulty_and_charts(plan, job, tmp_path):
    said = plan(job(), "--complexity", 30, "--out", tmp_path / "plan.html")
    assert len(cells(said, "best")) == 2 and "left" not in cells(said, "best")
    page = (tmp_path / "plan.html").read_text()
    assert page.count("<svg") == 1 and page.count("<table>") == 2 and "<td>V₊ of 512</td>" in page
    plan(job(), "--out", tmp_path / "plan.png")
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_policies_that_the_job_cannot_have_are_left_out_with_the_reason(plan, job):
    file = job("rounds = 1")
    file.write_text(file.read_text().replace("samples_per_round = 512", "samples_per_round = 128"))
    said = plan(file, "--complexity", 30)
    assert "left out: acceptance_target; a round is too small" in said
    assert "left out: clock; 1 rounds are fewer than 2 levels" in said and "\nclock" not in said


def test_a_pilot_that_accepts_nothing_says_so_and_recommends_nothing(plan, job, tmp_path):
    file = job(verifier='{type = "regex", pattern = "= (.*)"}')
    said = plan(file)
    assert "failed  level 1 is accepted 10% to 80% of the time: 0.0%; add easier tasks" in said
    assert "warning none of 128 responses was accepted" in said
    assert "Recommended: none as it stands: no response was accepted" in said and "[self_imp" not in said
    with pytest.raises(WmssError, match="--out: there is no forecast to draw"):
        plan(file, "--out", tmp_path / "plan.png")


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"model": "nothing"}, [], "model: no model 'nothing'"),
        ({}, ["--complexity", 0], "--complexity: expected a number above 0"),
        ({}, ["--complexity", "nan"], "--complexity: expected a number above 0"),
        ({}, ["--out", "plan.gif"], "--out: expected a file that ends in .png or .html"),
        ({"verifier": '{type = "code"}'}, [], "training_file: 80 rows: lines 1, 2, 3 and 77 more: data.tests"),
        ({"verifier": '{type = "choice", choices = ["w1", "w2"]}'}, [], "training_file: "),
        ({"verifier": '{type = "nope"}'}, [], "method.self_improvement.verifier.type: expected one of"),
        ({"top": "nope = 1"}, [], "nope: unknown field"),
    ],
)
def test_what_cannot_be_planned_is_refused(plan, job, changes, options, message):
    with pytest.raises(WmssError) as refused:
        plan(job(**changes), *options)
    assert str(refused.value).startswith(message)


def test_other_methods_and_missing_files_are_refused(plan, job, tmp_path):
    file = tmp_path / "wmss.toml"
    file.write_text(job().read_text().split("[self_improvement]")[0] + "[wmss]\n")
    with pytest.raises(WmssError, match="method: expected self_improvement, got wmss"):
        plan(file)
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(WmssError, match="training_file: "):
        plan(job())
    with pytest.raises(WmssError, match="expected a readable TOML file"):
        plan(tmp_path / "no.toml")


def test_the_command_ends_in_one_line(tmp_path):
    code = "import sys; sys.argv = ['wmss', 'plan', 'no.toml']\nfrom services.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and done.stderr.startswith("error no.toml: ")
