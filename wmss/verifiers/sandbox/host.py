"""The place where untrusted Python runs: built for one job, out of new namespaces, and torn down after it.

    this process           reads the verdict, keeps the time, and has no part in the sandbox
      guard                has entered new namespaces; its end is the end of all below
        init               process 1 inside: builds the file system
          tester           knows the tests and the token; writes the verdict
          guest            runs the program, in a fresh interpreter

Inside there is no network, no /proc, no file of the host but the interpreter and its libraries (read-only), and one
small folder in memory to write in; no process has a capability. A verdict is only read next to the job's token, so a
sandbox that ends early, is killed or cannot be built never accepts anything. Linux 5.14 or later.
"""

import json
import math
import os
import resource
import secrets
import select
import signal
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from wmss.config import SandboxLimits
from wmss.verifiers.interfaces import Ruling
from wmss.verifiers.sandbox import guest as guest_program
from wmss.verifiers.sandbox import kernel
from wmss.verifiers.sandbox.tester import GuestProcess, Job, import_nothing_from, run

NOBODY = 65534
"""User and group inside; on the host too, where the service runs as root."""
NEW_ROOT = "/proc"
"""Where the new root is put together: a folder that is everywhere and holds none of the files to be shown."""
WORK = "/sandbox"
"""The one folder inside that can be written to. Not /tmp, below which interpreters, packages and checkouts may lie: the
program could put others in their place."""
MAX_OPEN_FILES = 64
MAX_FILES = 4096
MAX_VERDICT_BYTES = 4096
OWN_PROCESSES = 2
"""Of the sandbox itself, which count against the limit of processes too."""
_REQUESTS, _ANSWERS = 3, 4
"""The guest's file descriptors."""
_LIBRARIES = ("/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib")
_ENVIRONMENT = {
    "HOME": WORK,
    "TMPDIR": WORK,
    "PATH": os.defpath,
    "LANG": "C.UTF-8",
    "OMP_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",  # one order of a set, so that a verdict can be found again
    "PYTHONSAFEPATH": "1",  # an interpreter that a test starts imports nothing from the folder it starts in
}
_FILES = ("/etc/ld.so.cache", "/dev/null", "/dev/zero", "/dev/urandom")
_INTERPRETER = os.path.realpath(sys.executable)
_GUEST_SOURCE = f"{Path(guest_program.__file__).read_text(encoding='utf-8')}\nserve({_REQUESTS}, {_ANSWERS})\n"


def run_in_sandbox(job: Job, limits: SandboxLimits) -> Ruling:
    """The verdict on one job; `error`, `sandbox` and a reason where none can be built, `timeout` where time runs out.

    A program that is gone is run once more in what is left of its time: it may have been killed from outside, which
    must not decide. To be called from a process without threads: it forks.
    """
    deadline = time.monotonic() + limits.timeout_s
    ruling = _run_once(job, limits, deadline)
    return _run_once(job, limits, deadline) if ruling.detail == "exited" else ruling


def _run_once(job: Job, limits: SandboxLimits, deadline: float) -> Ruling:
    kernel.adopt_orphans()
    token = secrets.token_hex(16)
    result, result_in_guard = os.pipe()
    signals, signals_in_guard = os.pipe()
    go_in_guard, go = os.pipe()
    guard = os.fork()
    if guard == 0:
        _in_child(_guard, job, limits, token, result_in_guard, signals_in_guard, go_in_guard)
    for fd in (result_in_guard, signals_in_guard, go_in_guard):
        os.close(fd)
    try:
        if os.read(signals, 1):
            _map_users(guard)
            os.write(go, b"m")
        written = _read_until(result, deadline)
    except OSError as error:
        return Ruling("error", f"sandbox: {error}")
    finally:
        os.kill(guard, signal.SIGKILL)
        for fd in (result, signals, go):
            os.close(fd)
        _reap_all()
    return Ruling("timeout", "time") if written is None else _ruling(written, token)


