"""The stock `openai` client against the running service: every call it has for what we offer, and its errors.

The client builds its objects without checking them, so the tests read the fields that its users read. They run twice:
with the installed client, and in a process of its own with the oldest one that works. Both read the same finished job.
"""

import os
import subprocess
import sys
from pathlib import Path

import httpx
import openai
import pytest

from tests.integration.stack import ATTACH, PATIENCE, wait_for

pytestmark = pytest.mark.stack

OLDEST = Path(sys.prefix) / "openai-oldest"
"""Where `make` installs requirements/openai-oldest.lock."""
SUITE = f"contract-{openai.__version__}"
FINISHED = "WMSS_TEST_FINISHED_JOB"
"""Variable with the finished job of the run with the newest client, for the run with the oldest one."""


@pytest.mark.skipif(ATTACH not in os.environ, reason="this is the run with the newest client")
def test_this_is_the_oldest_client():
    assert f"openai=={openai.__version__}\n" in Path("requirements/openai-oldest.lock").read_text()
    assert Path(openai.__file__).is_relative_to(OLDEST)


@pytest.fixture(scope="module")
def client(stack):
    return stack.client


@pytest.fixture(scope="module")
def training_file(client, files):
    return client.files.create(file=files / "train.jsonl", purpose="fine-tune")


@pytest.fixture(scope="module")
def job(client, training_file):
    """A small job that has succeeded."""
    if FINISHED in os.environ:
        return client.fine_tuning.jobs.retrieve(os.environ[FINISHED])
    knobs = {"batch_size": 16, "n_epochs": 2, "max_steps": 8}
    job = client.fine_tuning.jobs.create(
        model="qwen3",
        training_file=training_file.id,
        method={"type": "supervised", "supervised": {"hyperparameters": knobs}},
        suffix="contract",
        seed=7,
        metadata={"suite": "contract"},
        extra_body={"checkpointing": {"every_steps": 4}},
    )
    assert job.status in ("queued", "running")
    assert job.fine_tuned_model is None
    ended = ("succeeded", "failed", "cancelled")
    return wait_for(
        lambda: (now := client.fine_tuning.jobs.retrieve(job.id)).status in ended and now, timeout_s=120, what=job.id
    )


def test_files(client, training_file, files):
    assert (training_file.object, training_file.purpose, training_file.status) == ("file", "fine-tune", "processed")
    assert client.files.retrieve(training_file.id) == training_file
    assert client.files.content(training_file.id).content == (files / "train.jsonl").read_bytes()
    second = client.files.create(file=("other.jsonl", b'{"prompt": "p", "completion": "c"}\n'), purpose="fine-tune")
    listed = [file.id for file in client.files.list(limit=1)]  # pages through all of them
    assert listed.index(second.id) < listed.index(training_file.id)
    deleted = client.files.delete(second.id)
    assert (deleted.id, deleted.deleted) == (second.id, True)
    with pytest.raises(openai.NotFoundError) as caught:
        client.files.retrieve(second.id)
    assert caught.value.param == "file_id"


def test_finished_job(client, job, files):
    assert (job.object, job.status, job.model, job.seed) == ("fine_tuning.job", "succeeded", "qwen3", 7)
    assert job.fine_tuned_model == f"ft:qwen3:contract:{job.id}"
    assert client.files.content(job.training_file).content == (files / "train.jsonl").read_bytes()
    assert job.finished_at >= job.created_at
    assert job.trained_tokens > 0
    assert job.error is None
    assert job.method.type == "supervised"
    assert job.method.supervised.hyperparameters.n_epochs == 2
    assert job.metadata == {"suite": "contract"}
    assert job.fine_tuned_model in [model.id for model in client.models.list()]
    assert client.models.retrieve(job.fine_tuned_model).owned_by == job.id


def test_lists_page_and_filter(client, job, training_file):
    first = client.fine_tuning.jobs.list(limit=1, metadata={"suite": "contract"})
    assert [listed.id for listed in first.data] == [job.id]
    more = [
        client.fine_tuning.jobs.create(model="qwen3", training_file=training_file.id, metadata={"n": str(n)}).id
        for n in range(3)
    ]
    for job_id in more:
        client.fine_tuning.jobs.cancel(job_id)
    everything = [listed.id for listed in client.fine_tuning.jobs.list(limit=2)]
    assert everything[:3] == more[::-1]
    assert len(everything) == len(set(everything))
    assert [listed.id for listed in client.fine_tuning.jobs.list(after=more[0], limit=1).data] == everything[3:4]


