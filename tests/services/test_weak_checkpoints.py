"""Registered checkpoints: what is kept of them, what is refused, how jobs name them, and the hub over real HTTP."""

import json
import os
import shutil
import time

import pytest
from openai import NotFoundError

from services.control.supervisor import free_port
from services.jobs.fence import Fence
from services.jobs.states import State
from services.jobs.store import Store, UnknownCheckpointError
from services.settings import Settings
from tests.services.hub_server import running_hub
from tests.services.requests import create, problem, upload, validate
from wmss.config.job import Checkpointing
from wmss.errors import WmssError
from wmss.models.loading import checkpoint_digests, load_model


@pytest.fixture
def home(tmp_path, checkpoints):
    for name in ("qwen3", "llama"):
        shutil.copytree(checkpoints[name], tmp_path / "models" / name)
    return tmp_path


@pytest.fixture
def settings(home, database_url):
    return Settings(home=home, database_url=database_url)


@pytest.fixture
def api(serve, settings):
    with serve(settings) as client:
        yield client


def register(api, model, **others):
    return api.post("/v1/weak_checkpoints", json={"model": model, **others})


def write_other_weights(folder):
    """As many bytes as before, and another time of change."""
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)


def test_what_is_kept_of_a_checkpoint(api, home):
    response = register(api, "qwen3", metadata={"k": "v"})
    assert response.status_code == 200, response.text
    seen = response.json()
    folder = home / "models" / "qwen3"
    digests = checkpoint_digests(folder)
    assert seen["id"].startswith("weak-")
    assert {key: seen[key] for key in seen if key not in ("id", "created_at")} == {
        "object": "weak_checkpoint",
        "model": "qwen3",
        "path": str(folder),
        "revision": None,
        "architecture": "Qwen3ForCausalLM",
        "num_parameters": load_model(folder).num_parameters(),
        "vocab_size": 277,
        "weights_digest": digests.weights,
        "tokenizer_digest": digests.tokenizer,
        "metadata": {"k": "v"},
    }
    assert api.get(f"/v1/weak_checkpoints/{seen['id']}").json() == seen


def test_the_same_content_under_the_same_name_is_registered_once(api, home):
    first = register(api, "qwen3", metadata={"k": "v"}).json()
    assert register(api, "qwen3").json() == first
    assert register(api, "qwen3", metadata={"k": "v"}).json() == first
    error = problem(register(api, "qwen3", metadata={"k": "w"}), 409)
    assert (error["code"], error["param"]) == ("checkpoint_exists", "metadata")
    shutil.copytree(home / "models" / "qwen3", home / "models" / "copy")
    copy = register(api, "copy").json()
    write_other_weights(home / "models" / "qwen3")
    changed = register(api, "qwen3").json()
    assert len({first["id"], copy["id"], changed["id"]}) == 3
    assert copy["weights_digest"] == first["weights_digest"] != changed["weights_digest"]
    listed = api.get("/v1/weak_checkpoints").json()
    assert [row["id"] for row in listed["data"]] == [changed["id"], copy["id"], first["id"]]
    page = api.get("/v1/weak_checkpoints", params={"limit": 1, "after": changed["id"]}).json()
    assert ([row["id"] for row in page["data"]], page["has_more"]) == ([copy["id"]], True)
    assert problem(api.get("/v1/weak_checkpoints?after=weak-x"), 400)["param"] == "after"


def test_a_finished_job_and_a_training_checkpoint_can_be_registered(api, settings, home):
    store = Store(settings.database)
    name = "ft:qwen3::ftjob-1"
    job = store.create_job("ftjob-1", spec={}, paths={}, fine_tuned_model=name, request_digest="d")
    fence = Fence(store, "ftjob-1", store.claim(job, message="Starting"), lease_s=30)
    shutil.copytree(home / "models" / "qwen3", home / "runs" / "step-1" / "strong")
    fence.record_checkpoint(
        phase="sft",
        step=1,
        path=home / "runs/step-1",
        model_name=f"{name}:ckpt-sft-1",
        metrics={},
        checkpointing=Checkpointing(keep_last=1),
    )
    assert problem(register(api, name), 400)["param"] == "model"  # not finished
    assert register(api, f"{name}:ckpt-sft-1").json()["path"] == str(home / "runs" / "step-1" / "strong")
    fence.end(State.SUCCEEDED, error=None, message="done", trained_tokens=1)
    shutil.copytree(home / "models" / "qwen3", home / "models" / "ftjob-1")
    assert register(api, name).json()["path"] == str(home / "models" / "ftjob-1")
    store.close()


