"""The benchmarks at tiny sizes: every arm runs, every gate can fail, and the page is made from what was stored."""

import dataclasses
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from benchmarks import (
    __main__ as command,
)
from benchmarks import (
    curriculum_build,
    entropy_op,
    growth_rows,
    loss_memory_flat,
    loss_op,
    measure,
    packing,
    report,
    sampling,
    scaling_tokens,
    scaling_weak,
    scaling_workers,
    score_throughput,
    sft_parity,
    simulation,
    step_ratio,
    vs_naive,
)
from benchmarks.measure import GateError, Target, interleave, line, log_slope, require_close
from benchmarks.models import Shape, make_batch, make_samples
from wmss.config import Hyperparameters
from wmss.core.entropy import token_entropy
from wmss.training.loop import TELEMETRY_ROWS

TINY = Shape(vocabulary=96, width=16, layers=2)
LOSS = {"vocabulary": 64, "width": 8, "rows": 12}
SIZES = {
    "loss_op": {"settings": (LOSS,), "repetitions": 1},
    "entropy_op": {"settings": (LOSS,), "repetitions": 1},
    "step_ratio": {"shape": TINY, "tokens": 12, "repetitions": 1},
    "vs_naive": {"settings": ((TINY, 12, "none"), (TINY, 12, "full")), "repetitions": 1},
    "packing": {"shape": TINY, "num_samples": 4, "longest": 24, "repetitions": 1},
    "loss_memory_flat": {"rows": (300, 600), "vocabularies": (1024, 2048), "width": 8},
    "curriculum_build": {"num_samples": 2000, "num_rows": 100, "repetitions": 1},
    "simulation": {"num_runs": 20, "rounds": 5, "repetitions": 1},
    "scaling_tokens": {"shape": TINY, "length": 8, "counts": (1, 2), "repetitions": 1},
    "scaling_weak": {"shape": TINY, "tokens": 12, "repetitions": 1},
}
ARMS = {
    "entropy_op": {"head_product", "ours", "naive", "trl"},
    "loss_op": {"plain ours", "joint ours", "joint naive", "joint torch_concat", "frozen ours", "frozen naive"},
    "step_ratio": {"sft", "joint", "frozen", "frozen_cached", "lora_sft", "lora_adapter_off", "joint_telemetry"},
    "vs_naive": {"joint ours", "joint naive", "joint naive_with_metrics", "frozen ours", "frozen naive"},
    "packing": {"blocks packed", "blocks padded", "step packed", "step padded"},
    "loss_memory_flat": {"ours", "naive"},
    "curriculum_build": {"ours", "naive rows", "naive data set"},
    "simulation": {"ours", "naive"},
    "scaling_tokens": {"sft", "frozen", "joint"},
    "scaling_weak": {"strong only", *(f"{mode} {number}" for mode in ("frozen", "joint") for number in (1, 2, 4))},
}


@pytest.mark.parametrize("name", SIZES)
def test_every_arm_runs(name):
    lines = list(command.importlib.import_module(f"benchmarks.{name}").run(**SIZES[name]))
    assert ARMS[name] <= {given["arm"] for given in lines}
    for given in lines:
        assert json.loads(json.dumps(given)) == given
        assert given["benchmark"] == name
        # At this size noise may hide what a weak model adds, and a slope of it is no number.
        figures = {key: value for key, value in given["figures"].items() if key != "log_slope" or value is not None}
        assert all(math.isfinite(value) for value in figures.values()), given
        assert given["targets"].keys() <= given["figures"].keys()
    assert any(given["targets"] for given in lines) or name == "vs_naive"  # gated at large vocabularies only


def test_growth_with_rows_and_turns():
    lines = list(growth_rows.run(sizes=(120, 240), turns=(2, 4), repetitions=1))
    arms = [given["arm"] for given in lines]
    assert [arm for arm in arms if arm.startswith(growth_rows.STAGES)] == [
        f"{stage}, {size} rows" for stage in growth_rows.STAGES for size in (120, 240)
    ]
    assert {arm for arm in arms if not arm.startswith(growth_rows.STAGES)} == {
        *("a chat of 2 turns", "a chat of 4 turns", "memory, 120 rows", "memory, 240 rows")
    }
    assert sum("slope" in given["targets"] for given in lines) == len(growth_rows.STAGES) + 1


