"""The loss and whole training steps on one GPU, in bfloat16: equality first, then time and peak memory.

python -m benchmarks.gpu [--save FILE] [--seconds 480] [--only REGEX]

No arm starts after `--seconds`; those left out are named. A file given with --save is continued: arms that it holds
already are not run again. Needs torch, transformers, numpy, pyarrow and pydantic, no vLLM and no Ray; arms with 8-bit
moments need torchao.
"""

import argparse
import dataclasses
import gc
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from benchmarks.loss_op import MIXING_WEIGHT, Tensors, loss_and_gradients, make_inputs, naive_mix
from benchmarks.measure import Line, environment, line, print_lines, skipped
from benchmarks.models import KNOBS, Step, make_batch, make_samples
from benchmarks.vs_naive import NaiveMix, NaiveStep
from wmss.choices import ActivationCheckpointing
from wmss.core import softmax
from wmss.core.mixing import LogitBranch, branch_cross_entropy
from wmss.errors import WmssError
from wmss.models.heads import PLAIN
from wmss.models.loading import output_head
from wmss.models.packed_attention import PACKED
from wmss.training.batches import MicroBatch
from wmss.training.branches import Branches, CachedWeak, WeakModel
from wmss.training.parallel import blocks_of, checkpoint_activations, models_of

VOCABULARY = 151_936
SIZES = {
    "0.6B": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16},
    "1.7B": {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16},
    "4B": {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32},
}
"""Qwen3's own shapes; weights are random."""
LENGTHS = [4096, 4096, 2048, 2048, 1024, 1024, 512, 512, 512, 512]
"""16,384 tokens in one packed row, all but the first of each sample supervised."""
LOSS_ROWS = 8192
WARM_UP, REPETITIONS = 2, 5
GOALS = {
    ("0.6B", "sft"): 45_000,
    ("4B", "sft"): 13_000,
    ("4B", "frozen"): 10_000,
    ("4B", "frozen_cached"): 12_000,
}
"""Tokens a second that one H200 should give."""
FITS = 0.92
"""Share of the card's memory that weights, gradients and moments alone may take."""

BFLOAT16 = torch.bfloat16

Wanted = Callable[[str, str], bool]
"""Whether an arm of a benchmark is to be run."""


def run(*, deadline: float, wanted: Wanted) -> Iterator[Line]:
    """All arms that are wanted, each as soon as it is measured."""
    yield from _equality()
    for make in (_loss_arms, _step_arms):
        yield from make(deadline, wanted)


# --- Equality -----------------------------------------------------------------------------------------------------


def _equality() -> Iterator[Line]:
    """Loss and gradients of the bfloat16 path against float64: no worse than full logits in bfloat16."""
    for kind, frozen in (("joint", False), ("frozen", True)):
        tensors, labels = make_inputs({"rows": 1024, "vocabulary": 32_768, "width": 512}, frozen=frozen, device="cuda")
        truth = _gradients(_naive, tensors, labels, dtype=torch.float64)
        naive = _gradients(_naive, tensors, labels, dtype=BFLOAT16)
        found = _gradients(_ours, tensors, labels, dtype=torch.float32)
        errors, others = ({name: _error(value[name], truth[name]) for name in truth} for value in (found, naive))
        worse = {name: errors[name] / others[name] for name in truth if errors[name] > others[name]}
        if worse:
            yield {
                "benchmark": "gpu_equality",
                "failed": f"{kind}: error over that of full logits in bfloat16: {worse}",
            }
        yield line(
            "gpu_equality",
            kind,
            {"rows": 1024, "vocabulary": 32_768, "width": 512},
            figures={f"error_{name}": error for name, error in errors.items()}
            | {f"naive_error_{name}": error for name, error in others.items()},
        )


def _gradients(loss: Callable[[Tensors, Tensor], Tensor], tensors: Tensors, labels: Tensor, *, dtype: Any) -> Tensors:
    leaves = {name: t.detach().to(dtype).requires_grad_(t.requires_grad) for name, t in tensors.items()}
    return loss_and_gradients(loss, leaves, labels)


def _error(value: Tensor, truth: Tensor) -> float:
    return float((value.double() - truth).norm() / truth.norm())


# --- The loss -----------------------------------------------------------------------------------------------------


