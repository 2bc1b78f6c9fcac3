"""What the pages say exists: knobs, routes and links."""

import re
from pathlib import Path
from typing import get_args

import pytest

from services.api.app import create_app
from services.api.rounds import RolloutQuery
from services.api.schemas import RoundObject
from services.commands.knobs import describe
from wmss.choices import CurriculumPolicy
from wmss.config import (
    AcceptConfig,
    CurriculumConfig,
    Hyperparameters,
    SamplingConfig,
    SelfImprovementConfig,
    StopConfig,
    WeakDrivenUpdate,
    WmssConfig,
    parse_job,
    read_toml,
)
from wmss.rounds.improvement.round_records import StopCode
from wmss.rounds.phases import IMPROVEMENT_ROUND

ROOT = Path(__file__).parents[2]
ELSEWHERE = {
    "hyperparameters",
    "preset",
    "n_epochs",
    "max_steps",
    "max_length",
    "too_long",
    "learning_rate",
    "learning_rate_multiplier",
    "weight_decay",
}
"""Knobs that mean what they mean anywhere: `knobs.md` is enough for them."""
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_page_of_knobs_is_what_the_declarations_say():
    assert (ROOT / "docs" / "knobs.md").read_text() == describe(), "run: wmss knobs > docs/knobs.md"


def test_every_knob_of_the_method_stands_on_its_page():
    text = (ROOT / "docs" / "method.md").read_text()
    knobs = {*WmssConfig.model_fields, *Hyperparameters.model_fields} - ELSEWHERE
    assert [name for name in sorted(knobs) if f"`{name}`" not in text and f'`{name} = "' not in text] == []


def test_job_files_of_the_method_page_are_valid(tmp_path):
    blocks = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "method.md").read_text(), flags=re.DOTALL)
    assert len(blocks) >= 5
    for block in blocks:
        (tmp_path / "job.toml").write_text(f'model = "m"\ntraining_file = "t"\n{block}')
        assert parse_job(read_toml(tmp_path / "job.toml")).method.type == "wmss"


def test_every_knob_and_every_end_of_self_improvement_stands_on_its_page():
    text = (ROOT / "docs" / "self_improvement.md").read_text()
    parts = (
        SelfImprovementConfig,
        CurriculumConfig,
        SamplingConfig,
        AcceptConfig,
        StopConfig,
        WeakDrivenUpdate,
    )
    names = {name for part in parts for name in part.model_fields}
    names |= {*get_args(CurriculumPolicy), *get_args(StopCode), *IMPROVEMENT_ROUND}
    assert [name for name in sorted(names) if f"`{name}`" not in text and f"`accept.{name}" not in text] == []


def test_the_job_file_of_the_self_improvement_page_is_valid(tmp_path):
    blocks = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "self_improvement.md").read_text(), flags=re.DOTALL)
    assert len(blocks) == 1
    (tmp_path / "job.toml").write_text(blocks[0])
    assert parse_job(read_toml(tmp_path / "job.toml")).method.type == "self_improvement"


def test_the_rest_reference_has_every_field_of_rounds_and_every_filter_of_responses():
    text = (ROOT / "docs" / "rest.md").read_text()
    names = {*RoundObject.model_fields, *RolloutQuery.model_fields} - {"id", "object", "round"}
    assert [name for name in sorted(names) if f"`{name}`" not in text] == []


def test_kinds_of_a_union_are_told_by_the_type_that_names_them():
    (verifier,) = [line for line in describe().splitlines() if line.startswith("| `verifier`")]
    assert "[math](#mathverifier)" in verifier and "[final_value](#finalvalueverifier)" in verifier
    assert verifier.split(" | ")[2] == "`final_value`"
    (band,) = [line for line in describe().splitlines() if line.startswith("| `band`")]
    assert "list of 2: number ≥ 0 ≤ 1" in band


def test_every_knob_is_described():
    for line in describe().splitlines():
        if line.startswith("| `"):
            assert not line.endswith("|  |"), line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        assert target.startswith("http") or (page.parent / target).exists(), f"{page.name} links to {target}"
    for name, anchor in re.findall(r"\]\(([^)#]*)#([^)]+)\)", text):
        linked = (page.parent / name).read_text() if name else text
        anchors = [re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-") for line in headings(linked)]
        assert anchor in anchors, f"{page.name} links to {name}#{anchor}"


def headings(text):
    return [line for line in text.splitlines() if line.startswith("#")]


def test_routes_of_the_rest_reference_exist_and_all_are_in_it():
    text = (ROOT / "docs" / "rest.md").read_text()
    paths = create_app().openapi()["paths"]
    for path in re.findall(r"\$URL(/[a-z0-9_/]+)", text):
        assert path in paths, path
    words = {word for path in paths for word in path.removeprefix("/v1").split("/") if word and "{" not in word}
    assert [word for word in sorted(words) if word not in text] == []