def test_memory_is_flat_in_rows():
    lines = list(loss_memory_flat.run(**SIZES["loss_memory_flat"]))
    assert all(target["passed"] for given in lines for target in given["targets"].values())


def score_random(repetitions=1):
    shape = Shape(vocabulary=96, width=64, layers=2)
    setting = score_throughput.SETTINGS[0]._replace(num_samples=6, logprobs_tokens=8)
    return list(score_throughput.run(shape=shape, settings=(setting,), repetitions=repetitions))


def test_scoring_without_vllm_says_so(monkeypatch):
    monkeypatch.setattr(score_throughput, "has_vllm", lambda: False)
    lines = score_random()
    assert {row["arm"] for row in lines if "figures" in row} == {"naive batch 1", "naive batched", "torch ours"}
    assert {row["arm"] for row in lines if row.get("skipped") == "vllm is not installed"} == {
        arm for arms in score_throughput.VLLM_WORKERS.values() for arm in arms
    }
    assert all(row["figures"]["tokens_per_s"] > 0 for row in lines if "figures" in row)


@pytest.mark.slow
def test_every_way_to_score_runs():
    lines = {row["arm"]: row for row in score_random()}
    assert lines.keys() >= {arm for arms in score_throughput.VLLM_WORKERS.values() for arm in arms}
    assert lines["vllm ours"]["targets"].keys() == {"naive_batch_1_over_this", "time_over_prefill"}
    assert all(math.isfinite(value) for row in lines.values() for value in row["figures"].values())


