"""A running service from the outside: the stock OpenAI client, and what it has no method for."""

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import httpx2
import openai
from openai import DefaultHttpxClient, OpenAI
from openai.pagination import SyncCursorPage
from openai.types.fine_tuning import FineTuningJobEvent

from services.control.supervisor import running_endpoint
from services.jobs.states import TERMINAL
from services.settings import Settings
from wmss.config import JobSpec, ScoreSpec, parse_job
from wmss.errors import WmssError, shown
from wmss.ids import is_scores

LOOPBACK = ("127.0.0.1", "localhost", "::1")
MAX_SILENCE_S = 60.0
"""How long a watcher waits for a service that is being started again."""


def connect(base_url: str | None = None) -> OpenAI:
    """A client for the service at `base_url`, `WMSS_BASE_URL`, the running service of the home, or port 8000."""
    url = base_url or os.environ.get("WMSS_BASE_URL")
    if url is None:
        running = running_endpoint(Settings())
        url = running.base_url if running else "http://127.0.0.1:8000/v1"
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL:
        parsed = httpx2.URL("")
    host = parsed.host
    if not host or parsed.scheme not in ("http", "https"):
        raise WmssError(f"WMSS_BASE_URL: expected a URL such as http://127.0.0.1:8000/v1, got {shown(url)}")
    # A proxy for the outside world must not be asked for this machine.
    http_client = DefaultHttpxClient(trust_env=host not in LOOPBACK)
    return OpenAI(base_url=url, api_key=os.environ.get("WMSS_API_KEY", "local"), http_client=http_client)


def upload(client: OpenAI, path: Path) -> str:
    """Upload a training file; returns its id."""
    return client.files.create(file=path, purpose="fine-tune").id


def with_uploads(client: OpenAI, spec: JobSpec) -> JobSpec:
    """A job whose files are paths here, with the ids of their uploads in their place."""
    uploaded = {}
    for key in ("training_file", "validation_file"):
        path = getattr(spec, key)
        if path is None:
            continue
        if not os.path.isfile(path):
            raise WmssError(f"{key}: there is no file {path}", param=key)
        uploaded[key] = upload(client, Path(path))
    return parse_job(spec.model_dump(mode="json", exclude_unset=True) | uploaded)


def submit(client: OpenAI, spec: JobSpec) -> str:
    """Submit a job; returns its id."""
    body = spec.model_dump(mode="json", exclude_unset=True)
    extra = {key: body.pop(key) for key in ("resources", "checkpointing") if key in body}
    return client.fine_tuning.jobs.create(**body, extra_body=extra or None).id


def phases(client: OpenAI, job_id: str) -> list[dict[str, Any]]:
    """All phases of a job with their progress."""
    page: Any = client.get(f"/fine_tuning/jobs/{job_id}/phases", cast_to=object)
    return list(page["data"])


def samples(client: OpenAI, job_id: str, **query: Any) -> dict[str, Any]:
    """A page of the samples of a job's draw; `query` as the service takes it."""
    page: Any = client.get(f"/fine_tuning/jobs/{job_id}/samples", options={"params": query}, cast_to=object)
    return dict(page)


def rounds(client: OpenAI, job_id: str) -> list[dict[str, Any]]:
    """The rounds of a self-improvement job that were decided, oldest first."""
    page: Any = client.get(f"/fine_tuning/jobs/{job_id}/rounds", cast_to=object)
    return list(page["data"])


def register_checkpoint(client: OpenAI, model: str) -> dict[str, Any]:
    """Register a weak checkpoint; returns it."""
    checkpoint: Any = client.post("/weak_checkpoints", body={"model": model}, cast_to=object)
    return dict(checkpoint)


def checkpoints(client: OpenAI, *, limit: int) -> list[dict[str, Any]]:
    """Registered weak checkpoints, newest first."""
    page: Any = client.get("/weak_checkpoints", options={"params": {"limit": limit}}, cast_to=object)
    return list(page["data"])


def remove_checkpoint(client: OpenAI, checkpoint_id: str) -> None:
    """Forget a registered weak checkpoint."""
    client.delete(f"/weak_checkpoints/{checkpoint_id}", cast_to=object)


def new_events(client: OpenAI, job_id: str, seen: str | None) -> list[Any]:
    """Events of a job after the one with id `seen`, oldest first."""
    return _since(client.fine_tuning.jobs.list_events(job_id, limit=100), seen)


