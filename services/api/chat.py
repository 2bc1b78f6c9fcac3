"""/v1/chat/completions and /v1/completions: relayed to the chat engine, which is started for the model asked for.

A request waits while its engine starts. One that cannot have an engine now (jobs hold the machine, or the place is
taken by a model in use) answers 503 with `retry-after`, at once.
"""

import ast
import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Annotated, Any, TypeVar

import httpx2
from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from services.api.error_responses import Problem, ray_unavailable
from services.api.state import Service, ServiceState
from services.catalog.names import resolve_model
from services.chat.chat_store import LEASE_S, ChatState
from services.jobs.room import room_for_chat
from services.jobs.tables import ChatEngineRow
from wmss.errors import ModelError, shown
from wmss.models.limited import check_checkpoint

router = APIRouter(prefix="/v1", tags=["chat"])

POLL_S = 0.25
DISCONNECT_POLL_S = 1.0
BUSY_RETRY_AFTER_S = 10
Result = TypeVar("Result")


class CompletionRequest(BaseModel):
    """What is read here; the rest goes to vLLM as it came (temperature, max_tokens, stop, seed, logprobs, ...)."""

    model_config = ConfigDict(extra="allow")

    model: Annotated[str, Field(min_length=1, max_length=1024)]
    """Any name of /v1/models, or that of a checkpoint."""


class TextCompletion(CompletionRequest):
    """Body of /v1/completions."""

    prompt: str | list[Any]
    """Text, token ids, or several of either."""


class ChatCompletion(CompletionRequest):
    """Body of /v1/chat/completions."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    """The conversation so far: objects with `role` and `content`."""


@router.post("/chat/completions")
async def chat_completions(service: Service, request: Request, body: ChatCompletion) -> Response:
    """OpenAI's chat completion, streaming or not, of any model a job may name, its checkpoints and its result."""
    return await _complete(service, request, body)


@router.post("/completions")
async def completions(service: Service, request: Request, body: TextCompletion) -> Response:
    """OpenAI's text completion: the prompt is continued as it stands, without a chat template."""
    return await _complete(service, request, body)


async def _complete(service: ServiceState, request: Request, body: CompletionRequest) -> Response:
    relay = await _admit(service, request, body.model)
    try:
        answer = await relay.send(await request.body())
    except BaseException:
        await relay.close()
        raise
    kind = answer.headers.get("content-type", "application/json")
    if answer.is_success and kind.startswith("text/event-stream"):
        return StreamingResponse(relay.stream(answer), media_type="text/event-stream")
    try:
        content = await relay.whole(answer)
    finally:
        await relay.close()
    if not answer.is_success:
        raise _refusal(answer, content, fields=body.model_fields_set)
    return Response(content, media_type="application/json")


async def _admit(service: ServiceState, request: Request, model: str) -> "_Relay":
    """Wait for the model's engine and take a lease on it; raises a 503 where waiting would not help."""
    try:
        folder = await run_in_threadpool(resolve_model, model, service.store, service.settings, param="model")
    except ModelError as error:
        raise Problem(404, "model_not_found", error.message, param="model") from None
    deadline = time.monotonic() + service.settings.chat_start_s
    while time.monotonic() < deadline:
        admitted = await run_in_threadpool(_lease, service, model, folder)
        if admitted is not None:
            return _Relay(service, request, *admitted)
        await asyncio.sleep(POLL_S)
        if await request.is_disconnected():
            raise Problem(499, "client_closed_request", "the client has gone")
    raise Problem(503, "engine_not_ready", f"the engine for {model} is still starting", retry_after=BUSY_RETRY_AFTER_S)


def _lease(service: ServiceState, model: str, folder: Path) -> tuple[ChatEngineRow, str] | None:
    """The model's engine with a lease on it; None while the engine starts, after asking for what must come first."""
    row = service.chat.engine()
    if row is None:
        _want(service, model, folder)
        return None
    if row.model != model:
        _make_leave(service, row)
        return None
    if row.state == ChatState.FAILED:
        raise Problem(500, "engine_failed", str(row.error), param="model")
    lease = service.chat.begin_request(row.app) if row.state == ChatState.READY else None
    return None if lease is None else (row, lease)


def _want(service: ServiceState, model: str, folder: Path) -> None:
    """Ask for an engine. A folder that no job would take is refused here: an engine needs a minute to fail on it."""
    check_checkpoint(folder, param="model")
    try:
        room = room_for_chat(service.store, service.drivers)
        service.drivers.ping()
    except httpx2.HTTPError as error:
        raise ray_unavailable(service.settings.ray_dashboard_url, error, "no engine was started") from error
    if not room:
        message = "the running jobs leave no CPU or GPU for a chat engine; try again when they have ended"
        raise Problem(503, "no_room", message, retry_after=BUSY_RETRY_AFTER_S)
    service.chat.want(model, str(folder))
    service.reconciler.wake()


def _make_leave(service: ServiceState, row: ChatEngineRow) -> None:
    """Free the place from another model's engine, unless that one is wanted or in use."""
    if row.state in (ChatState.LEAVING, ChatState.FAILED):
        return
    if row.state != ChatState.READY or service.chat.in_use(row.app):
        message = f"the chat engine is in use for {row.model}; there is room for one model at a time, try again"
        raise Problem(503, "engine_in_use", message, retry_after=BUSY_RETRY_AFTER_S)
    service.chat.move(row, ChatState.LEAVING)
    service.reconciler.wake()