def _branches(tensors: Tensors, *, plain: bool = False) -> list[LogitBranch]:
    strong = LogitBranch(tensors["strong_hidden"], tensors["strong_head"], None, 1.0 if plain else MIXING_WEIGHT)
    weak = LogitBranch(tensors["weak_hidden"], tensors["weak_head"], None, 1.0 - MIXING_WEIGHT)
    return [strong] if plain else [strong, weak]


def _ours(
    tensors: Tensors,
    labels: Tensor,
    *,
    plain: bool = False,
    chunk_size: int | None = None,
    operand_dtype: torch.dtype | None = BFLOAT16,
) -> Tensor:
    branches = _branches(tensors, plain=plain)
    return branch_cross_entropy(branches, labels, chunk_size=chunk_size, operand_dtype=operand_dtype)


def _naive(tensors: Tensors, labels: Tensor, *, plain: bool = False) -> Tensor:
    """Full logits in the inputs' precision, then float32 (float64 stays)."""
    strong = tensors["strong_hidden"] @ tensors["strong_head"].T
    if plain:
        return functional.cross_entropy(_widened(strong), labels)
    weak = tensors["weak_hidden"] @ tensors["weak_head"].T
    if strong.dtype == torch.float64:
        return functional.cross_entropy(MIXING_WEIGHT * strong + (1.0 - MIXING_WEIGHT) * weak, labels)
    return functional.cross_entropy(naive_mix(strong, weak), labels)


