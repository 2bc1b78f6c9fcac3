"""Rendering and masking against masks written out by hand, and every refusal."""

import numpy as np
import pytest

from tests.data.rows import SOURCE, chat, supervised_text, tokenize
from wmss.data.dataset import Sample
from wmss.data.tokenization import load_tokenized, save_tokenized, tokenize_samples, tokens_digest
from wmss.errors import DataError
from wmss.tasks.base_model import make_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def test_chat_mask_is_the_answer_and_its_end_token(tokenizer):
    sample, cut = tokenize(chat(("user", "1+1"), ("assistant", "2")), tokenizer)
    assert cut == []
    rendered = "<|im_start|>user\n1+1<|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n"
    assert tokenizer.decode(sample.input_ids) == rendered
    assert supervised_text(sample, tokenizer) == ["2<|im_end|>"]
    # The newline after the end token is rendered but never generated, so it is no target.
    assert not sample.target_mask[-1]
    assert sample.num_targets == 2
    targets = sample.input_ids[sample.predicting_positions + 1]
    assert tokenizer.decode(targets) == "2<|im_end|>"


def test_every_assistant_turn_is_supervised(tokenizer):
    turns = [("system", "be brief"), ("user", "1+1"), ("assistant", "2"), ("user", "2+2"), ("assistant", "4")]
    sample, _ = tokenize(chat(*turns), tokenizer)
    assert supervised_text(sample, tokenizer) == ["2<|im_end|>", "4<|im_end|>"]
    prompt = tokenizer.decode(sample.input_ids[: sample.last_completion_start])
    assert prompt.endswith("2+2<|im_end|>\n<|im_start|>assistant\n")


def test_prompt_and_completion(tokenizer):
    sample, _ = tokenize(Sample(line=1, prompt="1+1=", completion="2"), tokenizer)
    assert tokenizer.decode(sample.input_ids) == "1+1=2<|im_end|>"
    assert supervised_text(sample, tokenizer) == ["2<|im_end|>"]
    assert sample.last_completion_start == 4


@pytest.mark.parametrize("answer", ["d", "<", "end", "n", "|>", "im_end", "a\n", "a "])
def test_answers_that_look_like_the_end_tag(tokenizer, answer):
    sample, _ = tokenize(chat(("user", "1"), ("assistant", answer)), tokenizer)
    assert supervised_text(sample, tokenizer) == [answer + "<|im_end|>"]


TEMPLATES = {
    "llama3": (
        "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>"
        "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "4<|eot_id|>",
    ),
    "gemma": (
        "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
        "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        ["<start_of_turn>", "<end_of_turn>"],
        "4<end_of_turn>",
    ),
    "mistral": (
        "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% else %} {{ m.content }}</s>{% endif %}{% endfor %}",
        ["[INST]", "[/INST]", "</s>"],
        " 4</s>",
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_of_other_families(name):
    """Every assistant turn and its own end token, written out by hand."""
    template, added, expected = TEMPLATES[name]
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(added, special_tokens=name != "mistral")
    tokenizer.chat_template = template
    turns = [("user", "1+1"), ("assistant", "4"), ("user", "2+2"), ("assistant", "4")]
    sample, _ = tokenize(chat(*turns), tokenizer)
    assert supervised_text(sample, tokenizer) == [expected, expected]


def test_template_that_refuses_a_conversation_is_reported_with_its_line():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('no system turns') }}"
    with pytest.raises(DataError, match=r"line 3: messages: the chat template refuses .*: no system turns"):
        tokenize(chat(("user", "1"), ("assistant", "2"), line=3), tokenizer)


def test_template_that_trims_answers(tokenizer):
    trimming = make_tokenizer()
    trimming.chat_template = tokenizer.chat_template.replace("message['content']", "message['content'] | trim")
    sample, _ = tokenize(chat(("user", "1"), ("assistant", " 2 ")), trimming)
    assert supervised_text(sample, trimming) == ["2<|im_end|>"]


def test_long_completion_is_cut_and_reported(tokenizer):
    sample, cut = tokenize(chat(("user", "1"), ("assistant", "2" * 50), line=9), tokenizer, max_length=20)
    assert cut == [9]
    assert len(sample.input_ids) == 20
    assert sample.target_mask[-1]


def test_prompt_that_fills_the_window_is_refused(tokenizer):
    with pytest.raises(DataError, match=r"line 4: 0 supervised tokens: the prompt of \d+ tokens fills max_length 20"):
        tokenize(chat(("user", "1" * 50), ("assistant", "2"), line=4), tokenizer, max_length=20)


def test_template_that_rewrites_history_is_refused():
    tokenizer = make_tokenizer()
    # Shows only the newest answer, as templates that drop earlier reasoning do.
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if loop.last or m.role == 'user' %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    assert tokenize(chat(("user", "1"), ("assistant", "2")), tokenizer)
    with pytest.raises(DataError, match=r"messages\[1\]: the chat template renders this turn differently"):
        tokenize(chat(("user", "1"), ("assistant", "2"), ("user", "3"), ("assistant", "4")), tokenizer)


def test_template_without_end_token_is_refused():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    with pytest.raises(DataError, match="closes the assistant's turn without a special token"):
        tokenize(chat(("user", "1"), ("assistant", "2")), tokenizer)
    tokenizer.chat_template = None
    with pytest.raises(DataError, match="has no chat template; use prompt/completion rows"):
        tokenize(chat(("user", "1"), ("assistant", "2")), tokenizer)


def test_saved_samples_are_the_same_data(tokenizer, tmp_path):
    samples, _ = tokenize_samples(
        [chat(("user", "1"), ("assistant", str(i)), line=i) for i in range(1, 30)],
        tokenizer,
        max_length=99,
        source=SOURCE,
    )
    save_tokenized(samples, tmp_path / "samples.parquet")
    loaded = load_tokenized(tmp_path / "samples.parquet")
    assert tokens_digest(loaded) == tokens_digest(samples)
    assert [s.line for s in loaded] == list(range(1, 30))
    assert all(np.array_equal(a.input_ids, b.input_ids) for a, b in zip(loaded, samples, strict=True))
    assert tokens_digest(samples[:-1]) != tokens_digest(samples)


@pytest.mark.parametrize(
    ("too_long", "lines", "cut"), [("auto", None, []), ("refuse", None, []), ("drop", [1], []), ("cut", [1, 2], [2])]
)
def test_samples_that_are_too_long(tokenizer, too_long, lines, cut):
    rows = [
        chat(("user", "1"), ("assistant", "2"), line=1),
        chat(("user", "1"), ("assistant", "2" * 50), line=2),
        chat(("user", "1" * 50), ("assistant", "2"), line=3),
    ]
    arguments = {"max_length": 20, "too_long": too_long, "source": SOURCE}
    if lines is None:
        unusable = "lines 2, 3: .* more than max_length 20" if too_long == "refuse" else "line 3: 0 supervised tokens"
        with pytest.raises(DataError, match=unusable):
            tokenize_samples(rows, tokenizer, **arguments)
        return
    samples, found = tokenize_samples(rows, tokenizer, **arguments)
    assert [sample.line for sample in samples] == lines and found == cut
    assert all(len(sample.input_ids) <= 20 for sample in samples)
    with pytest.raises(DataError, match=r"all 1 rows of .* leaves none"):
        tokenize_samples(rows[2:], tokenizer, **arguments)
