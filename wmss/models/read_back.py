"""Is a finished folder the model that was trained? Plain transformers loads it in a fresh process, which is compared.

Two forks of the process behind `wmss.models.limited` answer, one after the other, so that one model is in memory at a
time and nothing of the training is: the first works out from the training checkpoint what must be found, the second
loads the folder.
"""

import hashlib
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from wmss.errors import ModelError, ResultError
from wmss.models import limited

if TYPE_CHECKING:
    from torch import Tensor

NUM_IDS = 16
TOLERANCE = 16.0
"""Largest relative difference of logits, in units of rounding: both sides do the same arithmetic."""
LEAST_S = 600.0
BYTES_PER_S = 5_000_000
"""Of weights, for each of the two forks: far slower than any disk and core, so that only one that hangs is ended."""
LEAST_BYTES = 4 * 10**9
BYTES_PER_BYTE = 8
"""Of memory per byte of weights: float32 of bfloat16, the files that are mapped, and room."""


class Expected(TypedDict):
    """What a folder must hold."""

    tensors: dict[str, str]
    """SHA-256 by name on disk."""
    logits: list[float]
    """Of the row's last position."""
    tolerance: float
    """Largest relative difference of the logits."""


def read_back(folder: Path, checkpoint: Path, *, base: Path) -> int:
    """Compare the model exported to `folder` with the training checkpoint that it was made from; `base` gives the
    precision of its tensors. Returns their number.

    Raises:
        ResultError: a tensor is missing, too many, or another than was to be saved, or the logits differ.
        RuntimeError: a process did not end by itself.
    """
    num_bytes = sum(file.stat().st_size for file in checkpoint.glob("*.safetensors"))
    limits = limited.Limits(
        time_s=LEAST_S + num_bytes / BYTES_PER_S, memory_bytes=LEAST_BYTES + BYTES_PER_BYTE * num_bytes
    )
    with tempfile.TemporaryDirectory(prefix="wmss-read-back-") as scratch:
        file = Path(scratch) / "expected.json"
        paths = {"checkpoint": checkpoint, "base": base, "file": file}
        num_tensors: int = _in_fresh_process("write_expected", paths, limits)
        problem: str | None = _in_fresh_process("compare_with_file", {"folder": folder, "file": file}, limits)
    if problem is not None:
        raise ResultError(
            f"the model saved in {folder} is not the one that was trained: {problem}; it is not published, the "
            "training checkpoints are kept: check the disk and submit the job again"
        )
    return num_tensors


def _in_fresh_process(name: str, paths: dict[str, Path], limits: limited.Limits) -> Any:
    what = " and ".join(str(path) for key, path in paths.items() if key != "file")
    try:
        return limited.ask(
            f"{__name__}:{name}",
            {key: str(path.absolute()) for key, path in paths.items()},
            what=what,
            because="reading it back took more {} than its weights explain",
            param="model",
            limits=limits,
        )
    except ModelError as error:  # the folders are the job's own: whatever ends the process is no fault of its owner
        raise RuntimeError(f"reading the result back: {error.message}") from error


def write_expected(*, checkpoint: str, base: str, file: str) -> int:
    """Write what must be found in the export of a checkpoint; returns the number of tensors."""
    expected = expected_of(Path(checkpoint), base=Path(base))
    Path(file).write_text(json.dumps(expected), encoding="utf-8")
    return len(expected["tensors"])


def compare_with_file(*, folder: str, file: str) -> str | None:
    """`compare` with what `write_expected` wrote."""
    return compare(Path(folder), json.loads(Path(file).read_text(encoding="utf-8")))


def expected_of(checkpoint: Path, *, base: Path) -> Expected:
    """What the export of a training checkpoint must hold: every tensor after the cast to the base's precision."""
    import torch

    from wmss.models.checkpoints import published_tensors, stored_dtypes
    from wmss.models.loading import load_model

    tensors = {
        name: digest_of(tensor.float())
        for _, stored in published_tensors(checkpoint, base)
        for name, tensor in stored.items()
    }
    model = load_model(checkpoint)
    model.set_attn_implementation("eager")
    dtypes = set(stored_dtypes(base).values())
    rounding = max(torch.finfo(dtype).eps for dtype in dtypes)
    if len(dtypes) == 1:  # experts lie fused in memory, so of several precisions it is not known which is whose
        rounding = torch.finfo(torch.float32).eps
        for tensor in model.state_dict().values():
            tensor.copy_(tensor.to(next(iter(dtypes))))
    return Expected(tensors=tensors, logits=last_logits(model).tolist(), tolerance=TOLERANCE * rounding)


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


def compare(folder: Path, expected: Expected) -> str | None:
    """What is wrong with a folder, or None."""
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
    return _other_logits(last_logits(model), torch.tensor(expected["logits"]), expected["tolerance"])


def _other_logits(found: "Tensor", expected: "Tensor", tolerance: float) -> str | None:
    finite = expected.isfinite()
    if not finite.any() or not found.isfinite().equal(finite):
        return f"{int((~found.isfinite()).sum()):,} of its {len(found):,} logits are not finite"
    size = float(expected[finite].norm())
    difference = float((found - expected)[finite].norm())
    if difference > tolerance * size:
        return f"its logits differ by {difference / size:.1e}, relative"
    return None
