"""The whole service on real parts: `wmss serve`, Ray Jobs, Serve and Train, vLLM, SQLite, HTTP, the openai client.

    pytest tests/integration

One service serves all tests of the file, one after the other.
"""

import json
import os
import shutil
import signal
import time
import urllib.request
from pathlib import Path

import httpx2
import numpy as np
import openai
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from services.commands import client as service
from services.control.supervisor import free_port
from tests.integration.stack import (
    call,
    messages,
    metrics,
    start,
    submit,
    wait_for,
    wait_for_end,
    wait_for_step,
    wmss,
)
from tests.training.runs import LocalHost
from wmss.config import Hyperparameters
from wmss.models.loading import load_model
from wmss.tasks.arithmetic import make_problems, write_jsonl
from wmss.training.loop import train
from wmss.training.run import ModelSource, TrainingRun

pytestmark = pytest.mark.stack


def dashboard(stack, path):
    token = Path(stack.endpoint.token_path).read_text()
    request = urllib.request.Request(stack.endpoint.dashboard_url + path, headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.load(response)


def check_samples(stack, job_id, phases, file):
    """The draw of a job, sample by sample, agrees with what its phases recorded and with its file."""
    page = service.samples(stack.client, job_id, sort="-weight", limit=100, text="full")
    rows = page["data"]
    assert (page["total"], len(rows), page["has_more"]) == (96, 96, False)
    assert [row["weight"] for row in rows] == sorted((row["weight"] for row in rows), reverse=True)
    assert sum(row["weight"] for row in rows) == pytest.approx(1)
    assert sum(row["times_drawn"] for row in rows) == 96
    for name in ("weak", "strong"):
        recorded = phases[f"score_{name}"]["artifacts"]
        assert np.mean([row[f"{name}_entropy"] for row in rows]) == pytest.approx(recorded["mean_entropy"])
        weights = [row["num_targets"] for row in rows]
        nll = np.average([row[f"{name}_nll"] for row in rows], weights=weights)
        assert nll == pytest.approx(recorded["nll"])
    assert all(row["entropy_delta"] == row["strong_entropy"] - row["weak_entropy"] for row in rows)
    lines = file.read_text().splitlines()
    answers = {number: json.loads(line)["messages"][-1] for number, line in enumerate(lines, start=1)}
    assert {row["line"]: row["completion"] for row in rows} == {n: turn["content"] for n, turn in answers.items()}
    never = service.samples(stack.client, job_id, times_drawn=0)
    assert never["total"] == phases["weigh"]["artifacts"]["num_duplicates"]
    table = httpx2.get(f"{stack.endpoint.base_url}/fine_tuning/jobs/{job_id}/samples/download")
    origin = json.loads(pq.read_schema(pa.BufferReader(table.content)).metadata[b"wmss"])
    assert origin["weak_provenance"] == phases["score_weak"]["artifacts"]["provenance"]
    assert f"20 of {page['total']} samples" in wmss(stack, "samples", job_id)


@pytest.fixture(scope="module")
def weak_driven(stack, files, tmp_path_factory):
    """A job of `wmss submit --watch`, with a registered weak checkpoint."""
    weak = wmss(stack, "checkpoints", "add", "qwen3_other").strip()
    job_file = tmp_path_factory.mktemp("job") / "job.toml"
    job_file.write_text(
        f"""
        model = "qwen3"
        training_file = "{files / "train.jsonl"}"
        validation_file = "{files / "validation.jsonl"}"
        suffix = "test"
        metadata = {{ purpose = "test" }}
        [wmss]
        weak_model = "{weak}"
        hyperparameters = {{ learning_rate = 1e-3, batch_size = 16 }}
        """
    )
    assert "entropy weak → strong" in wmss(stack, "submit", job_file, "--watch", timeout_s=400)
    [job] = [job for job in stack.client.fine_tuning.jobs.list() if (job.metadata or {}).get("purpose") == "test"]
    return job


def test_wmss_job_from_the_command_line_to_an_exported_model(stack, files, weak_driven, tmp_path):
    """Everything that must be true of its result."""
    job = weak_driven
    assert job.status == "succeeded"
    assert job.fine_tuned_model == f"ft:qwen3:test:{job.id}"
    assert job.trained_tokens > 1000
    assert job.fine_tuned_model in [model.id for model in stack.client.models.list()]

    phases = {phase["name"]: phase for phase in service.phases(stack.client, job.id)}
    assert all(phase["status"] == "finished" for phase in phases.values())
    results = phases["evaluate"]["artifacts"]["results"]  # these loaded in vLLM, scorer and sampler
    assert results["result"]["nll"] < results["base"]["nll"]
    assert results["result"]["accuracy"]["num_problems"] == 16

    check_samples(stack, job.id, phases, files / "train.jsonl")

    target = tmp_path / "exported"
    wmss(stack, "export", job.id, str(target))
    base, exported = load_model(stack.home / "models" / "qwen3"), load_model(target)
    assert exported.num_parameters() == base.num_parameters()
    assert (target / "config.json").read_bytes() == (stack.home / "models" / "qwen3" / "config.json").read_bytes()
    weights = {p.suffix for p in target.iterdir()} - {".json", ".jinja"}
    assert weights == {".safetensors"}
    [checkpoint] = [
        c for c in stack.client.fine_tuning.jobs.checkpoints.list(job.id) if "joint" in c.fine_tuned_model_checkpoint
    ]
    strong = load_model(stack.home / "runs" / f"{job.id}-joint-1" / f"step-{checkpoint.step_number:08d}" / "strong")
    ids = torch.arange(40)[None]
    with torch.no_grad():
        assert torch.equal(exported(ids).logits, strong(ids).logits)
        assert not torch.equal(exported(ids).logits, base(ids).logits)

    # The Ray dashboard's API lists the job and both training runs.
    def driver_status():
        return [j["status"] for j in dashboard(stack, "/api/jobs/") if j["submission_id"] == f"{job.id}-1"]

    wait_for(lambda: driver_status() == ["SUCCEEDED"], timeout_s=30, what="the driver's end")
    runs = {r["name"]: r["status"] for r in dashboard(stack, "/api/train/v2/runs/v1")["train_runs"]}
    assert runs[f"{job.id}-sft-1"] == runs[f"{job.id}-joint-1"] == "FINISHED"


def test_job_survives_the_death_of_worker_api_and_driver(stack, files, tmp_path):
    """SIGKILL of each in turn; the weights are those of the same training without any of it, bit for bit."""
    num_steps = 150
    knobs = {"learning_rate": 1e-3, "batch_size": 16, "n_epochs": 999, "max_steps": num_steps}
    job_id = submit(
        stack,
        files,
        method={"type": "supervised", "supervised": {"hyperparameters": knobs}},
        checkpointing={"every_steps": 5},
    )
    wait_for_step(stack, job_id, 12)
    [worker] = stack.find("ray::RayTrainWorker")
    worker.kill()
    wait_for_step(stack, job_id, 30)

    [api] = stack.find("services.api.app:create_app")
    api.kill()
    api.wait()
    wait_for(lambda: answers(stack), timeout_s=30, what="a new API")
    wait_for_step(stack, job_id, 60)

    # The entrypoint runs under a shell; the driver is the process below it.
    *_, driver = stack.find("services.driver", job_id)
    driver.kill()
    job = wait_for_end(stack, job_id)
    assert job.status == "succeeded", job.error
    assert job.x_attempt == 2
    assert any("attempt 2 goes on from its last phase" in message for message in messages(stack, job_id))
    assert [m["step"] for m in metrics(stack, job_id)] == list(range(1, num_steps + 1))

    host = LocalHost(tmp_path)
    undisturbed = TrainingRun(
        phase="sft",
        strong=ModelSource(folder=stack.home / "models" / "qwen3"),
        samples=stack.home / "jobs" / job_id / "samples.parquet",
        indices=tuple(range(96)),
        mixing_weight=1.0,
        batch_size=16,
        num_epochs=999,
        hyperparameters=Hyperparameters(**knobs),
        seed=42,
        checkpoint_every=num_steps,
    )
    train(undisturbed, host)
    expected = load_file(tmp_path / f"step-{num_steps:04d}" / "strong" / "model.safetensors")
    actual = load_file(stack.home / "models" / job_id / "model.safetensors")
    assert all(torch.equal(expected[name], actual[name]) for name in expected)


def answers(stack):
    try:
        return stack.client.with_options(max_retries=0).models.list()
    except openai.OpenAIError:
        return None


def test_cancel_during_training_frees_workers(stack, files, weak_driven):
    """Two of them; the model is a checkpoint, which is one to start from as a finished model is."""
    phases = {phase["name"]: phase["artifacts"] for phase in service.phases(stack.client, weak_driven.id)}
    knobs = {"batch_size": 16, "n_epochs": 999, "max_steps": 100_000}
    job_id = submit(
        stack,
        files,
        model=f"{weak_driven.fine_tuned_model}:ckpt-sft-{phases['sft']['num_steps']}",
        method={"type": "supervised", "supervised": {"hyperparameters": knobs}},
        resources={"num_workers": 2},
    )
    wait_for_step(stack, job_id, 3)
    assert len(stack.find("ray::RayTrainWorker")) == 2
    cancelled_within(stack, job_id, 30)
    assert [e for e in metrics(stack, job_id) if e["step"] >= 3]


def test_cancel_during_scoring_frees_the_engine(stack, files, checkpoints):
    # A model that no other test uses, whose engine is not there yet.
    shutil.copytree(checkpoints["qwen3_wide"], stack.home / "models" / "qwen3_wide")
    method = {"type": "wmss", "wmss": {"weak_model": "qwen3_wide", "strong_model": "qwen3"}}
    # Other data than any test before, or the scores would come from the cache.
    write_jsonl(make_problems(96, seed=77), files / "train.jsonl")
    before = engines(stack)
    job_id = submit(stack, files, method=method)
    wait_for(lambda: engines(stack) - before and stack.find("ray::ServeReplica:scorer"), timeout_s=60, what="an engine")
    [engine] = engines(stack) - before
    # An engine that is starting takes longer to go: 12 to 36 s were seen.
    cancelled_within(stack, job_id, 60, engine=engine)


def engines(stack):
    applications = dashboard(stack, "/api/serve/applications/")["applications"]
    return {name for name in applications if name.startswith("scorer-")}


def cancelled_within(stack, job_id, seconds, *, engine="no engine"):
    started = time.monotonic()
    assert stack.client.fine_tuning.jobs.cancel(job_id).status in ("running", "cancelled")
    job = wait_for_end(stack, job_id, seconds)
    assert job.status == "cancelled"
    wait_for(
        lambda: (
            not stack.find("ray::RayTrainWorker")
            and not stack.find(f"ray::ServeReplica:{engine}")
            and engine not in engines(stack)
        ),
        timeout_s=seconds,
        what="workers and engines gone",
    )
    assert time.monotonic() - started < seconds, "cancelled, with workers and engines gone, but late"


def test_job_that_fails_says_why(stack, files):
    knobs = {"max_length": 5}
    failing = submit(stack, files, method={"type": "supervised", "supervised": {"hyperparameters": knobs}})
    job = wait_for_end(stack, failing, 60)
    assert job.status == "failed"
    assert (job.error.code, job.error.param) == ("invalid_file", "training_file")
    assert "0 supervised tokens" in job.error.message
    assert "0 supervised tokens" in call(stack, "watch", failing, code=1).stderr

    # The dry run finds the same, in the same words, on the same cluster.
    values = {"model": "qwen3", "training_file": service.upload(stack.client, files / "train.jsonl")}
    greedy = submit(stack, files, resources={"num_workers": 99})
    job = wait_for_end(stack, greedy, 60)
    assert (job.status, job.error.param) == ("failed", "resources.num_workers")
    body = values | {"resources": {"num_workers": 99}}
    seen = stack.client.post("/fine_tuning/jobs/validate", body=body, cast_to=object)
    assert [(p["code"], p["message"]) for p in seen["problems"]] == [(job.error.code, job.error.message)]
    assert stack.client.post("/fine_tuning/jobs/validate", body=values, cast_to=object)["valid"]


def test_command_line_refusals(stack, files):
    def refused(*arguments, **environment):
        return call(stack, *arguments, code=1, environment=environment).stderr

    data = files / "train.jsonl"
    assert "no model 'nope'" in refused("submit", "--model", "nope", "--training-file", data)
    assert "there is no file" in refused("submit", "--model", "qwen3", "--training-file", "nothing.jsonl")
    assert "model: required field is missing" in refused("submit", "--training-file", data)
    assert "there is no fine-tuning job 'ftjob-x'" in refused("cancel", "ftjob-x")
    assert "no service answers at http://127.0.0.1:9" in refused("jobs", WMSS_BASE_URL="http://127.0.0.1:9/v1")
    port = stack.endpoint.base_url.split(":")[2].removesuffix("/v1")
    assert "another service runs in" in refused("serve", "--port", free_port(), "--home", stack.home)
    assert f"127.0.0.1:{port} cannot be used" in refused("serve", "--port", port, "--home", stack.home / "other")


def test_killed_supervisor_takes_its_children_along(stack, tmp_path):
    """Of a second service beside the first one, which stays."""
    second = start(tmp_path)
    assert len(second.processes()) > 5  # API, GCS, raylet, dashboard, agents
    os.kill(second.process.pid, signal.SIGKILL)
    second.process.wait()
    second.client.close()
    wait_for(lambda: not second.processes(), timeout_s=40, what="no process left")
    assert answers(stack)
