"""Commands that need no running service."""

import json

import pytest

from wmss import __version__
from wmss.errors import WmssError


def test_convert_says_what_it_did(run, tmp_path):
    source, target = tmp_path / "source.jsonl", tmp_path / "target.jsonl"
    source.write_text('{"question": "1+1?", "answer": "<<1+1=2>>2\\n#### 2"}\n' * 3)
    said = run("convert", source, target, "--limit", 2, "--system", "Be brief.")
    assert "question-answer: 2 rows read, 2 written" in said
    assert "2 rows: calculator marks (<<48/2=24>>) were taken out" in said
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert [message["content"] for message in rows[1]["messages"]] == ["Be brief.", "1+1?", "2\n#### 2"]
    with pytest.raises(WmssError, match="exists already"):
        run("convert", source, target)
    kept = tmp_path / "kept.jsonl"
    run("convert", source, kept, "--calculator-marks", "keep", "--format", "question-answer")
    assert "<<1+1=2>>" in kept.read_text()


def test_convert_writes_tasks_with_levels(run, tmp_path):
    source, target = tmp_path / "source.jsonl", tmp_path / "target.jsonl"
    source.write_text('{"question": "1+1?", "answer": "<<1+1=2>>2\\n#### 2"}\n')
    assert "gsm8k: 1 rows read, 1 written" in run("convert", source, target, "--to", "tasks", "--level", 2)
    assert json.loads(target.read_text())["level"] == 2
    with pytest.raises(WmssError, match="--format: expected one of gsm8k, math, deepmind, tasks with --to tasks"):
        run("convert", source, target, "--to", "tasks", "--format", "openai-chat")
    with pytest.raises(WmssError, match="--system: not with --to tasks"):
        run("convert", source, target, "--to", "tasks", "--system", "Be brief.")
    with pytest.raises(WmssError, match="--level: only tasks have one"):
        run("convert", source, target, "--level", 2)


def test_rows_that_are_tasks_already_are_not_converted_to_tasks(run, tmp_path):
    source, target = tmp_path / "chat.jsonl", tmp_path / "target.jsonl"
    turns = '{"messages": [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]}\n'
    for row in (turns, '{"prompt": "1+1?", "completion": "2"}\n'):
        source.write_text(row * 200)
        with pytest.raises(
            WmssError, match=r"^source: these rows are tasks already: .* use the file as it is"
        ) as caught:
            run("convert", source, target, "--to", "tasks")
        assert len(caught.value.message) < 250 and not target.exists()


def test_models_are_added_and_listed(run, checkpoints, tmp_path):
    assert "wmss models add" in run("models", "list")
    said = run("models", "add", checkpoints["qwen3"], "--name", "mine")
    assert "copying model.safetensors" in said
    assert str(tmp_path / "home" / "models" / "mine") in said
    assert "mine" in run("models", "list")
    with pytest.raises(WmssError, match="exists already"):
        run("models", "add", checkpoints["llama"], "--name", "mine")


@pytest.mark.parametrize("command", ["check", "submit"])
@pytest.mark.parametrize("key", ["training_file", "validation_file"])
def test_what_no_file_can_be_named_is_refused_by_its_field(run, tmp_path, command, key):
    files = {"training_file": "train.jsonl", "validation_file": "held_out.jsonl"}
    for name, message in (("", "at least 1 character"), ("a\\u0000b", "without NUL")):
        text = "".join(f'{field} = "{value}"\n' for field, value in ({"model": "m"} | files | {key: name}).items())
        (tmp_path / "job.toml").write_text(text)
        with pytest.raises(WmssError, match=message) as caught:
            run(command, tmp_path / "job.toml")
        assert caught.value.param == key


@pytest.mark.parametrize("command", [["cancel"], ["watch"], ["export"]])
@pytest.mark.parametrize("job_id", ["", "a/b", "../files"])
def test_what_no_job_can_be_called_is_refused_before_the_service_is_asked(run, tmp_path, command, job_id):
    target = [tmp_path / "target"] if command == ["export"] else []
    with pytest.raises(WmssError, match="`wmss jobs` lists"):
        run(*command, job_id, *target)


def test_an_empty_model_name_is_not_taken_for_none(run, checkpoints):
    with pytest.raises(WmssError, match="name: expected up to 64 letters"):
        run("models", "add", checkpoints["qwen3"], "--name", "")


def test_demo_on_real_weights_needs_model_and_data(run, tmp_path):
    for arguments in (["--model", "smollm2"], ["--data", tmp_path], ["--limit", 3]):
        with pytest.raises(WmssError, match="--model, --data: expected both or neither"):
            run("demo", *arguments)


def test_version(run):
    assert run("--version") == f"wmss {__version__}\n"


def test_a_misspelt_variable_is_warned_of_by_every_command(run, monkeypatch):
    monkeypatch.setenv("WMSS_MAX_RUNING_JOBS", "2")
    said = run("models", "list")
    assert said.startswith("warning WMSS_MAX_RUNING_JOBS: ") and "did you mean WMSS_MAX_RUNNING_JOBS?" in said


def test_models_are_not_added_to_a_home_that_is_a_file(run, checkpoints, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WmssError, match=r"--home: .* cannot be used"):
        run("models", "add", checkpoints["qwen3"], "--home", tmp_path / "file")
