"""Texts as token ids: many at a time, and texts with a common beginning without encoding it again."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from transformers import PreTrainedTokenizerBase

Result = TypeVar("Result")


@dataclass(frozen=True)
class Whole:
    """A text's ids, and where it can be cut: ids before a cut and those from it on are those of the two texts."""

    text: str
    ids: list[int]
    starts: list[int]
    """Characters before each cut, ascending."""
    counts: list[int]
    """Ids before each."""


class Tokens:
    """The ids of a text that begins as a `Whole` does: `shared` ids of that, then its `own`."""

    def __init__(self, whole: Sequence[int], shared: int, own: list[int]) -> None:
        self._whole, self.shared, self.own = whole, shared, own

    def __len__(self) -> int:
        return self.shared + len(self.own)

    def part(self, start: int, stop: int) -> list[int]:
        """Ids `start` to `stop`; none where `stop` comes first."""
        own = self.own[max(start - self.shared, 0) : max(stop - self.shared, 0)]
        return [*self._whole[start : max(min(stop, self.shared), start)], *own]

    def begins_with(self, other: "Tokens") -> bool:
        """Whether the first ids are all of `other`, a beginning of the same whole and its own."""
        both = min(self.shared, other.shared)
        return len(self) >= len(other) and self.part(both, len(other)) == other.part(both, len(other))


class Encoder:
    """Texts as ids without the tokens that a tokenizer puts around them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._cutting = _cutting_tokens(tokenizer)
        self._longest = max(map(len, self._cutting.values()), default=0)
        self._known: dict[str, list[int]] = {}
        self._closed: dict[str, list[int]] = {}
        self._wholes: dict[str, Whole] = {}

    def ids(self, text: str) -> list[int]:
        """Ids of a text."""
        known = self._known.get(text)
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"]) if known is None else list(known)

    def closed_ids(self, text: str) -> list[int]:
        """Ids of a text with the tokens that the tokenizer puts around it."""
        known = self._closed.get(text)
        return list(self._tokenizer(text)["input_ids"]) if known is None else list(known)

    def whole(self, text: str) -> Whole:
        """A text with its cuts."""
        return self._wholes.get(text) or self._cut([text])[0]

    def beginning(self, text: str, whole: Whole, common: int) -> Tokens:
        """Ids of a text whose first `common` characters are those of `whole`."""
        if text == whole.text:
            return Tokens(whole.ids, len(whole.ids), [])
        shared, rest = self._split(text, whole, common)
        return Tokens(whole.ids, shared, self.ids(rest))

    def rest(self, text: str, whole: Whole, common: int) -> str:
        """The part of it that `beginning` encodes."""
        return "" if text == whole.text else self._split(text, whole, common)[1]

    def _split(self, text: str, whole: Whole, common: int) -> tuple[int, str]:
        # A longer added token may begin where a cut's does, and end outside of what is common.
        cut = bisect_right(whole.starts, common - self._longest) - 1
        return (0, text) if cut < 0 else (whole.counts[cut], text[whole.starts[cut] :])

    def ahead(self, texts: Iterable[str] = (), *, closed: Iterable[str] = (), wholes: Iterable[str] = ()) -> None:
        """Encode at once what will be asked for, until `forget`."""
        self._known |= _encoded(texts, lambda batch: self._encode(batch, add_special_tokens=False))
        self._closed |= _encoded(closed, lambda batch: self._encode(batch, add_special_tokens=True))
        self._wholes |= _encoded(wholes, self._cut)

    def forget(self) -> None:
        """Free what was encoded ahead."""
        self._known, self._closed, self._wholes = {}, {}, {}

    def _encode(self, texts: list[str], *, add_special_tokens: bool) -> list[list[int]]:
        return list(
            self._tokenizer(texts, add_special_tokens=add_special_tokens, return_attention_mask=False)["input_ids"]
        )

    def _cut(self, texts: list[str]) -> list[Whole]:
        if not self._cutting:
            return [
                Whole(text, ids, [], [])
                for text, ids in zip(texts, self._encode(texts, add_special_tokens=False), strict=True)
            ]
        encoded = self._tokenizer(
            texts, add_special_tokens=False, return_attention_mask=False, return_offsets_mapping=True
        )
        found = []
        for text, ids, places in zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True):
            cuts = [
                (start, count)
                for count, (token, (start, end)) in enumerate(zip(ids, places, strict=True))
                if token in self._cutting and text[start:end] == self._cutting[token]
            ]
            found.append(Whole(text, ids, [start for start, _ in cuts], [count for _, count in cuts]))
        return found


def _encoded(texts: Iterable[str], encode: Callable[[list[str]], list[Result]]) -> dict[str, Result]:
    distinct = list(dict.fromkeys(texts))
    return dict(zip(distinct, encode(distinct), strict=True)) if distinct else {}


def _cutting_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Tokens before which a text can be cut, with what they spell; none where that is not sure.

    A tokenizer of the `tokenizers` library first looks for added tokens, from the left, and treats each stretch between
    them apart. Some added tokens take blanks or look at letters beside them, or are found in the normalized text only.
    What a stretch becomes may depend on whether it is the first, so a cut is before a token, never after it.
    """
    added = tokenizer.added_tokens_decoder
    if (
        not tokenizer.is_fast
        or getattr(tokenizer, "split_special_tokens", False)
        or any(each.lstrip or each.rstrip or each.single_word for each in added.values())
    ):
        return {}
    return {token: str(each) for token, each in added.items() if not each.normalized}
