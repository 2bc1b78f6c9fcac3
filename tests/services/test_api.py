"""The REST front end over real HTTP parsing, a real database and no Ray: shapes, refusals, and 503 without Ray."""

import errno
import json
from types import SimpleNamespace

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import event, text

from services.api.app import create_app
from services.jobs.store import Store
from services.settings import Settings
from tests.postgres import PASSWORD
from tests.services.requests import create, problem, upload, validate
from wmss.models import limited


def test_file_object(api):
    file = upload(api).json()
    assert file["object"] == "file"
    assert file["filename"] == "train.jsonl"
    assert file["bytes"] > 1000
    assert file["purpose"] == "fine-tune"


def test_bad_files_are_refused_with_lines_and_leave_nothing(api, home):
    error = problem(upload(api, b'{"messages": []}\n{\n'), 400)
    assert error["param"] == "file"
    assert "train.jsonl:\n  line 1: messages: expected a non-empty list\n  line 2: not valid JSON" in error["message"]
    assert problem(upload(api, purpose="assistants"), 400)["param"] == "purpose"
    text = ("file", (None, "text")), ("purpose", (None, "fine-tune"))
    assert "expected a file" in problem(api.post("/v1/files", files=text), 400)["message"]
    row = b'{"prompt": "p", "completion": "c"}\n'
    for name in ("file", "purpose"):
        parts = [
            ("purpose", (None, "fine-tune")),
            ("file", ("a", row)),
            (name, ("b", row) if name == "file" else (None, "x")),
        ]
        error = problem(api.post("/v1/files", files=parts), 400)
        assert (error["param"], "given twice" in error["message"]) == (name, True)
    assert problem(upload(api, expires_after="x"), 400)["param"] == "expires_after"
    assert problem(api.post("/v1/files", data={"purpose": "fine-tune"}), 400)["param"] == "file"
    content = b'{"prompt": "p", "completion": "c"}\n'
    head = b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n--b\r\n'
    part = b'content-disposition: form-data; name="file"; filename="a\0b"\r\n\r\n' + content + b"\r\n--b--\r\n"
    headers = {"content-type": "multipart/form-data; boundary=b"}
    assert problem(api.post("/v1/files", content=head + part, headers=headers), 400)["param"] == "file"
    assert list((home / "files").iterdir()) == []


def test_large_file_is_refused(home):
    with TestClient(create_app(Settings(home=home, max_file_bytes=100))) as client:
        assert "at most 100 bytes" in problem(upload(client), 413)["message"]
    assert list((home / "files").iterdir()) == []


def disk_full(response, caplog):
    error = problem(response, 507)
    assert (error["code"], error["type"]) == ("disk_full", "server_error")
    assert "free some space" in error["message"]
    assert response.headers["x-should-retry"] == "false"
    assert [record.levelname for record in caplog.records if "a disk is full" in record.message] == ["ERROR"]
    caplog.clear()


def test_a_full_disk_is_said_to_whoever_uploads(api, home, monkeypatch, caplog):
    monkeypatch.setattr("services.api.files.new_id", lambda prefix: "file-full")
    (home / "files").mkdir()
    (home / "files" / "file-full.partial").symlink_to("/dev/full")
    disk_full(upload(api), caplog)
    assert list((home / "files").iterdir()) == []

    class FullTemporaryFolder:
        """Where what arrives is kept."""

        def __init__(self, max_size):
            pass

        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self):
            pass

    monkeypatch.setattr("starlette.formparsers.SpooledTemporaryFile", FullTemporaryFolder)
    disk_full(upload(api), caplog)


def test_a_database_without_room_is_a_full_disk(home, serve, caplog):
    settings = Settings(home=home)
    with serve(settings) as api:
        engine = api.app.state.service.store._engine
        engine.dispose()
        event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA max_page_count=1"))
        answers = (upload(api) for _ in range(500))
        disk_full(next(answer for answer in answers if answer.status_code != 200), caplog)