def _in_child(work: Callable[..., None], *arguments: Any) -> NoReturn:
    """A fork's life: its work, and then its end whatever happens, so that it never returns into the caller's loop."""
    status = 1
    try:
        signal.setitimer(signal.ITIMER_REAL, 0)
        work(*arguments)
        status = 0
    finally:
        os._exit(status)


def _map_users(guard: int) -> None:
    """Say who the sandbox's users are outside: nobody and root where we are root, else nobody as ourselves."""
    if os.geteuid() != 0:
        Path(f"/proc/{guard}/setgroups").write_text("deny", encoding="ascii")
    for kind, own in (("uid", os.geteuid()), ("gid", os.getegid())):
        mapping = f"0 0 1\n{NOBODY} {NOBODY} 1\n" if os.geteuid() == 0 else f"{NOBODY} {own} 1\n"
        Path(f"/proc/{guard}/{kind}_map").write_text(mapping, encoding="ascii")


def _read_until(fd: int, deadline: float) -> bytes | None:
    """All that comes until its writers are gone; None where they are not in time."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    written = b""
    while len(written) <= MAX_VERDICT_BYTES:
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            return None
        part = os.read(fd, MAX_VERDICT_BYTES)
        if not part:
            break
        written += part
    return written


def _ruling(written: bytes, token: str) -> Ruling:
    if not written:
        return Ruling("wrong", "exited")
    verdict = json.loads(written)
    if "refused" in verdict:
        return Ruling("error", f"sandbox: {verdict['refused']}")
    assert verdict["token"] == token, "expected a verdict with this job's token"
    return Ruling(verdict["label"], verdict["detail"])


def _reap_all() -> None:
    """Wait for the guard and for all that it left: a namespace's first process ends after all the others."""
    while True:
        try:
            os.wait()
        except ChildProcessError:
            return


def _guard(job: Job, limits: SandboxLimits, token: str, result: int, signals: int, go: int) -> None:
    try:
        parent = os.getppid()
        kernel.die_with_parent(parent)
        _close_all_but(result, signals, go)
        os.setsid()
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
        if os.geteuid() == 0:
            os.setgroups([])
        last_capability = kernel.last_capability()
        kernel.unshare(kernel.NEW_NAMESPACES)
        kernel.die_with_parent(parent)  # new credentials have cleared it
        os.write(signals, b"u")
        if not os.read(go, 1):
            return
    except OSError as error:
        _refuse(result, error)
        return
    init = os.fork()
    if init == 0:
        _in_child(_init, job, limits, token, result, last_capability)
    os.close(result)
    os.waitpid(init, 0)


def _close_all_but(*kept: int) -> None:
    """Of the files above the standard ones: the pipes of the verifier's process are not the sandbox's."""
    bounds = [2, *sorted(kept), resource.getrlimit(resource.RLIMIT_NOFILE)[1]]
    for before, after in pairwise(bounds):
        os.closerange(before + 1, after)


def _refuse(result: int, error: OSError) -> None:
    os.write(result, json.dumps({"refused": str(error)}).encode())


def _init(job: Job, limits: SandboxLimits, token: str, result: int, last_capability: int) -> None:
    """Process 1: builds the file system, starts the two others, and ends, with all, when the tester ends."""
    try:
        kernel.die_with_parent(None)
        nothing = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(nothing, fd)
        _build_root(limits)
        kernel.drop_bounding_set(last_capability)
    except OSError as error:
        _refuse(result, error)
        return
    guest_reads, requests = os.pipe()
    answers, guest_writes = os.pipe()
    if os.fork() == 0:
        _in_child(_guest, limits, result, guest_reads, guest_writes)
    os.close(guest_reads)
    os.close(guest_writes)
    tester = os.fork()
    if tester == 0:
        _in_child(_tester, job, limits, token, result, GuestProcess(requests, answers))
    for fd in (requests, answers, result):
        os.close(fd)
    while os.wait()[0] != tester:
        pass


