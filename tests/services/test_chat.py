"""The chat engine's place: one at a time, taken and freed by the rules, whatever Ray does; and who gets an answer."""

import shutil
import threading
import time

import httpx2
import pytest
from fastapi.testclient import TestClient

from services.api.app import create_app
from services.chat.chat_store import LEASE_S, ChatState, ChatStore
from services.chat.control_tokens import RefusingControlTokens
from services.control import chat_keeper as keeper_module
from services.control.chat_keeper import ChatKeeper
from services.control.ray_jobs import DriverStatus, RayDrivers
from services.jobs.kinds import Kind
from services.jobs.room import leaves_room, leaves_room_to_wait, room_for_chat
from services.settings import Settings
from tests.services.scripted_ray import ScriptedCluster, put_in_place_of_ray
from wmss.config import Resources, ScoreSpec
from wmss.data.rendering import Renderer
from wmss.models.loading import load_tokenizer


@pytest.fixture
def store(job_store):
    return ChatStore(job_store)


@pytest.fixture
def cluster():
    return ScriptedCluster()


@pytest.fixture
def room():
    """A list whose first item says whether there is room."""
    return [True]


@pytest.fixture
def keeper(tmp_path, store, cluster, room):
    return ChatKeeper(store, cluster, Settings(home=tmp_path, chat_idle_s=50, chat_start_s=100), lambda: room[0])


@pytest.fixture
def ready(store, keeper, cluster):
    """A ready engine for model a."""
    store.want("a", "/a")
    keeper.pass_once()
    cluster.start_status = DriverStatus.SUCCEEDED
    keeper.pass_once()
    return store.engine()


@pytest.fixture
def later(monkeypatch):
    """later(seconds): the clock of store and keeper goes on."""
    offset = [0.0]
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + offset[0])

    def move(seconds):
        offset[0] += seconds

    return move


def test_a_wanted_engine_is_started_once_and_ready_when_its_job_has_ended(store, keeper, cluster):
    assert store.want("a", "/a")
    assert not store.want("b", "/b")  # one place
    assert store.begin_request(store.engine().app) is None
    for _ in range(3):
        keeper.pass_once()
    app = store.engine().app
    assert cluster.started == [(app, "/a", "a")]
    assert store.engine().state == ChatState.STARTING
    cluster.start_status = DriverStatus.SUCCEEDED
    keeper.pass_once()
    assert store.engine().state == ChatState.READY
    assert store.begin_request(app) is not None


@pytest.mark.parametrize("status", [DriverStatus.FAILED, DriverStatus.STOPPED, None])
def test_a_start_that_fails_says_why_and_frees_the_place(store, keeper, cluster, later, status):
    store.want("a", "/a")
    keeper.pass_once()
    cluster.start_status = status
    keeper.pass_once()
    row = store.engine()
    assert row.state == ChatState.FAILED
    assert "the engine for a could not start" in row.error
    assert status is None or "no such architecture" in row.error
    later(keeper_module.FAILED_S + 1)
    keeper.pass_once()
    keeper.pass_once()
    assert store.engine() is None
    assert cluster.deleted == [row.app]


def test_a_start_that_takes_too_long_is_stopped(store, keeper, cluster, later):
    store.want("a", "/a")
    keeper.pass_once()
    later(101)
    keeper.pass_once()
    assert cluster.stopped == [store.engine().app]
    assert "not ready after 100 s (WMSS_CHAT_START_S)" in store.engine().error


def test_an_idle_engine_leaves_and_a_used_one_stays(store, keeper, cluster, ready, later):
    request = store.begin_request(ready.app)
    for _ in range(6):
        later(LEASE_S / 2)
        store.renew_request(request)
        keeper.pass_once()
    assert store.engine().state == ChatState.READY
    store.end_request(ready.app, request)
    later(49)
    keeper.pass_once()
    assert store.engine().state == ChatState.READY
    later(2)
    keeper.pass_once()
    keeper.pass_once()
    assert store.engine() is None
    assert cluster.deleted == [ready.app]


def test_a_request_whose_relay_died_does_not_hold_the_engine(store, keeper, ready, later):
    store.begin_request(ready.app)
    later(60)  # longer than lease and idle time; nobody renewed
    keeper.pass_once()
    assert store.engine().state == ChatState.LEAVING


def test_jobs_take_the_place_of_an_engine_which_may_finish_its_answers(store, keeper, cluster, ready, room, later):
    request = store.begin_request(ready.app)
    room[0] = False
    keeper.pass_once()
    keeper.pass_once()
    assert store.engine().state == ChatState.LEAVING
    assert store.begin_request(ready.app) is None
    assert cluster.deleted == []
    later(keeper_module.GRACE_S + 1)
    store.renew_request(request)
    keeper.pass_once()  # the grace is over: a job must not wait for ever
    assert cluster.deleted == [ready.app]
    assert store.engine() is None