def test_another_fault_of_a_disk_is_one_of_the_service(api, home, caplog):
    (home / "files").write_text("")
    assert "its log has req-" in problem(upload(api), 500)["message"]
    assert any(record.exc_info for record in caplog.records)


def test_errors_name_models_as_the_client_did(api, home):
    (home / "models/llama/tokenizer.json").unlink()
    (home / "models/qwen3_other/model.safetensors").write_bytes(b"junk")
    file = upload(api).json()["id"]
    for model in ("llama", "qwen3_other", "none"):
        error = problem(create(api, model=model, training_file=file), 400)
        assert model in error["message"] and str(home) not in error["message"], error
        (found,) = validate(api, model=model, training_file=file).json()["problems"]
        assert model in found["message"] and str(home) not in found["message"], found


def test_job_object_echoes_every_default(api):
    file = upload(api).json()["id"]
    response = create(api, model="qwen3", training_file=file, suffix="s", metadata={"k": "v"}, method={"type": "wmss"})
    job = response.json()
    assert response.status_code == 200
    assert job["object"] == "fine_tuning.job"
    assert job["status"] in ("queued", "running")
    assert job["fine_tuned_model"] is None
    assert job["method"]["wmss"]["mixing_weight"] == 0.5
    assert job["method"]["wmss"]["hyperparameters"]["n_epochs"] == 1
    assert job["metadata"] == {"k": "v"}
    assert api.get(f"/v1/fine_tuning/jobs/{job['id']}").json()["id"] == job["id"]
    phases = api.get(f"/v1/fine_tuning/jobs/{job['id']}/phases").json()["data"]
    expected = ["validate", "sft", "score_weak", "score_strong", "weigh", "joint", "export", "read_back"]
    assert [p["name"] for p in phases] == expected
    events = api.get(f"/v1/fine_tuning/jobs/{job['id']}/events").json()["data"]
    assert events[-1]["message"].startswith("Job accepted")
    assert api.get(f"/v1/fine_tuning/jobs/{job['id']}/checkpoints").json() == {
        "object": "list",
        "data": [],
        "has_more": False,
    }


@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        ({"model": "nothing"}, "model", "no model 'nothing': expected the name of a finished model"),
        ({"model": "smollm2"}, "model", "no model 'smollm2' yet; add it with `wmss models add smollm2`"),
        ({"method": {"type": "wmss", "wmss": {"mixing_wieght": 1}}}, "method.wmss.mixing_wieght", "'mixing_weight'?"),
        ({"training_flie": "x"}, "training_flie", "unknown field; did you mean 'training_file'?"),
        ({"model": "../qwen3"}, "model", "no model"),
        ({"model": "/etc"}, "model", "no model"),
        ({"model": "ft:qwen3::ftjob-x"}, "model", "there is no finished model or checkpoint"),
        ({"training_file": "file-x"}, "training_file", "there is no file 'file-x'; upload it"),
        ({"validation_file": "file-x"}, "validation_file", "there is no file"),
        ({"method": {"type": "wmss", "wmss": {"mixing_weight": -0.1}}}, "method.wmss.mixing_weight", "greater than"),
        ({"method": {"type": "wmss", "wmss": {"weak_model": "no"}}}, "method.wmss.weak_model", "no model 'no'"),
        ({"method": {"type": "wmss", "wmss": {"lambda": 1}}}, "method.wmss.lambda", "unknown field"),
        ({"hyperparameters": {"n_epochs": 3}}, "hyperparameters", "move it into the method"),
        ({"method": {"type": "dpo"}}, "method.type", "'supervised', 'wmss', 'self_improvement', got 'dpo'"),
        ({"seed": "many"}, "seed", "integer"),
        ({"model": "a\x00b"}, "model", "no model"),
        ({"model": "ft:a\x00b"}, "model", "there is no finished model or checkpoint"),
        ({"training_file": "file-\x00"}, "training_file", "without NUL"),
        ({"model": "a" * 300}, "model", "no model"),
        ({"model": "x/" * 500}, "model", "no model"),
        ({"model": "ftjob-1"}, "model", "no model"),
        ({"method": {"type": "wmss", "wmss": {"preset": []}}}, "method.wmss.preset", "wmss-v2"),
        ({"metadata": {'quote"': "x"}}, 'metadata.quote"', "without quotes"),
    ],
)
def test_bad_jobs_are_refused_by_field(api, change, param, message):
    values = {"model": "qwen3", "training_file": upload(api).json()["id"]} | change
    error = problem(create(api, **values), 400)
    assert error["param"] == param
    assert message in error["message"]
    assert error["type"] == "invalid_request_error"
    assert api.get("/v1/fine_tuning/jobs").json()["data"] == []