def _guest(limits: SandboxLimits, result: int, guest_reads: int, guest_writes: int) -> None:
    try:
        # Away from the numbers they are to get.
        reads, writes = os.dup(guest_reads), os.dup(guest_writes)
        os.dup2(reads, _REQUESTS)
        os.dup2(writes, _ANSWERS)
        _confine(limits)
        os.execve(_INTERPRETER, [_INTERPRETER, "-P", "-s", "-S", "-B", "-c", _GUEST_SOURCE], _ENVIRONMENT)
    except OSError as error:
        _refuse(result, error)


def _tester(job: Job, limits: SandboxLimits, token: str, result: int, guest: GuestProcess) -> None:
    try:
        _confine(limits)
        kernel.forbid_inspection()
    except OSError as error:
        _refuse(result, error)
        return
    os.environ.clear()
    os.environ.update(_ENVIRONMENT)
    import_nothing_from(WORK)
    label, detail = run(job, guest)
    os.write(result, json.dumps({"token": token, "label": label, "detail": detail}).encode())


def _confine(limits: SandboxLimits) -> None:
    """Give up every right and every resource that the job does not need."""
    mib = 1 << 20
    bounds = {
        resource.RLIMIT_AS: limits.memory_mb * mib,
        resource.RLIMIT_CPU: math.ceil(limits.timeout_s) + 1,
        resource.RLIMIT_FSIZE: limits.file_mb * mib,
        resource.RLIMIT_NPROC: limits.processes + OWN_PROCESSES,
        resource.RLIMIT_NOFILE: MAX_OPEN_FILES,
        resource.RLIMIT_CORE: 0,
    }
    for kind, bound in bounds.items():
        resource.setrlimit(kind, (bound, bound))
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    kernel.drop_capabilities()
    kernel.forbid_new_privileges()
    kernel.filter_system_calls()
    os.chdir(WORK)


def _build_root(limits: SandboxLimits) -> None:
    flags = kernel.MS_NOSUID | kernel.MS_NODEV
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    shown = _shown()
    if any(path.startswith(f"{WORK}/") for path in shown):
        raise OSError(f"expected an interpreter and packages outside of {WORK}, got some below it")
    links = {path: os.readlink(path) for path in _LIBRARIES if os.path.islink(path)}
    kernel.mount("tmpfs", NEW_ROOT, "tmpfs", flags, "size=1m,mode=755")
    os.makedirs(NEW_ROOT + WORK)
    options = f"size={limits.file_mb}m,nr_inodes={MAX_FILES},mode=1777"
    kernel.mount("tmpfs", NEW_ROOT + WORK, "tmpfs", flags | kernel.MS_NOEXEC, options)
    for path, target in links.items():
        os.makedirs(os.path.dirname(NEW_ROOT + path), exist_ok=True)
        os.symlink(target, NEW_ROOT + path)
    for path in shown:
        _show(path)
    kernel.enter_root(NEW_ROOT)
    kernel.make_read_only("/", recursive=False, devices=False)


def _shown() -> list[str]:
    """What of the host is visible inside: the interpreter, its packages and the libraries, none inside another."""
    packages = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    wanted = [sys.base_prefix, sys.base_exec_prefix, *packages, *_LIBRARIES, *_FILES]
    there = sorted({path for path in wanted if os.path.exists(path) and not os.path.islink(path)})
    shown: list[str] = []
    for path in there:
        if not any(path.startswith(f"{outer}/") for outer in shown):
            shown.append(path)
    return shown


def _show(path: str) -> None:
    inside = NEW_ROOT + path
    if os.path.isdir(path):
        os.makedirs(inside, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(inside), exist_ok=True)
        os.close(os.open(inside, os.O_CREAT | os.O_WRONLY, 0o444))
    kernel.mount(path, inside, None, kernel.MS_BIND | kernel.MS_REC)
    kernel.make_read_only(inside, recursive=True, devices=path.startswith("/dev/"))
