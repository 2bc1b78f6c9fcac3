"""Requests for entropy scores in this process: real models (torch), no Ray. And what a restart does."""

import contextlib
import dataclasses
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.rounds.engines import LocalEngines, MemoryJournal, ScriptedEngines, make_job
from wmss.config import parse_scores
from wmss.data.tokenization import load_tokenized
from wmss.errors import ConfigError, DataError, ModelError, WmssError
from wmss.rounds.in_process import InProcess
from wmss.rounds.phases import score_phases
from wmss.rounds.run import run_job
from wmss.rounds.scores.request import ScoreJob, run_scores, score_file
from wmss.scoring.tables import EntropyTable, entropy_change
from wmss.scoring.torch_scorer import TorchEntropyScorer, provenance

NAMES = ("qwen3", "qwen3_other")


def make_request(tmp_path, checkpoints, files, names=NAMES, **values):
    return ScoreJob(
        id="score-1",
        spec=parse_scores({"file": "t", "models": list(names), "tokens": True} | values),
        checkpoints=tuple(checkpoints[name] for name in names),
        file=files / "train.jsonl",
        folder=tmp_path / "job",
        cache=tmp_path / "cache",
    )


def run(job, engines=None, journal=None):
    engines = engines or ScriptedEngines(job.checkpoints)
    journal = journal or MemoryJournal()
    run_scores(job, engines, journal)
    return engines, journal


def test_tables_of_two_checkpoints_are_those_of_the_scorer(tmp_path, checkpoints, files):
    job = make_request(tmp_path, checkpoints, files)
    _, journal = run(job, InProcess("torch"))
    assert tuple(journal.seen) == score_phases(job.spec) == ("validate", "score_1", "score_2")
    samples = load_tokenized(job.folder / "samples.parquet")
    for number, checkpoint in enumerate(job.checkpoints, start=1):
        left = journal.finished[f"score_{number}"]
        exact = TorchEntropyScorer(checkpoint).score([sample.input_ids.tolist() for sample in samples])
        rows = [each[sample.predicting_positions] for each, sample in zip(exact, samples, strict=True)]
        table = EntropyTable.load(left["table"])
        for column, values in enumerate((table.entropy, table.nll, None, table.top1)):
            if values is not None:
                np.testing.assert_allclose(values, [each[:, column].mean() for each in rows], atol=1e-5)
        assert table.provenance == left["provenance"] == provenance()
        tokens = pq.read_table(left["tokens"]).to_pydict()
        flat = np.concatenate(rows)
        for column, name in enumerate(("entropy", "nll", "logsumexp", "top1")):
            np.testing.assert_allclose(np.array(tokens[name], float), flat[:, column], atol=1e-4)
        where = [(s.line, int(t), int(s.input_ids[t])) for s in samples for t in np.flatnonzero(s.target_mask)]
        assert list(zip(tokens["line"], tokens["position"], tokens["token_id"], strict=True)) == where
    assert any(event.startswith("entropy qwen3 → qwen3_other: ") for event in journal.events)


def test_the_same_question_is_never_computed_twice(tmp_path, checkpoints, files):
    job = make_request(tmp_path, checkpoints, files)
    engines, journal = run(job)
    assert engines.asked == [0, 1]
    num_tokens = journal.finished["validate"]["num_tokens"]
    assert [journal.finished[f"score_{n}"]["num_tokens_scored"] for n in (1, 2)] == [num_tokens] * 2
    again = dataclasses.replace(job, id="score-2", folder=tmp_path / "job2")
    engines, journal = run(again)
    assert engines.asked == []
    assert [journal.finished[f"score_{n}"]["num_tokens_scored"] for n in (1, 2)] == [0, 0]
    # Copies elsewhere are the same checkpoints; a table of tokens that was not asked for before is another answer.
    copied = tmp_path / "copied"
    shutil.copytree(job.checkpoints[0], copied)
    engines, _ = run(dataclasses.replace(again, checkpoints=(copied, job.checkpoints[1]), folder=tmp_path / "job3"))
    assert engines.asked == []
    shutil.rmtree(tmp_path / "cache")
    without = make_request(tmp_path, checkpoints, files, tokens=False)
    assert run(without)[0].asked == [0, 1]
    assert run(job, journal=MemoryJournal())[0].asked == [0, 1]


