"""What each extra of the package brings, and what is said where one is missing. It imports nothing heavy."""

from collections.abc import Iterator
from contextlib import contextmanager

from wmss.errors import ExtraError

MODULES = {
    "service": (
        "ray",
        "pydantic_settings",
        "fastapi",
        "uvicorn",
        "python_multipart",
        "sqlalchemy",
        "alembic",
        "openai",
        "httpx2",
        "typer",
        "rich",
        "psutil",
    ),
    "postgres": ("psycopg",),
    "lora": ("peft",),
    "math": ("math_verify",),
    "gguf": ("gguf",),
    "charts": ("matplotlib",),
}
"""Top-level modules by extra, in the order of pyproject.toml."""


@contextmanager
def needs_extra(extra: str, what: str, *, param: str | None = None) -> Iterator[None]:
    """Around imports that only `wmss[extra]` brings; `what` begins the message: what the caller asked for, and
    `param` is the field.

    Raises:
        ExtraError: a package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ExtraError(missing(extra, what, error), param=param) from error


def missing(extra: str, what: str, error: ModuleNotFoundError) -> str:
    """What to install, and which package was looked for."""
    return f"{what} needs the extra `{extra}`: pip install 'wmss[{extra}]' ({error.name} is not installed)"


def extra_of(error: ModuleNotFoundError) -> str | None:
    """The extra that brings the module that was not found; None = no extra does."""
    module = (error.name or "").partition(".")[0]
    return next((extra for extra, modules in MODULES.items() if module in modules), None)