@pytest.mark.parametrize("arm", ["naive batched", "vllm ours, prompts skipped", "vllm prompt_logprobs"])
def test_entropies_that_differ_fail_the_gate(arm):
    exact = [np.arange(1.0, 7.0), np.arange(2.0, 12.0)]
    plan = score_throughput.Plan(None, [[0] * 6, [0] * 10], 4)
    right = {
        "naive batched": exact,
        "vllm ours, prompts skipped": [exact[0][3:], exact[1][5:]],
        "vllm prompt_logprobs": [exact[0][:3]],
    }[arm]
    score_throughput._gate(arm, right, exact, plan)
    with pytest.raises(GateError, match=f"score_throughput {arm}"):
        score_throughput._gate(arm, [rows + 1e-3 * rows for rows in right], exact, plan)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.distributed.reduce_op`:FutureWarning")  # vLLM looks at every name it sees
def test_every_way_to_sample_runs(capfd):
    lines = {row["arm"]: row for row in sampling.run(shape=TINY._replace(width=64), num_prompts=3, new_tokens=4)}
    assert lines.keys() >= {"torch ours", "vllm ours", "weights in place", "new engine"}
    assert all(math.isfinite(value) for row in lines.values() for value in row["figures"].values())
    assert capfd.readouterr().out == "", "standard output is for the lines"


def test_sampling_without_vllm_says_so_and_wrong_logprobs_fail_the_gate(monkeypatch):
    monkeypatch.setattr(sampling, "has_vllm", lambda: False)
    size = {"shape": TINY, "num_prompts": 2, "new_tokens": 3, "repetitions": 1}
    lines = {row["arm"]: row for row in sampling.run(**size)}
    assert lines["vllm ours"]["skipped"] == "vllm is not installed"
    assert lines["torch ours"]["figures"]["tokens_per_s"] > 0
    right = sampling._sample
    monkeypatch.setattr(
        sampling, "_sample", lambda *given: [dataclasses.replace(each, logprob=-9.0) for each in right(*given)]
    )
    with pytest.raises(GateError, match="sampling torch ours: logprob differs"):
        list(sampling.run(**size))


def test_a_wrong_entropy_fails_the_gate(monkeypatch):
    monkeypatch.setattr(
        entropy_op, "token_entropy", lambda *given: token_entropy(*given)._replace(entropy=given[0][:, 0])
    )
    with pytest.raises(GateError, match="entropy_op ours: entropy differs"):
        list(entropy_op.run(**SIZES["entropy_op"]))


@pytest.mark.slow
def test_every_worker_and_trainer_runs():
    lines = [*scaling_workers.run(shape=TINY, length=8, count=2, repetitions=1)]
    lines += sft_parity.run(shape=TINY, num_steps=2, repetitions=1)
    assert {"sft, workers: 2", "joint, workers: 2", "ours packed", "trl padding-free"} <= {row["arm"] for row in lines}


def off_by_a_little(function):
    """The function with its loss, or the first thing it gives, made wrong by a thousandth."""

    def wrong(*args, **kwargs):
        result = function(*args, **kwargs)
        return (result[0] * 1.001, *result[1:]) if isinstance(result, tuple) else result * 1.001

    return wrong


@pytest.mark.parametrize(
    ("name", "module", "peer"),
    [
        ("loss_op", loss_op, "torch_concat"),
        ("loss_op", loss_op, "mixed_linear_cross_entropy"),
        ("step_ratio", step_ratio.functional, "cross_entropy"),
        ("vs_naive", vs_naive.functional, "cross_entropy"),
        ("loss_memory_flat", loss_memory_flat, "ours"),
        ("curriculum_build", curriculum_build, "ours"),
        ("simulation", simulation, "ours"),
        ("scaling_weak", scaling_weak.functional, "cross_entropy"),
    ],
)
def test_a_wrong_peer_fails_the_gate(name, module, peer, monkeypatch):
    monkeypatch.setattr(module, peer, off_by_a_little(getattr(module, peer)))
    with pytest.raises(GateError):
        list(command.importlib.import_module(f"benchmarks.{name}").run(**SIZES[name]))


@pytest.mark.parametrize("module", [packing, scaling_tokens])
def test_a_wrong_batch_fails_the_gate(module, monkeypatch):
    """The peers differ in their batch only: one that sees other tokens must be found out."""
    make_batch, calls = module.make_batch, []

    def wrong(samples, **kwargs):
        batch = make_batch(samples, **kwargs)
        calls.append(batch)
        if len(calls) % 2 == 0:
            batch.labels[0] = (batch.labels[0] + 1) % TINY.vocabulary
        return batch

    monkeypatch.setattr(module, "make_batch", wrong)
    with pytest.raises(GateError):
        list(module.run(**SIZES[module.__name__.removeprefix("benchmarks.")]))


def test_a_trainer_with_other_losses_fails_the_gate(monkeypatch):
    def losses(*values):
        steps = sft_parity.Clocked()
        for value in values:
            steps.end_of_step(value)
        return steps

    monkeypatch.setattr(sft_parity, "train_ours", lambda job, packing: losses(4.0, 3.001))
    monkeypatch.setattr(sft_parity, "train_with", lambda make, job: losses(4.0, 3.0))
    with pytest.raises(GateError, match="ours packed: loss of step 2 differs"):
        list(sft_parity.run(shape=TINY, num_steps=2, repetitions=1))


def test_workers_that_do_not_add_up_fail_the_gate(monkeypatch):
    monkeypatch.setattr(scaling_workers.distributed, "all_reduce", lambda tensor: tensor.mul_(scaling_workers.WORKERS))
    branches = scaling_workers._branches("sft", TINY)
    batch, other = (make_batch(make_samples([length], vocabulary=96)) for length in (8, 9))
    scaling_workers._check("sft", TINY, branches, branches, batch, batch)
    with pytest.raises(GateError):
        scaling_workers._check("sft", TINY, branches, branches, batch, other)


def test_the_gate_reads_every_tensor_and_refuses_nan():
    one = {"a": torch.ones(3), "b": torch.zeros(2)}
    assert require_close("x", one, one, tolerance=0.0) == 0.0
    with pytest.raises(GateError, match=r"b differs by 1\.0e-03"):
        require_close("x", one | {"b": torch.tensor([1e-3, 0.0])}, one, tolerance=1e-5)
    with pytest.raises(GateError, match="a differs by nan"):
        require_close("x", one | {"a": torch.full((3,), torch.nan)}, one, tolerance=1e-5)
    with pytest.raises(GateError, match=r"lacks \['b'\]"):
        require_close("x", {"a": torch.ones(3)}, one, tolerance=1e-5)


def test_arms_take_turns_and_the_first_round_is_not_counted():
    calls = []
    seconds = interleave({name: lambda name=name: calls.append(name) for name in "abc"}, repetitions=2)
    assert calls == list("abc" * 3)
    assert {name: len(taken) for name, taken in seconds.items()} == dict.fromkeys("abc", 2)


def test_slope_and_targets():
    assert log_slope([1, 2, 4], [3, 6, 12]) == pytest.approx(1.0)
    assert log_slope([1, 2, 4], [3, 12, 48]) == pytest.approx(2.0)


def test_a_slope_that_noise_hides_is_no_number_and_no_success():
    slope = log_slope([1, 2, 4], [3, 0.0, 12])
    given = line("b", "a", {}, figures={"s": slope}, targets={"s": Target("t", at_most=9)})
    assert (given["figures"], given["targets"]["s"]["passed"]) == ({"s": None}, False)
    json.dumps(given, allow_nan=False)
    slope = Target("P-T13", at_least=0.95, at_most=1.05)
    assert [slope.holds(value) for value in (0.94, 0.95, 1.05, 1.06)] == [False, True, True, False]


def test_a_failed_gate_is_a_line_and_an_exit_code(monkeypatch, capsys):
    def fails(**_):
        raise GateError("no match")
        yield

    monkeypatch.setattr(packing, "run", fails)
    assert command.main(["packing"]) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"benchmark": "packing", "failed": "no match"}


def test_unknown_names_are_refused(capsys):
    with pytest.raises(SystemExit):
        command.main(["paking"])
    assert "NAME: expected some of loss_op, entropy_op" in capsys.readouterr().err


def test_stored_results_become_the_page(monkeypatch, tmp_path):
    page = tmp_path / "benchmarks.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    lines = [
        line("demo", "ours", {"rows": 2}, seconds=[1.0], figures={"time": 1.0}, targets={"time": Target("P-T0", 1.1)}),
        line("demo", "slow", {"rows": 2}, seconds=[2.0], figures={"time": 2.0}, targets={"time": Target("P-T0", 1.1)}),
    ]
    monkeypatch.setattr(packing, "run", lambda **_: iter(lines))
    assert command.main(["packing", "--save"]) == 0
    report.write(report.stored(), page)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| P-T0 | demo | ours | rows 2 | time | 1.0 | ≤ 1.1 |  | yes |" in text
    assert "| P-T0 | demo | slow | rows 2 | time | 2.0 | ≤ 1.1 |  | **no** |" in text


def test_telemetry_is_measured_as_the_loop_reads_it():
    assert step_ratio.TELEMETRY_ROWS == TELEMETRY_ROWS
    assert Hyperparameters().telemetry_every == step_ratio.TELEMETRY_EVERY


def test_a_gpu_machine_needs_neither_ray_nor_vllm_nor_what_tests_need():
    # These two need TRL, and the service's pages of samples: there they are skipped.
    names = [name for name in command.BENCHMARKS if name not in ("sft_parity", "growth_rows")]
    absent = ["ray", "vllm", "pytest", "hypothesis", "trl", "datasets", "pyarrow", "fastapi", "sqlalchemy"]
    code = f"""
import importlib, sys
sys.modules.update(dict.fromkeys({absent}))
for name in {["__main__", "report", *names]}:
    importlib.import_module(f"benchmarks.{{name}}")
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_a_benchmark_whose_packages_are_absent_is_skipped(monkeypatch):
    monkeypatch.setitem(sys.modules, "services.results.draws", None)
    monkeypatch.delitem(sys.modules, "benchmarks.growth_rows", raising=False)
    [row] = command.run("growth_rows", device="cuda", repetitions=1)
    assert row["skipped"].endswith("is not installed")


def test_results_say_nothing_of_the_machine_but_its_kind():
    assert measure.environment().keys() == {"measured", "commit", "machine", "torch", "load_1_min"}
