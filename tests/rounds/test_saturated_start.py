"""Which stored checkpoint becomes the weak model where fine-tuning has flattened."""

import json
from pathlib import Path

import pytest

from tests.rounds.engines import LocalEngines, MemoryJournal, job_of
from wmss.rounds import weak_driven as stages
from wmss.rounds.run import run_job

KNOBS = {"learning_rate": 1e-9, "max_steps": 14, "sft_epochs": 8, "telemetry_every": 1}


class LittersEngines(LocalEngines):
    """Beside the checkpoints lies one whose writer was killed."""

    def train(self, run, *, name):
        folder = super().train(run, name=name)
        (folder.parent / "step-0011" / "strong").mkdir(parents=True, exist_ok=True)
        return folder


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_a_half_written_checkpoint_is_no_weak_model(monkeypatch, tmp_path, checkpoints, files, lora):
    monkeypatch.setattr(stages, "useful_weak", lambda entropies, strong: max(entropies))
    job = job_of(tmp_path, checkpoints, files, KNOBS | {"lora": lora}, start_at="saturation")
    journal = MemoryJournal()
    run_job(job, LittersEngines(tmp_path / "runs"), journal)
    weak = journal.finished["sft"]["useful_weak"]
    assert Path(weak["checkpoint"]).parent.name == "step-0010"
    assert json.loads((job.result / "wmss.json").read_text())["weak"] == weak["checkpoint"]