def test_models_that_cannot_be_paired_or_trusted_are_refused(api, home):
    values = {"model": "qwen3", "training_file": upload(api).json()["id"]}
    weak = {"method": {"type": "wmss", "wmss": {"weak_model": "llama"}}}
    tokenizer = home / "models/llama/tokenizer.json"
    good = tokenizer.read_text()
    tokenizer.write_text(good.replace('"<|im_end|>"', '"<|turn_end|>"'))
    error = problem(create(api, **values, **weak), 400)
    assert error["param"] == "method.wmss.weak_model"
    assert "differ, first at token '<|im_end|>' (ids 2 and 277)" in error["message"]
    tokenizer.write_text("{}")
    assert "the tokenizer in" in problem(create(api, **values, **weak), 400)["message"]

    tokenizer.write_text(good)
    config = home / "models/llama/config.json"
    original = config.read_text()
    for broken in (
        "[]",
        "null",
        "{",
        '{"architectures": [5]}',
        '{"architectures": ["XForCausalLM"], "model_type": "x"}',
    ):
        config.write_text(broken)
        assert problem(create(api, **values, **weak), 400)["param"] == "method.wmss.weak_model"
        assert problem(create(api, **values | {"model": "llama"}), 400)["param"] == "model"
    config.write_text(original)
    config.write_text(json.dumps(json.loads(config.read_text()) | {"vocab_size": 300}))
    message = problem(create(api, **values, **weak), 400)["message"]
    assert "do not fit its config.json: mismatched lm_head.weight [277, 64] for [300, 64]" in message
    config.write_text(json.dumps(json.loads(config.read_text()) | {"auto_map": {"AutoModel": "evil.py"}}))
    assert "run its own code" in problem(create(api, **values, **weak), 400)["message"]
    config.write_text(original)
    weights = home / "models/llama/model.safetensors"
    weights.write_bytes(b"junk" + weights.read_bytes())
    assert "model.safetensors cannot be read" in problem(create(api, **values, **weak), 400)["message"]
    (home / "models/llama/model.safetensors").rename(home / "models/llama/pytorch_model.bin")
    assert "pickled weights are not read" in problem(create(api, **values, **weak), 400)["message"]


def test_a_template_that_asks_for_terabytes_costs_a_process_not_the_service(api, home):
    values = {"model": "qwen3", "training_file": upload(api).json()["id"], "method": {"type": "wmss"}}
    (home / "models/qwen3/chat_template.jinja").write_text('{{ "a" * 1000000000000 }}')
    error = problem(create(api, **values), 400)
    assert error["param"] == "model"
    assert "needs more than 4 GB of memory to be examined" in error["message"]
    assert [each["param"] for each in validate(api, **values).json()["problems"]] == ["model"]


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "was not examined within"),
        ('{{ "a" * 1000000000000 }}', "GB of memory to be examined; its tokenizer or chat template"),
    ],
)
def test_a_template_that_only_rows_set_off_costs_a_process_not_the_service(api, home, monkeypatch, harm, said):
    """The examination renders "Hi"; the rows of a dry run are rendered under limits as well."""
    values = {"model": "qwen3", "training_file": upload(api).json()["id"], "method": {"type": "wmss"}}
    template = home / "models/qwen3/chat_template.jinja"
    template.write_text(f"{{% if messages[0].content != 'Hi' %}}{harm}{{% endif %}}{template.read_text()}")
    assert create(api, **values).status_code == 200  # which reads no rows
    monkeypatch.setattr("wmss.models.limited.TIME_S", 3.0)
    seen = validate(api, **values).json()
    assert (seen["valid"], [each["param"] for each in seen["problems"]]) == (False, ["model"])
    assert said in seen["problems"][0]["message"]
    assert str(home) not in seen["problems"][0]["message"]


