"""One row as token ids and a mask: what becomes a token, and what is supervised.

Chats are rendered by the tokenizer's own chat template. A supervised turn is two things: the *generation prompt*, token
for token what a model is given that is to write this turn, and the *body* with its end token, what the model has to
write then. The first token of the body is where the generation prompt ends, so a turn that does not go on from it is
refused: the mask would teach an answer to a prompt that generation never gives.

Text is text: a row whose text spells a control token is refused (`docs/decisions/0008-chat-templates.md` says why).
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from jinja2 import TemplateError, UndefinedError
from transformers import PreTrainedTokenizerBase

from wmss.data.dataset import Sample
from wmss.errors import DataError

Messages = Sequence[dict[str, str]]

THINK_TAGS = ("<think>", "</think>")
"""Tags of reasoning. In many tokenizers they are tokens of their own, and rows write them all the same."""
OWN_ROW = "a row of its own that ends with it (`wmss convert --split-turns`)"
"""The way out for a turn that the chat template shows otherwise once more turns follow."""

_MARK = "\ue000"  # a private-use character: no template looks for it
_THINK_BLOCK_AT_END = re.compile(r"<think>(\s*</think>)?\s*\Z")
_TAG = re.compile(r"[^\w\s▁].*[^\w\s▁]", re.DOTALL)
_CLOSING = "\n</think>\n\n"
_SHOWN = 30
"""Characters of a generation prompt in a message."""
_ANCHORS = ("\n", "=", "a", "0", ".")
"""Texts to put before a text that is to be tokenized as the continuation of another."""


class Renderer:
    """Rows as tokens, with one tokenizer and its chat template as they are when it is made.

    Its methods raise `DataError`, without a line, where the tokenizer cannot render what it is given or a text spells a
    control token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._added = tokenizer.added_tokens_decoder
        self._marks = {*self._added, *tokenizer.all_special_ids}
        self._unknown = _unknown_tokens(tokenizer)
        self._control = self._control_ids()
        first = tokenizer.convert_ids_to_tokens(self._ids("a"))[:1]
        self._puts_blank_before_text = first != [] and first[0].startswith(("▁", "Ġ"))

    def sample(self, sample: Sample) -> tuple[list[int], list[bool]]:
        """Ids and mask of a row, cut after its last supervised turn: what follows can influence no target."""
        return self._chat(sample) if sample.messages else self._completion(sample)

    def prompt(self, *, messages: Messages = (), prompt: str = "") -> list[int]:
        """Ids of what stands before a completion: a chat with the generation prompt, or else a plain prompt."""
        if messages:
            self._refuse_control_tokens_in(messages)
            return self._ids(self._text(messages, generation_prompt=True))
        return self._plain_prompt(prompt)

    def control_token_in(self, text: str) -> str | None:
        """The control token that a text spells; None where it is text throughout."""
        return self._control_token(text, self._ids(text))

    def end_token(self, *, messages: Messages = ()) -> int:
        """Id that ends a response: the template's end-of-turn token after `messages`, or else the tokenizer's own."""
        if messages:
            answer = {"role": "assistant", "content": _MARK}
            return self._ending([*messages, answer])[1][0]
        if self._tokenizer.eos_token_id is None:
            raise DataError("the tokenizer has no end-of-sequence token; add eos_token to its configuration")
        return int(self._tokenizer.eos_token_id)

    def _plain_prompt(self, text: str) -> list[int]:
        end = self.end_token()
        own_ids = self._ids(text)
        self._refuse_control_tokens("prompt", text, own_ids)
        ids = list(self._tokenizer(text)["input_ids"])
        if ids[-1:] == [end] and own_ids[-1:] != [end]:
            ids.pop()  # some tokenizers close every text; the prompt goes on
        if not ids:
            raise DataError(
                "prompt: expected at least one token, by which the completion's first one is predicted; write a prompt"
            )
        return ids

    def _completion(self, sample: Sample) -> tuple[list[int], list[bool]]:
        """Prompt and completion are tokenized apart: that is what the model will see when it generates."""
        prompt_ids = self._plain_prompt(sample.prompt)
        completion_ids = self._continuation("completion", sample.completion)
        self._refuse_control_tokens("completion", sample.completion, completion_ids)
        completion_ids.append(self.end_token())
        return prompt_ids + completion_ids, [False] * len(prompt_ids) + [True] * len(completion_ids)

    def _chat(self, sample: Sample) -> tuple[list[int], list[bool]]:
        supervised = sample.supervised_turns
        messages = sample.messages[: supervised[-1] + 1]
        self._refuse_control_tokens_in(messages)
        turns = [self._turn(messages[: index + 1]) for index in supervised]
        last = turns[-1]
        input_ids = last.prompt + last.body + last.ending
        mask = [False] * len(input_ids)
        for index, turn in zip(supervised, turns, strict=True):
            start, stop = len(turn.prompt), len(turn.prompt) + len(turn.body)
            following = input_ids[stop : stop + 1]
            begins_alike = input_ids[:stop] == turn.prompt + turn.body
            if not begins_alike and self._text(messages).startswith(turn.text):
                raise DataError(f"messages[{index}]: {_why_one_token(turn.content)}")
            if not begins_alike or not self._marks >= {*following}:
                raise DataError(
                    f"messages[{index}]: the chat template renders this turn differently once more turns follow, so "
                    f"its tokens cannot be told apart; give this turn weight 0, or {OWN_ROW}"
                )
            # Where a template ends a turn otherwise once more turns follow, the end shown is not the one to learn.
            stop += following == turn.ending[:1]
            mask[start:stop] = [True] * (stop - start)
        return input_ids, mask

    def _turn(self, messages: Messages) -> "_Turn":
        """The last message, a supervised one."""
        content, where = messages[-1]["content"], f"messages[{len(messages) - 1}]"
        prompt_text = self._text(messages[:-1], generation_prompt=True)
        rendered = self._text(messages)
        ending_text, ending = self._ending(messages)
        prompt = self._ids(prompt_text)
        opening = _reasoning_opening(prompt_text)
        if opening and content.startswith(opening) and not _goes_on_from(prompt_text, rendered, content):
            # The template drops the reasoning of finished turns, or takes it from a field that rows do not have. What
            # the model has to write after the prompt is the text as it stands, without the opening tag.
            body_text = content.removeprefix(opening)
            return _Turn(prompt, self._continuation(where, body_text), ending, prompt_text + body_text, content)
        through = self._ids(rendered)
        goes_on = through[: len(prompt)] == prompt
        if not goes_on and not rendered.startswith(prompt_text):
            raise DataError(f"{where}: {_why_not_from(prompt_text)}")
        text = rendered.removesuffix(ending_text)
        if (reasoning := _reasoning(content)) not in text:
            raise DataError(
                f"{where}: the chat template leaves the reasoning {reasoning[:_SHOWN]!r} out; remove it, or use "
                "another template"
            )
        if through[len(through) - len(ending) :] != ending:
            raise DataError(
                f"{where}: the chat template ends a turn with {ending_text!r}, but not this one, so its end cannot be "
                "told; give it weight 0, or use another template"
            )
        if goes_on:
            return _Turn(prompt, through[len(prompt) : len(through) - len(ending)], ending, text, content)
        # The prompt's last token and the first of this turn would become one, which generation never writes.
        return _Turn(prompt, self._continuation(where, text[len(prompt_text) :]), ending, text, content)

    def _ending(self, messages: Messages) -> tuple[str, list[int]]:
        """What the template writes after the last message: its end token, then what is never generated (a newline).

        It belongs to the template, not to the text, so it is read off the same conversation with a mark for its text.
        """
        where = f"messages[{len(messages) - 1}]"
        marked = self._text([*messages[:-1], {**messages[-1], "content": _MARK}])
        _, found, ending = marked.rpartition(_MARK)
        if not found:
            raise DataError(
                f"{where}: the chat template leaves this turn out, so there is nothing to learn from it; use another "
                "template"
            )
        ending = ending.lstrip()
        ids = self._ids(ending)
        if not ids or ids[0] not in self._marks:
            raise DataError(
                f"{where}: the chat template closes the assistant's turn without a special token, so the model would "
                "never learn to stop; use a template with an end-of-turn token"
            )
        return ending, ids

    def _continuation(self, where: str, text: str) -> list[int]:
        """Ids of a text that goes on from other text: exactly its characters.

        SentencePiece puts a blank before every text, which a text that is the continuation of another must not get.
        """
        if not self._puts_blank_before_text:
            return self._ids(text)
        for anchor in _ANCHORS:
            before, together = self._ids(anchor), self._ids(anchor + text)
            if before and together[: len(before)] == before:
                return together[len(before) :]
        raise DataError(
            f"{where}: the tokenizer puts a blank before {text[:20]!r} that is not in the file; let this text begin "
            "elsewhere"
        )

    def _refuse_control_tokens_in(self, messages: Messages) -> None:
        for index, message in enumerate(messages):
            content = message["content"]
            self._refuse_control_tokens(f"messages[{index}].content", content, self._ids(content))

    def _refuse_control_tokens(self, where: str, text: str, ids: list[int]) -> None:
        """Raise where a text, or `ids` made of it, holds a control token."""
        spelled = self._control_token(text, ids)
        if spelled is not None:
            raise DataError(
                f"{where}: this text spells {spelled!r}, which the model reads as a control token, not as text; "
                "take it out (the turns of `messages`, and every end token, are written for you), or leave this row out"
            )

    def _control_token(self, text: str, ids: list[int]) -> str | None:
        unknown = next((name for name in self._unknown if name in text), None)
        token = next((token for token in ids if token in self._control), None)
        return unknown if unknown or token is None else str(self._tokenizer.convert_ids_to_tokens(token))

    def _control_ids(self) -> set[int]:
        """Ids that no text may become: special tokens, and what the template writes to part turns.

        A tokenizer may have delimiters that are not flagged as special. Tokens that stand for unknown characters are
        looked for by name, because any odd character becomes one.
        """
        special = {token for token, added in self._added.items() if added.special}
        delimiters = {token for token in self._ids(self._example()) if _TAG.fullmatch(str(self._added.get(token, "")))}
        found = sorted(special | delimiters | {*self._tokenizer.all_special_ids})
        # A special token of one character is no markup: some tokenizers pad with "!".
        return {
            token
            for token, name in zip(found, self._tokenizer.convert_ids_to_tokens(found), strict=True)
            if name not in THINK_TAGS and name not in self._unknown and len(name) > 1
        }

    def _example(self) -> str:
        """A short chat with all that the template writes around texts, or nothing where it takes no such chat."""
        turns = [{"role": "user", "content": _MARK}, {"role": "assistant", "content": _MARK}]
        try:
            return self._text(turns) + self._text(turns[:1], generation_prompt=True)
        except DataError:
            return ""

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _text(self, messages: Messages, *, generation_prompt: bool = False) -> str:
        if not self._tokenizer.chat_template:
            raise DataError("the tokenizer has no chat template; use prompt/completion rows or another model")
        try:
            text = self._tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=generation_prompt
            )
        except UndefinedError as error:
            raise DataError(
                f"messages: the chat template lacks something: {error}; use this tokenizer's own template, one for "
                "plain text"
            ) from error
        except TemplateError as error:
            raise DataError(
                f"messages: the chat template refuses this conversation: {error}; change the messages to what it takes"
            ) from error
        return str(text)


