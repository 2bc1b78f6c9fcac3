"""A training run refuses what no phase can mean: at construction, from JSON, and in a changed copy."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from wmss.config import Hyperparameters
from wmss.config.base import changed
from wmss.training.run import ModelSource, TrainingRun

WEAK = (ModelSource(folder=Path("b")), ModelSource(folder=Path("c")))
PLAIN = TrainingRun(
    phase="x",
    strong=ModelSource(folder=Path("a")),
    samples=Path("s"),
    indices=(0,),
    mixing_weight=1.0,
    batch_size=1,
    num_epochs=1,
    hyperparameters=Hyperparameters(),
    seed=0,
    checkpoint_every=1,
)

OUT_OF_RANGE = [
    ({"phase": ""}, "phase"),
    ({"indices": ()}, "indices"),
    ({"indices": (0, -1)}, "indices"),
    ({"mixing_weight": 7.0}, "mixing_weight"),
    ({"mixing_weight": -0.1}, "mixing_weight"),
    ({"mixing_weight": float("nan")}, "mixing_weight"),
    ({"mixing_weight_end": 1.1}, "mixing_weight_end"),
    ({"mixing_schedule": "step"}, "mixing_schedule"),
    ({"parallelism": "tensor"}, "parallelism"),
    ({"batch_size": 0}, "batch_size"),
    ({"num_epochs": 0}, "num_epochs"),
    ({"seed": -1}, "seed"),
    ({"seed": 2**32}, "seed"),
    ({"checkpoint_every": 0}, "checkpoint_every"),
    ({"weak": WEAK}, "weak_shares: expected 2 numbers, one for each weak model, got 0"),
    ({"weak_shares": (1.0,)}, "weak_shares: expected 0 numbers"),
    ({"weak": WEAK, "weak_shares": (0.5, 0.4)}, "weak_shares: expected numbers that sum to 1, got a sum of 0.9"),
    ({"weak": WEAK, "weak_shares": (1.5, -0.5)}, "weak_shares"),
    ({"weak": WEAK, "weak_shares": (1.0, 0.0)}, "weak_shares"),
    ({"weak_frozn": True}, "weak_frozn"),
]


@pytest.mark.parametrize(("fields", "message"), OUT_OF_RANGE, ids=[str(fields) for fields, _ in OUT_OF_RANGE])
def test_what_is_misspelt_or_out_of_range_is_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        TrainingRun(**(dict(PLAIN) | fields))
    with pytest.raises(ValidationError, match=message):
        TrainingRun.model_validate(PLAIN.model_dump(mode="json") | fields)
    with pytest.raises(ValidationError, match=message):
        changed(PLAIN, **fields)


def test_a_run_says_its_mixing_weight():
    """It has no default there: plain training and a mix differ by it alone."""
    values = {name: value for name, value in dict(PLAIN).items() if name != "mixing_weight"}
    with pytest.raises(ValidationError, match="mixing_weight"):
        TrainingRun(**values)


def test_a_run_survives_its_way_to_a_worker():
    mixed = changed(PLAIN, weak=WEAK, weak_shares=(0.75, 0.25), mixing_weight=0.5, seed=2**32 - 1, indices=(3, 3, 0))
    assert TrainingRun.model_validate(mixed.model_dump(mode="json")) == mixed
    assert mixed != PLAIN
