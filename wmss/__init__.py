"""Weak-driven post-training: the library. It knows nothing of Ray, HTTP or SQL; `services` does.

The names below are its public API. Each is loaded when it is first used, so `import wmss` loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wmss.config import Hyperparameters
    from wmss.core.mixing import branch_cross_entropy, mixed_linear_cross_entropy
    from wmss.core.sample_weights import draw, sampling_weights
    from wmss.data.tokenization import tokenize_file
    from wmss.errors import WmssError
    from wmss.integrations.trainer import WeakDriven, WeakDrivenTrainer
    from wmss.rounds.scores.request import score_file
    from wmss.scoring.tables import EntropyTable, entropy_change
    from wmss.training.in_process import train_jointly

__version__ = "0.1.0"
__all__ = [
    "EntropyTable",
    "Hyperparameters",
    "WeakDriven",
    "WeakDrivenTrainer",
    "WmssError",
    "branch_cross_entropy",
    "draw",
    "entropy_change",
    "mixed_linear_cross_entropy",
    "sampling_weights",
    "score_file",
    "tokenize_file",
    "train_jointly",
]

_HOMES = {
    "EntropyTable": "wmss.scoring.tables",
    "Hyperparameters": "wmss.config",
    "WeakDriven": "wmss.integrations.trainer",
    "WeakDrivenTrainer": "wmss.integrations.trainer",
    "WmssError": "wmss.errors",
    "branch_cross_entropy": "wmss.core.mixing",
    "draw": "wmss.core.sample_weights",
    "entropy_change": "wmss.scoring.tables",
    "mixed_linear_cross_entropy": "wmss.core.mixing",
    "sampling_weights": "wmss.core.sample_weights",
    "score_file": "wmss.rounds.scores.request",
    "tokenize_file": "wmss.data.tokenization",
    "train_jointly": "wmss.training.in_process",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
