"""What the trainer's own arguments ask for holds for the mixed loss too, or is refused."""

import pytest
import torch
from datasets import Dataset
from transformers import TrainingArguments

from wmss.integrations.trainer import WeakDrivenTrainer
from wmss.models.loading import load_model

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")


def make_trainer(checkpoints, folder, *, weak=None, weak_update="joint", **arguments):
    return WeakDrivenTrainer(
        model=load_model(checkpoints["qwen3"]),
        weak_model=weak or load_model(checkpoints["qwen3_other"]),
        mixing_weight=0.5,
        weak_update=weak_update,
        train_dataset=Dataset.from_list([{"input_ids": list(range(1, 9)), "labels": list(range(1, 9))}] * 4),
        args=TrainingArguments(
            output_dir=str(folder),
            use_cpu=True,
            max_steps=1,
            per_device_train_batch_size=2,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **arguments,
        ),
    )


@pytest.mark.parametrize(("bf16", "dtype"), [(False, torch.float32), (True, torch.bfloat16)])
def test_both_branches_run_in_the_precision_asked_for(checkpoints, tmp_path, bf16, dtype):
    trainer = make_trainer(checkpoints, tmp_path, bf16=bf16)
    seen = []
    for model in (trainer.model, trainer._weak):
        model.model.layers[0].mlp.gate_proj.register_forward_hook(lambda *call: seen.append(call[2].dtype))
    trainer.train()
    assert seen == [dtype, dtype]
    assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())


@pytest.mark.parametrize(("weak_update", "training"), [("joint", True), ("frozen", False)])
def test_a_frozen_weak_model_has_no_dropout(checkpoints, tmp_path, weak_update, training):
    trainer = make_trainer(checkpoints, tmp_path, weak_update=weak_update)
    seen = []
    trainer._weak.model.register_forward_hook(lambda module, *_: seen.append(module.training))
    trainer.train()
    assert seen == [training]


def test_label_smoothing_is_refused(checkpoints, tmp_path):
    with pytest.raises(ValueError, match="label_smoothing_factor: expected 0"):
        make_trainer(checkpoints, tmp_path, label_smoothing_factor=0.1)
