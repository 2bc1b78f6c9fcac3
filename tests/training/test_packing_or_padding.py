"""A family whose packed rows are not its own attention trains on padded ones, and says so."""

from tests.models.families import save_family
from tests.training.runs import SFT, LocalHost, losses, make_run
from wmss.config import Hyperparameters
from wmss.training.loop import train


def test_sinks_train_padded_where_packing_was_to_be(checkpoints, samples_file, tmp_path):
    base = save_family("GptOss", tmp_path / "base", tokenizer_from=checkpoints["qwen3"])
    hosts = {}
    for packing in (True, False):
        knobs = Hyperparameters(packing=packing, learning_rate=1e-3, max_steps=2, micro_batch_tokens=400)
        hosts[packing] = LocalHost(tmp_path / str(packing))
        run = make_run({"qwen3": base, "qwen3_wide": base}, samples_file, **SFT, hyperparameters=knobs)
        train(run, hosts[packing])
    assert losses(hosts[True]) == losses(hosts[False])
    assert [["unpacked" in metrics for metrics in hosts[packing].metrics] for packing in (True, False)] == [
        [True, True],
        [False, False],
    ]
