"""One row as token ids and a mask: what becomes a token, and what is supervised.

Chats are rendered by the tokenizer's own chat template. A supervised turn is two things: the *generation prompt*, token
for token what a model is given that is to write this turn, and the *body* with its end token, what the model has to
write then. The first token of the body is where the generation prompt ends, so a turn that does not go on from it is
refused: the mask would teach an answer to a prompt that generation never gives.

Text is text: a row whose text spells a control token is refused (`docs/decisions/0008-chat-templates.md` says why).
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from jinja2 import TemplateError, UndefinedError
from transformers import PreTrainedTokenizerBase

from wmss.data.dataset import Sample
from wmss.data.encoding import Encoder, Tokens, Whole
from wmss.data.prefixes import Prefixes, prefixes
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
_AHEAD_ROWS, _AHEAD_CHARACTERS = 256, 2**18
"""Rows that are encoded together, and their characters: with their ids and places, some tens of MB."""

Rendered = tuple[list[int], list[bool]]
"""Ids and mask of a row."""
Argument = TypeVar("Argument")
Result = TypeVar("Result")


class Renderer:
    """Rows as tokens, with one tokenizer and its chat template as they are when it is made.

    Its methods raise `DataError`, without a line, where the tokenizer cannot render what it is given or a text spells a
    control token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._encoder = Encoder(tokenizer)
        self._added = tokenizer.added_tokens_decoder
        self._marks = {*self._added, *tokenizer.all_special_ids}
        self._unknown = _unknown_tokens(tokenizer)
        self._control = self._control_ids()
        first = tokenizer.convert_ids_to_tokens(self._ids("a"))[:1]
        self._puts_blank_before_text = first != [] and first[0].startswith(("▁", "Ġ"))

    def sample(self, sample: Sample) -> Rendered:
        """Ids and mask of a row, cut after its last supervised turn: what follows can influence no target."""
        (found,) = self.samples([sample])
        if isinstance(found, DataError):
            raise found
        return found

    def samples(self, samples: Sequence[Sample]) -> Iterator[Rendered | DataError]:
        """`sample` of each row, or its error: texts of many rows are encoded together, which is faster."""
        for part in _parts(samples):
            yield from self._part(part)

    def _part(self, samples: Sequence[Sample]) -> list[Rendered | DataError]:
        """Rows whose texts are encoded together: first those of the file, then what the template makes of them."""
        completions = [sample for sample in samples if not sample.messages]
        self._encoder.ahead(
            [
                *(message["content"] for sample in samples for message in sample.messages),
                *(text for sample in completions for text in (sample.prompt, self._first_try(sample.completion))),
            ],
            closed=[sample.prompt for sample in completions],
        )
        opened = [_caught(self._opened, sample) for sample in samples]
        chats = [each for each in opened if isinstance(each, _Chat) and each.render_ahead()]
        self._encoder.ahead(wholes=[chat.whole for chat in chats])
        self._encoder.ahead(text for chat in chats for text in self._to_encode(chat))
        rows: list[Rendered | DataError] = [
            _caught(self._chat, each) if isinstance(each, _Chat) else each for each in opened
        ]
        self._encoder.forget()
        return rows

    def _opened(self, sample: Sample) -> "Rendered | _Chat":
        """A row of prompt and completion, or the chat of one whose texts spell no control token."""
        if not sample.messages:
            return self._completion(sample)
        supervised = sample.supervised_turns
        messages = sample.messages[: supervised[-1] + 1]
        self._refuse_control_tokens_in(messages)
        known = prefixes(self._tokenizer, messages, mark=_MARK) if len(supervised) > 1 else None
        return _Chat(messages, supervised, known, self._text)

    def _to_encode(self, chat: "_Chat") -> Iterator[str]:
        """The texts whose ids `_chat` needs, beside the whole one's."""
        whole = self._encoder.whole(chat.whole)
        for index in chat.supervised:
            prompt, rendered = chat.text(index, generation_prompt=True), chat.text(index + 1)
            yield self._encoder.rest(prompt, whole, chat.common(index, prompt))
            yield self._encoder.rest(rendered, whole, chat.common(index + 1, rendered))
            yield _after_mark(chat.marked(index + 1)) or ""

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
            marked = self._text([*messages, {"role": "assistant", "content": _MARK}])
            return self._ending(len(messages), marked)[1][0]
        if self._tokenizer.eos_token_id is None:
            raise DataError("the tokenizer has no end-of-sequence token; add eos_token to its configuration")
        return int(self._tokenizer.eos_token_id)

    def _plain_prompt(self, text: str) -> list[int]:
        end = self.end_token()
        own_ids = self._ids(text)
        self._refuse_control_tokens("prompt", text, own_ids)
        ids = self._encoder.closed_ids(text)
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

    def _chat(self, chat: "_Chat") -> Rendered:
        # Where a beginning cannot be rendered, a turn is refused below; the first of them is the one to tell.
        whole = self._encoder.whole(chat.whole) if chat.is_rendered else Whole("", [], [], [])
        turns = [self._turn(chat, index, whole) for index in chat.supervised]
        last = turns[-1]
        input_ids = last.prompt.part(0, len(last.prompt)) + last.body + last.ending
        mask = [False] * len(input_ids)
        for index, turn in zip(chat.supervised, turns, strict=True):
            start, stop = len(turn.prompt), len(turn.prompt) + len(turn.body)
            following = input_ids[stop : stop + 1]
            # Both go on from the same ids of the whole chat.
            both = min(turn.prompt.shared, last.prompt.shared)
            begins_alike = input_ids[both:stop] == turn.prompt.part(both, start) + turn.body
            if not begins_alike and chat.whole.startswith(turn.text):
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

    def _turn(self, chat: "_Chat", index: int, whole: Whole) -> "_Turn":
        """A supervised message as the last one of its conversation."""
        content, where = chat.messages[index]["content"], f"messages[{index}]"
        prompt_text = chat.text(index, generation_prompt=True)
        rendered = chat.text(index + 1)
        ending_text, ending = self._ending(index, chat.marked(index + 1))
        prompt = self._encoder.beginning(prompt_text, whole, chat.common(index, prompt_text))
        opening = _reasoning_opening(prompt_text)
        if opening and content.startswith(opening) and not _goes_on_from(prompt_text, rendered, content):
            # The template drops the reasoning of finished turns, or takes it from a field that rows do not have. What
            # the model has to write after the prompt is the text as it stands, without the opening tag.
            body_text = content.removeprefix(opening)
            return _Turn(prompt, self._continuation(where, body_text), ending, prompt_text + body_text, content)
        through = self._encoder.beginning(rendered, whole, chat.common(index + 1, rendered))
        goes_on = through.begins_with(prompt)
        if not goes_on and not rendered.startswith(prompt_text):
            raise DataError(f"{where}: {_why_not_from(prompt_text)}")
        text = rendered.removesuffix(ending_text)
        if (reasoning := _reasoning(content)) not in text:
            raise DataError(
                f"{where}: the chat template leaves the reasoning {reasoning[:_SHOWN]!r} out; remove it, or use "
                "another template"
            )
        stop = max(len(through) - len(ending), 0)
        if through.part(stop, len(through)) != ending:
            raise DataError(
                f"{where}: the chat template ends a turn with {ending_text!r}, but not this one, so its end cannot be "
                "told; give it weight 0, or use another template"
            )
        if goes_on:
            return _Turn(prompt, through.part(len(prompt), stop), ending, text, content)
        # The prompt's last token and the first of this turn would become one, which generation never writes.
        return _Turn(prompt, self._continuation(where, text[len(prompt_text) :]), ending, text, content)

    def _ending(self, index: int, marked: str) -> tuple[str, list[int]]:
        """What the template writes after a message: its end token, then what is never generated (a newline).

        It belongs to the template, not to the text, so it is read off the same conversation with a mark for its text.
        """
        where = f"messages[{index}]"
        ending = _after_mark(marked)
        if ending is None:
            raise DataError(
                f"{where}: the chat template leaves this turn out, so there is nothing to learn from it; use another "
                "template"
            )
        ids = self._ids(ending)
        if not ids or ids[0] not in self._marks:
            raise DataError(
                f"{where}: the chat template closes the assistant's turn without a special token, so the model would "
                "never learn to stop; use a template with an end-of-turn token"
            )
        return ending, ids

    def _first_try(self, text: str) -> str:
        """What `_continuation` encodes first."""
        return _ANCHORS[0] + text if self._puts_blank_before_text else text

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
        return self._encoder.ids(text)

    def _text(self, messages: Messages, generation_prompt: bool = False) -> str:
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


