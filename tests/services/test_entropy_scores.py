"""/v1/entropy_scores over real HTTP parsing, a real database and no Ray; a driver's part is played by its fence."""

import io
import json

import pyarrow.parquet as pq
import pytest

from services.jobs.fence import Fence
from services.jobs.kinds import Kind
from services.jobs.states import State
from services.jobs.store import Store
from services.results import scores as score_tables
from tests.rounds.engines import ScriptedEngines
from tests.services.requests import create, problem, upload
from wmss.errors import ModelError
from wmss.rounds.scores.request import run_scores

URL = "/v1/entropy_scores"
pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments")  # Ray Serve's, when it is imported


@pytest.fixture
def body(api):
    return {"file": upload(api).json()["id"], "models": ["qwen3", "qwen3_other"], "tokens": True}


def send(api, body, headers=None, **change):
    return api.post(URL, json=body | change, headers=headers)


def drive(api, scores_id, *, until=None):
    """What the driver of the next attempt does, with scripted engines; stops before phase `until` if asked to."""
    from services.driver.journal import DatabaseJournal
    from services.driver.resolve import resolve_scores

    service = api.app.state.service
    attempt = service.store.claim(service.store.job(scores_id), message="Starting")
    fence = Fence(service.store, scores_id, attempt, lease_s=30)
    job = resolve_scores(service.store.job(scores_id), service.settings, service.store)
    journal = DatabaseJournal(service.store, fence, scores_id, service.settings)
    if until is not None:
        start = journal.start
        journal.start = lambda phase: pytest.fail("stopped") if phase == until else start(phase)
    try:
        run_scores(job, ScriptedEngines(job.checkpoints), journal)
    except pytest.fail.Exception:
        return fence
    fence.end(State.SUCCEEDED, error=None, message="Done", trained_tokens=None)
    return fence


@pytest.fixture
def quiet(api):
    """The reconcile loop leaves the jobs to the test."""
    api.app.state.service.reconciler.stop()


def test_a_request_echoes_every_default_and_is_no_job(api, body, quiet):
    scores = send(api, body, metadata={"n": "1"}).json()
    assert scores["id"].startswith("score-")
    assert (scores["object"], scores["status"], scores["error"]) == ("entropy_scores", "queued", None)
    assert scores.items() >= (body | {"max_length": "auto", "dtype": "float32", "num_replicas": 1}).items()
    assert [(phase["name"], phase["status"]) for phase in scores["progress"]] == [
        (name, "pending") for name in ("validate", "score_1", "score_2")
    ]
    assert scores["results"] == []
    job = create(api, model="qwen3", training_file=body["file"], metadata={"n": "1"}).json()["id"]
    for path, own, other in ((URL, scores["id"], job), ("/v1/fine_tuning/jobs", job, scores["id"])):
        assert [item["id"] for item in api.get(path, params={"metadata[n]": "1"}).json()["data"]] == [own]
        assert api.get(path, params={"metadata[n]": "2"}).json()["data"] == []
        assert api.get(f"{path}/{own}").json()["id"] == own
        for suffix in ("", "/events"):
            assert problem(api.get(f"{path}/{other}{suffix}"), 404)["code"] == "not_found"
        assert problem(api.post(f"{path}/{other}/cancel"), 404)["code"] == "not_found"
        assert problem(api.get(path, params={"after": other}), 400)["param"] == "after"
    events = api.get(f"{URL}/{scores['id']}/events").json()["data"]
    assert [event["object"] for event in events] == ["entropy_scores.event"]
    assert scores["id"] in problem(api.delete(f"/v1/files/{body['file']}"), 409)["message"]


@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        ({"file": "file-x"}, "file", "there is no file 'file-x'; upload it"),
        ({"models": []}, "models", "at least 1 item"),
        ({"models": ["qwen3"] * 9}, "models", "at most 8 items"),
        ({"models": ["qwen3", "nothing"]}, "models.1", "no model 'nothing'"),
        ({"models": ["qwen3", 3]}, "models.1", "valid string"),
        ({"models": ["weak-" + "0" * 24]}, "models.0", "there is no registered checkpoint"),
        ({"model": "qwen3"}, "model", "unknown field"),
        ({"max_length": 1}, "max_length", "greater than or equal to 2 or 'auto'"),
        ({"dtype": "float16"}, "dtype", "'float32' or 'bfloat16'"),
        ({"num_replicas": 0}, "num_replicas", "greater than or equal to 1"),
        ({"tokens": "yes"}, "tokens", "valid boolean"),
        ({"metadata": {"k": 1}}, "metadata.k", "valid string"),
    ],
)
def test_bad_requests_are_refused_by_field(api, body, change, param, message):
    error = problem(send(api, body, **change), 400)
    assert error["param"] == param
    assert message in error["message"]
    assert api.get(URL).json()["data"] == []


def test_checkpoints_whose_tokenizers_differ_are_refused_together(api, body, home):
    tokenizer = home / "models/llama/tokenizer.json"
    assert send(api, body, models=["qwen3", "llama"]).status_code == 200
    tokenizer.write_text(tokenizer.read_text().replace('"<|im_end|>"', '"<|turn_end|>"'))
    error = problem(send(api, body, models=["qwen3", "qwen3_other", "llama"]), 400)
    assert error["param"] == "models.2"
    assert "differs from that of models.0" in error["message"]


