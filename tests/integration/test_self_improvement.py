"""Self-improvement on real parts: rounds of vLLM on Ray Serve, a sandboxed verifier and Ray Train."""

import json
import random
import shutil
import time

import httpx2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from services.commands import client as service
from tests.integration.stack import PATIENCE, children_of, matching, messages, wait_for_end, wmss
from tests.rounds.echo import MAX_NEW_TOKENS, make_echo_base, make_tasks
from wmss.models.loading import load_model
from wmss.verifiers.sandbox.availability import sandbox_refusals

pytestmark = pytest.mark.stack

# Slow enough to be killed at.
SLOW_VERIFIER = (
    "import time\ndef verify(task, response):\n    time.sleep(0.03)\n    return response == task['answer']\n"
)
KNOBS = {
    "verifier": {"type": "python", "source": SLOW_VERIFIER},
    "rounds": 2,
    "samples_per_round": 64,
    "samples_per_prompt": 2,
    "curriculum": {"policy": "uniform"},
    "sampling": {"max_new_tokens": MAX_NEW_TOKENS},
    "accept": {"min_accepted": 4},
    "steps_per_round": 40,
    "evaluation_samples": 2,
    "hyperparameters": {"learning_rate": 3e-4, "batch_size": 16},
}


@pytest.fixture(scope="module")
def task_files(stack, tmp_path_factory):
    if refused := sandbox_refusals():
        pytest.skip(refused[0].message)
    if not (stack.home / "models" / "echo").exists():
        make_echo_base(stack.home / "models" / "echo")
    folder = tmp_path_factory.mktemp("tasks")
    held_out = make_tasks(24, seed=2) + make_tasks(8, seed=3, split="test")
    for name, tasks in (("train", make_tasks(80, seed=1)), ("held_out", held_out)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(task) + "\n" for task in tasks))
    return folder


@pytest.fixture(scope="module")
def undisturbed(stack, task_files):
    """A job submitted, watched and looked at from the command line."""
    job_file = task_files / "job.toml"
    job_file.write_text(
        f"""
        model = "echo"
        training_file = "train.jsonl"
        validation_file = "held_out.jsonl"
        checkpointing = {{ every_steps = 10 }}
        [self_improvement]
        rounds = 2
        samples_per_round = 64
        samples_per_prompt = 2
        steps_per_round = 40
        evaluation_samples = 2
        verifier = {{ type = "python", source = {json.dumps(SLOW_VERIFIER)} }}
        curriculum = {{ policy = "uniform" }}
        sampling = {{ max_new_tokens = {MAX_NEW_TOKENS} }}
        accept = {{ min_accepted = 4 }}
        hyperparameters = {{ learning_rate = 3e-4, batch_size = 16 }}
        """
    )
    assert "at most 2 rounds of" in wmss(stack, "check", str(job_file), "--home", str(stack.home))
    shown = wmss(stack, "submit", job_file, "--watch", timeout_s=400)
    assert "no further round" in shown
    return shown.split()[0]


def manifests(stack, job_id):
    return [each["manifest_sha256"] for each in service.rounds(stack.client, job_id)]


