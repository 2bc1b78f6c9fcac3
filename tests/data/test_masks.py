"""The mask of a whole conversation, token for token, against one written out by hand, for each family of templates.

In the expectations ⏎ is a newline, ⏎⏎ two in one token, ␣ a blank, and `[token]` is a supervised token; everything else
is context. The conversation is the same everywhere: its first and its last answer have weight 0, and what follows the
last supervised answer is not rendered.
"""

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from wmss.data.dataset import parse_row
from wmss.data.tokenization import tokenize_samples
from wmss.errors import DataError
from wmss.models.loading import load_tokenizer

CHATML = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif -%}"""

LLAMA3 = """\
{{- bos_token }}
{%- for message in messages %}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""

GEMMA = """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for message in messages %}
{%- set role = 'model' if message.role == 'assistant' else message.role %}
{{- '<start_of_turn>' + role + '\\n' + message.content | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{% endif %}"""

SYSTEM = {"role": "system", "content": "be brief"}
CONVERSATION = [
    {"role": "user", "content": "one plus one"},
    {"role": "assistant", "content": "three", "weight": 0},
    {"role": "user", "content": "wrong"},
    {"role": "assistant", "content": "sorry two"},
    {"role": "user", "content": "plus one"},
    {"role": "assistant", "content": "three", "weight": 1},
    {"role": "user", "content": "wrong"},
    {"role": "assistant", "content": "sorry two", "weight": 0},
]

EXPECTED_CHATML = """
    <|im_start|> system ⏎ be ␣ brief <|im_end|> ⏎
    <|im_start|> user ⏎ one ␣ plus ␣ one <|im_end|> ⏎
    <|im_start|> assistant ⏎ three <|im_end|> ⏎
    <|im_start|> user ⏎ wrong <|im_end|> ⏎
    <|im_start|> assistant ⏎ [sorry] [␣] [two] [<|im_end|>] ⏎
    <|im_start|> user ⏎ plus ␣ one <|im_end|> ⏎
    <|im_start|> assistant ⏎ [three] [<|im_end|>] ⏎
"""

EXPECTED_LLAMA3 = """
    <|begin_of_text|>
    <|start_header_id|> system <|end_header_id|> ⏎⏎ be ␣ brief <|eot_id|>
    <|start_header_id|> user <|end_header_id|> ⏎⏎ one ␣ plus ␣ one <|eot_id|>
    <|start_header_id|> assistant <|end_header_id|> ⏎⏎ three <|eot_id|>
    <|start_header_id|> user <|end_header_id|> ⏎⏎ wrong <|eot_id|>
    <|start_header_id|> assistant <|end_header_id|> ⏎⏎ [sorry] [␣] [two] [<|eot_id|>]
    <|start_header_id|> user <|end_header_id|> ⏎⏎ plus ␣ one <|eot_id|>
    <|start_header_id|> assistant <|end_header_id|> ⏎⏎ [three] [<|eot_id|>]
"""

EXPECTED_GEMMA = """
    <bos>
    <start_of_turn> user ⏎ one ␣ plus ␣ one <end_of_turn> ⏎
    <start_of_turn> model ⏎ three <end_of_turn> ⏎
    <start_of_turn> user ⏎ wrong <end_of_turn> ⏎
    <start_of_turn> model ⏎ [sorry] [␣] [two] [<end_of_turn>] ⏎
    <start_of_turn> user ⏎ plus ␣ one <end_of_turn> ⏎
    <start_of_turn> model ⏎ [three] [<end_of_turn>] ⏎
"""

WORDS = ("system", "user", "assistant", "model", "be", "brief", "one", "plus", "three", "wrong", "sorry", "two")


def word_tokenizer(template, *, bos=None, special=()):
    """Whole words, newlines and blanks as tokens, so that a mask can be read."""
    names = ["<unk>", *([bos] if bos else []), *special, " ", "\n", "\n\n", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n+| |\w+"), behavior="isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token=bos,
        eos_token=special[-1],
        additional_special_tokens=list(special),
        chat_template=template,
    )


def tokenize(tokenizer, messages, line=1):
    samples, cut = tokenize_samples(
        [parse_row(line, {"messages": messages})], tokenizer, max_length=512, source="file.jsonl"
    )
    assert cut == []
    return samples[0]


