"""Is a finished folder the model that was trained? Plain transformers loads it in a fresh process, which is compared.

    python -m wmss.models.read_back FOLDER EXPECTED

The process that asks works out from the training checkpoint what must be found: the SHA-256 of every tensor after the
cast to the folder's precision, and the logits of a short row. It writes them to the file EXPECTED (JSON).
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from wmss.errors import ResultError
from wmss.startup import quick_imports

if TYPE_CHECKING:
    from torch import Tensor

NUM_IDS = 16
TOLERANCE = 16.0
"""Largest relative difference of logits, in units of rounding: both sides do the same arithmetic."""


class Expected(TypedDict):
    """What a folder must hold."""

    tensors: dict[str, str]
    """SHA-256 by name on disk."""
    logits: list[float]
    """Of the row's last position."""
    tolerance: float
    """Largest relative difference of the logits."""


def digest_of(tensor: "Tensor") -> str:
    """SHA-256 of a tensor's bytes."""
    import torch

    return hashlib.sha256(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data).hexdigest()


def last_logits(model: Any) -> "Tensor":
    """Logits [V] after a short row of ids spread over the vocabulary, in float32."""
    import torch

    ids = torch.arange(NUM_IDS)[None] * 7919 % int(model.config.vocab_size)
    with torch.no_grad():
        logits: Tensor = model.eval()(input_ids=ids, use_cache=False).logits[0, -1].float()
    return logits


def read_back(folder: Path, tensors: Mapping[str, str], logits: "Tensor", *, rounding: float) -> int:
    """Load a folder in a fresh process and compare; returns the number of its tensors.

    `rounding` is the relative rounding by which the weights behind `logits` may differ from the folder's.

    Raises:
        ResultError: a tensor is missing, too many, or another than was to be saved, or the logits differ.
        RuntimeError: the process did not end by itself.
    """
    problem = _in_fresh_process(
        folder, Expected(tensors=dict(tensors), logits=logits.tolist(), tolerance=TOLERANCE * rounding)
    )
    if problem is not None:
        raise ResultError(f"the model that was saved is not the one that was trained: {problem} ({folder})")
    return len(tensors)


def _in_fresh_process(folder: Path, expected: Expected) -> str | None:
    with tempfile.TemporaryDirectory(prefix="wmss-read-back-") as scratch:
        file = Path(scratch) / "expected.json"
        file.write_text(json.dumps(expected), encoding="utf-8")
        command = [sys.executable, "-m", "wmss.models.read_back", str(folder), str(file)]
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
        ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    if ended.returncode != 0:
        raise RuntimeError(f"reading {folder} back ended with {ended.returncode}: {ended.stderr[-2000:]}")
    problem: str | None = json.loads(ended.stdout.splitlines()[-1])["problem"]
    return problem


def compare(folder: Path, expected: Expected) -> str | None:
    """What is wrong with a folder, or None."""
    with quick_imports():
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.core_model_loading import revert_weight_conversion
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder, output_loading_info=True, attn_implementation="eager", dtype=torch.float32
        )
    except Exception as error:  # whatever transformers raises, users of the folder would meet it too
        return f"transformers cannot load it: {error}"
    wrong = {kind: sorted(map(str, keys))[:4] for kind, keys in report.items() if keys and kind.endswith("_keys")}
    if wrong:
        return f"its tensors do not fit its config.json: {wrong}"
    found = revert_weight_conversion(model, dict(model.state_dict()))
    for name, digest in expected["tensors"].items():
        if name not in found:
            return f"tensor {name} is missing"
        if digest_of(found[name].float()) != digest:
            return f"tensor {name} differs from what was to be saved"
    want = torch.tensor(expected["logits"])
    difference = float((last_logits(model) - want).norm() / want.norm())
    # Weights that are not finite are the training loop's to report.
    if difference > expected["tolerance"]:
        return f"its logits differ by {difference:.1e}, relative"
    return None


if __name__ == "__main__":
    print(json.dumps({"problem": compare(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text("utf-8")))}))
