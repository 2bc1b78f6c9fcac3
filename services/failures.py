"""What a failed job tells its owner: a stable code, what happened, and what to do about it.

Ray's memory monitor says whom it killed and why (`OutOfMemoryError`, also when a training group or its controller is
the victim). Memory is blamed where it was seen, and nowhere else: the kernel's OOM killer leaves only a process that is
gone, as many other ends do.
"""

import re
from collections.abc import Iterator

from ray.exceptions import OutOfMemoryError, RayActorError, RayError, WorkerCrashedError

from wmss import errors
from wmss.errors import TrainingError, WmssError

_MONITOR_SIGN = "running low on memory"
"""Of Ray's memory monitor."""
_MEMORY_SIGNS = (
    "out of memory",  # torch on a GPU
    "can't allocate memory",  # torch on a CPU
    "No available memory for the cache blocks",  # vLLM at its start
)
_REFUSAL = re.compile(r"^wmss\.errors\.(\w+): (.+)$", re.MULTILINE)
"""The last line of a remote traceback that ended with an error of ours."""
_LOSSES_IN_TRAIN = (
    "WorkerHealthCheckTimeoutError",
    "WorkerGroupStartupFailedError",
    "WorkerGroupStartupTimeoutError",
    "PreemptionError",
)
"""Ray Train's own, which it does not export."""
_MEMORY_REMEDY = "lower micro_batch_tokens, max_length or num_workers, or give the machine more memory"


class OutOfMemory(WmssError):
    """A process of the job needed more memory than there was."""

    code = "out_of_memory"


class EngineError(WmssError):
    """A scoring or generation engine could not start, or was lost too often."""

    code = "engine_failed"


class ProcessLost(WmssError):
    """A process of the job vanished. Nothing says that the job is to blame: another attempt may go better."""


class WorkersLost(ProcessLost):
    """Training workers vanished again and again."""

    code = "training_failed"


class EngineLost(EngineError, ProcessLost):
    """An engine vanished again and again."""


class KilledForMemory(OutOfMemory, ProcessLost):
    """Ray's memory monitor killed a process of the job, which need not be the one that took the memory."""


class InternalError(WmssError):
    """A fault of the service, not of the job."""

    code = "internal_error"


def memory_error(who: str, error: BaseException) -> OutOfMemory | None:
    """The failure of `who` ("the training workers of sft") as one of memory, or None if nothing says so."""
    for line in str(error).splitlines():
        if _MONITOR_SIGN in line:
            return KilledForMemory(
                f"{who} ran out of memory ({_shortened(line.strip())}); {_MEMORY_REMEDY}, or see what else takes it"
            )
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
    if (memory := memory_error(who, error)) is not None:
        return memory
    where = "see its log under Serve in the Ray dashboard"
    if isinstance(error, RayActorError):
        return EngineLost(f"{who} died again and again ({_shortened(last_line(error))}); {where}")
    return EngineError(f"{who} did not start: {_shortened(last_line(error))}; {where}")


def training_error(who: str, error: BaseException, *, max_failures: int) -> WmssError:
    """Why the training workers (`who`) gave up, from what Ray Train raised after `max_failures` retries."""
    if (memory := memory_error(who, error)) is not None:
        return memory
    text = (
        f"{who} failed more than {max_failures} times: {_shortened(last_line(error))}; see their logs under Train in "
    )
    text += "the Ray dashboard"
    return WorkersLost(text) if all(map(_is_loss, origins(error))) else TrainingError(text)


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error and all that led to it, through Ray's wrappers: what failed on another process, in its own type."""
    seen: set[int] = set()
    ahead = [error]
    while ahead:
        error = ahead.pop()
        if id(error) not in seen:
            seen.add(id(error))
            ahead += _led_to(error)
            yield error


def origins(error: BaseException) -> list[BaseException]:
    """Of the causes those that have none themselves."""
    return [cause for cause in causes(error) if not _led_to(cause)]


def _led_to(error: BaseException) -> list[BaseException]:
    names = ("controller_failure", "health_check_failure", "_base_exc", "cause", "__cause__")
    found = [getattr(error, name, None) for name in names]
    found += getattr(error, "worker_failures", {}).values()
    return [cause for cause in found if isinstance(cause, BaseException)]


def _is_loss(error: BaseException) -> bool:
    """Whether an error says only that a process is gone, or did not come."""
    if isinstance(error, RayActorError):
        return not error.actor_init_failed
    return isinstance(error, (WorkerCrashedError, OutOfMemoryError)) or type(error).__name__ in _LOSSES_IN_TRAIN


def is_from_outside(error: BaseException) -> bool:
    """Whether an error came from Ray, or from nobody knows where: a cluster that dies may have caused it."""
    told_by_others = not isinstance(error, WmssError) or isinstance(error, (EngineError, TrainingError, OutOfMemory))
    return told_by_others or any(isinstance(cause, (RayError, ProcessLost)) for cause in causes(error))


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
