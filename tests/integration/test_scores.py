"""Entropy scores as a product of their own, on the running service: HTTP, the command line, vLLM on Serve."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from services.commands import client as service
from tests.integration.stack import wait_for, wmss
from wmss.config import parse_scores
from wmss.data.dataset import read_samples
from wmss.data.tokenization import tokenize_samples
from wmss.models.loading import load_tokenizer
from wmss.scoring.tables import EntropyTable, entropy_change
from wmss.scoring.torch_scorer import TorchEntropyScorer
from wmss.tasks.arithmetic import make_problems, write_jsonl

pytestmark = pytest.mark.stack

MODELS = ["qwen3", "qwen3_other"]


def ask(stack, file: Path, **values):
    """The id of a request for scores of `file`, which is uploaded."""
    spec = parse_scores({"file": service.upload(stack.client, file), "models": MODELS} | values)
    return service.submit_scores(stack.client, spec)


def ended(stack, scores_id):
    scores = service.watch_scores(stack.client, scores_id, lambda *seen: None, every_s=0.2)
    assert scores["status"] == "succeeded", scores["error"]
    return scores


@pytest.fixture(scope="module")
def scored(stack, files):
    """Both checkpoints on the training file, with tables of tokens."""
    return ended(stack, ask(stack, files / "train.jsonl", tokens=True))


@pytest.fixture(scope="module")
def samples(stack, files):
    tokenizer = load_tokenizer(stack.home / "models" / MODELS[0])
    return tokenize_samples(read_samples(files / "train.jsonl"), tokenizer, max_length=256, source="")[0]


def test_tables_over_http_are_those_of_torch(stack, scored, samples, tmp_path):
    assert [phase["status"] for phase in scored["progress"]] == ["finished"] * 3
    tables = []
    for number, result in enumerate(scored["results"]):
        files = {level: tmp_path / f"{number}-{level}.parquet" for level in ("sample", "token")}
        for level, file in files.items():
            service.download_scores(stack.client, scored["id"], file, model=number, level=level)
        scorer = TorchEntropyScorer(stack.home / "models" / MODELS[number])
        exact = scorer.score([sample.input_ids.tolist() for sample in samples])
        rows = [each[sample.predicting_positions] for each, sample in zip(exact, samples, strict=True)]
        table = EntropyTable.load(files["sample"])
        tables.append(table)
        assert table.line.tolist() == [sample.line for sample in samples]
        for column, values in ((0, table.entropy), (1, table.nll)):
            np.testing.assert_allclose(values, [each[:, column].mean() for each in rows], atol=1e-4)
        tokens, flat = pq.read_table(files["token"]), np.concatenate(rows)
        for column, name in enumerate(("entropy", "nll", "logsumexp")):
            np.testing.assert_allclose(tokens[name].to_numpy(), flat[:, column], atol=1e-4)
        assert tokens["token_id"].to_pylist() == [int(i) for s in samples for i in s.input_ids[s.target_mask]]
        assert result["mean_entropy"] == pytest.approx(table.mean_entropy)
        assert result["provenance"] == table.provenance
        assert (result["provenance"]["engine"], result["provenance"]["dtype"]) == ("vllm", "float32")
        assert result["num_tokens_scored"] == sum(len(sample.input_ids) for sample in samples)
    assert np.abs(entropy_change(*tables)).mean() > 0.01


def test_the_same_question_is_answered_without_an_engine_and_as_lines(stack, scored, files, tmp_path):
    """On the command line, which tells what it did."""
    before = {engine.pid for engine in stack.find("ScorerReplica")}
    options = ("--tokens", "--out", tmp_path, "--format", "jsonl")
    said = wmss(stack, "score", files / "train.jsonl", *MODELS, *options, timeout_s=300)
    assert "from the cache" in said and "mean ΔH" in said
    newest = stack.client.get("/entropy_scores", cast_to=object)["data"][0]
    assert [result["num_tokens_scored"] for result in newest["results"]] == [0, 0]
    assert [result["mean_entropy"] for result in newest["results"]] == [
        result["mean_entropy"] for result in scored["results"]
    ]
    assert {engine.pid for engine in stack.find("ScorerReplica")} <= before  # the idle ones may have left
    for number, model in enumerate(MODELS):
        for level, suffix in (("sample", ""), ("token", ".tokens")):
            table = tmp_path / "table.parquet"
            service.download_scores(stack.client, scored["id"], table, model=number, level=level)
            lines = (tmp_path / f"{number + 1}-{model}{suffix}.jsonl").read_text().splitlines()
            assert [json.loads(line) for line in lines] == pq.read_table(table).to_pylist()


def test_a_running_request_is_cancelled_and_what_is_scored_stays(stack, checkpoints, tmp_path):
    write_jsonl(make_problems(300, seed=5), tmp_path / "other.jsonl")
    # A model that no other test uses: its engine's start leaves the time to cancel.
    shutil.copytree(checkpoints["llama"], stack.home / "models" / "llama")
    scores_id = ask(stack, tmp_path / "other.jsonl", models=["qwen3", "llama"])
    path = f"/entropy_scores/{scores_id}"
    wait_for(lambda: stack.client.get(path, cast_to=object)["results"], timeout_s=300, what="score_1")
    wmss(stack, "cancel", scores_id)
    wait_for(
        lambda: (status := stack.client.get(path, cast_to=object)["status"]) in service.TERMINAL and status,
        timeout_s=60,
        what="cancelled",
    )
    scores = stack.client.get(path, cast_to=object)
    assert (scores["status"], len(scores["results"])) == ("cancelled", 1)
    service.download_scores(stack.client, scores_id, tmp_path / "table.parquet", model=0)
    assert len(EntropyTable.load(tmp_path / "table.parquet").line) == 300
    assert stack.find("services.driver", scores_id) == []
