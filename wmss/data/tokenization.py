"""The one place where text becomes tokens and a mask: every phase (training, scoring, evaluation) uses its result.

Chat rows are rendered by the tokenizer's own chat template. Every assistant turn of weight 1 is supervised, from the
first token after the generation prompt to its end token inclusive; nothing else is. The mask comes from rendering each
prefix of the conversation, so a template that rewrites earlier supervised turns is refused rather than guessed at.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from wmss.choices import TooLong
from wmss.data.dataset import Sample, raise_rows, read_samples
from wmss.errors import DataError
from wmss.records import TokenizedSample


def tokenize_file(file: str | Path, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> list[TokenizedSample]:
    """Every sample of a JSON-lines file, for any trainer: `input_ids` and `labels`.

    Args:
        file: chat `messages`, or `prompt` and `completion`, one row a line. Rows are those of a job's training file.
        tokenizer: with a chat template, where rows are chats.
        max_length: tokens of a sample; longer completions are cut.

    Raises:
        DataError: with line numbers, where a row cannot be used, its prompt alone fills `max_length`, or the chat
            template does not show which tokens are the assistant's.
    """
    path = Path(file)
    samples = read_samples(path, param="file")
    return tokenize_samples(samples, tokenizer, max_length=max_length, source=path.name, param="file")[0]


def tokenize_samples(
    samples: Sequence[Sample],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    too_long: TooLong = "auto",
    context: int | None = None,
    source: str,
    param: str = "training_file",
) -> tuple[list[TokenizedSample], list[int]]:
    """Render, tokenize and mask every sample.

    Args:
        max_length: tokens of a sample.
        too_long: of a longer sample, "refuse" refuses the file, "drop" leaves the sample out, "cut" takes its first
            `max_length` tokens, or leaves it out where none of them is supervised; "auto" = "cut", but such a sample
            refuses the file.
        context: the most that `max_length` may be, where that is known.
        source: what messages call the file; `param` is its field.

    Returns:
        The samples that are not left out, in order, and the lines whose completion was cut (their end token is lost).

    Raises:
        DataError: with line numbers, where a sample is refused or the template cannot be masked; or all are left out.
    """
    tokenized, cut, problems = [], [], []
    for sample in samples:
        try:
            input_ids, mask = _render(sample, tokenizer)
        except DataError as error:
            problems.append(f"line {sample.line}: {error}")
            continue
        if len(input_ids) > max_length and too_long == "drop":
            continue
        if len(input_ids) > max_length and too_long == "refuse":
            problems.append(
                f"line {sample.line}: {len(input_ids)} tokens, more than max_length {max_length}; "
                f"{remedy(max_length, context, 'it')}"
            )
            continue
        if not any(mask[:max_length]):
            if too_long == "cut":
                continue
            problems.append(
                f"line {sample.line}: 0 supervised tokens: the prompt of {mask.index(True)} tokens fills "
                f"max_length {max_length}; {remedy(max_length, context, 'it')}"
            )
            continue
        if len(input_ids) > max_length:
            cut.append(sample.line)
            input_ids, mask = input_ids[:max_length], mask[:max_length]
        tokenized.append(
            TokenizedSample(
                line=sample.line,
                input_ids=np.asarray(input_ids, dtype=np.int32),
                target_mask=np.asarray(mask, dtype=np.bool_),
            )
        )
    raise_rows(source, problems, param)
    if samples and not tokenized:
        raise DataError(
            f"{param}: all {len(samples):,} rows of {source} are longer than max_length {max_length}, so too_long "
            f"{too_long!r} leaves none; {remedy(max_length, context, 'them')}",
            param=param,
        )
    return tokenized, cut


def remedy(max_length: int, context: int | None, rows: str) -> str:
    """What to do about rows ("it", "them") longer than `max_length`: a model takes no more than its context."""
    drop = f"leave {rows} out with too_long 'drop'"
    if context is None:
        return f"shorten {rows}, {drop}, or raise max_length"
    if max_length < context:
        return f"shorten {rows}, {drop}, or raise max_length, to at most the model's context of {context}"
    return f"shorten {rows} or {drop}: {context} is the model's context"


def _render(sample: Sample, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[bool]]:
    return _render_chat(sample, tokenizer) if sample.messages else _render_completion(sample, tokenizer)


def render_prompt(
    tokenizer: PreTrainedTokenizerBase, *, messages: Sequence[dict[str, str]] = (), prompt: str = ""
) -> list[int]:
    """Ids of what stands before a completion: a chat with the template's generation prompt, or else a plain prompt.

    Raises `DataError`, without a line, where the tokenizer cannot render it.
    """
    if messages:
        _require_template(tokenizer)
        return list(_apply_template(tokenizer, list(messages), generation_prompt=True))
    end = end_token(tokenizer)
    prompt_ids = list(tokenizer(prompt)["input_ids"])
    own_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    if prompt_ids[-1:] == [end] and own_ids[-1:] != [end]:
        prompt_ids.pop()  # some tokenizers close every text; the prompt goes on
    if not prompt_ids:
        raise DataError("prompt: expected at least one token: the first completion token needs a predecessor")
    return prompt_ids


def end_token(tokenizer: PreTrainedTokenizerBase, *, messages: Sequence[dict[str, str]] = ()) -> int:
    """Id that ends a response: the template's end-of-turn token after `messages`, or else the tokenizer's own.

    Raises `DataError`, without a line, where there is none.
    """
    if messages:
        _require_template(tokenizer)
        return _turn_ending(tokenizer, [*messages, {"role": "assistant", "content": _MARK}])[0]
    if tokenizer.eos_token_id is None:
        raise DataError("the tokenizer has no end-of-sequence token; add eos_token to its configuration")
    return int(tokenizer.eos_token_id)


def _require_template(tokenizer: PreTrainedTokenizerBase) -> None:
    if not tokenizer.chat_template:
        raise DataError("the tokenizer has no chat template; use prompt/completion rows or another model")


def _render_completion(sample: Sample, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[bool]]:
    """Prompt and completion are tokenized apart: that is what the model will see when it generates."""
    prompt_ids = render_prompt(tokenizer, prompt=sample.prompt)
    completion_ids = list(tokenizer(sample.completion, add_special_tokens=False)["input_ids"])
    completion_ids.append(end_token(tokenizer))
    return prompt_ids + completion_ids, [False] * len(prompt_ids) + [True] * len(completion_ids)


def _render_chat(sample: Sample, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[bool]]:
    _require_template(tokenizer)
    # What follows the last supervised turn can influence no target.
    messages = list(sample.messages[: sample.supervised_turns[-1] + 1])
    input_ids = _apply_template(tokenizer, messages, generation_prompt=False)
    mask = [False] * len(input_ids)
    for index in sample.supervised_turns:
        prompt = _apply_template(tokenizer, messages[:index], generation_prompt=True)
        through = _apply_template(tokenizer, messages[: index + 1], generation_prompt=False)
        if input_ids[: len(through)] != through:
            raise DataError(
                f"messages[{index}]: the chat template renders this turn differently once more turns follow, so its "
                "tokens cannot be told apart; give each turn a row of its own with `wmss convert --split-turns`"
            )
        if through[: len(prompt)] != prompt:
            raise DataError(
                f"messages[{index}]: this turn's text and the header before it share a token (a leading newline or "
                "space, as a rule), which generation would never produce; remove it"
            )
        ending = _turn_ending(tokenizer, messages[: index + 1])
        if through[len(through) - len(ending) :] != ending:
            raise DataError(f"messages[{index}]: this turn's text and its end share a token; remove trailing spaces")
        end = len(through) - len(ending) + 1
        mask[len(prompt) : end] = [True] * (end - len(prompt))
    return input_ids, mask


def _turn_ending(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> list[int]:
    """Ids that the template writes after the last message: its end token, then what is never generated (a newline).

    They belong to the template, not to the text, so they are read off the same conversation with a mark for its text.
    """
    where = f"messages[{len(messages) - 1}]"
    marked = [*messages[:-1], {**messages[-1], "content": _MARK}]
    rendered = str(_apply_template(tokenizer, marked, generation_prompt=False, tokenize=False))
    _, found, ending = rendered.rpartition(_MARK)
    if not found:
        raise DataError(f"{where}: the chat template leaves this turn out, so there is nothing to learn from it")
    ids = list(tokenizer(ending.lstrip(), add_special_tokens=False)["input_ids"])
    if not ids or ids[0] not in {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}:
        raise DataError(
            f"{where}: the chat template closes the assistant's turn without a special token, so the model would never "
            "learn to stop; use a template with an end-of-turn token"
        )
    return ids


def _apply_template(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[dict[str, str]],
    *,
    generation_prompt: bool,
    tokenize: bool = True,
) -> Any:
    """Ids, or with `tokenize=False` text, of a conversation."""
    try:
        return tokenizer.apply_chat_template(
            messages, tokenize=tokenize, add_generation_prompt=generation_prompt, return_dict=False
        )
    except TemplateError as error:
        raise DataError(f"messages: the chat template refuses this conversation: {error}") from error


_MARK = "\ue000"  # a private-use character: no template looks for it

_SCHEMA = pa.schema([("line", pa.int32()), ("input_ids", pa.list_(pa.int32())), ("target_mask", pa.list_(pa.bool_()))])


def save_tokenized(samples: Sequence[TokenizedSample], path: Path) -> None:
    """Write samples as parquet, in order."""
    columns = {
        "line": [sample.line for sample in samples],
        "input_ids": [sample.input_ids for sample in samples],
        "target_mask": [sample.target_mask for sample in samples],
    }
    pq.write_table(pa.table(columns, schema=_SCHEMA), path)


class TokenizedFile(Sequence[TokenizedSample]):
    """The samples of a file, each made when it is asked for: 5 bytes a token, and nothing a sample."""

    def __init__(self, path: Path) -> None:
        table = pq.read_table(path, schema=_SCHEMA).combine_chunks()
        self._lines = table["line"].to_numpy()
        ids = table["input_ids"].combine_chunks()
        self._offsets = ids.offsets.to_numpy().astype(np.int64)
        self._ids = ids.values.to_numpy().copy()  # Arrow's own memory is read-only, which torch does not take
        self._mask = table["target_mask"].combine_chunks().values.to_numpy(zero_copy_only=False)

    def __len__(self) -> int:
        return len(self._lines)

    @overload
    def __getitem__(self, index: int) -> TokenizedSample: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenizedSample]: ...
    def __getitem__(self, index: int | slice) -> TokenizedSample | list[TokenizedSample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = range(len(self))[index]
        part = slice(self._offsets[row], self._offsets[row + 1])
        return TokenizedSample(line=int(self._lines[row]), input_ids=self._ids[part], target_mask=self._mask[part])


def load_tokenized(path: Path) -> TokenizedFile:
    """Read what `save_tokenized` wrote."""
    return TokenizedFile(path)


def tokens_digest(samples: Sequence[TokenizedSample]) -> str:
    """SHA-256 over lines, ids, masks and boundaries: two files with equal digests give the same table of scores."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(sample.line.to_bytes(8, "little") + len(sample.input_ids).to_bytes(8, "little"))
        digest.update(sample.input_ids.tobytes())
        digest.update(sample.target_mask.tobytes())
    return digest.hexdigest()
