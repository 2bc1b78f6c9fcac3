"""Training files: both row forms, and every kind of bad row refused with its line number."""

import json

import pytest

from wmss.data.dataset import read_samples
from wmss.data.line_index import samples_at
from wmss.errors import DataError

USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def write(tmp_path, *rows):
    file = tmp_path / "file.jsonl"
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return file


def test_both_forms(tmp_path):
    file = write(tmp_path, {"messages": [USER, ASSISTANT]}, "", {"prompt": "p", "completion": "c"})
    chat, plain = read_samples(file)
    assert (chat.line, chat.messages, chat.answer) == (1, (USER, ASSISTANT), "a")
    assert (plain.line, plain.prompt, plain.completion, plain.answer) == (3, "p", "c", "c")


def weighted(weight, content="a"):
    return {"role": "assistant", "content": content, "weight": weight}


def test_weight_zero_is_context_and_the_answer_is_the_last_supervised_turn(tmp_path):
    turns = [USER, weighted(0, "x"), USER, weighted(1, "y"), USER, {"role": "assistant", "content": "z"}]
    trailing = [*turns[:4], USER, weighted(0, " ")]
    whole, cut = read_samples(write(tmp_path, {"messages": turns}, {"messages": trailing}))
    assert (whole.context_turns, whole.supervised_turns, whole.answer) == ({1}, (3, 5), "z")
    assert (cut.context_turns, cut.supervised_turns, cut.answer) == ({1, 5}, (3,), "y")
    assert all(set(message) == {"role", "content"} for message in whole.messages)


def test_byte_order_mark_and_windows_line_ends(tmp_path):
    file = tmp_path / "file.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"prompt": "p", "completion": "\xc3\xa9"}\r\n')
    assert read_samples(file)[0].completion == "é"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", r"not valid JSON"),
        ("[" * 100_000, r"not valid JSON"),
        ('{"prompt": "\\ud800", "completion": "c"}', r"half a surrogate pair"),
        ('{"prompt": 1' + "0" * 5000 + ', "completion": "c"}', r"not valid JSON"),
        ("[1]", r"expected a JSON object, got list; write each row as one object on its line"),
        ('{"prompt": "a", "prompt": "b", "completion": "c"}', r".prompt.: given twice in one object; remove one"),
        ('{"messages": [{"role": "user", "role": "system", "content": "x"}]}', r".role.: given twice in one object"),
        ({"text": "x"}, r"these are plain text rows"),
        ({"prompt": 1, "completion": "c"}, r"prompt: expected a string, got int"),
        ({"prompt": "p", "completion": ""}, r"0 supervised tokens"),
        ({"messages": []}, r"messages: expected a non-empty list"),
        ({"messages": [USER]}, r"last message to be the assistant's \(0 supervised tokens\)"),
        ({"messages": [USER, {"role": "assistant", "content": ""}]}, r"last assistant message is empty"),
        ({"messages": [USER, {"role": "assistant", "content": " \n"}]}, r"last assistant message is empty"),
        ({"messages": [ASSISTANT]}, r"alternate, starting with user"),
        ({"messages": [USER, USER, ASSISTANT]}, r"alternate"),
        ({"messages": [{"role": "teacher", "content": "x"}, ASSISTANT]}, r"messages\[0\].role: expected one of"),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, r"messages\[1\].content: expected a string"),
        ({"messages": [{"role": "user"}, ASSISTANT]}, r'messages\[0\]: expected an object with "role" and "content"'),
        (
            {"messages": [USER, weighted(0)]},
            r"assistant message with weight 1, got weight 0 only \(0 supervised tokens\)",
        ),
        ({"messages": [USER, weighted(1, ""), USER, weighted(0)]}, r"message with weight 1 is empty"),
        ({"messages": [USER, weighted(2)]}, r"messages\[1\].weight: expected 0 or 1, got 2"),
        ({"messages": [USER, weighted(1.0)]}, r"messages\[1\].weight: expected 0 or 1, got 1.0"),
        ({"messages": [USER, weighted(True)]}, r"messages\[1\].weight: expected 0 or 1, got True"),
        ({"messages": [USER, weighted(None)]}, r"messages\[1\].weight: expected 0 or 1, got None"),
        ({"messages": [USER | {"weight": 1}, ASSISTANT]}, r"messages\[0\].weight: only the assistant's .* the user's"),
        ({"messages": [USER | {"name": "x"}, ASSISTANT]}, r"messages\[0\].name: unknown field; .*`wmss convert`"),
        ({"messages": [USER, {"role": "assistant", "tool_calls": [{}]}]}, r"messages\[1\].tool_calls: tool-free chats"),
        ({"messages": [USER, {"role": "tool", "content": "5"}]}, r"messages\[1\].role: tool-free chats only for now"),
        (
            {"messages": [{"role": "function", "name": "f", "content": "5"}]},
            r"messages\[0\].role: tool-free chats only",
        ),
        (
            {"messages": [USER, ASSISTANT], "tools": [{}]},
            r"tools: tool-free chats only for now; leave this row out",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, r"content: .* images are not supported"),
        ({"messages": [USER, ASSISTANT, {"role": "system", "content": "s"}]}, r"a system message may only come first"),
    ],
)
def test_bad_row_is_refused_with_its_line(tmp_path, row, message):
    good = {"messages": [USER, ASSISTANT]}
    with pytest.raises(DataError, match=rf"1 row is unusable in file.jsonl: line 2: .*{message}") as caught:
        read_samples(write(tmp_path, good, row, good), param="validation_file")
    assert caught.value.param == "validation_file"


