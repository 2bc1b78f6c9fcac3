"""`wmss chat`: one question or a conversation on the terminal."""

from typing import Any

from openai import OpenAI
from rich.console import Console
from rich.markup import escape

from services.commands import client as service
from wmss.ids import is_job


def converse(
    api: OpenAI, model: str, message: str | None, system: str | None, console: Console, **options: float | int | None
) -> None:
    """Print the answers of a model, or of a job's, to `message` or to what the user types until an empty line.

    An option that is None is left to the model.
    """
    if is_job(model):
        model = api.fine_tuning.jobs.retrieve(model).fine_tuned_model or model
    given = {key: value for key, value in options.items() if value is not None}
    messages: list[Any] = [{"role": "system", "content": system}] if system else []
    questions = iter([message]) if message is not None else iter(lambda: _ask(console), None)
    for question in questions:
        messages.append({"role": "user", "content": question})
        parts = service.chat(api, model, messages, **given)
        with console.status(f"waiting for {escape(model)}"):  # its engine may have to start
            answer = next(parts, "")
        console.print(answer, end="", markup=False, highlight=False, soft_wrap=True)
        for part in parts:
            console.print(part, end="", markup=False, highlight=False, soft_wrap=True)
            answer += part
        console.print()
        messages.append({"role": "assistant", "content": answer})


def _ask(console: Console) -> str | None:
    """The next question; None ends the conversation."""
    try:
        return console.input("> ").strip() or None
    except EOFError:
        return None
