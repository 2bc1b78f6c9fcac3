"""Task files: every form of a row, every refusal with its line; prompts as training renders them, and their ends."""

import json

import pytest

from wmss.data.dataset import Sample, read_samples
from wmss.data.prompts import end_token_ids, render_prompts
from wmss.data.tasks import check_rows, read_tasks
from wmss.data.tokenization import tokenize_samples
from wmss.errors import DataError
from wmss.records import Task
from wmss.tasks.base_model import make_tokenizer

USER, ASSISTANT = {"role": "user", "content": "2+2"}, {"role": "assistant", "content": "2+2=4 #### 4"}


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def read(tmp_path, *rows, **options):
    file = tmp_path / "tasks.jsonl"
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return read_tasks(file, param="training_file", **options)


def test_forms_of_a_row(tmp_path):
    system = {"role": "system", "content": "Be brief."}
    rows = [
        {"prompt": "2+2=", "answer": "4", "level": 1, "data": {"tests": ["x"]}},
        {"messages": [system, USER], "answer": "4", "level": 2},
        {"messages": [USER, ASSISTANT, USER], "level": 1},
        {"messages": [USER, ASSISTANT], "level": 1},
        {"prompt": "2+2=", "completion": "4", "level": 1, "data": {}},
        {"messages": [USER, ASSISTANT, USER, ASSISTANT | {"content": "ok", "weight": 0}], "level": 1},
    ]
    assert read(tmp_path, *rows) == [
        Task(line=1, prompt="2+2=", answer="4", level=1, data={"tests": ["x"]}),
        Task(line=2, messages=(system, USER), answer="4", level=2),
        Task(line=3, messages=(USER, ASSISTANT, USER), level=1),
        Task(line=4, messages=(USER,), answer="2+2=4 #### 4", level=1),
        Task(line=5, prompt="2+2=", answer="4", level=1),
        # The last turn that is learned is the reference; what follows it is not asked for.
        Task(line=6, messages=(USER,), answer="2+2=4 #### 4", level=1),
    ]


def test_a_file_of_solved_problems_serves_both_methods(tmp_path):
    tasks = read(tmp_path, {"messages": [USER, ASSISTANT]}, {"prompt": "1+1=", "completion": "2"})
    samples = read_samples(tmp_path / "tasks.jsonl")
    assert [task.answer for task in tasks] == [sample.answer for sample in samples]
    assert {task.level for task in tasks} == {None}


def test_held_out_rows_have_a_split(tmp_path):
    rows = [{"prompt": str(i), "split": split} for i, split in enumerate(["validation", "test", "ood"])]
    tasks = read(tmp_path, *rows, {"prompt": "3"}, held_out=True)
    assert [task.split for task in tasks] == ["validation", "test", "ood", "validation"]
    with pytest.raises(DataError, match=r'training_file: expected a row of split "validation", .* none in tasks.jsonl'):
        read(tmp_path, rows[1], rows[2], held_out=True)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "not valid JSON"),
        ({"prompt": "q", "level": 0}, "level: expected a whole number from 1 .easiest. to 2,147,483,647, got 0"),
        ({"prompt": "q", "level": True}, "level: expected a whole number from 1 .easiest. to 2,147,483,647, got True"),
        ({"prompt": "q", "level": "Level 3"}, "level: expected a whole number .* got 'Level 3'"),
        ({"prompt": "q", "level": None}, "level: expected a whole number .* got None"),
        ({"prompt": "q", "data": []}, "data: expected an object, got list"),
        ({"prompt": "q", "split": "test"}, "split: for held-out tasks only; remove it"),
        ({"prompt": "q", "answer": " "}, "answer: expected text, got ' '; leave it out"),
        ({"prompt": "q", "answer": 4}, "answer: expected text, got 4"),
        ({"prompt": "q", "answer": None}, "answer: expected text, got None"),
        ({"prompt": " "}, "prompt: expected text, got a blank string"),
        ({"prompt": "", "completion": "4"}, "prompt: expected text, got a blank string"),
        ({"prompt": "q", "completion": " "}, "completion: expected text, got a blank string"),
        ({"prompt": 4}, "prompt: expected a string, got int"),
        ({"prompt": "q", "completion": "4", "answer": "4"}, "answer: unused, .* remove one of them"),
        ({"messages": [USER, ASSISTANT], "answer": "4"}, "answer: unused, .* remove one of them"),
        ({"messages": [USER, USER], "answer": "4"}, "messages: expected user and assistant to alternate"),
        ({"messages": [], "answer": "4"}, "messages: expected a non-empty list"),
        ({"messages": [USER], "prompt": "q"}, 'expected the keys "prompt" or "messages", .* got .*; rename them'),
        (
            {"question": "q", "answer": "4"},
            r"these are question/answer rows, .*`wmss convert FILE ROWS.jsonl \[--to tasks\]`",
        ),
        ({"answer": "4"}, r"expected the keys .* got \['answer'\]"),
        ({"prompt": "q", "colour": 1}, r"expected the keys .* got \['colour', 'prompt'\]"),
        ({"messages": [USER], "tools": [{}]}, "tools: tool-free chats only"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\]: expected an object with"),
    ],
)
def test_row_that_is_no_task_is_refused_with_its_line(tmp_path, row, message):
    with pytest.raises(DataError, match=f"1 row is unusable in tasks.jsonl: line 2: {message}") as caught:
        read(tmp_path, {"prompt": "fine"}, row)
    assert caught.value.param == "training_file"


