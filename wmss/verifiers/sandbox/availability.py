"""Can a sandbox be built here? Found out by building one, once per process."""

from functools import cache
from pathlib import Path
from typing import Any

from wmss.config import CodeVerifier, SandboxLimits
from wmss.errors import WmssError
from wmss.records import Task
from wmss.verifiers.interfaces import VERIFIER, Judge
from wmss.verifiers.pool import PooledVerifier
from wmss.verifiers.sandbox import kernel
from wmss.verifiers.sandbox.host import run_in_sandbox
from wmss.verifiers.sandbox.tester import Job

_TRIAL = Path(__file__).with_name("trial.py")
_PROBE_LIMITS = SandboxLimits(timeout_s=30.0)
"""Long, because a machine may be busy; it takes some 50 ms where it is not."""
REMEDY = (
    "use a verifier that runs no programs, or allow the service unprivileged user namespaces: on a host, set "
    "user.max_user_namespaces (and, on Ubuntu, kernel.apparmor_restrict_unprivileged_userns = 0); in a container, see "
    "docs/verifiers.md"
)


class SandboxError(WmssError):
    """Programs cannot be run safely here, and are therefore not run."""

    code = "sandbox_unavailable"


def sandbox_refusals() -> list[WmssError]:
    """Empty where untrusted programs can be run; else the reason and the remedy."""
    reason = _unavailable()
    if reason is None:
        return []
    return [SandboxError(f"{VERIFIER}: expected a machine with a sandbox, got: {reason}; {REMEDY}", param=VERIFIER)]


@cache
def _unavailable() -> str | None:
    if not kernel.supports_this_machine():
        return "a processor whose system calls are not known here (expected x86_64 or aarch64)"
    with PooledVerifier(
        CodeVerifier(type="code", limits=_PROBE_LIMITS),
        version="trial",
        maker=f"{__name__}:make_trial_judge",
        timeout_s=_PROBE_LIMITS.timeout_s,
        num_processes=1,
        check=lambda task: None,
    ) as verifier:
        [verdict] = verifier.verify([(Task(line=1), "")], progress=lambda done, total: None)
    return None if verdict.accepted else f"a trial that ended with {verdict.label}, {verdict.detail}"


def make_trial_judge(config: dict[str, Any]) -> Judge:
    """For `PooledVerifier`: a program that reports whether it was kept in, whatever the response."""
    job = Job(_TRIAL.read_text(encoding="utf-8"), tests=("assert escapes() == []",))
    return lambda task, response: run_in_sandbox(job, SandboxLimits(**config["limits"]))
