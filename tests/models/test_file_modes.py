"""Weights are as readable as what lies beside them: whoever may read the configuration may load the model."""

import os
import shutil
from types import SimpleNamespace

import pytest

from services.commands import export
from services.settings import Settings
from tests.models.test_importing import write_gguf
from wmss.config import LoraConfig
from wmss.models.adapters import add_adapter, save_adapter
from wmss.models.checkpoints import export_model, save_model
from wmss.models.importing import add_model
from wmss.models.loading import load_model


@pytest.fixture(params=[0o022, 0o027], ids=oct)
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder):
    assert list(folder.glob("*.safetensors"))
    return {file.stat().st_mode & 0o777 for file in folder.iterdir()}


def test_weights_follow_the_umask(umask, checkpoints, tmp_path):
    base = checkpoints["qwen3"]
    model = load_model(base)
    save_model(model, dict(model.state_dict()), tmp_path / "checkpoint", tokenizer_from=base)
    export_model(tmp_path / "checkpoint", tmp_path / "result", base=base, end_token_ids=[2])
    add_adapter(model, "strong", LoraConfig(rank=2))
    save_adapter(model, model.state_dict(), tmp_path / "adapter", "strong", base=base)
    imported = add_model(str(write_gguf(base, tmp_path / "tiny.gguf")), tmp_path / "models", report=print)
    for folder in (tmp_path / "checkpoint", tmp_path / "result", tmp_path / "adapter", imported):
        assert modes(folder) == {0o666 & ~umask}, folder


def test_an_export_is_its_owners(umask, checkpoints, tmp_path):
    """Models of releases before have weights that only the service may read."""
    shutil.copytree(checkpoints["qwen3"], tmp_path / "models" / "ftjob-1")
    (tmp_path / "models" / "ftjob-1" / "model.safetensors").chmod(0o600)
    jobs = SimpleNamespace(retrieve=lambda job_id: SimpleNamespace(status="succeeded"))
    api = SimpleNamespace(fine_tuning=SimpleNamespace(jobs=jobs))
    export.export_model(api, "ftjob-1", tmp_path / "copy", Settings(home=tmp_path))
    assert modes(tmp_path / "copy") == {0o666 & ~umask}
