"""The dry run: it refuses what the validate phase refuses, all of it at once; its figures, plan and costs are real."""

import dataclasses
import json
import shutil

import pytest

from tests.models.families import save_family
from tests.rounds.engines import LocalEngines, MemoryJournal, make_job
from wmss.data.dataset import read_samples
from wmss.data.tokenization import load_tokenized, tokenize_samples
from wmss.errors import WmssError
from wmss.models.loading import checkpoint_digests, load_tokenizer
from wmss.rounds.before.dry_run import report
from wmss.rounds.before.preflight import examine
from wmss.rounds.before.report import Machine
from wmss.rounds.run import run_job
from wmss.tasks.arithmetic import make_problems, write_jsonl

MACHINE = Machine(on_gpu=False, num_threads=1, num_cores=2, kv_cache_bytes=2**30)


def no_refusals(checkpoints):
    return []


def look(job, machine=MACHINE):
    return report(job.sources, examine(job.sources, no_refusals), machine)


def knobs(**values):
    return {"type": "wmss", "wmss": {"hyperparameters": values}}


def codes(findings):
    return [finding.code for finding in findings]


@pytest.mark.parametrize(
    ("method", "changes", "params"),
    [
        (knobs(max_length=5), {}, ["training_file", "validation_file"]),
        (knobs(max_length=9999), {}, ["method.wmss.hyperparameters.max_length"]),
        (knobs(batch_size=49, max_length=40), {}, ["validation_file", "method.wmss.hyperparameters.batch_size"]),
        (knobs(), {"training_file": "missing"}, ["training_file"]),
        (knobs(), {"weak": "missing"}, ["method.wmss.weak_model"]),
        (knobs(batch_size=49), {"base": "missing"}, ["model", "method.wmss.hyperparameters.batch_size"]),
    ],
)
def test_the_phase_refuses_what_the_dry_run_refuses(tmp_path, checkpoints, files, method, changes, params):
    """Word for word, and every independent problem at once."""
    job = make_job(tmp_path, checkpoints, files, method)
    job = dataclasses.replace(job, **{name: tmp_path / path for name, path in changes.items()})
    seen = look(job)
    assert not seen.valid
    assert [problem.param for problem in seen.problems] == params
    engines = LocalEngines(tmp_path / "runs")
    with pytest.raises(WmssError) as caught:
        run_job(job, engines, MemoryJournal())
    assert caught.value.message == "; ".join(problem.message for problem in seen.problems)
    assert (caught.value.code, caught.value.param) == (seen.problems[0].code, seen.problems[0].param)
    assert engines.started == []


def test_what_speaks_against_the_engines_is_a_problem_too(tmp_path, checkpoints, files):
    job = make_job(tmp_path, checkpoints, files, knobs(batch_size=49), weak=checkpoints["qwen3_other"])
    found = examine(job.sources, lambda models: [WmssError(f"no room for {sorted(models)}", param="resources")])
    assert [problem.param for problem in found.problems] == ["resources", "method.wmss.hyperparameters.batch_size"]
    assert "'method.wmss.weak_model', 'model'" in found.problems[0].message


def test_nothing_is_written(tmp_path, checkpoints, files):
    job = make_job(tmp_path, checkpoints, files)
    assert look(job).valid
    assert not job.folder.exists()
    assert not job.cache.exists()


def test_sample_is_shown_with_its_mask(tmp_path, checkpoints, files):
    sample = look(make_job(tmp_path, checkpoints, files)).sample
    first = json.loads((files / "train.jsonl").read_text().splitlines()[0])["messages"]
    assert sample.line == 1
    text = "".join(segment.text for segment in sample.segments if segment.supervised)
    assert text == first[-1]["content"] + "<|im_end|>"
    assert first[0]["content"] in sample.segments[0].text
    assert not sample.segments[0].supervised


