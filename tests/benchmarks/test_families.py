"""The sweep over model families: its list, its page, and three families from end to end."""

import json
import subprocess
import sys

import pytest

from benchmarks.families import page
from benchmarks.families.tiny import names
from wmss.scoring.vllm_families import families


def test_the_list_is_what_both_libraries_know():
    known = names()
    assert known.keys() <= families()
    assert {"LlamaForCausalLM", "MixtralForCausalLM", "GPT2LMHeadModel"} <= known.keys()
    assert len(known) > 80
    assert known["LlamaForCausalLM"] == "llama"


def test_the_page_is_what_the_rows_give():
    assert page.PAGE.read_text(encoding="utf-8") == page.render(page.stored()), "python -m benchmarks.families"


def test_the_page_tells_failures_with_their_cause(tmp_path):
    rows = [
        {"family": "LlamaForCausalLM", "model": {"trains": {"is": "packed, wrong", "why": "states | differ"}}},
        {"family": "LlamaForCausalLM", "engine": {"is": "not shown here", "why": "no kernel"}},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = page.render(file)
    assert "| `LlamaForCausalLM` | **packed, wrong** | **no answer** | **no answer** | engine: not shown here |" in text
    assert "- `LlamaForCausalLM`: trains: states \\| differ; engine: no kernel" in text
    assert "| `MixtralForCausalLM` | not run | not run | not run | not run | not run |" in text


@pytest.mark.slow
def test_three_families_from_end_to_end(tmp_path):
    """One packs, one pads, one keeps a state along the row; the engine runs the first."""
    file = tmp_path / "rows.jsonl"

    def run(*arguments):
        command = [sys.executable, "-m", "benchmarks.families", "--file", str(file), *arguments]
        subprocess.run(command, check=True, cwd=page.ROOT, stdout=subprocess.DEVNULL)

    run("--family", "LlamaForCausalLM", "--engine")
    run("--family", "LlamaForCausalLM", "GptOssForCausalLM", "MambaForCausalLM")
    rows = page.load(file)
    assert len(rows) == 4, "rows that are there are not made again"
    model = {row["family"]: row["model"] for row in rows if "model" in row}
    assert {family: row["trains"]["is"] for family, row in model.items()} == {
        "LlamaForCausalLM": "packed",
        "GptOssForCausalLM": "padded",
        "MambaForCausalLM": "padded",
    }
    for row in model.values():
        assert (row["preflight"]["is"], row["merge"]["is"], row["saved"]["is"]) == ("accepted", "equal", "equal")
    assert [row["engine"]["is"] for row in rows if "engine" in row] == ["equal"]