@pytest.mark.parametrize(
    "row",
    [
        {"k" * 10**6: 1},
        {"messages": [{"role": "r" * 10**6, "content": "x"}]},
        {"messages": [USER, weighted("w" * 10**6)]},
        {"messages": [USER] * 10**5},
        '{"messages": 1, "' + "k" * 10**6 + '": 1, "' + "k" * 10**6 + '": 1}',
        {"messages": [USER | {"n" * 10**6: 1}]},
    ],
)
def test_a_refusal_repeats_no_more_of_a_row_than_a_person_reads(tmp_path, row):
    with pytest.raises(DataError, match="line 1") as caught:
        read_samples(write(tmp_path, row))
    assert len(caught.value.message) < 1000


def test_rows_with_one_reason_are_told_in_one_line(tmp_path):
    with pytest.raises(DataError) as caught:
        read_samples(write(tmp_path, *["[]"] * 1130), name="mine.jsonl (file-1)")
    assert caught.value.message == (
        "1,130 rows are unusable in mine.jsonl (file-1): lines 1, 2, 3 and 1,127 more: expected a JSON object, got "
        "list; write each row as one object on its line"
    )


def test_reasons_are_told_by_how_many_rows_they_are_true_of(tmp_path):
    blank = {"prompt": "?", "completion": " "}
    rows = [blank, "1", {"prompt": 1, "completion": "a"}, "[]", "[]", {"a": 1}, {"b": 1}, "[]", "[]"]
    with pytest.raises(DataError) as caught:
        read_samples(write(tmp_path, *rows, {"prompt": "?", "completion": 1}, {"messages": []}))
    assert caught.value.message.splitlines() == [
        "11 rows are unusable in file.jsonl:",
        "  lines 4, 5, 8 and 1 more: expected a JSON object, got list; write each row as one object on its line",
        """  lines 6, 7, such as: expected the keys "messages", or "prompt" and "completion", got ['a']; """
        "rename them",
        "  line 1: completion: expected text, got a blank string (0 supervised tokens)",
        "  line 2: expected a JSON object, got int; write each row as one object on its line",
        "  and 3 other reasons, on 3 rows, the first one line 3",
    ]


def test_empty_binary_and_missing_files(tmp_path):
    with pytest.raises(DataError, match="expected at least one JSON line"):
        read_samples(write(tmp_path, "", " "))
    binary = tmp_path / "binary"
    binary.write_bytes(b'{"prompt": "p", "completion": "c"}\n\xff\xfe')
    with pytest.raises(DataError, match="line 2 of binary: expected UTF-8"):
        read_samples(binary)
    with pytest.raises(DataError, match="cannot read"):
        read_samples(tmp_path / "missing")


def test_samples_are_found_again_by_their_lines(tmp_path):
    file = tmp_path / "f.jsonl"
    file.write_text("".join(f'{{"prompt": "{n}", "completion": "c"}}\n\n' for n in range(5)))
    found = samples_at(file, {5, 1, 2, 99})  # 2 is blank
    assert {line: sample.prompt for line, sample in found.items()} == {1: "0", 5: "2"}
    assert samples_at(file, set()) == {}


@pytest.mark.parametrize("chunk_bytes", [7, 2**20])
def test_any_line_of_a_file_is_found(tmp_path, monkeypatch, chunk_bytes):
    monkeypatch.setattr("wmss.data.line_index._CHUNK_BYTES", chunk_bytes)
    file = tmp_path / f"{chunk_bytes}.jsonl"
    rows = [f'{{"prompt": "{n}", "completion": "{"c" * (n % 9 + 1)}"}}' if n % 3 else "" for n in range(1, 301)]
    file.write_text("\ufeff" + "\n".join(rows))
    for lines in ({1}, {64, 65, 128, 129, 193, 300}, {300, 2}, set(range(1, 400)), {301}):
        found = {line: sample.prompt for line, sample in samples_at(file, lines).items()}
        assert found == {line: str(line) for line in lines if line <= 300 and line % 3}
    file.write_text(file.read_text() + '\n{"prompt": "new", "completion": "c"}')
    assert samples_at(file, {301})[301].prompt == "new"
    file.unlink()
    with pytest.raises(DataError, match=r"cannot read .*jsonl: No such file"):
        samples_at(file, {1})