def test_two_who_ask_at_once_get_one_answer(tmp_path, checkpoints, files):
    asked, journals = [], [MemoryJournal(), MemoryJournal()]

    class SlowEngines(ScriptedEngines):
        @contextlib.contextmanager
        def scorer(self, checkpoint, **options):
            asked.append(checkpoint)
            time.sleep(0.5)
            with super().scorer(checkpoint, **options) as scorer:
                yield scorer

    def ask(number):
        job = make_request(tmp_path, checkpoints, files, NAMES[:1])
        job = dataclasses.replace(job, id=f"score-{number}", folder=tmp_path / f"job{number}")
        run(job, SlowEngines(job.checkpoints), journals[number])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(asked) == 1
    assert sorted(journal.finished["score_1"]["num_tokens_scored"] > 0 for journal in journals) == [False, True]
    assert sum("another process is computing" in event for journal in journals for event in journal.events) == 1


def test_a_job_and_a_request_share_their_scores(tmp_path, checkpoints, files):
    job = make_job(tmp_path, checkpoints, files, validation_file=None)
    run_job(job, LocalEngines(tmp_path / "runs"), MemoryJournal())
    request = make_request(tmp_path, checkpoints, files, NAMES[:1], tokens=False)
    engines = LocalEngines(tmp_path / "runs")
    _, journal = run(dataclasses.replace(request, folder=tmp_path / "other"), engines)
    assert engines.started == []
    assert journal.finished["score_1"]["num_tokens_scored"] == 0


def test_a_restarted_request_goes_on_where_it_stopped(tmp_path, checkpoints, files):
    job, journal = make_request(tmp_path, checkpoints, files), MemoryJournal(die_at="score_2")
    engines = ScriptedEngines(job.checkpoints)
    with pytest.raises(KeyboardInterrupt):
        run(job, engines, journal)
    journal.die_at, journal.seen = None, []
    run(job, engines, journal)
    assert (journal.seen, engines.asked) == (["score_2"], [0, 1])


def test_an_upgrade_between_two_checkpoints_scores_both_anew(tmp_path, checkpoints, files):
    job, journal = make_request(tmp_path, checkpoints, files), MemoryJournal(die_at="score_2")
    with pytest.raises(KeyboardInterrupt):
        run(job, ScriptedEngines(job.checkpoints, version="1"), journal)
    journal.die_at = None
    engines, _ = run(job, ScriptedEngines(job.checkpoints, version="2"), journal)
    assert engines.asked == [0, 1]
    tables = [EntropyTable.load(journal.finished[f"score_{n}"]["table"]) for n in (1, 2)]
    assert [table.provenance["version"] for table in tables] == ["2", "2"]
    assert set(entropy_change(*tables)) == {1.0}


def test_what_cannot_be_scored_is_refused_before_an_engine_starts(tmp_path, checkpoints, files):
    other = tmp_path / "other"
    shutil.copytree(checkpoints["llama"], other)
    text = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(text.replace('"<|im_end|>"', '"<|turn_end|>"'))
    job = make_request(tmp_path, checkpoints | {"llama": other}, files, ("qwen3", "llama"))
    with pytest.raises(ModelError, match=r"differs from that of models\.0") as caught:
        run(job)
    assert caught.value.param == "models.1"
    short = make_request(tmp_path, checkpoints, files, max_length=257)
    with pytest.raises(ConfigError, match="at most the model's context of 256") as caught:
        run(short)
    assert caught.value.param == "max_length"
    bad = tmp_path / "bad.jsonl"
    bad.write_text("{")
    with pytest.raises(DataError, match=r"bad\.jsonl: line 1") as caught:
        run(dataclasses.replace(make_request(tmp_path, checkpoints, files), file=bad))
    assert caught.value.param == "file"


