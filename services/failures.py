"""What a failed job tells its owner: a stable code, what happened, and what to do about it.

Ray's memory monitor says whom it killed and why (`OutOfMemoryError`, also when a training group or its controller is
the victim). The kernel's OOM killer leaves only a process that is gone, so lack of memory is then named as a guess.
"""

import re

from ray.exceptions import RayActorError

from wmss import errors
from wmss.errors import WmssError

_MEMORY_SIGNS = (
    "running low on memory",  # Ray's memory monitor
    "out of memory",  # torch on a GPU
    "can't allocate memory",  # torch on a CPU
    "No available memory for the cache blocks",  # vLLM at its start
)
_REFUSAL = re.compile(r"^wmss\.errors\.(\w+): (.+)$", re.MULTILINE)
"""The last line of a remote traceback that ended with an error of ours."""
_MEMORY_REMEDY = "lower micro_batch_tokens, max_length or num_workers, or give the machine more memory"


class OutOfMemory(WmssError):
    """A process of the job needed more memory than there was."""

    code = "out_of_memory"


class EngineError(WmssError):
    """A scoring or generation engine could not start, or was lost too often."""

    code = "engine_failed"


class InternalError(WmssError):
    """A fault of the service, not of the job."""

    code = "internal_error"


def memory_error(who: str, error: BaseException) -> OutOfMemory | None:
    """The failure of `who` ("the training workers of sft") as one of memory, or None if nothing says so."""
    for line in str(error).splitlines():
        if any(sign in line for sign in _MEMORY_SIGNS):
            return OutOfMemory(f"{who} ran out of memory ({_shortened(line.strip())}); {_MEMORY_REMEDY}")
    if isinstance(error, MemoryError):
        return OutOfMemory(f"{who} ran out of memory; {_MEMORY_REMEDY}")
    return None


def engine_error(app: str, error: BaseException) -> WmssError:
    """Why an engine does not run: what the engine itself refused to do, as it said it, or what became of it."""
    who = f"the engine {app}"
    if refused := _REFUSAL.findall(str(error)):
        kind, message = refused[-1]
        return getattr(errors, kind, EngineError)(message)
    if isinstance(error, RayActorError):
        what = f"{who} died again and again, as a process does that the system kills for its memory"
    else:
        what = f"{who} did not start: {_shortened(last_line(error))}"
    remedy = f"see its log under Serve in the Ray dashboard; if memory is short, {_MEMORY_REMEDY}"
    return memory_error(who, error) or EngineError(f"{what}; {remedy}")


def driver_error(error: BaseException, *, log: str) -> WmssError:
    """Why a driver stopped: the caller's own fault as it is, everything else with the name of its `log`."""
    if isinstance(error, WmssError):
        return error
    text = _shortened(f"{type(error).__name__}: {error}".splitlines()[0])
    return memory_error("the driver", error) or InternalError(
        f"{text}; this is the service's fault, not the job's: see the log of {log} in the Ray dashboard and submit the "
        "job again; finished scores are kept"
    )


def last_line(error: BaseException) -> str:
    """The innermost exception's own line of a remote traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _shortened(text: str) -> str:
    return text if len(text) <= 240 else text[:237] + "..."
