"""Which kind of thing does an id name? Every prefix once, and how ids are made and recognised.

Ids are opaque and random; the prefix tells a person, and the command line, what they name. Event ids are counted.
"""

import re
import secrets
from pathlib import PurePath

JOB = "ftjob"
"""A fine-tuning job."""
SCORES = "score"
"""A request for entropy scores, which is a job of another kind."""
FILE = "file"
"""An uploaded file."""
CHECKPOINT = "weak"
"""A registered checkpoint."""
JOB_CHECKPOINT = "ftckpt"
"""A training checkpoint of a job."""
EVENT = "ftevent"
"""An event of a job; its number follows."""
CHAT_ENGINE = "chat"
"""A Serve application that answers chat requests."""
CHAT_REQUEST = "chatreq"
"""The lease of one chat request on its engine."""
REQUEST = "req"
"""An HTTP request, as in the header `x-request-id`."""
DELETION = "delete"
"""A Ray job that deletes Serve applications."""
LOCAL = "local"
"""Work that runs in this process, without a service: its id names temporary files."""

_NUM_BYTES = 12
_CHECKPOINT_ID = re.compile(f"{CHECKPOINT}-[0-9a-f]{{{2 * _NUM_BYTES}}}")
_EVENT_ID = re.compile(f"{EVENT}-([0-9]{{1,18}})")
_FINE_TUNED = "ft:"


def new_id(prefix: str) -> str:
    """An id that cannot be guessed: the prefix and 12 random bytes in hexadecimal."""
    return f"{prefix}-{secrets.token_hex(_NUM_BYTES)}"


def is_job(name: str) -> bool:
    """Whether a name has the form that is reserved for fine-tuning jobs and for their folders."""
    return name.startswith(f"{JOB}-")


def is_scores(name: str) -> bool:
    """Whether an id names a request for entropy scores."""
    return name.startswith(f"{SCORES}-")


def is_checkpoint(name: str) -> bool:
    """Whether a name is the id of a registered checkpoint; no folder can have such a name."""
    return _CHECKPOINT_ID.fullmatch(name) is not None


def is_fine_tuned(name: str) -> bool:
    """Whether a name is that of a finished job's model."""
    return name.startswith(_FINE_TUNED)


def event_id(number: int) -> str:
    """Id of a job's event: events are counted, so that a page can begin after one."""
    return f"{EVENT}-{number}"


def event_number(event: str) -> int | None:
    """The number in an event's id; None where the id is not an event's."""
    match = _EVENT_ID.fullmatch(event)
    return None if match is None else int(match[1])


def submission_id(job: str, attempt: int) -> str:
    """Name of the Ray job that drives an attempt of a job."""
    return f"{job}-{attempt}"


def fine_tuned_name(model: str, suffix: str | None, job: str) -> str:
    """Name of a job's result: ft:<base-name>:<suffix>:<id>. The base of a fine-tuned model is its own base."""
    base = model.split(":")[1] if is_fine_tuned(model) else PurePath(model).name.replace(":", "-")
    return f"{_FINE_TUNED}{base}:{suffix or ''}:{job}"