def without(name):
    return lambda folder: (folder / name).unlink()


def with_config(**values):
    def change(folder):
        config = json.loads((folder / "config.json").read_text()) | values
        (folder / "config.json").write_text(json.dumps(config))

    return change


def with_broken_tokenizer(folder):
    (folder / "tokenizer.json").write_text("{}")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (without("model.safetensors"), "pickled weights are not read"),
        (without("tokenizer.json"), "has no tokenizer.json"),
        (with_broken_tokenizer, "the tokenizer in"),
        (with_config(auto_map={"AutoModel": "evil.py"}), "run its own code"),
        (with_config(quantization_config={"bits": 4}), "is quantised"),
        (with_config(architectures=["Qwen3ForSequenceClassification"]), "one *ForCausalLM architecture"),
        (with_config(vocab_size=0), "config.json"),
    ],
)
def test_what_a_job_would_refuse_is_refused(api, home, harm, message):
    harm(home / "models" / "llama")
    error = problem(register(api, "llama"), 400)
    assert (error["code"], error["param"]) == ("invalid_model", "model")
    assert message in error["message"]
    assert api.get("/v1/weak_checkpoints").json()["data"] == []


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"model": "nothing"}, "model", "no model 'nothing'"),
        ({"model": "../qwen3"}, "model", "no model"),
        ({"model": "/etc"}, "model", "no model"),
        ({"model": "ft:qwen3::ftjob-x"}, "model", "there is no finished model"),
        ({"model": "weak-" + "0" * 24}, "model", "is registered already"),
        ({"model": "someone/model"}, "model", "add the revision, someone/model@REVISION"),
        ({"model": "hf:someone/model"}, "model", "add the revision, hf:someone/model@REVISION"),
        ({"model": "hf:a/b/c@main"}, "model", "expected hf:ORGANISATION/NAME@REVISION"),
        ({"model": "hf:a/b@../../c"}, "model", "expected hf:ORGANISATION/NAME@REVISION"),
        ({"model": "a/b@../../c"}, "model", "no model"),
        ({"model": ""}, "model", "at least 1 character"),
        ({}, "model", "required field is missing"),
        ({"model": "qwen3", "name": "x"}, "name", "unknown field"),
        ({"model": "qwen3", "metadata": {"k": 1}}, "metadata.k", "string"),
        ({"model": "a\0b"}, "model", "no model"),
    ],
)
def test_names_that_lead_nowhere(api, body, param, message):
    error = problem(api.post("/v1/weak_checkpoints", json=body), 400)
    assert error["param"] == param
    assert message in error["message"]


def weak_job(api, checkpoint_id, **others):
    wmss = {"weak_model": checkpoint_id, **others}
    return {
        "model": "qwen3",
        "training_file": upload(api).json()["id"],
        "method": {"type": "wmss", "wmss": wmss},
    }


def cancel(api, job):
    """Cancel a job and wait for the reconcile loop, which may have started it."""
    api.post(f"/v1/fine_tuning/jobs/{job}/cancel")
    deadline = time.monotonic() + 20
    while api.get(f"/v1/fine_tuning/jobs/{job}").json()["status"] != "cancelled":
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.filterwarnings("ignore:Using extra keyword arguments")  # Ray Serve's, when it is imported
def test_a_job_names_checkpoints_by_id_and_keeps_their_digests(api, home, settings):
    from services.driver.resolve import resolve

    weak, strong = register(api, "llama").json(), register(api, "qwen3").json()
    body = weak_job(api, weak["id"], strong_model=strong["id"], more_weak_models=["qwen3", weak["id"]])
    response = create(api, **body | {"model": strong["id"]})
    assert response.status_code == 200, response.text
    job = response.json()
    assert job["method"]["wmss"]["weak_model"] == weak["id"]
    store = Store(settings.database)
    row = store.job(job["id"])
    assert row.fine_tuned_model == f"ft:qwen3::{row.id}"  # called after the model, not after its id
    resolved = resolve(row, settings, store)
    store.close()
    assert (resolved.base, resolved.weak) == (home / "models" / "qwen3", home / "models" / "llama")
    assert resolved.more_weak == (home / "models" / "qwen3", home / "models" / "llama")
    tokenizer = weak["tokenizer_digest"]
    assert {param: (digests.weights, digests.tokenizer) for param, digests in resolved.sources.digests.items()} == {
        "model": (strong["weights_digest"], tokenizer),
        "method.wmss.weak_model": (weak["weights_digest"], tokenizer),
        "method.wmss.strong_model": (strong["weights_digest"], tokenizer),
        "method.wmss.more_weak_models.1": (weak["weights_digest"], tokenizer),
    }