def test_a_request_that_is_sent_again_is_one(api, body, quiet):
    first = send(api, body).json()["id"]
    assert send(api, body, {"x-stainless-retry-count": "1"}).json()["id"] == first
    keyed = send(api, body, {"idempotency-key": "k"}).json()["id"]
    assert send(api, body, {"idempotency-key": "k"}).json()["id"] == keyed != first
    assert problem(send(api, body, {"idempotency-key": "k"}, tokens=False), 422)["param"] == "Idempotency-Key"
    job = {"model": "qwen3", "training_file": body["file"]}
    response = api.post("/v1/fine_tuning/jobs", json=job, headers={"idempotency-key": "k"})
    assert problem(response, 422)["code"] == "idempotency_key_reused"


def test_results_and_tables_come_checkpoint_by_checkpoint(api, body, quiet, monkeypatch):
    monkeypatch.setattr(score_tables, "ROWS_AT_A_TIME", 5)
    scores_id = send(api, body).json()["id"]
    url = f"{URL}/{scores_id}"
    error = problem(api.get(f"{url}/content"), 409)
    assert (error["code"], "qwen3 is not scored" in error["message"]) == ("not_ready", True)
    drive(api, scores_id, until="score_2")
    scores = api.get(url).json()
    assert [phase["status"] for phase in scores["progress"]] == ["finished", "finished", "pending"]
    (result,) = scores["results"]
    assert (result["model"], result["mean_entropy"], result["num_samples"]) == ("qwen3", 0.0, 16)
    assert result["num_tokens"] == result["num_tokens_scored"] > result["num_targets"] > 16
    assert result["provenance"] == {"engine": "scripted", "version": "1"}
    assert len(result["digest"]) == 64
    assert api.get(f"{url}/content").status_code == 200
    assert problem(api.get(f"{url}/content?model=1"), 409)["param"] == "model"
    drive(api, scores_id)
    scores = api.get(url).json()
    assert (scores["status"], [each["mean_entropy"] for each in scores["results"]]) == ("succeeded", [0.0, 1.0])
    for level, rows in (("sample", 16), ("token", result["num_targets"])):
        response = api.get(f"{url}/content", params={"model": 1, "level": level})
        assert f'filename="{scores_id}-1-{level}.parquet"' in response.headers["content-disposition"]
        table = pq.read_table(io.BytesIO(response.content)).to_pylist()
        lines = api.get(f"{url}/content", params={"model": 1, "level": level, "format": "jsonl"}).text.splitlines()
        assert [json.loads(line) for line in lines] == table
        assert len(table) == rows
        assert {row["entropy"] for row in table} == {1.0}


def test_what_has_no_table_is_refused(api, body, quiet):
    scores_id = send(api, body, tokens=False).json()["id"]
    drive(api, scores_id, until="score_2")
    url = f"{URL}/{scores_id}/content"
    for change, param in (({"model": 2}, "model"), ({"model": -1}, "model"), ({"level": "token"}, "level")):
        assert problem(api.get(url, params=change), 400)["param"] == param
    for change in ({"level": "word"}, {"format": "csv"}):
        assert problem(api.get(url, params=change), 400)["param"] == next(iter(change))
    api.post(f"{URL}/{scores_id}/cancel")
    store: Store = api.app.state.service.store
    assert store.end_job(store.job(scores_id), State.CANCELLED, error=None, message="Cancelled")
    assert api.get(url).status_code == 200  # what is scored stays
    assert "has cancelled before it" in problem(api.get(url, params={"model": 1}), 409)["message"]
    for table in (api.app.state.service.settings.root / "cache" / "entropy").iterdir():
        table.unlink()
    assert problem(api.get(url), 404)["param"] == "scores_id"


def test_cancelled_while_it_waits_and_ended_requests(api, body, quiet):
    scores_id = send(api, body).json()["id"]
    assert api.post(f"{URL}/{scores_id}/cancel").json()["status"] == "cancelled"
    done = send(api, body, tokens=False).json()["id"]
    drive(api, done)
    assert problem(api.post(f"{URL}/{done}/cancel"), 409)["code"] == "job_ended"
    rows, _ = api.app.state.service.store.jobs(after=None, limit=9, metadata={}, kind=Kind.ENTROPY_SCORES)
    assert [row.fine_tuned_model for row in rows] == [None, None]


def test_registered_checkpoints_are_named_by_id_and_must_still_be_what_they_were(api, body, quiet, home):
    weak = api.post("/v1/weak_checkpoints", json={"model": "llama"}).json()["id"]
    scores_id = send(api, body, models=["qwen3", weak]).json()["id"]
    assert scores_id in problem(api.delete(f"/v1/weak_checkpoints/{weak}"), 409)["message"]
    tokenizer = home / "models/llama/tokenizer_config.json"
    tokenizer.write_text(tokenizer.read_text() + " ")
    with pytest.raises(ModelError, match=r"models.1: tokenizer in .* changed since") as caught:
        drive(api, scores_id)
    assert caught.value.param == "models.1"