def test_more_questions_about_models_than_there_is_room_for_may_be_asked_again(api, home, monkeypatch):
    full = limited._Places(1, 0)
    monkeypatch.setattr(limited, "_at_once", full)
    values = {"model": "qwen3", "training_file": upload(api).json()["id"], "method": {"type": "wmss"}}
    with full:
        response = create(api, **values)
    assert problem(response, 503)["code"] == "busy"
    assert int(response.headers["retry-after"]) > 0
    assert create(api, **values).status_code == 200


def test_validate_says_what_a_job_would_do_and_makes_none(api, home):
    values = {"model": "qwen3", "training_file": upload(api).json()["id"], "method": {"type": "wmss"}}
    seen = validate(api, **values).json()
    assert (seen["object"], seen["valid"], seen["problems"]) == ("fine_tuning.job.validation", True, [])
    assert seen["training_file"]["num_rows"] == 16
    assert [phase["name"] for phase in seen["plan"]["phases"] if phase["num_steps"]] == ["sft", "joint"]
    assert seen["sample"]["line"] == 1
    assert {segment["supervised"] for segment in seen["sample"]["segments"]} == {True, False}
    assert seen["cost"]["training_flops"] > 0
    assert "estimated for this machine" in seen["cost"]["basis"]
    assert api.get("/v1/fine_tuning/jobs").json()["data"] == []
    assert not (home / "jobs").exists()


def test_validate_calls_a_file_as_its_owner_does(api):
    file = upload(api).json()["id"]
    method = {"type": "supervised", "supervised": {"hyperparameters": {"max_length": 5}}}
    [refused] = validate(api, model="qwen3", training_file=file, method=method).json()["problems"]
    assert refused["message"].startswith(f"16 rows are unusable in train.jsonl ({file}): lines 1, 2, 3 and 13 more")
    scores = {"training_file": file, "validation_file": None}
    service = api.app.state.service
    assert service.store.file_names(SimpleNamespace(**scores)) == {"training_file": f"train.jsonl ({file})"}


def test_validate_finds_every_problem_and_create_refuses_with_the_same_words(api):
    knobs = {"batch_size": 99, "max_length": 9999}
    method = {"type": "wmss", "wmss": {"weak_model": "no", "hyperparameters": knobs}}
    values = {"model": "qwen3", "training_file": upload(api).json()["id"], "validation_file": "file-x"}
    response = validate(api, **values, method=method, resources={"num_workers": 5})
    assert response.status_code == 200
    seen = response.json()
    assert not seen["valid"]
    assert [(problem["code"], problem["param"]) for problem in seen["problems"]] == [
        ("file_not_found", "validation_file"),
        ("invalid_model", "method.wmss.weak_model"),
        ("invalid_config", "resources.num_workers"),
        ("invalid_config", "method.wmss.hyperparameters.max_length"),
        ("invalid_config", "method.wmss.hyperparameters.batch_size"),
    ]
    assert (seen["plan"], seen["cost"]) == (None, None)
    error = problem(create(api, **values, method=method), 400)
    assert error["message"] == "; ".join(problem["message"] for problem in seen["problems"][:2])
    assert (error["code"], error["param"]) == ("file_not_found", "validation_file")


