"""What is compared: the data regimes, the arms, and everything that is held equal between them."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Literal

SEEDS = (0, 1, 2, 3, 4)
REFERENCE_ARM = "sft"


@dataclass(frozen=True)
class Training:
    """How many steps of what kind; AdamW, gradients clipped at norm 1, no weight decay."""

    num_steps: int
    learning_rate: float
    batch_size: int = 32
    warmup_ratio: float = 0.05
    lr_schedule: Literal["linear", "cosine", "constant"] = "cosine"


@dataclass(frozen=True)
class Base:
    """M0: a small Qwen3, trained from random weights in one pass over fresh samples with systematic mistakes."""

    hidden_size: int = 128
    intermediate_size: int = 544
    num_layers: int = 2
    num_heads: int = 4
    training: Training = Training(num_steps=1000, learning_rate=4e-3)
    lengths: tuple[int, ...] = (1, 2, 3, 4, 5)
    """Steps of a sample, each equally often."""
    misconceived_share: float = 0.5
    """Share of the facts that its data get wrong, the same facts all along."""
    wrong_share: float = 0.6
    """Share of the steps on such a fact whose result is one too high."""


@dataclass(frozen=True)
class Setting:
    """One data regime, from the random model to the last arm."""

    name: str
    num_rows: int
    """Supervised samples."""
    wrong_share: float
    """Share of their steps whose result is one too high."""
    strong: Training
    """M0 to M1, plain supervised fine-tuning."""
    arms: Training
    """M1 to each arm: equal steps, batches, learning rate and schedule."""
    lengths: tuple[int, ...] = (2, 3)
    """Steps of a supervised sample."""
    base: Base = Base()
    num_problems: int = 500
    """Of each test."""
    harder_lengths: tuple[int, ...] = (4,)
    """Steps of a problem of the harder test; the other one has the supervised samples' lengths."""

    @property
    def digest(self) -> str:
        """Names the setting by all of its values, so that rows of another one are never taken for its own."""
        return digest_of(asdict(self))


def digest_of(values: object) -> str:
    """12 hexadecimal digits that name plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Arm:
    """What the second phase trains on, in the words of `WmssConfig`."""

    name: str
    equation: str
    mixing: Literal["off", "strong_scaled", "logits"]
    weak_frozen: bool = False
    draws: bool = False
    """Draw the samples by both models' entropies (`v2`, each once); else all of them."""
    mixing_weight: float = 0.5
    """λ, for all but `off`."""


ARMS = {
    arm.name: arm
    for arm in (
        Arm("sft", "−log softmax(z_s)[y]", "off"),
        Arm("strong_scaled", "−log softmax(λ z_s)[y]", "strong_scaled"),
        Arm("frozen", "−log softmax(λ z_s + (1−λ) z_w)[y], with M0 held fixed as the weak model", "logits", True),
        Arm("joint", "the same loss, with the weak model, M0 at first, trained too", "logits"),
        Arm("joint_v2", "as `joint`, on samples drawn by p ∝ 0.1 [−ΔH]₊ + 0.8 H_s + 0.1 [ΔH]₊", "logits", draws=True),
        Arm("strong_scaled_0.8", "as `strong_scaled`, with λ = 0.8", "strong_scaled", mixing_weight=0.8),
        Arm("frozen_0.8", "as `frozen`, with λ = 0.8", "logits", True, mixing_weight=0.8),
        Arm("joint_0.8", "as `joint`, with λ = 0.8", "logits", mixing_weight=0.8),
    )
}
CHECKPOINTS = ("base", "strong")
"""M0 and M1: where every arm of a seed starts from."""
TESTS = ("trained", "harder")

SETTINGS = (
    Setting(
        "noisy",
        num_rows=400,
        wrong_share=0.2,
        strong=Training(num_steps=200, learning_rate=1e-3),
        arms=Training(num_steps=150, learning_rate=3e-4),
    ),
    Setting(
        "small",
        num_rows=32,
        wrong_share=0.0,
        strong=Training(num_steps=150, learning_rate=1e-3),
        arms=Training(num_steps=150, learning_rate=3e-4),
    ),
)
