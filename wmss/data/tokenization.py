"""The rows of a file as token ids and masks: every phase (training, scoring, evaluation) uses its result.

How one row is rendered, and what of it is supervised, is `wmss.data.rendering`.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerBase

from wmss.choices import TooLong
from wmss.data.dataset import Sample, raise_rows, read_samples
from wmss.data.rendering import Renderer
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
    renderer = Renderer(tokenizer)
    tokenized, cut, problems = [], [], []
    for sample, rendered in zip(samples, renderer.samples(samples), strict=True):
        if isinstance(rendered, DataError):
            problems.append(f"line {sample.line}: {rendered}")
            continue
        input_ids, mask = rendered
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