def test_validate_refuses_what_is_no_job(api):
    error = problem(validate(api, model="qwen3", training_file="f", sead=3), 400)
    assert (error["code"], error["param"]) == ("invalid_config", "sead")


def test_what_people_send_to_openai_is_a_job(api):
    knobs = {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"}
    values = {"model": "qwen3", "training_file": upload(api).json()["id"], "integrations": None}
    job = create(api, **values, method={"type": "supervised", "supervised": {"hyperparameters": knobs}}).json()
    assert job["hyperparameters"] == knobs


def test_malformed_requests(api):
    error = problem(api.post("/v1/fine_tuning/jobs", content="{", headers={"content-type": "application/json"}), 400)
    assert error["code"] == "invalid_json"
    for body in ({"content": "x"}, {"json": None}, {"content": ""}, {"content": b"\xff"}):
        assert "JSON" in problem(api.post("/v1/fine_tuning/jobs", **body), 400)["message"]
    surrogate = '{"model": "qwen3", "training_file": "f", "suffix": "\\ud800"}'
    headers = {"content-type": "application/json"}
    error = problem(api.post("/v1/fine_tuning/jobs", content=surrogate, headers=headers), 400)
    assert "suffix: holds half a surrogate pair" in error["message"]
    assert problem(api.get("/v1/fine_tuning/jobs/ftjob-x"), 404)["param"] == "fine_tuning_job_id"
    assert problem(api.post("/v1/fine_tuning/jobs/ftjob-x/cancel"), 404)["code"] == "not_found"
    assert problem(api.get("/v1/nothing"), 404)
    assert problem(api.delete("/v1/fine_tuning/jobs"), 405)
    assert problem(api.get("/v1/fine_tuning/jobs?limit=0"), 400)["param"] == "limit"
    assert problem(api.get("/v1/fine_tuning/jobs?after=ftjob-x"), 400)["param"] == "after"
    assert problem(api.get("/v1/fine_tuning/jobs?lmit=3"), 400)["param"] == "lmit"
    assert problem(api.get("/v1/models?limit=3"), 400)["param"] == "limit"
    assert "NUL" in problem(api.get("/v1/fine_tuning/jobs?metadata[%00]=1"), 400)["message"]
    for path in ("/v1/files/%00", "/v1/fine_tuning/jobs/a%00b/events"):
        assert problem(api.get(path), 404)["code"] == "not_found"
    assert "given twice" in problem(api.get("/v1/fine_tuning/jobs?metadata[k]=1&metadata[k]=2"), 400)["message"]
    for path, param in (("/v1/files?limit=1&limit=2", "limit"), ("/v1/files?order=asc&order=desc", "order")):
        error = problem(api.get(path), 400)
        assert (error["param"], "given twice" in error["message"]) == (param, True)
    for key in ('a"', "a[", "a]", "a\\", "", "k" * 65):
        error = problem(api.get("/v1/fine_tuning/jobs", params={f"metadata[{key}]": "x"}), 400)
        assert (error["code"], "64 characters" in error["message"]) == ("invalid_parameter", True)


@pytest.mark.parametrize("path", ["fine_tuning/jobs", "fine_tuning/jobs/validate", "chat/completions", "completions"])
@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"model": "a", "model": "b"}', "'model': given twice in one object; remove one"),
        (b'{"model": "a", "x": {"y": 1, "y": 2}}', "'y': given twice in one object; remove one"),
        (b'{"model": "\xe9"}', "expected UTF-8"),
        (b"[" * 10**5, "not valid JSON"),
        (b'{"seed": 1' + b"0" * 5000 + b"}", "not valid JSON"),
    ],
)
def test_json_that_is_ambiguous_or_cannot_be_read_is_refused(api, path, body, message):
    error = problem(api.post(f"/v1/{path}", content=body, headers={"content-type": "application/json"}), 400)
    assert error["code"] == "invalid_json"
    assert message in error["message"]


