"""Converted files against rows written out by hand, every refusal with its line; our reader takes the result."""

import json

import pytest

from wmss.data.convert import Conversion, convert_file
from wmss.data.dataset import read_samples
from wmss.errors import DataError

QUESTION = {"question": "How many?", "answer": "48/2 = <<48/2=24>>24 in May.\n24+48 = <<48+24=72>>72.\n#### 72"}
STRIPPED = "48/2 = 24 in May.\n24+48 = 72.\n#### 72"
USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def write(tmp_path, *rows):
    file = tmp_path / "source.jsonl"
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return file


def convert(tmp_path, *rows, **options):
    """The report and the rows written."""
    target = tmp_path / "target.jsonl"
    done = convert_file(write(tmp_path, *rows), target, **options)
    assert len(read_samples(target)) == done.num_written
    return done, [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]


def chat(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def test_question_and_answer_become_a_chat_without_calculator_marks(tmp_path):
    done, rows = convert(tmp_path, QUESTION, {"question": "q", "answer": "#### 1", "id": 7})
    assert rows == [{"messages": chat("How many?", STRIPPED)}, {"messages": chat("q", "#### 1")}]
    changes = {"calculator marks (<<48/2=24>>) were taken out": 1, "the field 'id' was left out": 1}
    assert done == Conversion(format="question-answer", num_read=2, num_written=2, changes=changes)


def test_calculator_marks_can_be_kept(tmp_path):
    done, rows = convert(tmp_path, QUESTION, calculator_marks="keep")
    assert rows == [{"messages": chat("How many?", QUESTION["answer"])}]
    assert done.changes == {}


@pytest.mark.parametrize(
    "answer",
    [
        'int a;\nstd::cout << "n? "; std::cin >> a;\nstd::cout << 2*a;',
        "cat << EOF > f; sort < f >> g",
        "a << b and c >> d\n#### 5",
        "x = 1<<4>>2",
        "<<no mark>>",
        "1 << 2 == 4 >> 0",
    ],
)
def test_operators_of_programs_are_no_calculator_marks(tmp_path, answer):
    done, rows = convert(tmp_path, {"question": "q", "answer": answer})
    assert rows == [{"messages": chat("q", answer)}] and done.changes == {}


@pytest.mark.parametrize(
    "mark", ["<<48/2=24>>", "<<5+5=10>>", "<<.5*10=5>>", "<<100*10%=$10.00>>", "<<(1+2)*3=9>>", "<<1,000-1=999>>"]
)
def test_calculator_marks(tmp_path, mark):
    _, rows = convert(tmp_path, {"question": "q", "answer": f"It is {mark}5.\n#### 5"})
    assert rows == [{"messages": chat("q", "It is 5.\n#### 5")}]


def test_limit_and_system(tmp_path):
    done, rows = convert(tmp_path, QUESTION, QUESTION, "not read", limit=2, system="Be brief.")
    assert (done.num_read, done.num_written, len(rows)) == (2, 2, 2)
    assert rows[0]["messages"][0] == {"role": "system", "content": "Be brief."}
    assert done.changes["a system message was put first"] == 2


def test_what_openai_exports_carry(tmp_path):
    row = {
        "messages": [
            {"role": "developer", "content": [{"type": "text", "text": "be"}, {"type": "text", "text": "brief"}]},
            {"role": "user", "content": "q", "name": "anna"},
            {
                "role": "assistant",
                "content": "é",
                "weight": 0,
                "refusal": None,
                "tool_calls": [],
                "function_call": None,
            },
            {"role": "user", "content": "again"},
            {"role": "assistant", "content": "b", "weight": 1, "annotations": []},
        ],
        "tools": [],
        "parallel_tool_calls": True,
    }
    done, rows = convert(tmp_path, row)
    assert rows == [
        {
            "messages": [
                {"role": "system", "content": "be\nbrief"},
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": "é", "weight": 0},
                {"role": "user", "content": "again"},
                {"role": "assistant", "content": "b", "weight": 1},
            ]
        }
    ]
    assert done.format == "openai-chat"
    assert set(done.changes) == {
        "the field 'tools' was left out",
        "the field 'parallel_tool_calls' was left out",
        "the role 'developer' became 'system'",
        "text parts were joined with newlines",
        "the messages' field 'name' was left out",
        "the messages' empty field 'refusal' was left out",
        "the messages' empty field 'tool_calls' was left out",
        "the messages' empty field 'function_call' was left out",
        "the messages' empty field 'annotations' was left out",
    }
    assert set(done.changes.values()) == {1}


def test_rows_our_reader_takes_are_left_as_they_are(tmp_path):
    done, rows = convert(tmp_path, {"messages": [USER, ASSISTANT | {"weight": 1}]})
    assert rows == [{"messages": [USER, ASSISTANT | {"weight": 1}]}]
    assert done.changes == {}


IMAGE = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "not valid JSON"),
        ({"question": "q", "answer": "a"}, "messages: expected a list, got NoneType"),
        ({"messages": [USER, {"role": "assistant", "tool_calls": [{}]}]}, "tool_calls: tool-free chats only for now"),
        (
            {"messages": [USER, {"role": "tool", "content": "5"}, ASSISTANT]},
            r"messages\[1\].role: tool-free chats only",
        ),
        ({"messages": [USER, ASSISTANT], "tools": [{}]}, "tools: tool-free chats only for now"),
        (
            {"messages": [USER | {"content": [IMAGE]}, ASSISTANT]},
            r"content\[0\]: expected a text part, got 'image_url'",
        ),
        ({"messages": [USER | {"content": ["x"]}, ASSISTANT]}, r"content\[0\]: expected a text part, got None"),
        ({"messages": [USER, ASSISTANT | {"refusal": "no"}]}, r"messages\[1\].refusal: a chat template would not show"),
        ({"messages": [USER, ASSISTANT | {"weight": 0}]}, "got weight 0 only"),
        ({"messages": [USER]}, "expected the last message to be the assistant's"),
    ],
)
def test_row_that_cannot_be_converted_is_refused_with_its_line(tmp_path, row, message):
    with pytest.raises(DataError, match=rf"1 row is unusable in source.jsonl: line 2: .*{message}") as caught:
        convert(tmp_path, {"messages": [USER, ASSISTANT]}, row)
    assert caught.value.param == "source"
    assert not (tmp_path / "target.jsonl").exists()