def marked(tokenizer, sample):
    """Tokens in the notation of the expectations."""
    shown = []
    for token, target in zip(tokenizer.convert_ids_to_tokens(sample.input_ids), sample.target_mask, strict=True):
        text = token.replace("\n", "⏎").replace("Ċ", "⏎").replace(" ", "␣").replace("Ġ", "␣")
        shown.append(f"[{text}]" if target else text)
    return shown


FAMILIES = {
    "chatml": (
        word_tokenizer(CHATML, special=("<|im_start|>", "<|im_end|>")),
        [SYSTEM, *CONVERSATION],
        EXPECTED_CHATML,
    ),
    "llama3": (
        word_tokenizer(
            LLAMA3, bos="<|begin_of_text|>", special=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
        ),
        [SYSTEM, *CONVERSATION],
        EXPECTED_LLAMA3,
    ),
    "gemma": (
        word_tokenizer(GEMMA, bos="<bos>", special=("<start_of_turn>", "<end_of_turn>")),
        CONVERSATION,
        EXPECTED_GEMMA,
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_mask_equals_the_one_written_by_hand(family):
    tokenizer, messages, expected = FAMILIES[family]
    sample = tokenize(tokenizer, messages)
    assert marked(tokenizer, sample) == expected.split()
    # The answer that is judged is the last supervised one, and generation starts right before it.
    assert tokenizer.convert_ids_to_tokens(int(sample.input_ids[sample.last_completion_start])) == "three"
    assert sample.last_target == tokenizer.eos_token_id


def test_gemma_refuses_a_system_turn_with_its_line():
    tokenizer, messages, _ = FAMILIES["gemma"]
    with pytest.raises(DataError, match=r"line 7: messages: the chat template refuses .*: System role not supported"):
        tokenize(tokenizer, [SYSTEM, *messages], line=7)


def test_turns_of_weight_zero_may_be_rendered_differently_later():
    """A template that shows only the newest answer can be masked when the answers it drops are context."""
    tokenizer = word_tokenizer(
        CHATML.replace("message.content", "(message.content if loop.last or message.role != 'assistant' else '')"),
        special=("<|im_start|>", "<|im_end|>"),
    )
    messages = [*CONVERSATION[:2], *CONVERSATION[4:6]]
    sample = tokenize(tokenizer, messages)
    expected = """
        <|im_start|> user ⏎ one ␣ plus ␣ one <|im_end|> ⏎
        <|im_start|> assistant ⏎ <|im_end|> ⏎
        <|im_start|> user ⏎ plus ␣ one <|im_end|> ⏎
        <|im_start|> assistant ⏎ [three] [<|im_end|>] ⏎
    """
    assert marked(tokenizer, sample) == expected.split()
    with pytest.raises(
        DataError, match=r"messages\[1\]: .* differently .*; give this turn .* \(`wmss convert --split-turns`"
    ):
        tokenize(tokenizer, [CONVERSATION[0], {"role": "assistant", "content": "three"}, *messages[2:]])


@pytest.mark.slow
def test_smollm2_adds_a_system_turn_and_supervises_only_the_answers(smollm2):
    """The real tokenizer and its real template, whose default system turn nobody wrote into the row."""
    tokenizer = load_tokenizer(smollm2)
    messages = [
        {"role": "user", "content": "7+15?"},
        {"role": "assistant", "content": "21", "weight": 0},
        {"role": "user", "content": "Check."},
        {"role": "assistant", "content": "7+15 = 22\n#### 22"},
    ]
    expected = """
        <|im_start|> system ⏎
        You ␣are ␣a ␣helpful ␣AI ␣assistant ␣named ␣Sm ol LM , ␣trained ␣by ␣H ugging ␣Face <|im_end|> ⏎
        <|im_start|> user ⏎ 7 + 1 5 ? <|im_end|> ⏎
        <|im_start|> ass istant ⏎ 2 1 <|im_end|> ⏎
        <|im_start|> user ⏎ Check . <|im_end|> ⏎
        <|im_start|> ass istant ⏎
        [7] [+] [1] [5] [␣=] [␣] [2] [2] [⏎] [####] [␣] [2] [2] [<|im_end|>] ⏎
    """
    assert marked(tokenizer, tokenize(tokenizer, messages)) == expected.split()
    own = tokenize(tokenizer, [SYSTEM, *messages])
    assert marked(tokenizer, own)[:7] == ["<|im_start|>", "system", "⏎", "be", "␣brief", "<|im_end|>", "⏎"]
    assert own.num_targets == 14