def _refusal(answer: httpx2.Response, content: bytes, *, fields: set[str]) -> Problem:
    """vLLM's refusal of a request as a problem of ours."""
    try:
        error = json.loads(content)["error"]
        message, param = str(error["message"]), error.get("param")
    except (ValueError, KeyError, TypeError):
        return Problem(503, "engine_busy", "the chat engine takes no request now; try again", retry_after=5)
    if answer.status_code >= httpx2.codes.INTERNAL_SERVER_ERROR:
        text = f"the chat engine failed ({message}); it is being restarted, try again"
        return Problem(503, "engine_error", text, retry_after=BUSY_RETRY_AFTER_S)
    if "validation error" in message.partition("\n")[0]:
        param, message = _in_words(message)
    # Where vLLM names no field, its message begins with the field's name, as a rule.
    named = re.match(r"[a-z_]+", message)
    if param is None and named is not None and named.group() in fields:
        param = named.group()
    return Problem(answer.status_code, "invalid_request", message, param=param and str(param).removeprefix("body."))


_MAX_FAULTS = 3
_FAULT = re.compile(r"^ +(.*?)(?: \[type=.*)?$", re.MULTILINE)


def _in_words(message: str) -> tuple[str, str]:
    """The first field, and a message for a person, of pydantic's errors as vLLM writes them: a dict on each line, or of
    what it looks at later, the messages, pydantic's own text."""
    faults: list[tuple[str, str]] = []
    for line in _FAULT.findall(message):
        try:
            fault = ast.literal_eval(line)
            # Of a union, each member's name stands in the path.
            parts = [part for part in fault["loc"].removeprefix("body.").split(".") if not part[:1].isupper()]
            faults.append((".".join(parts), f"{fault['msg']} (got {shown(fault['input'])})"))
        except (ValueError, SyntaxError, TypeError, KeyError, AttributeError):
            if not line.lstrip().startswith("For further information"):
                faults.append(("messages", line))
    if not faults:
        return "messages", "messages: not in the form of OpenAI's interface; see its reference"
    told = dict.fromkeys(f"{field}: {text.replace('Input should be', 'expected')}" for field, text in faults)
    return faults[0][0], "; ".join(list(told)[:_MAX_FAULTS])


class _Relay:
    """One request on its way through the engine, with the lease that keeps the engine in its place."""

    def __init__(self, service: ServiceState, request: Request, row: ChatEngineRow, lease: str) -> None:
        self._service = service
        self._request = request
        self._row = row
        self._lease = lease
        self._renewed_at = time.monotonic()

    async def send(self, body: bytes) -> httpx2.Response:
        """The engine's answer, its body still to be read."""
        path = self._request.url.path
        url = f"{self._service.settings.serve_url}/{self._row.app}{path}"
        request = self._service.http.build_request(
            "POST", url, content=body, headers={"content-type": "application/json"}
        )
        try:
            answer = await self._attended(self._service.http.send(request, stream=True))
        except httpx2.TransportError as error:
            raise await self._lost(type(error).__name__) from error
        if answer.status_code == httpx2.codes.NOT_FOUND and answer.headers["content-type"].startswith("text/plain"):
            await answer.aclose()
            raise await self._lost("Serve does not know it")
        return answer

    async def whole(self, answer: httpx2.Response) -> bytes:
        """The answer's body."""
        try:
            return await self._attended(answer.aread())
        except httpx2.TransportError as error:
            raise await self._lost(type(error).__name__) from error

    async def stream(self, answer: httpx2.Response) -> AsyncIterator[bytes]:
        """The answer's server-sent events as they come; a break in them is told as an event."""
        parts = answer.aiter_raw()
        try:
            while (part := await self._attended(anext(parts, None))) is not None:
                yield part
        except httpx2.TransportError as error:
            problem = await self._lost(type(error).__name__)
            yield f"data: {json.dumps({'error': problem.openai_error()})}\n\n".encode()
        finally:
            await answer.aclose()
            await self.close()

    async def close(self) -> None:
        """Give the lease back."""
        await run_in_threadpool(self._service.chat.end_request, self._row.app, self._lease)

    async def _attended(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Wait for the engine, renewing the lease; a client that goes away ends the work in the engine too."""
        task = asyncio.ensure_future(work)
        try:
            while not (await asyncio.wait({task}, timeout=DISCONNECT_POLL_S))[0]:
                if await self._request.is_disconnected():
                    raise Problem(499, "client_closed_request", "the client has gone")
                if time.monotonic() > self._renewed_at + LEASE_S / 3:
                    self._renewed_at = time.monotonic()
                    await run_in_threadpool(self._service.chat.renew_request, self._lease)
            return task.result()
        finally:
            task.cancel()

    async def _lost(self, reason: str) -> Problem:
        """The engine does not answer (usually the cluster was restarted): the next request gets a new one."""
        row = await run_in_threadpool(self._service.chat.engine)
        if row is not None and row.app == self._row.app and row.state == ChatState.READY:
            await run_in_threadpool(self._service.chat.move, row, ChatState.LEAVING)
            self._service.reconciler.wake()
        message = f"the chat engine for {self._row.model} does not answer ({reason}); a new one is started, try again"
        return Problem(503, "engine_lost", message, retry_after=5)
