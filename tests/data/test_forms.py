"""Rows and files of other tools: each is converted, or refused by its name with a way that works."""

import gzip
import json

import pytest

from wmss.data.convert import convert_file
from wmss.data.convert_tasks import convert_tasks
from wmss.data.dataset import read_samples
from wmss.data.tasks import check_rows, read_tasks
from wmss.errors import DataError

CHAT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
FORMS = {
    "alpaca": {"instruction": "a", "input": "", "output": "b"},
    "sharegpt": {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    "prompt-completion": {"prompt": CHAT[:1], "completion": CHAT[1:]},
    "question-answer": {"question": "a", "answer": "b"},
}


def refusal(path):
    with pytest.raises(DataError) as caught:
        check_rows(path, param="file", name=path.name)
    return caught.value.message


@pytest.mark.parametrize("form", FORMS)
def test_known_forms_are_named_with_the_command_that_converts_them(tmp_path, form):
    source, target = tmp_path / "source.jsonl", tmp_path / "rows.jsonl"
    source.write_text(json.dumps(FORMS[form]))
    assert "these are " in refusal(source) and "`wmss convert FILE ROWS.jsonl" in refusal(source)
    assert convert_file(source, target).format == form
    assert [list(sample.messages) for sample in read_samples(target)] == [CHAT]


@pytest.mark.parametrize("row", [{"text": "hello"}, {"prompt": "a", "chosen": "b", "rejected": "c"}])
def test_forms_that_are_not_taken_are_named(tmp_path, row):
    source = tmp_path / "source.jsonl"
    source.write_text(json.dumps(row))
    assert "these are p" in refusal(source) and "wmss convert" not in refusal(source)
    with pytest.raises(DataError, match="these are p"):
        convert_file(source, tmp_path / "rows.jsonl")


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.json", json.dumps([{"messages": CHAT}] * 2).encode(), "one JSON array"),
        ("a.json", json.dumps([{"messages": CHAT}] * 2, indent=2).encode(), "one JSON array"),
        ("a.jsonl", gzip.compress((json.dumps({"messages": CHAT}) + "\n").encode() * 2), "gzip"),
        ("a.json.gz", gzip.compress(json.dumps([{"messages": CHAT}] * 2, indent=2).encode()), "gzip"),
    ],
    ids=["array", "indented array", "gzip of rows", "gzip of an array"],
)
def test_arrays_and_gzip_are_named_and_converted(tmp_path, name, content, kind):
    source, target = tmp_path / name, tmp_path / "a_rows.jsonl"
    source.write_bytes(content)
    assert f"{name} is {kind}, not JSON lines; convert it: `wmss convert {name} a_rows.jsonl`" in refusal(source)
    convert_file(source, target)
    assert [list(sample.messages) for sample in read_samples(target)] == [CHAT, CHAT]


def test_damaged_files_are_refused(tmp_path):
    source = tmp_path / "a.gz"
    source.write_bytes(gzip.compress(b'{"text": 1}' * 99)[:-9])
    with pytest.raises(DataError, match="damaged gzip"):
        convert_file(source, tmp_path / "b")
    source.write_text('[{"messages": ')
    with pytest.raises(DataError, match="expected one JSON array"):
        convert_file(source, tmp_path / "b")
    source.write_bytes(b"PAR1....")
    assert "is a Parquet file, not JSON lines" in refusal(source)


def test_turns_in_the_prompt_are_context(tmp_path):
    source, target = tmp_path / "source.jsonl", tmp_path / "rows.jsonl"
    source.write_text(json.dumps({"prompt": [*CHAT, CHAT[0]], "completion": [CHAT[1]]}))
    convert_file(source, target)
    [sample] = read_samples(target)
    assert sample.supervised_turns == (3,)


def test_an_input_stands_below_the_instruction(tmp_path):
    source, target = tmp_path / "source.jsonl", tmp_path / "rows.jsonl"
    source.write_text(json.dumps({"instruction": "Add.", "input": "2, 3", "output": "5", "system": "Be brief."}))
    done = convert_file(source, target)
    [sample] = read_samples(target)
    assert [message["content"] for message in sample.messages] == ["Be brief.", "Add.\n2, 3", "5"]
    assert list(done.changes.values()) == [1]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl.gz"])
def test_tasks_are_taken_out_of_arrays_and_gzip(tmp_path, name):
    tasks = [{"prompt": "p", "answer": "1", "level": 1}, {"messages": CHAT[:1], "answer": "2", "level": 2}]
    source, target = tmp_path / name, tmp_path / "target.jsonl"
    if name.endswith(".gz"):
        source.write_bytes(gzip.compress("\n".join(map(json.dumps, tasks)).encode()))
    else:
        source.write_text(json.dumps(tasks))
    done = convert_tasks(source, target)
    assert (done.format, done.num_written) == ("tasks", 2)
    assert [json.loads(line) for line in target.read_text().splitlines()] == tasks
    assert len(read_tasks(target, param="training_file")) == 2


def test_line_without_end_is_refused_before_it_is_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("wmss.data.dataset.MAX_LINE_BYTES", 1000)
    source = tmp_path / "bomb.gz"
    source.write_bytes(gzip.compress(b"a" * 10**7))
    with pytest.raises(DataError, match=r"line 1 of bomb.gz: expected at most 1,000 bytes"):
        convert_file(source, tmp_path / "target.jsonl")


def test_gap_below_a_huge_level_is_found_at_once(tmp_path):
    (tmp_path / "tasks.jsonl").write_text('{"prompt": "p", "answer": "1", "level": 2147483647}')
    with pytest.raises(DataError, match="level 1 has no prompts"):
        read_tasks(tmp_path / "tasks.jsonl", param="training_file")