def test_events(client, job):
    events = list(client.fine_tuning.jobs.list_events(job.id, limit=3))
    assert all(event.object == "fine_tuning.job.event" for event in events)
    assert events[-1].message.startswith("Job accepted")
    assert {event.level for event in events} <= {"info", "warn", "error"}
    steps = [event.data["step"] for event in events if event.type == "metrics"]
    assert steps == list(range(8, 0, -1))
    numbers = [int(event.id.split("-")[1]) for event in events]
    assert numbers == sorted(numbers, reverse=True)


def test_checkpoints(client, job):
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job.id, limit=1))
    assert [checkpoint.step_number for checkpoint in checkpoints] == [8, 4]
    newest = checkpoints[0]
    assert newest.fine_tuning_job_id == job.id
    assert newest.fine_tuned_model_checkpoint == f"{job.fine_tuned_model}:ckpt-sft-8"
    assert newest.metrics.train_loss > 0


class AnsweredTooLate(httpx.HTTPTransport):
    """The first create reaches the service, and its answer is lost on the way back."""

    def __init__(self):
        super().__init__()
        self.creates = []

    def handle_request(self, request):
        response = super().handle_request(request)
        if request.method == "POST":
            response.read()
            self.creates.append(request.headers.get("x-stainless-retry-count"))
            if len(self.creates) == 1:
                return httpx.Response(503, headers={"retry-after": "0"}, request=request)
        return response


def test_a_create_whose_answer_was_lost_makes_one_job(stack, training_file):
    transport = AnsweredTooLate()
    with openai.OpenAI(
        base_url=stack.endpoint.base_url, api_key="any", http_client=httpx.Client(transport=transport)
    ) as client:
        job = client.fine_tuning.jobs.create(
            model="qwen3", training_file=training_file.id, metadata={"lost": SUITE}, seed=len(SUITE)
        )
        client.with_options(max_retries=0).fine_tuning.jobs.cancel(job.id)
        assert transport.creates[:2] == ["0", "1"]
        assert [made.id for made in client.fine_tuning.jobs.list(metadata={"lost": SUITE})] == [job.id]


def test_what_is_sent_to_openai_is_understood(client, training_file):
    knobs = {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"}
    method = {"type": "supervised", "supervised": {"hyperparameters": knobs}}
    job = client.fine_tuning.jobs.create(model="qwen3", training_file=training_file.id, method=method)
    client.fine_tuning.jobs.cancel(job.id)
    assert job.method.supervised.hyperparameters.n_epochs == "auto"


def test_chat(client):
    question = {"model": "qwen3", "messages": [{"role": "user", "content": "3 + 4 = ?"}], "temperature": 0}
    answer = client.chat.completions.create(**question, max_tokens=5)
    assert answer.usage.completion_tokens == 5
    parts = list(client.chat.completions.create(**question, max_tokens=5, stream=True))
    text = "".join(part.choices[0].delta.content or "" for part in parts)
    assert text == answer.choices[0].message.content
    assert client.completions.create(model="qwen3", prompt="3 + 4", max_tokens=2).usage.completion_tokens == 2
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(**question | {"model": "nobody"})
    assert caught.value.param == "model"


def test_errors_are_typed_and_name_the_field(client, job, training_file):
    create = client.fine_tuning.jobs.create
    with pytest.raises(openai.BadRequestError) as caught:
        create(model="qwen3", training_file=training_file.id, method={"type": "wmss", "wmss": {"mixing_weight": 2}})
    assert caught.value.param == "method.wmss.mixing_weight"
    assert caught.value.type == "invalid_request_error"
    assert caught.value.code == "invalid_config"
    assert caught.value.request_id.startswith("req-")
    with pytest.raises(openai.NotFoundError):
        client.fine_tuning.jobs.retrieve("ftjob-nothing")
    with pytest.raises(openai.ConflictError) as caught:
        client.fine_tuning.jobs.cancel(job.id)
    assert caught.value.code == "job_ended"
    with pytest.raises(openai.UnprocessableEntityError):
        for seed in (1, 2):
            made = create(
                model="qwen3", training_file=training_file.id, seed=seed, extra_headers={"idempotency-key": SUITE}
            )
            client.fine_tuning.jobs.cancel(made.id)


@pytest.mark.skipif(ATTACH in os.environ, reason="this is the run with the oldest client")
@pytest.mark.skipif(not OLDEST.is_dir(), reason=f"the oldest client is not in {OLDEST}; `make test` installs it")
def test_the_oldest_client_keeps_the_same_contract(stack, job):
    """Everything above once more, in a process that imports the oldest client."""
    place = {ATTACH: str(stack.home), FINISHED: job.id, "PYTHONPATH": f"{OLDEST}:{Path.cwd()}"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    run = subprocess.run(command, env=stack.environment | place, capture_output=True, text=True, timeout=PATIENCE * 200)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "passed" in run.stdout
