"""What an export does to the settings of generation that come with a base: its end tokens, and nothing else."""

import json
import shutil

import pytest

from wmss.errors import ModelError
from wmss.models.checkpoints import export_model, own_end_ids

CONTRADICTIONS = [
    {"bos_token_id": 1, "eos_token_id": 2, "do_sample": False, "temperature": 0.9, "top_p": 0.6},
    {"eos_token_id": 2, "num_beams": 1, "length_penalty": 2.0, "early_stopping": True},
    {"eos_token_id": [2, 5], "num_return_sequences": 4, "do_sample": False},
    {"a_setting_of_tomorrow": {"x": None}},
]


@pytest.fixture
def base(checkpoints, tmp_path):
    return shutil.copytree(checkpoints["qwen3"], tmp_path / "base")


def export(base):
    export_model(base, base.parent / "result", base=base, end_token_ids=[7])
    return json.loads((base.parent / "result" / "generation_config.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("settings", CONTRADICTIONS)
def test_only_the_end_tokens_change(base, settings):
    (base / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    exported = export(base)
    ends = exported.pop("eos_token_id")
    assert 7 in ends and set(ends) - {7} == {2, 5} & {*ends}
    assert (2 in ends) == ("eos_token_id" in settings)
    assert exported == {name: value for name, value in settings.items() if name != "eos_token_id"}
    assert set(ends) <= own_end_ids(base.parent / "result")


def test_a_base_without_settings_gets_its_end_tokens(base):
    (base / "generation_config.json").unlink()
    assert export(base) == {"eos_token_id": [7]}


@pytest.mark.parametrize("text", ["{", "[]", '{"eos_token_id": "</s>"}', '{"eos_token_id": [true]}'])
def test_settings_that_cannot_be_read_are_named(base, text):
    (base / "generation_config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ModelError, match=r"^model: .*generation_config\.json.*mend"):
        export(base)