def _widened(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _naive_bfloat16(tensors: Tensors, labels: Tensor, *, plain: bool) -> Tensor:
    """As autocast gives it from float32 master weights."""
    with torch.autocast("cuda", dtype=BFLOAT16):
        return _naive(tensors, labels, plain=plain)


def _liger(tensors: Tensors, labels: Tensor) -> Tensor:
    """Liger's fused linear cross-entropy of the strong model alone; it knows no mix."""
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    hidden, head = (tensors[name].to(BFLOAT16) for name in ("strong_hidden", "strong_head"))
    loss: Tensor = liger_fused_linear_cross_entropy(hidden, head, labels)
    return loss


def _loss_arms(deadline: float, wanted: Wanted) -> Iterator[Line]:
    width = SIZES["4B"]["hidden_size"]
    setting = {"vocabulary": VOCABULARY, "width": width, "rows": LOSS_ROWS}
    arms: dict[str, tuple[bool, Callable[[Tensors, Tensor], Tensor]]] = {
        "plain ours": (False, partial(_ours, plain=True)),
        "plain ours, unfused": (False, partial(_unfused, partial(_ours, plain=True))),
        "plain ours, float32 products": (False, partial(_ours, plain=True, operand_dtype=None)),
        "plain naive": (False, partial(_naive_bfloat16, plain=True)),
        "plain liger": (False, _liger),
        "joint ours": (False, _ours),
        "joint ours, float32 products": (False, partial(_ours, operand_dtype=None)),
        "joint naive": (False, partial(_naive_bfloat16, plain=False)),
        "frozen ours": (True, _ours),
        "frozen naive": (True, partial(_naive_bfloat16, plain=False)),
        **{f"joint ours, chunk {rows}": (False, partial(_ours, chunk_size=rows)) for rows in (512, 1024, 4096, 8192)},
    }
    inputs = {frozen: make_inputs(setting, frozen=frozen, device="cuda") for frozen in (False, True)}
    for name, (frozen, loss) in arms.items():
        if not wanted("gpu_loss", name):
            continue
        tensors, labels = inputs[frozen]
        yield _measured("gpu_loss", name, setting, partial(loss_and_gradients, loss, tensors, labels), deadline)
    del inputs
    _free()


def _unfused(loss: Callable[[Tensors, Tensor], Tensor], tensors: Tensors, labels: Tensor) -> Tensor:
    """The same without a compiler."""
    fused = softmax._fused
    softmax._fused = lambda: softmax._loss_and_logit_gradient  # type: ignore[assignment]
    try:
        return loss(tensors, labels)
    finally:
        softmax._fused = fused


# --- Steps --------------------------------------------------------------------------------------------------------


def _step_arms(deadline: float, wanted: Wanted) -> Iterator[Line]:
    batch = make_batch(make_samples(LENGTHS, vocabulary=VOCABULARY), device="cuda")
    plans: list[tuple[str, str, ActivationCheckpointing, dict[str, Any]]] = [
        ("0.6B", "sft", "selective", {}),
        ("0.6B", "joint", "selective", {}),
        ("0.6B", "frozen", "selective", {}),
        ("0.6B", "frozen_cached", "selective", {}),
        ("0.6B", "sft", "none", {"compile": True}),
        ("0.6B", "joint", "none", {"compile": True}),
        ("0.6B", "sft", "selective", {"bfloat16": False}),
        ("0.6B", "frozen", "none", {"compile": True}),
        ("0.6B", "naive joint", "none", {"tokens": 4096}),
        ("0.6B", "joint", "none", {"tokens": 4096}),
        ("0.6B", "joint", "none", {"tokens": 4096, "compile": True}),
        ("0.6B", "naive joint", "selective", {"tokens": 4096}),
        ("0.6B", "joint", "selective", {"tokens": 4096}),
        ("1.7B", "sft", "selective", {}),
        ("1.7B", "joint", "selective", {}),
        ("1.7B", "joint", "selective", {"compile": True}),
        ("4B", "sft", "selective", {}),
        ("4B", "frozen", "selective", {}),
        ("4B", "frozen_cached", "selective", {}),
        ("4B", "sft", "selective", {"compile": True}),
        ("4B", "frozen", "selective", {"compile": True}),
        ("4B", "frozen_cached", "selective", {"compile": True}),
        ("4B", "sft", "full", {}),
        ("4B", "joint", "selective", {}),
        ("4B", "sft", "selective", {"optimizer": "adamw_8bit"}),
        ("4B", "joint", "selective", {"optimizer": "adamw_8bit"}),
        ("4B", "joint", "selective", {"optimizer": "adamw_8bit", "compile": True}),
    ]
    sft: dict[str, float] = {}
    for size, mode, checkpointing, knobs in plans:
        name = " ".join([size, mode, checkpointing, *(f"{key}={value}" for key, value in knobs.items())])
        if not wanted("gpu_step", name):
            continue
        tokens = knobs.get("tokens", sum(LENGTHS))
        given = (
            batch
            if tokens == sum(LENGTHS)
            else make_batch(make_samples([tokens], vocabulary=VOCABULARY), device="cuda")
        )
        need, have = _state_bytes(size, mode, knobs), torch.cuda.get_device_properties(0).total_memory
        if need > FITS * have:
            yield skipped(
                "gpu_step", name, f"weights, gradients and moments alone take {need / 1e9:.0f} GB of {have / 1e9:.0f}"
            )
            continue
        setting = {"size": size, "tokens": tokens, "checkpointing": checkpointing, **knobs}
        try:
            step = _make_step(size, mode, checkpointing, given, knobs)
        except (torch.cuda.OutOfMemoryError, WmssError) as error:
            yield skipped("gpu_step", name, f"{type(error).__name__}: {str(error)[:120]}")
            _free()
            continue
        found = _measured("gpu_step", name, setting, step, deadline)
        if "figures" in found:
            speed = tokens / found["s_median"]
            found["figures"] |= {"tokens_per_s": round(speed)}
            if not knobs and (mode, checkpointing) == ("sft", "selective"):
                sft[size] = found["s_median"]
            if not knobs and size in sft:
                found["figures"] |= {"time_over_sft": round(found["s_median"] / sft[size], 4)}
            if not knobs and (goal := GOALS.get((size, mode))):
                found["figures"] |= {"tokens_per_s_over_goal": round(speed / goal, 3)}
        yield found
        del step
        _free()


def _parameters(size: str) -> int:
    shape = SIZES[size]
    width, heads = shape["hidden_size"], shape["num_attention_heads"]
    block = width * 128 * (2 * heads + 2 * 8) + 3 * width * shape["intermediate_size"]
    return shape["num_hidden_layers"] * block + VOCABULARY * width


def _state_bytes(size: str, mode: str, knobs: dict[str, Any]) -> int:
    """16 bytes a trained parameter (weight, gradient, two moments, float32), 10 with 8-bit moments; 2 a frozen one."""
    trained = 2 if "joint" in mode else 1
    each = 10 if knobs.get("optimizer") == "adamw_8bit" else 16
    return _parameters(size) * (each * trained + (2 if mode == "frozen" else 0))


def _model(size: str, *, seed: int, attention: str = PACKED, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40_960,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
        tie_word_embeddings=True,
        attn_implementation=attention,
        **SIZES[size],
    )
    with torch.device("cuda"):
        model: PreTrainedModel = Qwen3ForCausalLM(config).to(dtype)
    return model.train()


def _make_step(
    size: str, mode: str, checkpointing: ActivationCheckpointing, batch: MicroBatch, knobs: dict[str, Any]
) -> Callable[[], None]:
    bfloat16 = knobs.get("bfloat16", True)
    if mode == "naive joint":
        models = [_model(size, seed=seed, attention="sdpa") for seed in (0, 1)]
        for model in models:
            checkpoint_activations(model, checkpointing)
        return _autocast(NaiveStep(NaiveMix(*models), batch.input_ids))
    strong = _model(size, seed=0)
    weak: WeakModel | CachedWeak | None = None
    if mode == "joint":
        weak = WeakModel(_model(size, seed=1), trained=True)
    elif mode == "frozen":
        weak = WeakModel(_model(size, seed=1, dtype=BFLOAT16), trained=False)
    elif mode == "frozen_cached":
        frozen = _model(size, seed=1, dtype=BFLOAT16)
        with torch.no_grad():
            states = Branches(frozen, bfloat16=True).states_of(frozen, batch)
        batch = dataclasses.replace(batch, weak_states=(states,))
        head, bias = output_head(frozen)
        weak = CachedWeak(head.detach().clone(), bias, PLAIN, number=0)
        del frozen
    branches = Branches(strong, [] if weak is None else [weak], bfloat16=bfloat16)
    for model in models_of(branches):
        checkpoint_activations(model, checkpointing)
        if knobs.get("compile"):
            for block in blocks_of(model):
                block.compile()
    return Step(branches, batch, optimizer=knobs.get("optimizer", KNOBS.optimizer))


def _autocast(step: Callable[[], None]) -> Callable[[], None]:
    def run_step() -> None:
        with torch.autocast("cuda", dtype=BFLOAT16):
            step()

    return run_step


# --- Measuring ----------------------------------------------------------------------------------------------------


def _measured(benchmark: str, name: str, setting: dict[str, Any], arm: Callable[[], object], deadline: float) -> Line:
    """Median seconds between synchronisations, and the peak of allocated memory, after warm-up."""
    if time.monotonic() > deadline:
        return skipped(benchmark, name, "no time left")
    try:
        for _ in range(WARM_UP):
            arm()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        seconds = [_seconds(arm) for _ in range(REPETITIONS)]
    except (torch.cuda.OutOfMemoryError, ImportError) as error:
        _free()
        return skipped(benchmark, name, f"{type(error).__name__}: {str(error)[:160]}")
    return line(benchmark, name, setting, seconds=seconds, peak=torch.cuda.max_memory_allocated())


def _seconds(arm: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    started = time.perf_counter()
    arm()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def _free() -> None:
    gc.collect()
    torch.cuda.empty_cache()


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if every equality held."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--save", type=Path, help="JSON lines, continued if it is there")
    parser.add_argument("--seconds", type=float, default=480.0, help="no arm starts after them (%(default)s)")
    parser.add_argument("--only", metavar="REGEX", default="", help="the arms whose name matches, such as '^4B joint'")
    given = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.error("expected a CUDA device, found none")
    earlier = [] if given.save is None or not given.save.is_file() else given.save.read_text().splitlines()
    held = [json.loads(row) for row in earlier]
    done = {(row["benchmark"], row["arm"]) for row in held if "figures" in row and row["benchmark"] != "gpu_equality"}

    def wanted(benchmark: str, arm: str) -> bool:
        return (benchmark, arm) not in done and re.search(given.only, arm) is not None

    failed = False
    lines = [{"environment": environment()}]
    for found in (*lines, *run(deadline=time.monotonic() + given.seconds, wanted=wanted)):
        print_lines([found])
        failed |= "failed" in found
        if given.save is not None:
            with given.save.open("a", encoding="utf-8") as file:
                file.write(json.dumps(found, ensure_ascii=False) + "\n")
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