def test_a_checkpoint_that_changed_is_refused_until_it_is_registered_again(api, home):
    weak = register(api, "llama").json()["id"]
    folder = home / "models" / "llama"
    weights = folder / "model.safetensors"
    body = weak_job(api, weak)
    os.utime(weights, ns=(1, 1))  # touched, and the same
    assert create(api, **body).status_code == 200
    assert validate(api, **body).json()["valid"]
    write_other_weights(folder)
    for answer in (problem(create(api, **body), 400), validate(api, **body).json()["problems"][0]):
        assert answer["param"] == "method.wmss.weak_model"
        assert "weights in" in answer["message"] and "register it again" in answer["message"]
    again = register(api, "llama").json()["id"]
    assert again != weak
    assert create(api, **weak_job(api, again)).status_code == 200
    shutil.rmtree(folder)
    error = problem(create(api, **body), 400)
    assert f"the files of {weak} (llama) are not in llama any more" in error["message"]


def test_the_dry_run_reads_what_the_creation_takes_on_trust(api, home):
    """Same size, same time of change: only the digest tells, and the validate phase looks at it."""
    weak = register(api, "llama").json()["id"]
    body = weak_job(api, weak)
    weights = home / "models" / "llama" / "model.safetensors"
    stat = weights.stat()
    write_other_weights(weights.parent)
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert create(api, **body).status_code == 200
    [found] = validate(api, **body).json()["problems"]
    assert found["param"] == "method.wmss.weak_model"
    assert "changed since the checkpoint was registered" in found["message"]


def test_an_id_that_is_not_registered(api):
    error = problem(create(api, **weak_job(api, "weak-" + "0" * 24)), 400)
    assert error["param"] == "method.wmss.weak_model"
    assert "there is no registered checkpoint" in error["message"]
    assert problem(api.get("/v1/weak_checkpoints/weak-x"), 404)["param"] == "checkpoint_id"
    assert problem(api.delete("/v1/weak_checkpoints/weak-x"), 404)["code"] == "not_found"


def test_a_checkpoint_is_forgotten_unless_a_live_job_names_it(api, home, settings):
    weak, other = register(api, "llama").json()["id"], register(api, "qwen3").json()["id"]
    job = create(api, **weak_job(api, "qwen3", more_weak_models=[weak])).json()["id"]
    error = problem(api.delete(f"/v1/weak_checkpoints/{weak}"), 409)
    assert (error["code"], job in error["message"]) == ("checkpoint_in_use", True)
    assert api.delete(f"/v1/weak_checkpoints/{other}").json()["deleted"]
    cancel(api, job)
    assert api.delete(f"/v1/weak_checkpoints/{weak}").json() == {
        "id": weak,
        "object": "weak_checkpoint",
        "deleted": True,
    }
    assert api.get("/v1/weak_checkpoints").json()["data"] == []
    assert (home / "models" / "llama" / "model.safetensors").is_file()
    store = Store(settings.database)
    paths = {"registered": {"model": {"id": weak}}}
    with pytest.raises(UnknownCheckpointError):  # deleted between being found and the job's insert
        store.create_job("ftjob-x", spec={}, paths=paths, fine_tuned_model="x", request_digest="x")
    assert store.job("ftjob-x") is None
    store.close()


def test_checkpoints_on_the_terminal(api, command):
    checkpoint = command(api, "checkpoints", "add", "llama").strip()
    assert api.get(f"/v1/weak_checkpoints/{checkpoint}").json()["model"] == "llama"
    listed = command(api, "checkpoints", "list")
    assert all(word in listed for word in (checkpoint, "llama", "LlamaForCausalLM"))
    assert command(api, "checkpoints", "remove", checkpoint).strip() == checkpoint
    assert checkpoint not in command(api, "checkpoints", "list")
    with pytest.raises(NotFoundError, match="there is no weak checkpoint"):
        command(api, "checkpoints", "remove", checkpoint)
    for name in ("llama", "../files/file-1"):
        with pytest.raises(WmssError, match="`wmss checkpoints list` lists"):
            command(api, "checkpoints", "remove", name)


@pytest.fixture
def hub(monkeypatch):
    with running_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


@pytest.fixture
def online(serve, settings):
    with serve(settings.model_copy(update={"hub": True})) as client:
        yield client