def test_what_is_repeated_of_a_request_is_short(api):
    for response in (
        create(api, model="qwen3", training_file="f", **{"k" * 10**6: 1}),
        create(api, model="m" * 1000, training_file="f" * 4000),
        api.get("/v1/files/" + "x" * 10**4),
        upload(api, purpose="x" * 10**5),
    ):
        assert response.status_code in (400, 404)
        assert len(response.content) < 20_000


def test_list_filter_and_cancel(api):
    file = upload(api).json()["id"]
    ids = [create(api, model="qwen3", training_file=file, metadata={"n": str(n)}).json()["id"] for n in range(3)]
    listed = api.get("/v1/fine_tuning/jobs", params={"limit": 2}).json()
    assert [job["id"] for job in listed["data"]] == ids[:0:-1]
    assert listed["has_more"]
    page = api.get("/v1/fine_tuning/jobs", params={"after": listed["data"][-1]["id"]}).json()
    assert [job["id"] for job in page["data"]] == ids[:1]
    filtered = api.get("/v1/fine_tuning/jobs", params={"metadata[n]": "1"}).json()["data"]
    assert [job["id"] for job in filtered] == [ids[1]]
    assert api.post(f"/v1/fine_tuning/jobs/{ids[2]}/cancel").json()["status"] == "cancelled"
    assert api.post(f"/v1/fine_tuning/jobs/{ids[2]}/cancel").json()["status"] == "cancelled"


def test_files_are_listed_read_and_deleted(api, home):
    content = b'{"prompt": "p", "completion": "c"}\n'
    ids = [upload(api, content).json()["id"] for _ in range(3)]
    listed = api.get("/v1/files", params={"limit": 2}).json()
    assert ([file["id"] for file in listed["data"]], listed["has_more"]) == (ids[:0:-1], True)
    rest = api.get("/v1/files", params={"after": ids[1]}).json()["data"]
    assert [file["id"] for file in rest] == ids[:1]
    oldest = api.get("/v1/files", params={"order": "asc", "after": ids[0]}).json()["data"]
    assert [file["id"] for file in oldest] == ids[1:]
    assert api.get("/v1/files", params={"purpose": "batch"}).json()["data"] == []
    assert api.get(f"/v1/files/{ids[0]}").json()["id"] == ids[0]
    assert api.get(f"/v1/files/{ids[0]}/content").content == content
    job = create(api, model="qwen3", training_file=ids[0]).json()["id"]
    assert job in problem(api.delete(f"/v1/files/{ids[0]}"), 409)["message"]
    api.post(f"/v1/fine_tuning/jobs/{job}/cancel")
    assert api.delete(f"/v1/files/{ids[1]}").json() == {"id": ids[1], "object": "file", "deleted": True}
    assert not (home / "files" / f"{ids[1]}.jsonl").exists()
    for path in ("", "/content"):
        assert problem(api.get(f"/v1/files/{ids[1]}{path}"), 404)["param"] == "file_id"
    assert problem(api.delete(f"/v1/files/{ids[1]}"), 404)["code"] == "not_found"


def test_a_create_that_is_sent_again_makes_one_job(api):
    values = {"model": "qwen3", "training_file": upload(api).json()["id"]}

    def send(headers, **change):
        return api.post("/v1/fine_tuning/jobs", json=values | change, headers=headers)

    first = create(api, **values).json()["id"]
    assert send({"x-stainless-retry-count": "1"}).json()["id"] == first
    assert create(api, **values).json()["id"] != first  # on purpose, not a retry
    keyed = send({"idempotency-key": "k1"}).json()["id"]
    assert send({"idempotency-key": "k1"}).json()["id"] == keyed
    error = problem(send({"idempotency-key": "k1"}, seed=7), 422)
    assert (error["code"], error["param"]) == ("idempotency_key_reused", "Idempotency-Key")
    assert len(api.get("/v1/fine_tuning/jobs").json()["data"]) == 3


