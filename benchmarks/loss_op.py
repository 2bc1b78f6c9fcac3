"""The mixed loss against plain full-logit cross-entropy of the same mix: time and peak memory, equality first.

python -m benchmarks.loss_op
"""

import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from tests.memory import PeakTensorBytes
from wmss.core.mixing import mixed_linear_cross_entropy

ROWS, VOCABULARY, WIDTH, REPETITIONS = 512, 32768, 256, 5
MIXING_WEIGHT = 0.5


def full_logits(tensors: dict[str, Tensor], labels: Tensor) -> Tensor:
    """Both logit tensors, mixed, then cross-entropy: what one writes without thinking of memory."""
    strong = tensors["strong_hidden"] @ tensors["strong_head"].T
    weak = tensors["weak_hidden"] @ tensors["weak_head"].T
    return torch.nn.functional.cross_entropy(MIXING_WEIGHT * strong + (1 - MIXING_WEIGHT) * weak, labels)


def ours(tensors: dict[str, Tensor], labels: Tensor) -> Tensor:
    """The product's loss."""
    return mixed_linear_cross_entropy(**tensors, labels=labels, mixing_weight=MIXING_WEIGHT)


def plain(tensors: dict[str, Tensor], labels: Tensor) -> Tensor:
    """Cross-entropy of the strong model alone on full logits: the floor that fine-tuning pays."""
    return torch.nn.functional.cross_entropy(tensors["strong_hidden"] @ tensors["strong_head"].T, labels)


def make_inputs() -> tuple[dict[str, Tensor], Tensor]:
    """Random states and heads with logits of order one."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"strong_hidden": ROWS, "strong_head": VOCABULARY, "weak_hidden": ROWS, "weak_head": VOCABULARY}
    tensors = {
        name: (torch.randn(size, WIDTH, generator=generator) * WIDTH**-0.25).requires_grad_()
        for name, size in shapes.items()
    }
    return tensors, torch.randint(VOCABULARY, (ROWS,), generator=generator)


def gradients(arm: Callable[..., Tensor], tensors: dict[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
    """Gradients after one forward and backward."""
    for tensor in tensors.values():
        tensor.grad = None
    arm(tensors, labels).backward()
    return {name: tensor.grad for name, tensor in tensors.items() if tensor.grad is not None}


def run() -> Iterator[dict[str, object]]:
    """Check equality, then time the arms in turn."""
    torch.set_num_threads(1)
    tensors, labels = make_inputs()
    truth, mine = gradients(full_logits, tensors, labels), gradients(ours, tensors, labels)
    worst = max(float((mine[name] - truth[name]).norm() / truth[name].norm()) for name in truth)
    assert worst < 2e-6, f"gradients differ from full logits by {worst:.1e}"
    arms = {"plain_strong_only": plain, "full_logits_mix": full_logits, "ours": ours}
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(REPETITIONS):
        for name, arm in arms.items():
            started = time.process_time()
            gradients(arm, tensors, labels)
            seconds[name].append(time.process_time() - started)
    peaks = {}
    for name, arm in arms.items():
        with PeakTensorBytes() as tracker:
            gradients(arm, tensors, labels)
        peaks[name] = tracker.peak
    unit = 4 * ROWS * VOCABULARY
    for name in arms:
        yield {
            "benchmark": "loss_op",
            "arm": name,
            "rows": ROWS,
            "vocabulary": VOCABULARY,
            "width": WIDTH,
            "cpu_s_min": round(min(seconds[name]), 4),
            "cpu_s_median": round(statistics.median(seconds[name]), 4),
            "time_over_full_logits_mix": round(min(seconds[name]) / min(seconds["full_logits_mix"]), 3),
            "peak_in_fp32_logit_tensors": round(peaks[name] / unit, 2),
            "worst_relative_gradient_error": worst,
            "torch": torch.__version__,
            "machine": platform.machine(),
        }


if __name__ == "__main__":
    for line in run():
        print(json.dumps(line), flush=True)