def test_long_samples_are_cut_and_it_is_told(tmp_path, checkpoints, files):
    _, journal = run(make_request(tmp_path, checkpoints, files, max_length=40))
    assert journal.finished["validate"]["num_truncated"] > 0
    assert any("rows cut" in event for event in journal.events)


def test_one_file_from_python(tmp_path, checkpoints, files):
    done = []
    arguments = {"engine": "torch", "cache": tmp_path / "cache"}
    file, checkpoint = files / "train.jsonl", checkpoints["qwen3"]
    table = score_file(file, checkpoint, **arguments, progress=lambda *of: done.append(of))
    assert done[-1] == (48, 48)
    again = score_file(str(file), str(checkpoint), **arguments, progress=lambda *of: pytest.fail("asked again"))
    assert np.array_equal(again.entropy, table.entropy)
    score_file(file, checkpoint, **arguments, tokens=tmp_path / "tokens.parquet")
    tokens = pq.read_table(tmp_path / "tokens.parquet")
    assert len(tokens) == table.num_targets.sum()
    assert np.mean(tokens["nll"].to_numpy(), dtype=float) == pytest.approx(table.token_nll)
    # Without a cache nothing stays, and another precision is another figure.
    rough = score_file(file, checkpoint, engine="torch", dtype="bfloat16")
    with pytest.raises(WmssError, match="dtype 'float32' and 'bfloat16'"):
        entropy_change(table, rough)
    assert np.abs(rough.entropy - table.entropy).max() > 1e-4
    assert len(list((tmp_path / "cache" / "entropy").iterdir())) == 2


@pytest.mark.parametrize(
    ("change", "param"),
    [({"max_length": 1}, "max_length"), ({"dtype": "int8"}, "dtype"), ({"checkpoint": "none"}, "models.0")],
)
def test_bad_arguments_are_refused_by_name(checkpoints, files, change, param):
    with pytest.raises(WmssError) as caught:
        score_file(**{"file": files / "train.jsonl", "checkpoint": checkpoints["qwen3"], "engine": "torch"} | change)
    assert caught.value.param == param


def test_scoring_from_python_needs_neither_ray_nor_vllm():
    code = "from wmss.rounds.scores.request import score_file; import sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {name.split(".")[0] for name in loaded} & {"ray", "vllm", "fastapi", "sqlalchemy"}


def test_rows_that_are_too_long(tmp_path, checkpoints, files):
    """Each answer to them is another question to the cache, and the default is what it always was."""
    cache = tmp_path / "cache"
    arguments = {"engine": "torch", "cache": cache, "max_length": 40}
    file, checkpoint = files / "train.jsonl", checkpoints["qwen3"]

    def scored(**more):
        return score_file(file, checkpoint, **arguments, **more), len(list((cache / "entropy").iterdir()))

    default, first = scored()
    cut, second = scored(too_long="cut")
    dropped, third = scored(too_long="drop")
    assert (first, second, third) == (1, 1, 2)
    assert np.array_equal(default.entropy, cut.entropy) and len(cut.line) == 48
    assert 0 < len(dropped.line) < 28
    kept = np.isin(cut.line, dropped.line)
    np.testing.assert_allclose(cut.entropy[kept], dropped.entropy, atol=1e-6)
    with pytest.raises(DataError, match=r"rows are unusable in train.jsonl: lines .* more than max_length 40"):
        scored(too_long="refuse")
    _, journal = run(make_request(tmp_path, checkpoints, files, max_length=40, too_long="drop"))
    assert journal.finished["validate"]["num_samples"] == len(dropped.line)
    assert any(f", {48 - len(dropped.line)} too long and left out" in event for event in journal.events)