def test_unknown_split_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"split: expected one of \['validation', 'test', 'ood'\], got 'dev'"):
        read(tmp_path, {"prompt": "q", "split": "dev"}, held_out=True)


def test_levels_of_all_or_none_and_without_gaps(tmp_path):
    one, three, none = {"prompt": "a", "level": 1}, {"prompt": "b", "level": 3}, {"prompt": "c"}
    with pytest.raises(DataError, match=r"1 row is unusable .*: line 2: level: expected one, as other rows have it"):
        read(tmp_path, one, none)
    with pytest.raises(DataError, match=r"training_file: level 2 has no prompts in mine.jsonl, level 3 has; number"):
        read(tmp_path, one, three, name="mine.jsonl")
    assert [task.level for task in read(tmp_path, three, held_out=True)] == [3]
    with pytest.raises(DataError, match="expected at least one JSON line, got an empty file"):
        read(tmp_path)


def test_prompts_are_what_training_puts_before_a_completion(tmp_path, tokenizer):
    tasks = read(tmp_path, {"messages": [USER, ASSISTANT]}, {"prompt": "1+1=", "completion": "2"})
    prompts = render_prompts(tasks, tokenizer, max_prompt_tokens=64, source="tasks.jsonl", param="training_file")
    samples = read_samples(tmp_path / "tasks.jsonl")
    tokenized, _ = tokenize_samples(samples, tokenizer, max_length=64, source="tasks.jsonl")
    assert prompts == [list(s.input_ids[: s.last_completion_start]) for s in tokenized]
    ends = end_token_ids(tasks, tokenizer, source="tasks.jsonl", param="training_file")
    assert ends == sorted({s.last_target for s in tokenized})


def test_ends_of_chats_and_of_plain_prompts(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.eos_token = "<|endoftext|>"
    turn_end, text_end = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    chat, plain = Task(line=1, messages=(USER,)), Task(line=2, prompt="2+2=")
    ends = {"source": "tasks.jsonl", "param": "training_file"}
    assert end_token_ids([chat], tokenizer, **ends) == [turn_end]
    assert end_token_ids([plain], tokenizer, **ends) == [text_end]
    assert end_token_ids([chat, plain], tokenizer, **ends) == sorted([turn_end, text_end])


def test_prompts_that_do_not_fit_or_never_end_are_refused(tokenizer):
    tasks = [Task(line=4, prompt="2+2="), Task(line=7, prompt="1+1+1+1=")]
    with pytest.raises(
        DataError, match=r"1 row is unusable in f: line 7: expected a prompt of at most 4 tokens, got 8; .* max_length"
    ):
        render_prompts(tasks, tokenizer, max_prompt_tokens=4, source="f", param="training_file")
    endless = make_tokenizer()
    endless.eos_token = None
    with pytest.raises(DataError, match=r"line 4: no end token in outputs: the tokenizer has no .* add eos_token"):
        end_token_ids(tasks, endless, source="f", param="training_file")
    endless.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    with pytest.raises(DataError, match=r"line 1: no end token in outputs: messages\[1\]: .* end-of-turn token"):
        end_token_ids([Task(line=1, messages=(USER,))], endless, source="f", param="training_file")
    endless.chat_template = None
    with pytest.raises(DataError, match="line 1: the tokenizer has no chat template"):
        render_prompts([Task(line=1, messages=(USER,))], endless, max_prompt_tokens=9, source="f", param="p")


def test_rendering_a_sample_and_its_task_agree_on_odd_text(tokenizer):
    text = " é\n\n2 + 2 <im_end> "
    tokenized, _ = tokenize_samples([Sample(1, prompt=text, completion="4")], tokenizer, max_length=64, source="f")
    (prompt,) = render_prompts([Task(1, prompt=text)], tokenizer, max_prompt_tokens=64, source="f", param="p")
    assert prompt == list(tokenized[0].input_ids[: tokenized[0].last_completion_start])


@pytest.mark.parametrize(
    ("row", "refused"),
    [
        ('{"prompt": "2+2=", "answer": "4"}', None),
        ('{"prompt": "2+2=", "completion": "4"}', None),
        ('{"prompt": "2+2=", "completion": "4", "level": 1, "split": "ood"}', 'split "validation"'),
        ('{"messages": [{"role": "user", "content": "2+2="}], "data": {}}', None),
        ('{"messages": [{"role": "user", "content": "2+2="}]}', None),
        ('{"prompt": "2+2="}', 'expected the keys "messages", or "prompt" and "completion"'),
        ('{"prompt": "2+2=", "answer": ""}', "answer: expected text"),
        ("no JSON", "not valid JSON"),
    ],
)
def test_uploads_may_hold_training_rows_or_tasks(tmp_path, row, refused):
    file = tmp_path / "rows.jsonl"
    file.write_text(row + "\n")
    if refused is None:
        check_rows(file, param="file", name="rows.jsonl")
        return
    with pytest.raises(DataError, match=refused):
        check_rows(file, param="file", name="rows.jsonl")


def test_an_answer_that_is_a_number_is_to_be_written_as_text(tmp_path):
    with pytest.raises(DataError, match=r"""line 1: answer: expected text, got 3; write it as text: "3\""""):
        read(tmp_path, {"prompt": "a", "answer": 3})
    with pytest.raises(DataError, match=r"got \[\]; leave it out where the verifier needs none"):
        read(tmp_path, {"prompt": "a", "answer": []})