class _Chat:
    """A row's chat up to its last supervised turn, and the texts of its beginnings."""

    def __init__(
        self,
        messages: Messages,
        supervised: Sequence[int],
        known: Prefixes | None,
        render: Callable[[Messages, bool], str],
    ) -> None:
        self.messages, self.supervised = messages, supervised
        self._prefixes, self._render = known, render
        self._rendered: dict[tuple[int, str], str] = {}
        self.is_rendered = False

    def render_ahead(self) -> bool:
        """Render all texts; False where one cannot be, which whoever asks for it will see."""
        try:
            for index in self.supervised:
                self.text(index, generation_prompt=True)
                self.text(index + 1)
                self.marked(index + 1)
        except Exception:  # what a template may raise is any; asking again raises it where it belongs
            return False
        self.is_rendered = True
        return True

    @property
    def whole(self) -> str:
        """The text of all messages."""
        return self.text(len(self.messages))

    def text(self, length: int, *, generation_prompt: bool = False) -> str:
        """The text of the first `length` messages."""
        if self._prefixes is not None:
            return self._prefixes.text(length, generation_prompt=generation_prompt)
        key = (length, "prompt" if generation_prompt else "text")
        if key not in self._rendered:
            self._rendered[key] = self._render(self.messages[:length], generation_prompt)
        return self._rendered[key]

    def marked(self, length: int) -> str:
        """The same with the mark for the last message's text."""
        if self._prefixes is not None:
            return self._prefixes.marked_text(length)
        key = (length, "marked")
        if key not in self._rendered:
            *before, last = self.messages[:length]
            self._rendered[key] = self._render([*before, {**last, "content": _MARK}], False)
        return self._rendered[key]

    def common(self, length: int, text: str) -> int:
        """Characters with which a text of the first `length` messages and that of all begin alike, or fewer."""
        if self._prefixes is not None:
            return self._prefixes.ends[length]
        return len(text) if self.is_rendered and self.whole.startswith(text) else 0