def test_rounds_from_the_command_line_to_a_model(stack, undisturbed, tmp_path):
    job = stack.client.fine_tuning.jobs.retrieve(undisturbed)
    assert (job.status, job.method.type) == ("succeeded", "self_improvement")
    assert load_model(stack.home / "models" / job.id).num_parameters() > 0
    phases = {phase["name"]: phase for phase in service.phases(stack.client, job.id)}
    assert all(phase["status"] == "finished" for phase in phases.values()) and "decide_2" in phases
    rounds = service.rounds(stack.client, job.id)
    assert [each["round"] for each in rounds] == [1, 2]
    assert all(sum(level["num_sampled"] for level in each["levels"]) == 64 for each in rounds)
    assert rounds[-1]["stop"] is not None and rounds[0]["stop"] is None
    # One engine for all rounds, whose weights change in place; another job may have left it.
    told = [message for message in messages(stack, job.id) if message.startswith("the sampler of")]
    assert len([message for message in told if "started in" in message]) <= 1
    assert any("has its weights after" in message for message in told)

    chart = tmp_path / "rounds.png"
    told = wmss(stack, "rounds", job.id, "--chart", str(chart))
    assert "accepted/sampled" in told and chart.read_bytes().startswith(b"\x89PNG")

    url = f"{stack.endpoint.base_url}/fine_tuning/jobs/{job.id}/rollouts"
    page = httpx2.get(url, params={"round": 2, "label": "correct", "limit": 3}).json()
    accepted = sum(level["num_accepted"] for level in rounds[1]["levels"])
    assert page["total"] >= accepted > 0 and all(row["label"] == "correct" for row in page["data"])
    following = httpx2.get(url, params={"round": 2, "label": "correct", "after": page["data"][-1]["id"]}).json()
    assert following["data"][0]["id"] not in [row["id"] for row in page["data"]]
    table = pq.read_table(pa.BufferReader(httpx2.get(f"{url}/download", params={"round": 2}).content))
    assert len(table) == 64 and {"token_ids", "label", "detail"} <= set(table.column_names)
    assert httpx2.get(url, params={"round": 3}).status_code == 404
    assert "self_improvement" in httpx2.get(url.replace("rollouts", "samples")).json()["error"]["message"]


@pytest.mark.slow
def test_a_job_whose_parts_are_killed_learns_from_the_same_responses(stack, task_files, undisturbed):
    """SIGKILL of the engine, a verifier process, a training worker and, thrice, the driver, each in another phase."""
    api = stack.client
    values = {
        "model": "echo",
        "training_file": service.upload(api, task_files / "train.jsonl"),
        "validation_file": service.upload(api, task_files / "held_out.jsonl"),
        "method": {"type": "self_improvement", "self_improvement": KNOBS},
        "checkpointing": {"every_steps": 10},
    }
    job_id = str(api.post("/fine_tuning/jobs", body=values, cast_to=object)["id"])

    def driver():
        return stack.find("services.driver", job_id)

    def verifiers():  # children of the driver; their environment, which `find` looks at, is scrubbed
        return matching(children_of(driver()), "wmss.verifiers.worker")

    victims = {
        "pilot": verifiers,
        "generate": driver,
        "verify": verifiers,
        "train": lambda: stack.find("ray::RayTrainWorker"),
        "evaluate": lambda: stack.find("ray::ServeReplica:sampler"),
        "verify_2": driver,
        "train_2": driver,
    }
    killed = shoot(stack, job_id, victims)
    job = wait_for_end(stack, job_id)
    assert job.status == "succeeded", job.error
    print(f"killed in {killed}; attempts: {job.x_attempt}")
    assert {"verify", "train", "train_2"} <= set(killed)
    assert manifests(stack, job_id) == manifests(stack, undisturbed)
    digests = [
        {phase["name"]: phase for phase in service.phases(api, each)}["export"]["artifacts"]["digest"]
        for each in (job_id, undisturbed)
    ]
    assert digests[0] == digests[1]


def shoot(stack, job_id, victims):
    """Kill, in each phase once, one of its victims; returns the phases it was done in: one of a tiny model may be over
    before anybody is found."""
    rng, left, killed = random.Random(1), dict(victims), []
    deadline = time.monotonic() + PATIENCE * 400
    while left and time.monotonic() < deadline:
        phases = {phase["name"]: phase["status"] for phase in service.phases(stack.client, job_id)}
        for name in [name for name in left if phases.get(name) == "finished"]:
            del left[name]
        running = next((name for name in left if phases.get(name) == "running"), None)
        if running is None:
            if stack.client.fine_tuning.jobs.retrieve(job_id).status in service.TERMINAL:
                break
            time.sleep(0.05)
            continue
        found = left[running]()
        if found:
            time.sleep(rng.random() / 4)
            found[-1].kill()
            killed.append(running)
            del left[running]
    return killed


