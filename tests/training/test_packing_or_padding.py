"""A family whose packed rows are not its own attention trains on padded ones and says so; asked to pack, it refuses."""

import pytest

from tests.models.families import save_family
from tests.training.runs import SFT, LocalHost, losses, make_run
from wmss.config import Hyperparameters
from wmss.errors import ModelError
from wmss.training.build import build_branches
from wmss.training.loop import train


def test_sinks_train_padded_where_packing_was_to_be(checkpoints, samples_file, tmp_path):
    base = save_family("GptOss", tmp_path / "base", tokenizer_from=checkpoints["qwen3"])
    hosts = {}
    for packing in ("auto", False):
        knobs = Hyperparameters(packing=packing, learning_rate=1e-3, max_steps=2, micro_batch_tokens=400)
        hosts[packing] = LocalHost(tmp_path / str(packing))
        run = make_run({"qwen3": base, "qwen3_wide": base}, samples_file, **SFT, hyperparameters=knobs)
        train(run, hosts[packing])
    assert losses(hosts["auto"]) == losses(hosts[False])
    assert [["unpacked" in metrics for metrics in hosts[packing].metrics] for packing in ("auto", False)] == [
        [True, True],
        [False, False],
    ]
    asked = make_run(
        {"qwen3": base, "qwen3_wide": base}, samples_file, **SFT, hyperparameters=Hyperparameters(packing=True)
    )
    with pytest.raises(ModelError, match="GptOssAttention needs s_aux, which they lack"):
        build_branches(asked, None)