class _Turn(NamedTuple):
    """A supervised turn, rendered as the last one of its conversation."""

    prompt: list[int]
    """Ids that generation gets."""
    body: list[int]
    """Ids of what is to be written then."""
    ending: list[int]
    """The end token, and what the template writes after it, which is never generated."""
    text: str
    """Of prompt and body."""
    content: str
    """The message's own."""


def _reasoning_opening(prompt_text: str) -> str:
    """The opening tag of reasoning in which a generation prompt ends, with the blanks after it, or "" without one."""
    found = _THINK_BLOCK_AT_END.search(prompt_text)
    return found.group() if found and not found.group(1) else ""


def _goes_on_from(prompt_text: str, rendered: str, content: str) -> bool:
    """Whether a finished turn that begins with reasoning is shown as what follows the generation prompt: with this
    reasoning in the block that the prompt opens, and not in a second one."""
    return rendered.startswith(prompt_text) and content.strip() not in rendered[len(prompt_text) :]


def _reasoning(content: str) -> str:
    """What a text says before its closing tag of reasoning, or "" without one."""
    before, closed, _ = content.partition(THINK_TAGS[1])
    return before.rpartition(THINK_TAGS[0])[2].strip() if closed else ""


def _why_not_from(prompt_text: str) -> str:
    """Why a turn does not go on from its generation prompt, and the way out."""
    block = _THINK_BLOCK_AT_END.search(prompt_text)
    tail = block.group() if block else prompt_text[-_SHOWN:]
    cause = f"the generation prompt ends in {tail!r}, this turn does not begin so; "
    if block is None:
        return cause + "use a chat template whose turns begin as its generation prompt does"
    if block.group(1):
        return cause + "remove the reasoning from this turn's text"
    return cause + f"begin its text with {tail!r}, its reasoning, if there is any, and {_CLOSING!r}, before the answer"


def _why_one_token(content: str) -> str:
    """Why the tokens of a turn are others once more turns follow, though its text is the same, and the way out."""
    begin = "begin its text without blanks, " if content[:1].isspace() else ""
    return (
        "the end of the generation prompt and the beginning of this turn become one token once more turns follow, "
        f"which generation would never produce; {begin}give this turn weight 0, or {OWN_ROW}"
    )


def _unknown_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Names of the tokens that stand for characters which the vocabulary lacks."""
    model: Any = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    names = {tokenizer.unk_token, getattr(model, "unk_token", None)}
    return {str(name) for name in names if name}