class _Turn(NamedTuple):
    """A supervised turn, rendered as the last one of its conversation."""

    prompt: Tokens
    """Ids that generation gets."""
    body: list[int]
    """Ids of what is to be written then."""
    ending: list[int]
    """The end token, and what the template writes after it, which is never generated."""
    text: str
    """Of prompt and body."""
    content: str
    """The message's own."""


def _caught(function: Callable[[Argument], Result], argument: Argument) -> Result | DataError:
    try:
        return function(argument)
    except DataError as error:
        return error


def _parts(samples: Sequence[Sample]) -> Iterator[list[Sample]]:
    """Rows in order, in parts of about `_AHEAD_CHARACTERS`."""
    part: list[Sample] = []
    characters = 0
    for sample in samples:
        part.append(sample)
        characters += len(sample.prompt) + len(sample.completion) + sum(len(m["content"]) for m in sample.messages)
        if characters >= _AHEAD_CHARACTERS or len(part) >= _AHEAD_ROWS:
            yield part
            part, characters = [], 0
    if part:
        yield part


def _after_mark(marked: str) -> str | None:
    """What follows the mark, without the blanks before it; None where there is no mark."""
    place = marked.rfind(_MARK)
    return None if place < 0 else marked[place + len(_MARK) :].lstrip()


def _think_block(prompt_text: str) -> re.Match[str] | None:
    """The block of reasoning in which a generation prompt ends, open or closed."""
    ends_so = prompt_text.rstrip().endswith(THINK_TAGS)  # a search of a long chat that ends otherwise takes longer
    return _THINK_BLOCK_AT_END.search(prompt_text) if ends_so else None


def _reasoning_opening(prompt_text: str) -> str:
    """The opening tag of reasoning in which a generation prompt ends, with the blanks after it, or "" without one."""
    found = _think_block(prompt_text)
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
    block = _think_block(prompt_text)
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