def test_other_refusals(tmp_path):
    with pytest.raises(DataError, match=r"line 1: format: expected the keys .* got \['words'\]; .*--format"):
        convert(tmp_path, {"words": "x"})
    with pytest.raises(DataError, match=r"line 1: answer: expected text, got ' '"):
        convert(tmp_path, {"question": "q", "answer": " "})
    with pytest.raises(DataError, match="line 1: question: expected text, got None"):
        convert(tmp_path, {"messages": [USER, ASSISTANT]}, format="question-answer")
    with pytest.raises(DataError, match="has a system message already; leave --system out"):
        convert(tmp_path, {"messages": [{"role": "system", "content": "s"}, USER, ASSISTANT]}, system="t")
    with pytest.raises(DataError, match="got an empty file"):
        convert(tmp_path)
    with pytest.raises(DataError, match=r"target: cannot write .*: No such file or directory"):
        convert_file(write(tmp_path, QUESTION), tmp_path / "missing" / "target.jsonl")


def test_existing_target_is_never_overwritten(tmp_path):
    (tmp_path / "target.jsonl").write_text("mine")
    with pytest.raises(DataError, match=r"target: .*target.jsonl exists already; name another file"):
        convert(tmp_path, QUESTION)
    assert (tmp_path / "target.jsonl").read_text() == "mine"


def test_each_assistant_turn_gets_a_row_of_its_own(tmp_path):
    chat_row = [USER, ASSISTANT, USER, ASSISTANT | {"weight": 0}, USER, ASSISTANT | {"content": "last"}]
    done, rows = convert(tmp_path, {"messages": chat_row}, split_turns=True)
    seen = ASSISTANT | {"weight": 0}
    last = {"role": "assistant", "content": "last"}
    assert rows == [{"messages": [USER, ASSISTANT]}, {"messages": [USER, seen, USER, seen, USER, last]}]
    assert (done.num_read, done.num_written) == (1, 2)
    assert done.changes == {"the row was split, one row for each assistant turn that is learned": 1}