def test_a_verifier_that_cannot_work_is_refused_before_anything_runs(stack, task_files):
    api = stack.client
    body = {
        "model": "echo",
        "training_file": service.upload(api, task_files / "train.jsonl"),
        "validation_file": service.upload(api, task_files / "train.jsonl"),
        "method": {"type": "self_improvement", "self_improvement": KNOBS | {"verifier": {"type": "code"}}},
    }
    report = api.post("/fine_tuning/jobs/validate", body=body, cast_to=object)
    assert not report["valid"] and "that are not trained on" in report["problems"][0]["message"]
    body["validation_file"] = service.upload(api, task_files / "held_out.jsonl")
    report = api.post("/fine_tuning/jobs/validate", body=body, cast_to=object)
    assert not report["valid"] and "data.tests" in report["problems"][0]["message"]
    job = wait_for_end(stack, str(api.post("/fine_tuning/jobs", body=body, cast_to=object)["id"]), 60)
    assert job.status == "failed" and "data.tests" in job.error.message


# What a user would write for a chatty model: the last number it says, against the number after the mark.
LAST_NUMBER = r"""
import re
def verify(task, response):
    said = re.findall(r"-?\d+", response.replace(",", ""))
    return bool(said) and said[-1] == task["answer"].rsplit("#### ", 1)[1]
"""


def word_problems(num, *, seed):
    """Rows in GSM8K's format, of one and of three steps."""
    rng = random.Random(seed)
    rows = {}
    while len(rows) < num:
        a, b, c, d = (rng.randint(1, 9) for _ in range(4))
        name = rng.choice(["Tom", "Ann", "Max", "Eve", "Ben", "Kim"])
        if len(rows) % 2:
            question = f"{name} has {a} apples and buys {b} more. How many apples does {name} have now?"
            solution = f"{name} has {a}+{b}=<<{a}+{b}={a + b}>>{a + b} apples.\n#### {a + b}"
        else:
            question = f"{name} has {a} apples, buys {b}, finds {c} and gets {d}. How many apples does {name} have?"
            x, y, z = a + b, a + b + c, a + b + c + d
            solution = f"{a}+{b}=<<{a}+{b}={x}>>{x}\n{x}+{c}=<<{x}+{c}={y}>>{y}\n{y}+{d}=<<{y}+{d}={z}>>{z}\n#### {z}"
        rows.setdefault(question, {"question": question, "answer": solution})
    return list(rows.values())


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_real_weights_go_through_all_states(stack, smollm2, tmp_path):
    """SmolLM2-135M on problems in GSM8K's format; it says nothing of how much better the model gets."""
    if not (stack.home / "models" / "smollm2").exists():
        shutil.copytree(smollm2, stack.home / "models" / "smollm2")
    problems = word_problems(72, seed=1)
    for name, part in (("train", problems[:48]), ("held_out", problems[48:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
        wmss(stack, "convert", "--to", "tasks", str(tmp_path / f"{name}.jsonl"), str(tmp_path / f"{name}_tasks.jsonl"))
    api = stack.client
    knobs = {
        "verifier": {"type": "python", "source": LAST_NUMBER},
        "rounds": 2,
        "samples_per_round": 64,
        "samples_per_prompt": 2,
        "curriculum": {"policy": "uniform"},
        "sampling": {"max_new_tokens": 64},
        "accept": {"min_accepted": 1},
        "steps_per_round": 2,
        "evaluation_samples": 1,
        "stop": {"patience": 2},
        "hyperparameters": {"learning_rate": 2e-5, "batch_size": 4, "micro_batch_tokens": 512},
    }
    body = {
        "model": "smollm2",
        "training_file": service.upload(api, tmp_path / "train_tasks.jsonl"),
        "validation_file": service.upload(api, tmp_path / "held_out_tasks.jsonl"),
        "method": {"type": "self_improvement", "self_improvement": knobs},
    }
    job_id = str(api.post("/fine_tuning/jobs", body=body, cast_to=object)["id"])
    job = wait_for_end(stack, job_id, 1400)
    print("\n".join(messages(stack, job_id)))
    assert job.status == "succeeded", job.error
    recorded = {phase["name"] for phase in service.phases(api, job_id) if phase["status"] == "finished"}
    assert {"plan", "generate", "verify", "select", "train", "evaluate", "decide", "decide_2", "export"} <= recorded
    rounds = service.rounds(api, job_id)
    assert [level["level"] for level in rounds[0]["levels"]] == [1, 2]
    assert sum(level["num_selected"] for level in rounds[0]["levels"]) >= 1