def _since(events: Iterable[Any], seen: str | None) -> list[Any]:
    return list(takewhile(lambda event: event.id != seen, events))[::-1]


def watch(
    client: OpenAI,
    job_id: str,
    on_change: Callable[[Any, list[dict[str, Any]], list[Any]], None],
    *,
    every_s: float = 1.0,
) -> Any:
    """Poll a job until it has ended, calling `on_change(job, phases, new events)`; returns the ended job."""

    def look(seen: str | None) -> Look:
        job = client.fine_tuning.jobs.retrieve(job_id)
        return job, job.status, phases(client, job_id), new_events(client, job_id, seen)

    return _follow(look, on_change, every_s=every_s)


Look = tuple[Any, str, list[dict[str, Any]], list[Any]]
"""A job, its status, its phases and its new events."""


def _follow(
    look: Callable[[str | None], Look],
    on_change: Callable[[Any, list[dict[str, Any]], list[Any]], None],
    *,
    every_s: float,
) -> Any:
    """Look again and again, each time for events after the last one seen, until the status is a last one."""
    seen = None
    heard_at = time.monotonic()
    while True:
        try:
            job, status, plan, fresh = look(seen)
        except (openai.APIConnectionError, openai.InternalServerError):
            if time.monotonic() - heard_at > MAX_SILENCE_S:
                raise
            time.sleep(every_s)
            continue
        heard_at = time.monotonic()
        seen = fresh[-1].id if fresh else seen
        on_change(job, plan, fresh)
        if status in TERMINAL:
            return job
        time.sleep(every_s)


def submit_scores(client: OpenAI, spec: ScoreSpec) -> str:
    """Ask for entropy scores; returns the request's id."""
    made: Any = client.post("/entropy_scores", body=spec.model_dump(mode="json", exclude_unset=True), cast_to=object)
    return str(made["id"])


def cancel(client: OpenAI, job_id: str) -> str:
    """Cancel a job or a request for entropy scores; returns its status."""
    if not is_scores(job_id):
        return client.fine_tuning.jobs.cancel(job_id).status
    scores: Any = client.post(f"/entropy_scores/{job_id}/cancel", cast_to=object)
    return str(scores["status"])


def watch_scores(
    client: OpenAI,
    scores_id: str,
    on_change: Callable[[Any, list[dict[str, Any]], list[Any]], None],
    *,
    every_s: float = 1.0,
) -> dict[str, Any]:
    """As `watch`, for a request for entropy scores."""
    path = f"/entropy_scores/{scores_id}"

    def look(seen: str | None) -> Look:
        scores: Any = client.get(path, cast_to=object)
        events = client.get_api_list(
            f"{path}/events",
            page=SyncCursorPage[FineTuningJobEvent],
            model=FineTuningJobEvent,
            options={"params": {"limit": 100}},
        )
        return scores, scores["status"], scores["progress"], _since(events, seen)

    ended: dict[str, Any] = _follow(look, on_change, every_s=every_s)
    return ended


def download_scores(client: OpenAI, scores_id: str, target: Path, **query: str | int) -> None:
    """Save a table of a request, asked for by `model`, `level` and `format`; it is never held in memory."""
    url = client.base_url.join(f"entropy_scores/{scores_id}/content")
    with (
        httpx2.Client(trust_env=url.host not in LOOPBACK, timeout=httpx2.Timeout(60.0)) as http,
        http.stream("GET", str(url), params=query, headers=client.auth_headers) as response,
    ):
        if response.is_error:
            raise WmssError(json.loads(response.read())["detail"])
        with target.open("wb") as file:
            for part in response.iter_bytes():
                file.write(part)


def chat(client: OpenAI, model: str, messages: list[Any], **options: Any) -> Iterator[str]:
    """The model's answer to a conversation, in parts as they come."""
    for chunk in client.chat.completions.create(model=model, messages=messages, stream=True, **options):
        if chunk.choices and chunk.choices[0].delta.content:
            yield chunk.choices[0].delta.content


def explain_failure(error: openai.OpenAIError) -> str:
    """One line for a person: the service's own message, or how to reach it."""
    if isinstance(error, openai.APIStatusError):
        body = error.body if isinstance(error.body, dict) else {}
        return str(body.get("message") or body.get("detail") or error)
    if isinstance(error, openai.APIConnectionError):
        url = error.request.url
        where = f"{url.scheme}://{url.netloc.decode()}"
        return f"no service answers at {where}; start one with `wmss serve` or set WMSS_BASE_URL"
    return str(error)