@pytest.fixture
def repository(checkpoints, tmp_path):
    folder = shutil.copytree(checkpoints["llama"], tmp_path / "repository")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    (folder / "README.md").write_text("# A model")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.safetensors").write_bytes(b"other")
    return folder


def snapshot_files(row):
    return sorted(name for name in os.listdir(row["path"]))


def test_a_model_of_the_hub_is_downloaded_pinned_and_deleted(hub, online, home, checkpoints, repository):
    commit = hub.publish("someone/model", "main", repository)
    response = register(online, "someone/model@main")
    assert response.status_code == 200, response.text
    row = response.json()
    assert (row["model"], row["revision"]) == ("someone/model@main", commit)
    assert row["path"] == str(home / "hub" / "models--someone--model" / "snapshots" / commit)
    assert row["weights_digest"] == checkpoint_digests(checkpoints["llama"]).weights
    ours = {"config.json", "generation_config.json", "model.safetensors", "chat_template.jinja"}
    assert set(snapshot_files(row)) == ours | {"tokenizer.json", "tokenizer_config.json"}
    assert not any("pytorch_model" in path or "onnx" in path for path in hub.requests)

    hub.requests.clear()
    assert register(online, f"hf:someone/model@{commit}").json()["path"] == row["path"]
    assert not any("resolve" in path for path in hub.requests)  # the files are there
    job = create(online, **weak_job(online, row["id"]))
    assert job.status_code == 200, job.text
    cancel(online, job.json()["id"])

    pinned = online.get("/v1/weak_checkpoints").json()["data"][0]
    online.delete(f"/v1/weak_checkpoints/{row['id']}")
    assert os.path.isdir(row["path"])  # the other one lies there too
    online.delete(f"/v1/weak_checkpoints/{pinned['id']}")
    assert not os.path.exists(row["path"])


def test_a_branch_that_moved_is_another_checkpoint(hub, online, checkpoints):
    hub.publish("someone/model", "main", checkpoints["llama"])
    first = register(online, "someone/model@main").json()
    hub.folders.clear()
    hub.publish("someone/model", "v2", checkpoints["qwen3"])
    second = register(online, "someone/model@v2").json()
    assert first["revision"] != second["revision"]
    assert first["id"] != second["id"]
    online.delete(f"/v1/weak_checkpoints/{second['id']}")
    assert (os.path.isdir(first["path"]), os.path.exists(second["path"])) == (True, False)


def test_without_the_operators_leave_only_the_cache_is_read(hub, online, serve, settings, checkpoints):
    hub.publish("someone/model", "main", checkpoints["llama"])
    with serve(settings) as offline:
        error = problem(register(offline, "someone/model@main"), 400)
        assert error["param"] == "model"
        assert "is not in" in error["message"] and "WMSS_HUB=true" in error["message"]
        assert hub.requests == []
        row = register(online, "someone/model@main").json()
        hub.requests.clear()
        assert register(offline, "someone/model@main").json() == row
        assert hub.requests == []


def test_what_the_hub_does_not_have_or_a_job_would_refuse(hub, online, home, repository):
    hub.publish("someone/model", "main", repository)
    assert "RepositoryNotFoundError" in problem(register(online, "nobody/model@main"), 400)["message"]
    assert "RevisionNotFoundError" in problem(register(online, "someone/model@v9"), 400)["message"]
    (repository / "model.safetensors").unlink()
    assert "pickled weights are not read" in problem(register(online, "someone/model@main"), 400)["message"]
    assert not list((home / "hub").glob("*/snapshots/*"))  # nothing stays of what was refused


def test_a_hub_that_does_not_answer_may_be_asked_again(online, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    response = register(online, "someone/model@main")
    assert problem(response, 503)["code"] == "hub_unavailable"
    assert int(response.headers["retry-after"]) > 0


def test_a_name_that_could_be_a_folder_or_the_hubs_is_refused(hub, online, home, checkpoints):
    hub.publish("someone/model", "main", checkpoints["llama"])
    shutil.copytree(checkpoints["qwen3"], home / "models" / "someone" / "model@main")
    error = problem(register(online, "someone/model@main"), 400)
    assert "write hf:someone/model@main for the hub's, or rename the folder" in error["message"]
    assert register(online, "hf:someone/model@main").json()["architecture"] == "LlamaForCausalLM"


def test_a_link_out_of_the_roots_is_named(api, home, checkpoints):
    (home / "models" / "linked").symlink_to(checkpoints["qwen3"])
    said = problem(register(api, "linked"), 400)["message"]
    assert "is a link to" in said and "WMSS_MODEL_ROOTS" in said