def test_figures_of_a_file_with_rows_that_are_cut(tmp_path, checkpoints, files):
    job = make_job(tmp_path, checkpoints, files, knobs(max_length=40), validation_file=None)
    seen = look(job)
    samples = read_samples(job.training_file)
    whole, _ = tokenize_samples(samples, load_tokenizer(job.base), max_length=999, source="")
    lengths = [len(sample.input_ids) for sample in whole]
    figures = seen.training_file
    assert (figures.num_rows, figures.length_max, figures.longest_uncut) == (48, 40, max(lengths))
    assert figures.num_cut == sum(length > 40 for length in lengths) > 20
    assert figures.cut_lines == [n for n, length in enumerate(lengths, 1) if length > 40][:20]
    assert figures.num_tokens == sum(min(length, 40) for length in lengths)
    assert figures.supervised_share == figures.num_targets / figures.num_tokens
    [cut] = [warning for warning in seen.warnings if warning.code == "rows_cut"]
    assert f"raise max_length to {max(lengths)}" in cut.message
    assert "..." in cut.message


def test_nothing_is_advised_that_the_model_does_not_take(tmp_path, checkpoints, files):
    """The tiny models' context is 256 tokens."""
    rows = [
        {"messages": [{"role": "user", "content": "9 " * asked}, {"role": "assistant", "content": "9 " * answered}]}
        for asked, answered in ((5, 300), (300, 1), (400, 1))
    ]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:1] * 30))
    long = dataclasses.replace(make_job(tmp_path, checkpoints, files), training_file=tmp_path / "long.jsonl")
    [cut] = [warning for warning in look(long).warnings if warning.code == "rows_cut"]
    assert "raise" not in cut.message
    assert cut.message.endswith(
        f"the longest has {look(long).training_file.longest_uncut} tokens and the model's context is 256: shorten "
        "them, or leave them out with too_long 'drop'"
    )
    [problem] = look(dataclasses.replace(long, validation_file=long.training_file)).problems
    assert "30 rows are longer than max_length 256 in long.jsonl" in problem.message
    assert problem.message.endswith("shorten them or leave them out with too_long 'drop': 256 is the model's context")
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 40))
    named = dataclasses.replace(long, file_names={"training_file": "mine.jsonl (file-1)"})
    [problem] = look(named).problems
    assert problem.message.startswith(
        "80 rows are unusable in mine.jsonl (file-1): lines 2, 3, 5 and 77 more, such as: 0 supervised tokens: the "
    )
    assert problem.message.endswith(
        "fills max_length 256; shorten it or leave it out with too_long 'drop': 256 is the model's context"
    )
    shorter = make_job(tmp_path, checkpoints, files, knobs(max_length=100), training_file=tmp_path / "long.jsonl")
    [problem] = look(shorter).problems
    assert problem.message.endswith("with too_long 'drop', or raise max_length, to at most the model's context of 256")


