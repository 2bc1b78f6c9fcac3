"""Chat messages that spell a control token are refused before the engine reads them.

vLLM's server renders a chat into one text and tokenizes that, so that `<|im_end|>` in a message ends the message. Files
are held to the same rule (`wmss.data.rendering`).
"""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

from wmss.data.rendering import Renderer

CHECKED = ("messages", "tools", "documents")
"""What of a body a chat template writes into the text."""


class RefusingControlTokens:
    """An ASGI application in front of the engine's: answers 400 where a chat's text spells a control token."""

    def __init__(self, app: Any, renderer: Renderer) -> None:
        self._app = app
        self._renderer = renderer
        self._one_at_a_time = asyncio.Lock()  # a tokenizer is not made for several threads

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or not scope["path"].endswith("/chat/completions"):
            await self._app(scope, receive, send)
            return
        body, more = b"", True
        while more:
            part = await receive()
            if part["type"] == "http.disconnect":
                return
            body, more = body + part.get("body", b""), part.get("more_body", False)
        async with self._one_at_a_time:
            problem = await asyncio.to_thread(self._problem, body)
        if problem is None:
            await self._app(scope, _again(body, receive), send)
        else:
            await _refuse(send, problem)

    def _problem(self, body: bytes) -> dict[str, Any] | None:
        """OpenAI's error object for a body that is to be refused. What is no chat, the engine refuses itself."""
        try:
            asked = json.loads(body)
        except (ValueError, RecursionError):
            return None
        for name in CHECKED if isinstance(asked, dict) else ():
            for where, text in _texts(asked.get(name), name):
                spelled = self._renderer.control_token_in(text)
                if spelled is not None:
                    message = (
                        f"{where}: this text spells {spelled!r}, which the model reads as a control token, not as "
                        "text; take it out (turns and their ends are written for you), or send the whole text as a "
                        "prompt to /v1/completions"
                    )
                    return {"message": message, "type": "invalid_request_error", "param": where, "code": 400}
        return None


def _texts(value: Any, where: str) -> Iterator[tuple[str, str]]:
    """Every string inside a value, however deep, with its place."""
    found = [(where, value)]
    while found:
        place, each = found.pop()
        if isinstance(each, str):
            yield place, each
        elif isinstance(each, list):
            found += [(f"{place}[{index}]", item) for index, item in reversed(list(enumerate(each)))]
        elif isinstance(each, dict):
            found += [(f"{place}.{key}", item) for key, item in reversed(each.items())]


def _again(body: bytes, receive: Any) -> Any:
    """A `receive` that gives the body once more, and then what comes after it."""
    parts = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive_again() -> Any:
        part = next(parts, None)
        return await receive() if part is None else part

    return receive_again


async def _refuse(send: Any, problem: dict[str, Any]) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 400, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps({"error": problem}).encode()})