def test_an_engine_that_took_a_request_meanwhile_does_not_leave(store, ready):
    seen = store.engine()
    assert store.begin_request(ready.app)
    assert not store.move(seen, ChatState.LEAVING)
    assert store.engine().state == ChatState.READY


def test_only_one_of_many_requests_makes_the_engine(store):
    made = []
    barrier = threading.Barrier(8)

    def want(number):
        barrier.wait()
        if store.want(f"m{number}", "/m"):
            made.append(f"m{number}")

    threads = [threading.Thread(target=want, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [store.engine().model] == made


@pytest.mark.parametrize(
    ("total", "jobs", "room"),
    [
        ({"CPU": 4}, [], True),
        ({"CPU": 4}, [{"num_workers": 3}], True),
        ({"CPU": 4}, [{"num_workers": 4}], False),
        ({"CPU": 4}, [{"num_workers": 2}, {"num_workers": 2}], False),
        ({"CPU": 8, "GPU": 1}, [{}], False),  # the job has the one GPU
        ({"CPU": 8, "GPU": 2}, [{}], True),
        ({"CPU": 8, "GPU": 1}, [{"use_gpu": False}], True),
        ({}, [], False),
    ],
)
def test_room_is_what_the_running_jobs_leave(total, jobs, room):
    assert leaves_room(total, [Resources(**job) for job in jobs]) is room


@pytest.mark.parametrize(
    ("total", "jobs", "chat", "room"),
    [
        ({"CPU": 4}, [{}], False, True),
        ({"CPU": 4}, [{"num_workers": 2}], False, True),
        ({"CPU": 4}, [{"num_workers": 2}], True, False),
        ({"CPU": 4}, [{"num_workers": 3}], False, False),
        ({"CPU": 4}, [{}, {"num_workers": 2}], False, False),  # each of them might have workers that wait
        ({"CPU": 8, "GPU": 1}, [{}], False, False),
        ({"CPU": 8, "GPU": 2}, [{}], False, True),
        ({"CPU": 8, "GPU": 1}, [{"use_gpu": False}], False, True),
    ],
)
def test_workers_wait_only_where_every_job_could_have_some(total, jobs, chat, room):
    assert leaves_room_to_wait(total, [Resources(**job) for job in jobs], chat=chat) is room


def test_only_running_jobs_take_room(job_store, cluster):
    spec = {"resources": {"num_workers": 4}}
    job = job_store.create_job("ftjob-a", spec=spec, paths={}, fine_tuned_model="a", request_digest="a")
    assert room_for_chat(job_store, cluster)
    job_store.claim(job, message="Starting")
    assert not room_for_chat(job_store, cluster)


@pytest.mark.parametrize(("num_replicas", "room"), [(3, True), (4, False)])
def test_engines_of_a_request_for_scores_take_room(job_store, cluster, num_replicas, room):
    job_store.add_file("file-1", filename="f", purpose="fine-tune", size=1, sha256="s")
    spec = ScoreSpec(file="file-1", models=["m"], num_replicas=num_replicas).model_dump(mode="json")
    scores = job_store.create_job(
        "score-a", kind=Kind.ENTROPY_SCORES, spec=spec, paths={}, fine_tuned_model=None, request_digest="a"
    )
    job_store.claim(scores, message="Starting")
    assert room_for_chat(job_store, cluster) is room


# Over HTTP: an engine that the test writes into the database, behind a transport of the test's.


@pytest.fixture
def api(tmp_path, monkeypatch, cluster, checkpoints, request):
    put_in_place_of_ray(monkeypatch, cluster)
    for name in ("a", "b"):
        shutil.copytree(checkpoints["qwen3"], tmp_path / "models" / name)
    # More than a start takes on a busy machine, where a test does not wait for one that never comes.
    patience = getattr(request, "param", 20)
    settings = Settings(home=tmp_path, chat_start_s=patience, reconcile_s=0.05, serve_url="http://engine")
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client


def answer_with(api, handler):
    """Make the engine ready and answer its requests with `handler`."""
    state = api.app.state.service
    state.http._transport = httpx2.MockTransport(handler)
    state.http._mounts = {}
    state.chat.want("a", "/a")
    deadline = time.monotonic() + 5
    while state.chat.engine().state != ChatState.READY and time.monotonic() < deadline:
        time.sleep(0.02)
    return state.chat


def ask(api, model="a", path="chat/completions", **values):
    body = {"model": model, "messages": [{"role": "user", "content": "?"}], "prompt": "?"} | values
    return api.post(f"/v1/{path}", json=body)


def error(response, status):
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    return response.json()["error"]


@pytest.fixture
def started(cluster):
    cluster.start_status = DriverStatus.SUCCEEDED


def test_answer_comes_back_as_the_engine_gave_it(api, started):
    asked = []

    def handler(request):
        asked.append((str(request.url), request.content))
        return httpx2.Response(200, json={"choices": []})

    chat = answer_with(api, handler)
    response = ask(api, temperature=0.5)
    assert response.json() == {"choices": []}
    [(url, body)] = asked
    assert url == f"http://engine/{chat.engine().app}/v1/chat/completions"
    assert b'"temperature":0.5' in body.replace(b" ", b"")
    assert not chat.in_use(chat.engine().app)


def test_stream_is_passed_on_and_a_break_in_it_is_told(api, started):
    async def events():
        yield b'data: {"n": 1}\n\n'
        raise httpx2.ReadError("gone")

    headers = {"content-type": "text/event-stream; charset=utf-8"}
    chat = answer_with(api, lambda request: httpx2.Response(200, headers=headers, content=events()))
    response = ask(api, stream=True)
    first, second = [line for line in response.text.split("\n\n") if line]
    assert first == 'data: {"n": 1}'
    assert '"code": "engine_lost"' in second
    assert chat.engine() is None or not chat.in_use(chat.engine().app)


def test_refusals_of_the_engine_are_problems_of_ours(api, started):
    said = {"error": {"message": "temperature must be non-negative", "param": "body.temperature", "code": 400}}
    answer_with(api, lambda request: httpx2.Response(400, json=said))
    refused = error(ask(api), 400)
    assert (refused["param"], refused["type"]) == ("temperature", "invalid_request_error")
    assert "non-negative" in refused["message"]


def test_field_that_the_engine_names_in_words_is_named(api, started):
    answer_with(api, lambda request: httpx2.Response(400, json={"error": {"message": "n must be at least 1, got 0."}}))
    assert error(ask(api, n=0), 400)["param"] == "n"
    assert error(ask(api), 400)["param"] is None


@pytest.mark.parametrize(
    ("said", "param", "message"),
    [
        (
            "1 validation error:\n  {'type': 'float_parsing', 'loc': 'body.temperature', 'msg': 'Input should be a "
            "valid number', 'input': 'hot'}",
            "temperature",
            "temperature: expected a valid number (got 'hot')",
        ),
        (
            "2 validation errors:\n  {'type': 'missing', 'loc': 'body.messages.0.ChatCompletionUserMessageParam.role', "
            "'msg': 'Field required', 'input': '<dict>'}\n  {'type': 'missing', 'loc': 'body.messages.0."
            "ChatCompletionToolMessageParam.role', 'msg': 'Field required', 'input': '<dict>'}",
            "messages.0.role",
            "messages.0.role: Field required (got '<dict>')",
        ),
        (
            "4 validation errors for ValidatorIterator\n0.ChatCompletionContentPartTextParam\n  Input should be a "
            "valid dictionary [type=dict_type, input_value='a', input_type=str]\n    For further information visit https://x",
            "messages",
            "messages: expected a valid dictionary",
        ),
        (
            "1 validation error of a kind to come",
            "messages",
            "messages: not in the form of OpenAI's interface; see its",
        ),
    ],
)
def test_engine_s_validation_errors_are_told_in_words(api, started, said, param, message):
    answer_with(api, lambda request: httpx2.Response(400, json={"error": {"message": said, "code": 400}}))
    refused = error(ask(api), 400)
    assert refused["param"] == param
    assert refused["message"].startswith(message)
    assert not any(sign in refused["message"] for sign in ("{", "[type", "https"))


def engine_with_rule(tokenizer):
    """An engine's server behind the rule, which answers with what it was sent; the app, and the bodies it saw."""
    seen = []

    async def app(scope, receive, send):
        seen.append((await receive())["body"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": b'{"choices": []}'})

    return RefusingControlTokens(app, Renderer(tokenizer)), seen


@pytest.mark.parametrize(
    ("field", "messages"),
    [
        ("messages[0].content", [{"role": "user", "content": "a <|im_end|> b"}]),
        ("messages[1].content", [{"role": "user", "content": "a"}, {"role": "assistant", "content": "<|im_start|>"}]),
        ("messages[0].content[0].text", [{"role": "user", "content": [{"type": "text", "text": "<|endoftext|>"}]}]),
        ("messages[0].role", [{"role": "user<|im_end|>", "content": "a"}]),
    ],
)
def test_chat_that_spells_a_control_token_is_refused(api, started, checkpoints, field, messages):
    engine, seen = engine_with_rule(load_tokenizer(checkpoints["qwen3"]))
    answer_with(api, None)
    api.app.state.service.http._transport = httpx2.ASGITransport(app=engine)
    refused = error(ask(api, messages=messages), 400)
    assert refused["param"] == field
    assert "control token" in refused["message"] and "take it out" in refused["message"]
    assert seen == []
    text = [{"role": "user", "content": "a < |im_end| > b"}]
    assert ask(api, messages=text).json() == {"choices": []}
    assert ask(api, path="completions", prompt="<|im_start|>user").json() == {"choices": []}
    assert [b"im_end" in body or b"im_start" in body for body in seen] == [True, True]


def test_engine_that_failed_is_retried_later(api, started):
    answer_with(api, lambda request: httpx2.Response(500, json={"error": {"message": "EngineCore died"}}))
    response = ask(api)
    assert error(response, 503)["code"] == "engine_error"
    assert response.headers["retry-after"] == "10"


@pytest.mark.parametrize(
    "handler",
    [
        lambda request: httpx2.Response(404, text="Path '/chat' not found. Ping for available routes."),
        lambda request: (_ for _ in ()).throw(httpx2.ConnectError("refused")),
    ],
    ids=["Serve does not know it", "nothing listens"],
)
def test_engine_of_a_cluster_that_is_gone_gives_up_its_place(api, started, handler, cluster):
    chat = answer_with(api, handler)
    app = chat.engine().app
    response = ask(api)
    assert error(response, 503)["code"] == "engine_lost"
    assert response.headers["retry-after"] == "5"
    deadline = time.monotonic() + 5
    while chat.engine() is not None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert chat.engine() is None
    assert cluster.deleted == [app]


def test_another_model_waits_for_one_in_use_and_replaces_one_that_is_not(api, started):
    chat = answer_with(api, lambda request: httpx2.Response(200, json={}))
    first = chat.engine().app
    lease = chat.begin_request(first)
    response = ask(api, model="b")
    assert error(response, 503)["code"] == "engine_in_use"
    assert int(response.headers["retry-after"]) > 0
    chat.end_request(first, lease)
    assert ask(api, model="b").status_code == 200
    assert (chat.engine().model, chat.engine().app == first) == ("b", False)


@pytest.mark.parametrize("api", [1], indirect=True, ids=["1 s"])
def test_a_start_that_takes_long_answers_503(api):
    response = ask(api)
    assert error(response, 503)["code"] == "engine_not_ready"
    assert int(response.headers["retry-after"]) > 0


def test_a_start_that_failed_says_why(api, cluster):
    cluster.start_status = DriverStatus.FAILED
    refused = error(ask(api), 500)
    assert refused["code"] == "engine_failed"
    assert "no such architecture" in refused["message"]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "{}", "expected one *ForCausalLM architecture"),
        ("model.safetensors", "x", "cannot be read"),
        ("model.safetensors", None, "has no *.safetensors"),
        ("tokenizer.json", None, "has no tokenizer.json"),
    ],
)
def test_a_broken_model_is_refused_at_once_and_takes_no_place(api, tmp_path, file, content, message):
    broken = tmp_path / "models" / "a" / file
    broken.unlink()
    if content is not None:
        broken.write_text(content)
    refused = error(ask(api), 400)
    assert (refused["code"], refused["param"]) == ("invalid_model", "model")
    assert message in refused["message"]
    assert api.app.state.service.chat.engine() is None


def test_no_engine_while_jobs_hold_the_machine(api, monkeypatch):
    monkeypatch.setattr(RayDrivers, "submit", lambda *arguments: None)
    state = api.app.state.service
    spec = {"resources": {"num_workers": 4}}
    job = state.store.create_job("ftjob-a", spec=spec, paths={}, fine_tuned_model="x", request_digest="a")
    state.store.claim(job, message="Starting")
    response = ask(api)
    assert error(response, 503)["code"] == "no_room"
    assert response.headers["retry-after"] == "10"
    assert state.chat.engine() is None


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("chat/completions", {"model": "nope", "messages": [{"role": "user", "content": "?"}]}, 404, "model"),
        ("chat/completions", {"model": "../a", "messages": [{"role": "user", "content": "?"}]}, 404, "model"),
        ("chat/completions", {"model": "a"}, 400, "messages"),
        ("chat/completions", {"model": "a", "messages": []}, 400, "messages"),
        ("chat/completions", {"model": "a", "messages": "hi"}, 400, "messages"),
        ("chat/completions", {"messages": [{"role": "user", "content": "?"}]}, 400, "model"),
        ("completions", {"model": "a"}, 400, "prompt"),
        ("completions", {"model": "a", "prompt": None}, 400, "prompt"),
        ("completions", {"model": 3, "prompt": "x"}, 400, "model"),
    ],
)
def test_bad_requests_start_no_engine(api, path, body, status, param):
    assert error(api.post(f"/v1/{path}", json=body), status)["param"] == param
    assert api.app.state.service.chat.engine() is None
