"""For any text: what is supervised is the assistant's text and its end, after exactly the tokens that generation gets;
or the row is refused, and then because its text spells a control token or shares one with its header."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.rows import turns
from tests.data.small_tokenizers import CHATML, SENTENCEPIECE, byte_level, sentencepiece
from tests.data.test_rendering import END_OF_TEXT, OPENS_THINK, TWO_ENDS
from wmss.data.dataset import Sample
from wmss.data.rendering import Renderer
from wmss.errors import DataError

CONTROL = ("<|im_start|>", "<|im_end|>", "<s>", "</s>", "<unk>")
PIECES = ("ok", "is", "a", "<", "|", "im_end", "|>", " ", "  ", "\n", "\n\n", "\r\n", "\t", "é", "🙂", "中", "</think>")
texts = st.lists(st.sampled_from(PIECES + CONTROL), max_size=6).map("".join)
clean = st.lists(st.sampled_from(PIECES), max_size=6).map("".join)
answers, clean_answers = (each.filter(lambda text: text.strip() != "") for each in (texts, clean))
FEW = settings(max_examples=40, deadline=None)
SPECIAL = ("<|im_start|>", "<|user|>", "<|assistant|>", "<|end|>", "<|return|>", "<|im_end|>")
BYTES = byte_level(special=SPECIAL)
PIECEWISE = {kind: sentencepiece(kind) for kind in SENTENCEPIECE}


def special_tokens(tokenizer):
    return {token: str(added) for token, added in tokenizer.added_tokens_decoder.items() if added.special}


def spells_control(tokenizer, *texts):
    return any(name in text for name in special_tokens(tokenizer).values() for text in texts)


def rendered(tokenizer, sample):
    """Ids and mask, or the refusal."""
    try:
        return Renderer(tokenizer).sample(sample)
    except DataError as error:
        return str(error)


def spans(mask):
    """Begin and end of each supervised stretch."""
    edges = [index for index, (a, b) in enumerate(pairwise([False, *mask, False])) if a != b]
    return list(zip(edges[::2], edges[1::2], strict=True))


def with_template(template):
    BYTES.chat_template = template
    return BYTES


def generation_prompt(tokenizer, messages):
    return tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=False)


@given(texts, answers)
@FEW
def test_one_turn(question, answer):
    tokenizer, row = with_template(CHATML), turns(question, answer)
    found = rendered(tokenizer, row)
    if spells_control(tokenizer, question, answer):
        assert "this text spells" in found
        return
    ids, mask = found
    ((start, end),) = spans(mask)
    assert ids[:start] == generation_prompt(tokenizer, row.messages[:1])
    assert tokenizer.decode(ids[start:end]) == answer + "<|im_end|>"
    assert sum(token in special_tokens(tokenizer) for token in ids) == 4


@given(clean, clean, clean_answers)
@pytest.mark.parametrize(
    ("template", "ends"),
    [(CHATML, ("<|im_end|>",) * 2), (END_OF_TEXT, ("<|end|>",) * 2), (TWO_ENDS, ("", "<|return|>"))],
)
@FEW
def test_two_turns(template, ends, question, first, second):
    tokenizer, row = with_template(template), turns(question, "so " + first, question, second)
    ids, mask = rendered(tokenizer, row)
    for number, (start, end), text in zip((1, 3), spans(mask), ("so " + first, second), strict=True):
        assert ids[:start] == generation_prompt(tokenizer, row.messages[:number])
        assert tokenizer.decode(ids[start:end]) == text + ends[number // 2]


@given(clean, clean_answers, clean_answers)
@FEW
def test_an_earlier_turn_may_share_a_token_with_its_header(question, first, second):
    tokenizer, row = with_template(CHATML), turns(question, first, question, second)
    found = rendered(tokenizer, row)
    if isinstance(found, str):
        assert first[0].isspace() and "become one token" in found
        return
    ids, mask = found
    for number, (start, _) in zip((1, 3), spans(mask), strict=True):
        assert ids[:start] == generation_prompt(tokenizer, row.messages[:number])


@given(clean, clean, st.booleans())
@pytest.mark.parametrize("form", OPENS_THINK)
@FEW
def test_prompts_that_open_a_block_of_reasoning(form, question, text, reasons):
    """Prompt and supervised text together are the text of a turn that has one block of reasoning."""
    answer = f"<think>\n{text}\n</think>\n\nok" if reasons else f"ok {text}"
    tokenizer, row = with_template(OPENS_THINK[form]), turns(question.replace("</think>", ""), answer)
    found = rendered(tokenizer, row)
    if isinstance(found, str):
        assert not reasons or "</think>" in text, found
        assert "this turn does not begin so" in found or "leaves the reasoning" in found
        return
    ids, mask = found
    ((start, end),) = spans(mask)
    assert ids[:start] == generation_prompt(tokenizer, row.messages[:1])
    whole = tokenizer.decode(ids[:end])
    _, turn = whole.split("<|im_start|>assistant\n")
    assert turn.startswith("<think>\n") and turn.endswith("<|im_end|>")
    if reasons and form in ("drops", "writes", "other"):
        assert turn == answer + "<|im_end|>"
    elif reasons and "</think>" not in text:
        assert turn == f"<think>\n{text.strip()}\n</think>\n\nok<|im_end|>"


@given(texts, answers)
@pytest.mark.parametrize("kind", ["bytes", *SENTENCEPIECE])
@FEW
def test_a_prompt_and_its_completion(kind, prompt, completion):
    tokenizer = BYTES if kind == "bytes" else PIECEWISE[kind]
    found = rendered(tokenizer, Sample(1, prompt="x" + prompt, completion=completion))
    if spells_control(tokenizer, prompt, completion):
        assert "this text spells" in found
        return
    ids, mask = found
    ((start, end),) = spans(mask)
    assert (ids[:start], end) == (tokenizer("x" + prompt)["input_ids"], len(ids))
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == "x" + prompt + completion


@given(texts)
@pytest.mark.parametrize("kind", ["bytes", *SENTENCEPIECE])
@FEW
def test_prompts_of_tasks(kind, question):
    tokenizer = BYTES if kind == "bytes" else PIECEWISE[kind]
    tokenizer.chat_template = CHATML
    for given_, expected in (
        ({"prompt": "x" + question}, tokenizer("x" + question)["input_ids"]),
        ({"messages": turns(question).messages}, generation_prompt(tokenizer, turns(question).messages)),
    ):
        try:
            assert Renderer(tokenizer).prompt(**given_) == expected
        except DataError as error:
            assert "this text spells" in str(error) and spells_control(tokenizer, question)
        else:
            assert not spells_control(tokenizer, question)
