"""Beginnings of a chat cut out of the whole, against each rendered and encoded by itself; and how much work it is."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from tests.data.rows import chat, turns
from tests.data.small_tokenizers import CHATML, SENTENCEPIECE, byte_level, sentencepiece
from tests.data.test_rendering import END_OF_TEXT, OPENS_THINK, TWO_ENDS
from tests.data.test_tokenization import TEMPLATES as FAMILIES
from tests.data.trl_templates import TEMPLATES, add_markup
from wmss.data import rendering
from wmss.data.dataset import Sample
from wmss.data.encoding import Encoder
from wmss.data.prefixes import prefixes
from wmss.data.rendering import Renderer
from wmss.errors import DataError

MARK = "\ue000"
PAIRS = (("user", "1"), ("assistant", "2"), ("user", "b"), ("assistant", "4"))
BODY = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
ALL = {
    **TEMPLATES,
    **OPENS_THINK,
    **{name: template for name, (template, _, _) in FAMILIES.items()},
    "chatml": CHATML,
    "two_ends": TWO_ENDS,
    "end_of_text": END_OF_TEXT,
}
SHOWN = {"chatml", "end_of_text", "llama3", "gemma", "mistral", "phi3", "qwen2_5", "qwen3_instruct_2507"} & ALL.keys()
"""Templates that are known to write message by message."""
LOOK_AHEAD = {
    "last": "{% for m in messages %}" + BODY + "{% if loop.last %}.{% endif %}{% endfor %}" + PROMPT,
    "length": "{{ messages | length }}{% for m in messages %}" + BODY + "{% endfor %}" + PROMPT,
    "length of the loop": "{% for m in messages %}{{ loop.length }}" + BODY + "{% endfor %}" + PROMPT,
    "last message": "{% for m in messages %}" + BODY + "{% endfor %}{{ messages[-1].role }}" + PROMPT,
    "in a swallowed error": "{{ messages is sequence }}{% for m in messages %}" + BODY + "{% endfor %}" + PROMPT,
    "all at once": "{% set all = messages | list %}{% for m in all %}" + BODY + "{% endfor %}" + PROMPT,
    "backwards": "{% for m in messages[::-1] %}" + BODY + "{% endfor %}" + PROMPT,
    "twice": "{% for m in messages %}" + BODY + "{% endfor %}{% for m in messages %}.{% endfor %}" + PROMPT,
    "some": "{% for m in messages if m.role == 'user' %}" + BODY + "{% endfor %}" + PROMPT,
    "until": "{% for m in messages %}{% if m.content == 'b' %}{% break %}{% endif %}" + BODY + "{% endfor %}" + PROMPT,
    "as text": "{{ messages }}{% for m in messages %}" + BODY + "{% endfor %}" + PROMPT,
    "stored": "{% set all %}{% for m in messages %}" + BODY + "{% endfor %}{% endset %}{{ all | trim }}" + PROMPT,
}
CARRY = {
    "a namespace": (
        "{% set ns = namespace(n='') %}{% for m in messages %}{% set ns.n = ns.n + m.content %}" + BODY + "{{ ns.n }}"
        "{% endfor %}" + PROMPT
    ),
    "the message before": "{% for m in messages %}{{ loop.previtem.content }}" + BODY + "{% endfor %}" + PROMPT,
    "a change": "{% for m in messages %}{% if loop.changed(m.content) %}.{% endif %}" + BODY + "{% endfor %}" + PROMPT,
    "a joiner": "{% set comma = joiner('|') %}{% for m in messages %}" + BODY + "{% endfor %}{{ comma() }}" + PROMPT,
    "a generator": (
        "{% set names = ['a', 'b', 'c'] | map('upper') %}{% for m in messages %}{{ names | first }}" + BODY
        + "{% endfor %}" + PROMPT
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def marked_up():
    return add_markup(byte_level())


def rendered(tokenizer, messages, generation_prompt=False):
    return tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=generation_prompt)


@pytest.mark.parametrize("name", ALL)
def test_beginnings_are_what_transformers_renders(name, marked_up):
    marked_up.chat_template = ALL[name]
    for row in (turns("Hi", "ok", "a", " b\n", "c", "<think>\nx\n</think>\n\ny"), chat(("system", "s"), *PAIRS)):
        found = prefixes(marked_up, row.messages, mark=MARK)
        if found is None:
            assert name not in SHOWN
            continue
        for length in range(1 + (row.messages[0]["role"] == "system"), len(row.messages) + 1):
            *before, last = messages = row.messages[:length]
            assert found.text(length) == rendered(marked_up, messages)
            assert found.text(length, generation_prompt=True) == rendered(marked_up, messages, True)
            if last["role"] == "assistant":
                assert found.marked_text(length) == rendered(marked_up, [*before, last | {"content": MARK}])


@pytest.mark.parametrize("template", (LOOK_AHEAD | CARRY).values(), ids=(LOOK_AHEAD | CARRY).keys())
def test_a_template_that_reads_other_messages_gives_no_beginnings(template):
    assert prefixes(byte_level(template), chat(*PAIRS).messages, mark=MARK) is None


def test_a_tokenizer_with_a_rendering_of_its_own_gives_no_beginnings():
    tokenizer = byte_level()
    own = type("Own", (type(tokenizer),), {"apply_chat_template": lambda self, *_, **__: ""})
    tokenizer.__class__ = own
    assert prefixes(tokenizer, chat(*PAIRS).messages, mark=MARK) is None


PIECES = ("ok", "is", "a", "<", "|", "im_end", "|>", " ", "\n", "\n\n", "é", "🙂", "<think>", "</think>", MARK)
texts = st.lists(st.sampled_from(PIECES), max_size=5).map("".join)
TOKENIZERS = {
    "bytes": byte_level(),
    "long added tokens": byte_level(special=("<|im_start|>", "<|im_start|>user\n", "<|im_end|>\n<|", "<|im_end|>")),
    **{kind: add_markup(sentencepiece(kind)) for kind in SENTENCEPIECE},
}
TRIED = {**OPENS_THINK, "chatml": CHATML, "two_ends": TWO_ENDS, "end_of_text": END_OF_TEXT, **LOOK_AHEAD, **CARRY}


def outcome(tokenizer, row):
    try:
        return Renderer(tokenizer).sample(row)
    except DataError as error:
        return str(error)


@given(
    st.lists(st.tuples(texts, texts), min_size=1, max_size=4),
    st.sampled_from(sorted(TOKENIZERS)),
    st.sampled_from(sorted(TRIED)),
    st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_rows_are_those_of_beginnings_by_themselves(pairs, kind, name, has_system):
    tokenizer = TOKENIZERS[kind]
    tokenizer.chat_template = TRIED[name]
    row = turns(*(text for question, answer in pairs for text in (question, answer + "ok")))
    if has_system:
        row = Sample(1, messages=({"role": "system", "content": "be"}, *row.messages))
    found = outcome(tokenizer, row)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rendering, "prefixes", lambda *_, **__: None)
        patch.setattr("wmss.data.encoding._cutting_tokens", lambda _: {})
        assert found == outcome(tokenizer, row)


@given(texts, texts, texts, st.sampled_from(sorted(TOKENIZERS)))
@settings(max_examples=200, deadline=None)
def test_ids_of_a_beginning_are_those_of_its_text(head, tail, other, kind):
    encoder = Encoder(TOKENIZERS[kind])
    head = f"<|im_start|>user\n{head}<|im_end|>\n<|im_start|>{head}"
    whole = encoder.whole(head + tail)
    found = encoder.beginning(head + other, whole, len(head))
    assert found.part(0, len(found)) == encoder.ids(head + other)
    assert whole.ids == encoder.ids(head + tail)


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word"])
def test_added_tokens_that_look_beside_them_make_no_cuts(flag):
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken("<|x|>", special=True, **{flag: True})])
    assert Encoder(tokenizer).whole("<|im_start|> <|x|> a").starts == []


def test_rows_together_are_the_rows_one_by_one():
    rows = [
        turns("Hi", "ok", "a", "is"),
        turns("Hi", "x<|im_end|>"),
        Sample(3, prompt="a", completion=" ok"),
        Sample(4, prompt="<|im_start|>", completion="ok"),
        turns("Hi", "\nok", "a", "is"),
        chat(*PAIRS, context_turns=(1,)),
    ] * 60
    tokenizer = byte_level()
    found = [str(each) if isinstance(each, DataError) else each for each in Renderer(tokenizer).samples(rows)]
    assert found == [outcome(tokenizer, row) for row in rows]
    assert len({str(each) for each in found}) == 6


class _Counted:
    """A tokenizer that counts the characters it renders and encodes."""

    def __init__(self, monkeypatch, tokenizer):
        self.characters = 0
        kind = type(tokenizer)
        encode = kind.__call__

        def counted(tokenizer, text, **arguments):
            self.characters += len(text) if isinstance(text, str) else sum(map(len, text))
            return encode(tokenizer, text, **arguments)

        monkeypatch.setattr(kind, "__call__", counted)


def test_what_is_encoded_of_a_chat_grows_with_its_turns(monkeypatch):
    tokenizer = byte_level()
    renderer, counted, taken = Renderer(tokenizer), _Counted(monkeypatch, tokenizer), {}
    for number in (20, 200):
        counted.characters = 0
        renderer.sample(turns(*["what is it then" for _ in range(number)]))
        taken[number] = counted.characters
    assert taken[200] < 10.5 * taken[20]


def test_a_row_of_one_turn_is_encoded_little_more_than_once(monkeypatch):
    """Its texts for control tokens, and the whole; of prompt and end only what is their own."""
    tokenizer = byte_level()
    renderer, counted = Renderer(tokenizer), _Counted(monkeypatch, tokenizer)
    row = turns("question " * 100, "answer " * 100)
    renderer.sample(row)
    assert counted.characters < 2.2 * len(rendered(tokenizer, row.messages))
