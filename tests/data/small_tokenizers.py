"""Tokenizers of a few hundred tokens with the mechanisms of real ones: byte-level BPE, SentencePiece of three ages."""

from string import ascii_lowercase, digits, punctuation

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from wmss.tasks.base_model import CHAT_TEMPLATE as CHATML

THINK = ("<think>", "</think>")
SENTENCEPIECE = ("prepend", "always", "first")
"""Where a blank is put: before the text and after each special token, by a normalizer (Llama-2's file) or by Metaspace;
or before the text alone."""


def byte_level(template=CHATML, *, special=("<|im_start|>", "<|im_end|>"), plain=THINK, bos=None, **names):
    """As Qwen and Llama-3: two newlines are one token. `plain` are added tokens that are not flagged as special."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: number for number, token in enumerate([*alphabet, "ĊĊ", "Ġa", "ok", "as", "is"])}
    merges = [("Ċ", "Ċ"), ("Ġ", "a"), ("o", "k"), ("a", "s"), ("i", "s")]
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    words = pre_tokenizers.Split(Regex(r" ?\w+|\s*[\r\n]+|\s+(?!\S)|\s+|[^\w\s]+"), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in plain])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=special[-1],
        bos_token=bos,
        chat_template=template,
        clean_up_tokenization_spaces=False,
        **names,
    )


def sentencepiece(kind, template=None):
    """As Llama-2, Mistral and TinyLlama: blanks are ▁, one is put before a text, unknown characters become bytes."""
    characters = [*ascii_lowercase, *digits, *punctuation]
    words = ["▁", *characters, *(f"▁{each}" for each in characters), "▁▁"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    merges = [("▁", each) for each in characters] + [("▁", "▁")]
    vocab = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if kind == "prepend":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind, split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in ("<unk>", "<s>", "</s>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )
