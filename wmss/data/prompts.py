"""The prompts of tasks as tokens, and what ends a response to them."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from wmss.data.dataset import raise_rows
from wmss.data.rendering import Renderer
from wmss.errors import DataError
from wmss.records import Task


def render_prompts(
    tasks: Sequence[Task],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_prompt_tokens: int,
    can_grow: bool = True,
    source: str,
    param: str,
) -> list[list[int]]:
    """Ids of every task's prompt, exactly as training puts them before a completion. `can_grow`: whether the model
    would take a larger `max_length`.

    Raises:
        DataError: with line numbers, where a prompt has more than `max_prompt_tokens` or cannot be rendered.
    """
    renderer = Renderer(tokenizer)
    prompts: list[list[int]] = []
    remedy = (
        "shorten it, lower max_new_tokens or raise max_length" if can_grow else "shorten it, or lower max_new_tokens"
    )
    problems: list[str] = []
    for task in tasks:
        try:
            ids = renderer.prompt(messages=task.messages, prompt=task.prompt)
        except DataError as error:
            problems.append(f"line {task.line}: {error}")
            continue
        if len(ids) > max_prompt_tokens:
            expected = f"expected a prompt of at most {max_prompt_tokens} tokens, got {len(ids)}"
            problems.append(f"line {task.line}: {expected}; {remedy}")
        prompts.append(ids)
    raise_rows(source, problems, param)
    return prompts


def end_token_ids(tasks: Sequence[Task], tokenizer: PreTrainedTokenizerBase, *, source: str, param: str) -> list[int]:
    """Ids that end a response to any of the tasks, ascending: of chats, and of plain prompts.

    Raises:
        DataError: with the first line for which there is none, so that every response would be cut.
    """
    renderer = Renderer(tokenizer)
    found: set[int] = set()
    problems: list[str] = []
    # What a template writes after a turn depends on who spoke before, not on what was said.
    forms = {tuple(message["role"] for message in task.messages): task for task in reversed(tasks)}
    for task in forms.values():
        try:
            found.add(renderer.end_token(messages=task.messages))
        except DataError as error:
            problems.append(f"line {task.line}: no end token in outputs: {error}")
    raise_rows(source, problems, param)
    return sorted(found)