@pytest.mark.parametrize(
    ("too_long", "rows", "dropped", "num_cut", "held_out_rows"),
    [("drop", [1, 4], [2, 3], 0, 1), ("cut", [1, 2, 4], [3], 1, 1)],
)
def test_rows_that_are_too_long(tmp_path, checkpoints, files, too_long, rows, dropped, num_cut, held_out_rows):
    """Of four rows the second is longer than 60 tokens, and of the third the prompt alone."""
    written = [
        {"prompt": "1 " * asked, "completion": "2 " * answered + "#### 2"}
        for asked, answered in ((1, 1), (1, 80), (80, 1), (2, 2))
    ]
    (tmp_path / "four.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written))
    paths = {"training_file": tmp_path / "four.jsonl", "validation_file": tmp_path / "two.jsonl"}
    (tmp_path / "two.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written[:2]))
    given = {"max_length": 60, "max_steps": 1, "batch_size": 2}

    def job_with(**more):
        return dataclasses.replace(make_job(tmp_path, checkpoints, files, knobs(**given, **more)), **paths)

    assert [problem.param for problem in look(job_with()).problems] == ["training_file", "validation_file"]
    refused = look(job_with(too_long="refuse")).problems
    assert refused[0].message.startswith("2 rows are unusable in four.jsonl: lines 2, 3: 165 tokens, ")
    assert "more than max_length 60; shorten it, leave it out with too_long 'drop', or raise" in refused[0].message
    assert refused[1].message.startswith("1 row is unusable in two.jsonl: line 2: ")
    seen = look(job_with(too_long=too_long))
    assert seen.valid
    figures = seen.training_file
    assert (figures.num_rows, figures.num_dropped, figures.dropped_lines) == (len(rows), len(dropped), dropped)
    assert figures.num_cut == num_cut
    assert (seen.validation_file.num_rows, seen.validation_file.dropped_lines) == (held_out_rows, [2])
    told = [warning for warning in seen.warnings if warning.code == "rows_dropped"]
    assert [warning.param for warning in told] == ["method.wmss.hyperparameters.too_long"] * 2
    lines = ", ".join(map(str, dropped))
    assert (
        f"{len(dropped)} of 4 rows of the training_file are longer than max_length 60 and are left out"
        in told[0].message
    )
    assert f"(lines {lines})" in told[0].message
    journal = MemoryJournal()
    job = job_with(too_long=too_long)
    run_job(job, LocalEngines(tmp_path / "runs"), journal)
    assert [sample.line for sample in load_tokenized(job.folder / "samples.parquet")] == rows
    assert any(f", {len(dropped)} too long and left out" in event for event in journal.events)
    assert journal.finished["evaluate"]["results"]["base"]["accuracy"]["num_problems"] == held_out_rows


def test_a_file_of_which_nothing_is_left_is_refused(tmp_path, checkpoints, files):
    [training, held_out] = look(make_job(tmp_path, checkpoints, files, knobs(max_length=5, too_long="drop"))).problems
    assert training.message.startswith(
        "training_file: all 48 rows of train.jsonl are longer than max_length 5, so too_long 'drop' leaves none; "
    )
    assert held_out.param == "validation_file"


def test_plan_has_the_steps_that_run(tmp_path, checkpoints, files):
    job = make_job(tmp_path, checkpoints, files, knobs(sft_epochs=2, n_epochs=3, batch_size=7))
    planned = {phase.name: phase for phase in look(job).plan.phases}
    journal = MemoryJournal()
    run_job(job, LocalEngines(tmp_path / "runs"), journal)
    assert list(planned) == journal.seen
    assert planned["sft"].num_steps == journal.finished["sft"]["num_steps"] == 14
    assert planned["joint"].at_most
    assert planned["joint"].num_steps == 21 >= journal.finished["joint"]["num_steps"]


def test_plan_of_rounds_and_of_a_start_at_saturation(tmp_path, checkpoints, files):
    method = {"type": "wmss", "wmss": {"rounds": 2, "start_at": "saturation", "weighting": "all"}}
    planned = look(make_job(tmp_path, checkpoints, files, method)).plan.phases
    expected = ["validate", "sft", "joint", "joint_2", "export", "read_back", "evaluate"]
    assert [phase.name for phase in planned] == expected
    assert [phase.at_most for phase in planned] == [name == "sft" for name in expected]
    assert planned[2].num_steps == planned[3].num_steps == planned[1].num_steps


def test_a_family_that_cannot_be_packed_is_told_of_and_refused_where_packing_was_asked_for(
    tmp_path, checkpoints, files
):
    base = save_family("GptOss", tmp_path / "base", tokenizer_from=checkpoints["qwen3"])
    param, cause = "method.wmss.hyperparameters.packing", "its attention needs s_aux, which packed rows lack"
    told = look(make_job(tmp_path, checkpoints, files, knobs(), base=base))
    assert told.problems == []
    [warning] = [each for each in told.warnings if each.code == "padded"]
    assert told.valid and warning.param == param and cause in warning.message
    asked = look(make_job(tmp_path, checkpoints, files, knobs(packing=True), base=base))
    assert [(each.code, each.param) for each in asked.problems] == [("invalid_config", param)]
    assert cause in asked.problems[0].message and "padded" not in codes(asked.warnings)
    assert "padded" not in codes(look(make_job(tmp_path, checkpoints, files, knobs(packing=False), base=base)).warnings)
    assert "padded" not in codes(look(make_job(tmp_path, checkpoints, files, knobs(packing=True))).warnings)


def test_adapters_cost_less(tmp_path, checkpoints, files):
    def cost(**lora):
        return look(make_job(tmp_path, checkpoints, files, knobs(**lora))).cost

    whole, adapters = cost(), cost(lora={"rank": 2})
    assert adapters.checkpoint_bytes < 0.6 * whole.checkpoint_bytes
    assert adapters.worker_memory_bytes < whole.worker_memory_bytes
    assert adapters.training_flops < whole.training_flops


def test_eight_bit_moments_need_their_package(tmp_path, checkpoints, files):
    job = make_job(tmp_path, checkpoints, files, knobs(optimizer="adamw_8bit"))
    [problem] = look(job).problems
    assert problem.param == "method.wmss.hyperparameters.optimizer"
    assert "needs the package torchao, which is not installed here; install it or use 'adamw'" in problem.message


def test_warnings(tmp_path, checkpoints, files):
    problems = make_problems(130, seed=9)
    train_file, held_out = tmp_path / "train.jsonl", tmp_path / "held_out.jsonl"
    write_jsonl(problems, train_file)
    job = make_job(tmp_path, checkpoints, files, training_file=train_file)
    method = knobs(learning_rate=0.1, batch_size=4)

    def codes_for(rows, method):
        write_jsonl(rows, held_out)
        again = make_job(tmp_path, checkpoints, files, method, training_file=train_file, validation_file=held_out)
        return codes(look(again).warnings)

    fresh = [p for p in make_problems(400, seed=8) if p["messages"][0] not in [q["messages"][0] for q in problems]]
    assert codes_for(fresh, knobs(batch_size=4)) == []
    assert codes_for(fresh, method) == ["unusual_learning_rate"]
    assert codes_for(fresh, knobs()) == ["few_steps", "few_steps"]
    assert codes_for(fresh[:50], knobs(batch_size=4)) == ["few_problems"]
    assert codes_for([*fresh, *problems[:2]], knobs(batch_size=4)) == ["shared_prompts"]
    plain = [{"prompt": "say", "completion": "hello"}]
    assert codes_for(plain, knobs(batch_size=4)) == ["unverifiable_answers"]
    write_jsonl([{"prompt": str(n), "completion": "1"} for n in range(130)], train_file)
    assert codes_for(fresh, knobs(batch_size=4)) == ["noisy_entropy"]
    short = MACHINE.model_copy(update={"memory_bytes": 10**6, "free_disk_bytes": 10**3})
    assert codes(look(job, short).warnings)[-2:] == ["short_of_memory", "short_of_disk"]


def test_time_needs_a_measurement(tmp_path, checkpoints, files):
    job = make_job(tmp_path, checkpoints, files)
    here = look(job).cost
    assert 0 < here.training_s < 60
    assert "estimated for this machine" in here.basis
    elsewhere = look(job, MACHINE.model_copy(update={"on_gpu": True})).cost
    assert elsewhere.training_s is None
    assert elsewhere.training_flops == here.training_flops


def test_a_registered_checkpoint_that_changed_is_refused(checkpoints, files, tmp_path):
    folder = tmp_path / "weak"
    shutil.copytree(checkpoints["qwen3_other"], folder)
    job = make_job(tmp_path, checkpoints, files, {"type": "wmss", "wmss": {"weak_model": "w"}}, weak=folder)
    registered = {"method.wmss.weak_model": checkpoint_digests(folder)}
    job = dataclasses.replace(job, digests=registered)
    assert look(job).problems == []
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)  # as large as before: only its digest tells
    [problem] = look(job).problems
    assert (problem.code, problem.param) == ("invalid_model", "method.wmss.weak_model")
    assert "weights in" in problem.message and "register it again" in problem.message
    journal = MemoryJournal()
    with pytest.raises(WmssError, match="changed since the checkpoint was registered"):
        run_job(job, LocalEngines(tmp_path / "runs"), journal)
    assert journal.seen == ["validate"]
