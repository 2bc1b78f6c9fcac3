"""The chat templates that the installed TRL ships, and what a row becomes under each."""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from tests.data.rows import turns
from tests.data.small_tokenizers import THINK
from wmss.data.rendering import Renderer
from wmss.errors import DataError

_FOUND = find_spec("trl")
FOLDER = Path(_FOUND.origin).parent / "chat_templates" if _FOUND and _FOUND.origin else None
TEMPLATES = {path.stem: path.read_text() for path in sorted(FOLDER.glob("*.jinja"))} if FOLDER else {}
_MARKUP = re.compile(r"<[|｜][^<>|｜\s'\"]+[|｜]?>|<(?:start|end)_of_\w+>|<turn\|>|\[/?INST\]|</s>|<end_of_utterance>")
MARKUP = sorted({token for template in TEMPLATES.values() for token in _MARKUP.findall(template)})
"""Tokens that the templates write."""

OPENS = r"the generation prompt ends in '<think>\\n', this turn does not begin so; begin its text"
OTHER_HISTORY = "renders this turn differently once more turns follow, .* a row of its own"
ONE_TOKEN = "become one token once more turns follow, .* a row of its own"
UNUSABLE = {
    "glm4moe": "closes the assistant's turn without a special token",
    "idefics3": "leaves this turn out",
    "idefics3_training": "leaves this turn out",
    "llava_next": "the chat template lacks something",
    "llava_next_training": "the chat template lacks something",
    "smolvlm": "leaves this turn out",
    "smolvlm_training": "leaves this turn out",
}
"""Templates under which no row can be trained on, and why."""
NO_ANSWER_ALONE = ("deepseek", "nemotron_3")
"""How the names of templates begin that take no answer without reasoning."""
NO_REASONING = ("qwen3_5_nothink",)
"""How the names of templates begin that take no reasoning."""
NO_SECOND_TURN = {
    "qwen3": OTHER_HISTORY,
    "qwen3_5_nothink": OTHER_HISTORY,
    "qwen3_5_think": OTHER_HISTORY,
    "qwen3_5_think_training": ONE_TOKEN,
    "qwen3_6": OTHER_HISTORY,
    "qwen3_6_training": ONE_TOKEN,
    "qwen3_8": ONE_TOKEN,
    "qwen3_8_training": ONE_TOKEN,
}
"""Templates under which a row of two turns cannot be trained on as a whole, and why."""


def add_markup(tokenizer):
    """Give a tokenizer the tokens of all templates."""
    tokenizer.add_tokens(list(THINK))
    tokenizer.add_tokens([token for token in MARKUP if token not in tokenizer.get_vocab()], special_tokens=True)
    if tokenizer.bos_token is None:
        tokenizer.bos_token = "<|begin_of_text|>"
    return tokenizer


def check_template(name, tokenizer):
    """Assert that under a template rows are trained on as written, or refused for the cause that the tables say."""
    tokenizer.chat_template = TEMPLATES[name]
    answer, reasoned, two = (
        _outcome(tokenizer, *texts)
        for texts in (("Hi", "ok"), ("Hi", "<think>\nas is\n</think>\n\nok"), ("Hi", "ok", "a", "is"))
    )
    if cause := UNUSABLE.get(name):
        assert all(re.search(cause, str(found)) for found in (answer, reasoned, two))
        return
    if name.startswith(NO_ANSWER_ALONE):
        assert re.search(OPENS, str(answer)) and re.search(OPENS, str(two))
    else:
        assert re.search(r"\A(?!.*Hi)(?s:.*)\bok<[^<>]+>\Z", answer.target)
        cause = NO_SECOND_TURN.get(name)
        if cause and (cause != ONE_TOKEN or _joins_newlines(tokenizer)):
            assert re.search(cause, str(two))
        else:
            assert two.prompt.startswith(answer.prompt) and re.search(r"\bis<[^<>]+>\Z", two.target)
    if name.startswith(NO_REASONING):
        assert "remove the reasoning from this turn's text" in str(reasoned)
    else:
        turn = reasoned.prompt[-len("<think> \n") :] + reasoned.target
        assert re.search(r"<think>\s*as is\s*</think>\s*ok<[^<>]+>\Z", turn) and turn.count("</think>") == 1


def _joins_newlines(tokenizer):
    one, two = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("\n", "\n\n"))
    return len(one) == len(two)


class _Accepted(NamedTuple):
    prompt: str
    target: str
    """Of the last turn."""


def _outcome(tokenizer, *texts):
    """What a chat becomes. Whatever is accepted goes on from exactly what generation gets, turn by turn."""
    row = turns(*texts)
    try:
        ids, mask = Renderer(tokenizer).sample(row)
    except DataError as error:
        return error
    for index in row.supervised_turns:
        prompt = tokenizer.apply_chat_template(
            list(row.messages[:index]), add_generation_prompt=True, return_dict=False
        )
        assert ids[: len(prompt)] == prompt
        assert mask[len(prompt)] and not mask[len(prompt) - 1]
    target = [token for token, supervised in zip(ids[len(prompt) :], mask[len(prompt) :], strict=True) if supervised]
    return _Accepted(tokenizer.decode(ids[: len(prompt)]), tokenizer.decode(target))
