"""Rows, what is made of them, and what of them is supervised."""

from wmss.data.dataset import Sample
from wmss.data.tokenization import tokenize_samples

SOURCE = "file.jsonl"


def chat(*turns, line=1, context_turns=()):
    messages = tuple({"role": role, "content": content} for role, content in turns)
    return Sample(line=line, messages=messages, context_turns=frozenset(context_turns))


def turns(*texts):
    """A chat of user and assistant in alternation."""
    return chat(*((("user", "assistant")[number % 2], text) for number, text in enumerate(texts)))


def tokenize(sample, tokenizer, max_length=256):
    samples, cut = tokenize_samples([sample], tokenizer, max_length=max_length, source=SOURCE)
    return samples[0], cut


def supervised_text(sample, tokenizer):
    """The text of each stretch of supervised tokens."""
    spans, current = [], []
    for token, target in zip(sample.input_ids, sample.target_mask, strict=True):
        if target:
            current.append(int(token))
        elif current:
            spans.append(tokenizer.decode(current))
            current = []
    return [*spans, tokenizer.decode(current)] if current else spans
