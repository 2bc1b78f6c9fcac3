"""Error bodies: RFC 9457 problem details that also carry OpenAI's `error{message, type, param, code}`."""

import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException

from services.jobs.database import is_full, may_be_retried
from services.jobs.store import UnknownCursorError
from services.settings import FULL, Settings
from wmss.config import explain
from wmss.data.dataset import RowError, json_fault, parse_json
from wmss.errors import BusyError, RecordError, WmssError, shortened, shown
from wmss.ids import REQUEST, new_id

logger = logging.getLogger(__name__)

TITLES = {
    400: "Invalid request",
    404: "Not found",
    405: "Method not allowed",
    409: "Conflict",
    413: "File too large",
    422: "Conflicting request",
    499: "Client closed request",
    500: "Internal error",
    503: "Temporarily unavailable",
    507: "Disk full",
}


FILTERED_BY_METADATA = ("list_jobs", "list_scores")
"""Routes that take `metadata[key]=value`."""


class Problem(Exception):
    """An answer other than success."""

    def __init__(
        self, status: int, code: str, message: str, *, param: str | None = None, retry_after: int | None = None
    ):
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param
        self.retry_after = retry_after

    def openai_error(self) -> dict[str, Any]:
        """OpenAI's error object."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"message": self.message, "type": kind, "param": self.param, "code": self.code}


def not_found(what: str, name: str, param: str) -> Problem:
    """404 for an id."""
    return Problem(404, "not_found", f"{param}: there is no {what} {shown(name)}", param=param)


def ray_unavailable(url: str, error: Exception, consequence: str) -> Problem:
    """503 for a dashboard at `url` that does not answer; `consequence` says what was not done."""
    message = f"Ray does not answer at {url} ({type(error).__name__}); {consequence}"
    return Problem(503, "ray_unavailable", message, retry_after=5)


def problem_response(request: Request, problem: Problem) -> JSONResponse:
    """The body and headers of a problem."""
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": TITLES.get(problem.status, "Error"),
        "status": problem.status,
        "detail": problem.message,
        "instance": request.url.path,
        "error": problem.openai_error(),
    }
    headers = {}
    if problem.retry_after is not None:
        headers["retry-after"] = str(problem.retry_after)
    elif problem.status in (409, 500, 507):
        headers["x-should-retry"] = "false"
    return JSONResponse(body, status_code=problem.status, headers=headers, media_type="application/problem+json")


@contextmanager
def cursor(after: str | None) -> Iterator[None]:
    """Answer a cursor that names nothing in the list."""
    try:
        yield
    except UnknownCursorError:
        message = f"after: expected the id of an item of this list, got {shown(after)}"
        raise Problem(400, "invalid_cursor", message, param="after") from None


def known_query(request: Request) -> None:
    """Dependency of every route: a query parameter that nothing reads is refused, not ignored; so is a NUL, and one of
    two values."""
    known = set(_query_names(request.scope["route"].dependant.query_params))
    takes_metadata = request.scope["route"].name in FILTERED_BY_METADATA
    for name, value in request.query_params.multi_items():
        if name not in known and not (takes_metadata and name.startswith("metadata[") and name.endswith("]")):
            expected = ", ".join(sorted(known | ({"metadata[key]"} if takes_metadata else set()))) or "none"
            message = f"{shortened(name)}: unknown query parameter; expected {expected}"
            raise Problem(400, "unknown_parameter", message, param=shortened(name))
        if "\x00" in name + value:
            message = f"{name!r}: holds a NUL character; remove it"
            raise Problem(400, "invalid_parameter", message, param=name.replace("\x00", ""))
        if name in known and len(request.query_params.getlist(name)) > 1:
            raise Problem(400, "invalid_parameter", f"{name}: given twice; remove one", param=name)


def _query_names(parameters: Iterable[Any]) -> Iterator[str]:
    """Names of a route's query parameters; several may be declared as the fields of one model."""
    for parameter in parameters:
        kind = parameter.field_info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from kind.model_fields
        else:
            yield parameter.alias


async def known_json(request: Request) -> None:
    """Dependency of every route, those without a body too: unusable JSON is refused. So is one key with two values,
    whichever would have won, and half a surrogate pair, which no answer could repeat."""
    if "json" in request.headers.get("content-type", "") and (body := await request.body()):
        try:
            parse_json(body.decode("utf-8-sig"))  # FastAPI takes a byte-order mark too
        except UnicodeDecodeError as error:
            raise _unreadable("expected UTF-8") from error
        except RowError as error:
            raise _unreadable(str(error)) from error


