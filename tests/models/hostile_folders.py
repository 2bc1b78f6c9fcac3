"""Model folders that no job may take, each made from a good one: `python -m tests.models.hostile_folders MODEL NUMBER`
examines that many, drawn at random, and prints what was said of each and by how much this process grew."""

import json
import os
import random
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from wmss.errors import ModelError
from wmss.models.limited import check_checkpoint

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
Damage = Callable[[Path, random.Random], None]


def edit(folder: Path, name: str, **changes: Any) -> None:
    """Fields of a JSON file, which is made where it is missing."""
    file = folder / name
    known = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(known | changes))


def index(folder: Path, **places: str) -> None:
    """Move the single file away and write an index instead."""
    names = list(load_file(folder / SINGLE))
    (folder / SINGLE).rename(folder / "model-00001-of-00001.safetensors")
    whole = dict.fromkeys(names, "model-00001-of-00001.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": whole | places}))


def _adapter(folder: Path, rng: random.Random) -> None:
    (folder / SINGLE).unlink()
    save_file({"base_model.model.x.lora_A.weight": torch.zeros(4, 4)}, folder / "adapter_model.safetensors")
    edit(folder, "adapter_config.json", peft_type="LORA", base_model_name_or_path="/")


def _adapter_beside(folder: Path, rng: random.Random) -> None:
    edit(folder, "adapter_config.json", peft_type="LORA", base_model_name_or_path="/")


def _no_index(folder: Path, rng: random.Random) -> None:
    (folder / SINGLE).rename(folder / "model-00001-of-00002.safetensors")


def _pickle_behind_index(folder: Path, rng: random.Random) -> None:
    index(folder, **{"model.norm.weight": "pytorch_model.bin"})
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04K\x01.")


def _outside(folder: Path, rng: random.Random) -> None:
    elsewhere = rng.choice([str(folder.parent / SINGLE), "../other/model.safetensors", "..\\model.safetensors"])
    index(folder, **{"model.norm.weight": elsewhere})


def _index_of_lies(folder: Path, rng: random.Random) -> None:
    index(folder, **{f"model.layers.{rng.randrange(9, 99)}.weight": "model-00001-of-00001.safetensors"})


def _fifo(folder: Path, rng: random.Random) -> None:
    name = rng.choice([SINGLE, "config.json", "tokenizer.json", "generation_config.json", "added_tokens.json"])
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)


def _device(folder: Path, rng: random.Random) -> None:
    (folder / SINGLE).unlink()
    (folder / SINGLE).symlink_to(rng.choice(["/dev/zero", "/dev/random"]))


def _empty(folder: Path, rng: random.Random) -> None:
    save_file({}, folder / SINGLE)


def _lost_tensor(folder: Path, rng: random.Random) -> None:
    tensors = load_file(folder / SINGLE)
    del tensors[rng.choice([name for name in tensors if "layers" in name])]
    save_file(tensors, folder / SINGLE)


def _strange_tensor(folder: Path, rng: random.Random) -> None:
    save_file(load_file(folder / SINGLE) | {"v_head.weight": torch.zeros(3)}, folder / SINGLE)


def _cut(folder: Path, rng: random.Random) -> None:
    data = (folder / SINGLE).read_bytes()
    (folder / SINGLE).write_bytes(data[: rng.randrange(len(data) - 1)])


def _sizes(folder: Path, rng: random.Random) -> None:
    name = rng.choice(["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"])
    edit(folder, "config.json", **{name: rng.choice([400, 10**7, 10**12, 2**40])})


def _layer_count(folder: Path, rng: random.Random) -> None:
    edit(folder, "config.json", num_hidden_layers=10**7)


def _rope(folder: Path, rng: random.Random) -> None:
    edit(folder, "config.json", rope_parameters={"rope_type": "foo", "factor": 4.0, "rope_theta": 10000.0})


def _other_weights(folder: Path, rng: random.Random) -> None:
    edit(folder, "config.json", transformers_weights="../other.safetensors")


def _generation(folder: Path, rng: random.Random) -> None:
    edit(folder, "generation_config.json", eos_token_id=2, num_return_sequences=4, do_sample=False)


def _memory(folder: Path, rng: random.Random) -> None:
    (folder / "chat_template.jinja").write_text(f'{{{{ "a"*{rng.choice([2 * 10**10, 10**12])} }}}}')


def _loops(folder: Path, rng: random.Random) -> None:
    (folder / "chat_template.jinja").write_text(
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    )


def _broken_json(folder: Path, rng: random.Random) -> None:
    name = rng.choice(["config.json", "tokenizer.json", "generation_config.json"])
    (folder / name).write_text(rng.choice(["", "{", "[]", "[" * 10**5, '"' + "x" * 10**6, "\x00"]))


FAST: dict[str, Damage] = {
    "adapter": _adapter,
    "adapter_beside": _adapter_beside,
    "no_index": _no_index,
    "pickle_behind_index": _pickle_behind_index,
    "outside": _outside,
    "index_of_lies": _index_of_lies,
    "fifo": _fifo,
    "device": _device,
    "empty": _empty,
    "lost_tensor": _lost_tensor,
    "strange_tensor": _strange_tensor,
    "cut": _cut,
    "sizes": _sizes,
    "layer_count": _layer_count,
    "rope": _rope,
    "other_weights": _other_weights,
    "generation": _generation,
    "memory": _memory,
    "broken_json": _broken_json,
}
SLOW: dict[str, Damage] = {"loops": _loops}
"""Those that take the 20 s of the limit."""


def make(good: Path, target: Path, name: str, seed: int) -> Path:
    """A copy of a good folder, damaged as `name` says."""
    shutil.copytree(good, target)
    (FAST | SLOW)[name](target, random.Random(seed))
    return target


def examine_many(good: Path, number: int, seed: int) -> tuple[Counter[str], list[str], float]:
    """How many folders of each name were refused; those accepted or failed; by how many MB this process grew."""
    rng, refused, escaped = random.Random(seed), Counter[str](), []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for count in range(number):
        # Each hundredth takes its 20 s.
        name = rng.choice(sorted(SLOW if count % 100 == 99 else FAST))
        with tempfile.TemporaryDirectory() as scratch:
            folder = make(good, Path(scratch) / "model", name, seed + count)
            try:
                check_checkpoint(folder, param="model")
                escaped.append(f"{name} (seed {seed + count}): accepted")
            except ModelError:
                refused[name] += 1
            except Exception as error:  # told with its seed
                escaped.append(f"{name} (seed {seed + count}): {type(error).__name__}: {error}")
    return refused, escaped, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


if __name__ == "__main__":
    started = time.monotonic()
    counts, not_refused, grown = examine_many(Path(sys.argv[1]), int(sys.argv[2]), seed=0)
    print(*(f"{name}: {count}" for name, count in sorted(counts.items())), *not_refused, sep="\n")
    print(
        f"{sum(counts.values())} refused, {len(not_refused)} not; +{grown:.0f} MB, {time.monotonic() - started:.0f} s"
    )
    sys.exit(1 if not_refused else 0)