def test_models_and_health(api, home, checkpoints):
    (home / "models" / "linked").symlink_to(checkpoints["qwen3"])  # leads out of its root: not listed, and refused
    listed = api.get("/v1/models").json()
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["llama", "qwen3", "qwen3_other"]
    assert problem(create(api, model="linked", training_file=upload(api).json()["id"]), 400)["param"] == "model"
    assert api.get("/healthz").json() == {"status": "ok"}
    assert api.get("/readyz").json() == {"status": "ready"}


def test_without_ray_jobs_are_refused_and_nothing_is_kept(home, database_url):
    settings = Settings(home=home, database_url=database_url, ray_dashboard_url="http://127.0.0.1:9")
    with TestClient(create_app(settings)) as client:
        error = problem(client.get("/readyz"), 503)
        assert error["code"] == "ray_unavailable"
        file = upload(client).json()["id"]
        response = create(client, model="qwen3", training_file=file)
        error = problem(response, 503)
        assert error["code"] == "ray_unavailable"
        assert "Ray does not answer at http://127.0.0.1:9" in error["message"]
        assert problem(validate(client, model="qwen3", training_file=file), 503)["code"] == "ray_unavailable"
        assert int(response.headers["retry-after"]) > 0
        assert client.get("/v1/fine_tuning/jobs").json()["data"] == []
        assert client.get("/healthz").status_code == 200


def test_while_the_database_is_away_requests_are_refused_and_may_be_sent_again(home, postgres, quiet_ray):
    with postgres.database() as url, TestClient(create_app(Settings(home=home, database_url=url))) as client:
        file = upload(client).json()["id"]
        postgres.stop()
        try:
            for response in (
                client.get(f"/v1/files/{file}"),
                create(client, model="qwen3", training_file=file),
                upload(client),
            ):
                assert problem(response, 503)["code"] == "database_unavailable"
                assert int(response.headers["retry-after"]) > 0
                assert PASSWORD not in response.text
            assert problem(client.get("/readyz"), 503)["code"] == "database_unavailable"
            assert client.get("/healthz").status_code == 200
        finally:
            postgres.start()
        assert client.get(f"/v1/files/{file}").json()["id"] == file
        assert client.get("/readyz").status_code == 200


@pytest.mark.parametrize(("way", "status"), [("terminated", 503), ("deadlock", 503), ("query", 500)])
def test_a_request_that_the_database_broke_off(home, postgres, monkeypatch, way, status):
    """A lost connection and a lost race may be tried again; a statement that cannot work may not."""
    statement = {
        "terminated": "SELECT pg_terminate_backend(pg_backend_pid())",
        "deadlock": "DO $$ BEGIN RAISE SQLSTATE '40P01'; END $$",
        "query": "SELECT nothing FROM nowhere",
    }[way]
    monkeypatch.setattr(Store, "file", lambda self, file_id: self.sessions().execute(text(statement)))
    with (
        postgres.database() as url,
        TestClient(create_app(Settings(home=home, database_url=url)), raise_server_exceptions=False) as client,
    ):
        response = client.get("/v1/files/file-1")
    assert problem(response, status)["code"] == {503: "database_unavailable", 500: "internal_error"}[status]
    assert ("retry-after" in response.headers) == (status == 503)


def test_a_failure_of_ours_is_a_problem_too(api, monkeypatch):
    monkeypatch.setattr("services.jobs.store.Store.file", lambda self, file_id: 1 / 0)
    error = problem(create(api, model="qwen3", training_file="f"), 500)
    assert error["code"] == "internal_error"
    assert "req-" in error["message"]
    assert "ZeroDivision" not in error["message"]


def test_jobs_on_the_terminal(api, command):
    file = upload(api).json()["id"]
    job = create(api, model="qwen3", training_file=file, suffix="mine").json()["id"]
    head, line = command(api, "jobs").splitlines()
    assert head.split() == ["id", "status", "made", "took", "method", "model", "suffix"]
    assert line.split()[0] == job and line.split()[-3:] == ["supervised", "qwen3", "mine"]