_REMEDIES = {
    400: "; send the form as curl -F purpose=fine-tune -F file=@train.jsonl does",
    404: "; /docs lists every route",
    405: "; /docs lists the methods of every route",
}
"""What to do about what Starlette refuses by itself: its 400s are forms that cannot be read."""


def _unreadable(why: str) -> Problem:
    return Problem(400, "invalid_json", f"the body is not usable JSON: {why}")


async def _with_request_id(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Middleware: every answer has an `x-request-id`, also the one to a failure that no handler took."""
    identifier = new_id(REQUEST)
    try:
        response = await call_next(request)
    except Exception:  # the outermost frame of a request
        logger.exception("%s %s failed (%s)", request.method, request.url.path, identifier)
        problem = Problem(500, "internal_error", f"the service failed; its log has {identifier}")
        response = problem_response(request, problem)
    response.headers["x-request-id"] = identifier
    return response


async def _on_problem(request: Request, error: Problem) -> Response:
    return problem_response(request, error)


async def _on_wmss_error(request: Request, error: WmssError) -> Response:
    status = 409 if isinstance(error, RecordError) else 400  # the job is not what this release can show
    settings: Settings = request.app.state.service.settings
    message = settings.for_clients(error.message)
    return problem_response(request, Problem(status, error.code, message, param=error.param))


async def _on_busy(request: Request, error: BusyError) -> Response:
    return problem_response(request, Problem(503, "busy", str(error), retry_after=30))


async def _on_os_error(request: Request, error: OSError) -> Response:
    if error.errno not in FULL:
        raise error
    return _disk_full(request, error)


def _disk_full(request: Request, error: Exception) -> Response:
    logger.error("%s %s: a disk is full: %s", request.method, request.url.path, error)
    message = "the service's disk is full; nothing was stored: have its operator free some space, then try again"
    return problem_response(request, Problem(507, "disk_full", message))


async def _on_validation_error(request: Request, error: RequestValidationError) -> Response:
    items = [{**item, "loc": item["loc"][1:]} for item in error.errors()]
    if any(item["type"] == "json_invalid" for item in items):
        return problem_response(request, _unreadable(f"not valid JSON ({items[0]['ctx']['error']})"))
    if any(not item["loc"] and item["type"] != "value_error" for item in items):
        message = "the body: expected a JSON object, sent with content-type: application/json"
        return problem_response(request, Problem(400, "invalid_body", message))
    explained = explain(items, *(each.field_info.annotation for each in request.scope["route"].dependant.body_params))
    return problem_response(request, Problem(400, explained.code, explained.message, param=explained.param))


async def _on_http_exception(request: Request, error: HTTPException) -> Response:
    match error.__cause__:  # what FastAPI met in a body that `known_json` never saw
        case UnicodeDecodeError():
            return problem_response(request, _unreadable("expected UTF-8"))
        case OSError() as cause if cause.errno in FULL:  # where a large upload is kept while it arrives
            return _disk_full(request, cause)
        case ValueError() | RecursionError() as cause:
            return problem_response(request, _unreadable(f"not valid JSON ({json_fault(cause)})"))
    message = f"{request.method} {request.url.path}: {error.detail}{_REMEDIES.get(error.status_code, '')}"
    response = problem_response(request, Problem(error.status_code, "http_error", message))
    response.headers.update(error.headers or {})
    return response


async def _on_database_error(request: Request, error: DBAPIError | PoolTimeoutError) -> Response:
    if is_full(error):
        return _disk_full(request, error)
    if not may_be_retried(error):
        logger.error("%s %s failed in the database: %s", request.method, request.url.path, error)
        message = "the service failed in its database; its log says how"
        return problem_response(request, Problem(500, "internal_error", message))
    logger.error("database: %s", error)
    message = "the job database does not answer; try again"
    return problem_response(request, Problem(503, "database_unavailable", message, retry_after=5))


HANDLERS: dict[type[Exception], Any] = {
    Problem: _on_problem,
    WmssError: _on_wmss_error,
    BusyError: _on_busy,
    RequestValidationError: _on_validation_error,
    HTTPException: _on_http_exception,
    DBAPIError: _on_database_error,
    PoolTimeoutError: _on_database_error,
    OSError: _on_os_error,
}


def install(app: FastAPI) -> None:
    """Answer every failure as a problem, and give every answer an `x-request-id`."""
    app.middleware("http")(_with_request_id)
    for error, handler in HANDLERS.items():
        app.exception_handler(error)(handler)
