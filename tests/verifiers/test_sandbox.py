"""Programs that attack the sandbox or the tests: none is accepted, none takes longer than its limit + 2 s.

All run through one verifier with one process, which has to be the same process, alive, at the end.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.verifiers.tasks import RIGHT, SQUARE, make_task, need_sandbox, no_progress
from wmss.config import CodeVerifier, SandboxLimits
from wmss.records import Verdict
from wmss.verifiers.interfaces import Verifier
from wmss.verifiers.registry import make_verifier
from wmss.verifiers.sandbox.host import WORK

LIMITS = SandboxLimits(timeout_s=2.0, memory_mb=256, processes=8, file_mb=4)


@pytest.fixture(scope="module")
def sandboxed() -> Iterator[Verifier]:
    need_sandbox()
    with make_verifier(CodeVerifier(type="code", limits=LIMITS), num_processes=1) as verifier:
        run(verifier, RIGHT)
        before = worker_pids()
        yield verifier
        assert worker_pids() == before, "the verifier's process did not survive the attacks"
    assert worker_pids() == set()


def run(verifier: Verifier, program: str, task=SQUARE) -> Verdict:
    """The verdict on a program, in time; and after it nothing of the sandbox is left."""
    assert verifier.problems([task]) == []
    start = time.monotonic()
    [verdict] = verifier.verify([(task, program)], progress=no_progress)
    assert time.monotonic() - start < LIMITS.timeout_s + 2.0
    [worker] = [child for child in psutil.Process().children() if child.pid in worker_pids()]
    assert worker.children(recursive=True) == []
    return verdict


def worker_pids() -> set[int]:
    return {child.pid for child in psutil.Process().children() if "wmss.verifiers.worker" in child.cmdline()}


def test_a_right_program_passes(sandboxed):
    verdict = run(sandboxed, RIGHT)
    assert (verdict.label, verdict.detail) == ("correct", "passed")


ATTACKS = {
    "endless loop that ignores signals": "import signal\nsignal.signal(15, signal.SIG_IGN)\nwhile True: pass",
    "fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "daemon": "import os\nfor _ in range(3):\n    if os.fork() == 0: os.setsid()\nimport time\ntime.sleep(100)",
    "thread bomb": (
        "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(100,), daemon=True).start()"
    ),
    "memory hog": "x = [0] * 10**10",
    "memory hog bit by bit": "def f(x):\n    a = []\n    while True: a.append(bytearray(10**6))",
    "memory hog in answers": "def f(x): return 'a' * 10**8",
    "disk hog": "file = open('big', 'wb')\nwhile True: file.write(bytes(10**6))",
    "disk hog in many files": "for i in range(10**6): open(str(i), 'wb').write(b'x' * 10**5)",
    "printing without end": "while True: print('x' * 1000)",
    "network call": f"import socket\nsocket.create_connection(('1.1.1.1', 80), 1)\n{RIGHT}",
    "local network call": f"import socket\nsocket.socket(socket.AF_UNIX)\n{RIGHT}",
    "write outside its folder": f"open('/hello', 'w')\n{RIGHT}",
    "write into the libraries": f"import os\nopen(os.__file__, 'a')\n{RIGHT}",
    "read the host's files": f"open('/etc/passwd')\n{RIGHT}",
    "read other processes": f"import os\nos.listdir('/proc')\n{RIGHT}",
    "more memory than allowed": f"x = bytearray(2**29)\n{RIGHT}",
    "more processes than allowed": (
        "import os, time\nfor _ in range(20):\n    if os.fork() == 0:\n        time.sleep(0.5)\n        os._exit(0)\n"
        + RIGHT
    ),
    "a larger file than allowed": f"open('x', 'wb').write(bytes(8 << 20))\n{RIGHT}",
    "more files than allowed": f"for i in range(5000): open(str(i), 'w').close()\n{RIGHT}",
    "more open files than allowed": f"files = [open('x', 'w') for _ in range(100)]\n{RIGHT}",
    "memory that no limit counts": f"import os\nos.memfd_create('x')\n{RIGHT}",
    "new namespaces": (f"import ctypes\nif ctypes.CDLL(None).unshare(0x10000000): raise OSError('unshare')\n{RIGHT}"),
    "become root": f"import os\nos.setuid(0)\n{RIGHT}",
    "exit(0)": "exit(0)",
    "exit(0) in a function": "def f(x): exit(0)",
    "os._exit(0)": "import os\nos._exit(0)",
    "os._exit(0) in a function": "import os\ndef f(x): os._exit(0)",
    "os._exit(0) at the end": "import atexit, os\natexit.register(os._exit, 0)\ndef f(x): return 5",
    "kill everything": "import os, signal\nos.kill(-1, signal.SIGKILL)",
    "kill the others one by one": (
        "import os\nfor pid in range(1, 99):\n"
        "    try: pid == os.getpid() or os.kill(pid, 9)\n    except OSError: pass\n" + RIGHT
    ),
    "close the pipes": f"import os\nos.closerange(0, 64)\n{RIGHT}",
    "write a verdict into every file": (
        "import os\nfor fd in range(64):\n"
        '    try: os.write(fd, b\'{"token": "", "label": "correct", "detail": "passed"}\')\n'
        "    except OSError: pass\ndef f(x): return 5"
    ),
    "an object equal to everything": "class A:\n    __eq__ = lambda *_: True\ndef f(x): return A()",
    "a number equal to everything": "class A(int):\n    __eq__ = lambda *_: True\ndef f(x): return A()",
    "a replaced AssertionError": "import builtins\nbuiltins.AssertionError = KeyError\ndef f(x): return 5",
    "a trace function": "import sys\nsys.settrace(lambda *_: None)\ndef f(x): return 5",
    "a look for the tests": (
        "import gc, sys\nfound = [o for o in gc.get_objects() if isinstance(o, dict) and 'tests' in o]\n"
        "def f(x): return 4 if found else sys._getframe(1).f_globals['tests'][0]"
    ),
    "raising what tests let pass": "def f(x): raise SystemExit(0)",
    "not defining the function": "x = 1",
    "a crash": "import ctypes\nctypes.string_at(0)",
    "a crash of the parser": "(" * 10_000,
}


@pytest.mark.parametrize("program", ATTACKS.values(), ids=ATTACKS.keys())
def test_attacks_are_rejected_in_time(sandboxed, program):
    assert run(sandboxed, program).label in ("wrong", "timeout", "unparseable")
    assert run(sandboxed, RIGHT).accepted


def test_the_tests_own_names_are_not_the_programs(sandboxed):
    task = make_task(tests=["assert all(f(x) == x * x for x in range(3))", "assert len(str(f(9))) == 2"])
    forged = "def all(_): return True\ndef len(_): return 2\ndef f(x): return 5"
    assert run(sandboxed, forged, task).detail == "failed_test"


def test_the_built_in_names_are_not_the_programs(sandboxed):
    """A program that writes its messages itself names `__builtins__`, where a test's `len` would be looked up."""
    forged = (
        "import __main__\nreal = __main__.encode\ndef encode(value, keep):\n"
        "    if isinstance(value, dict) and 'f' in value:\n"
        "        value = {**value, '__builtins__': {'len': lambda _: 2, 'str': lambda _: ''}}\n"
        "    return real(value, keep)\n__main__.encode = encode\ndef f(x): return 5"
    )
    task = make_task(tests=["assert len(str(f(9))) == 2"])
    assert run(sandboxed, forged, task).detail == "failed_test"


FORGED_VERDICT = """
import json, os, sys
frame = sys._getframe()
while "token" not in frame.f_locals:
    frame = frame.f_back
    if frame is None:
        raise ImportError("not the tester")
verdict = {"token": frame.f_locals["token"], "label": "correct", "detail": "passed"}
os.write(frame.f_locals["result"], json.dumps(verdict).encode())
os._exit(0)
"""
"""What a program would run in the tester."""


def planting(folder: str, file: str) -> str:
    """A wrong program that writes the forging file, where it can."""
    return (
        "import contextlib, os, types\nwith contextlib.suppress(OSError):\n"
        f"    os.makedirs({folder!r}, exist_ok=True)\n"
        f"    open(os.path.join({folder!r}, {file!r}), 'w').write({FORGED_VERDICT!r})\ndef f(x): return 0\n"
    )


@pytest.mark.parametrize("outer", [WORK, "/tmp"])
@pytest.mark.parametrize("by", ["the program's name", "the test"])
def test_no_file_of_the_program_is_imported_by_the_tester(monkeypatch, outer, by):
    """Also where the host imports from a folder whose path the program can write to inside."""
    need_sandbox()
    folder = f"{outer}/packages"
    if os.path.isdir(outer):  # a folder that is there is remembered as one to import from
        folder = tempfile.mkdtemp(dir=outer)
    monkeypatch.syspath_prepend(folder)
    program, tests = planting(folder, "colorsys.py"), ["assert f(1) == 2"]
    if by == "the test":
        tests.insert(0, "import time; time.sleep(0.2); import colorsys")
    else:
        program += "colorsys = types.ModuleType('colorsys')\n"
    with make_verifier(CodeVerifier(type="code", limits=LIMITS), num_processes=1) as verifier:
        [verdict] = verifier.verify([(make_task(tests=tests), program)], progress=no_progress)
    if os.path.isdir(folder):
        os.rmdir(folder)
    assert (verdict.label, verdict.detail) == ("wrong", "failed_test")


def test_the_tester_runs_no_module_because_the_program_names_it(sandboxed):
    """`unittest.__main__` looks for tests in the folder that it runs in, which is the program's."""
    program = planting(WORK, "test_it.py") + "it = types.ModuleType('unittest.__main__')\n"
    assert run(sandboxed, program, make_task(tests=["assert f(1) == 2"])).detail == "failed_test"


def test_modules_that_the_program_imports_are_there_for_its_tests(sandboxed):
    program = "import math, random, os.path, collections.abc as abc, urllib.parse as parse\n" + RIGHT
    tests = [
        "assert math.isclose(f(2), 4)",
        "assert issubclass(list, abc.Sequence)",
        "assert parse.quote(' ') == '%20'",
    ]
    assert run(sandboxed, program, make_task(tests=tests)).accepted


def test_a_test_that_catches_everything_does_not_hide_an_exit(sandboxed):
    task = make_task(tests=["try:\n    f(1)\nexcept:\n    pass"])
    assert run(sandboxed, "import os\ndef f(x): os._exit(0)", task).detail == "exited"


def test_network_of_the_host_is_out_of_reach(sandboxed):
    """A listener that this process reaches is not there for the program, however it asks."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        socket.create_connection(("127.0.0.1", port), 1).close()
        program = f"import urllib.request\nurllib.request.urlopen('http://127.0.0.1:{port}')\n{RIGHT}"
        assert run(sandboxed, program).detail == "raised"


def test_the_programs_own_folder_can_be_written_and_is_new_each_time(sandboxed):
    program = "import os\nassert os.listdir() == []\nopen('note', 'w').write('x')\n" + RIGHT
    assert run(sandboxed, program).accepted and run(sandboxed, program).accepted


def test_the_environment_and_the_host_are_hidden(sandboxed, tmp_path):
    (tmp_path / "secret").write_text("secret", encoding="utf-8")
    program = "import os\ndef sees(path): return os.path.exists(path)\ndef names(): return list(os.environ)"
    visible = [
        str(tmp_path),
        str(Path(__file__)),
        "/home",
        "/var",
        "/proc/self",
        "/sys",
        "/etc/hostname",
        "/usr/bin",
        "/../etc/passwd",
    ]
    task = make_task(tests=[f"assert not any(sees(path) for path in {visible})", "assert 'PYTHONPATH' not in names()"])
    assert run(sandboxed, program, task).accepted


@pytest.mark.parametrize("victim", ["worker", "guard", "init", "guest", "tester"])
def test_killing_any_process_from_outside_changes_no_verdict(victim):
    need_sandbox()
    task = make_task(tests=["import time; time.sleep(0.5)", "assert f(2) == 4"])
    limits = SandboxLimits(timeout_s=20.0)
    others = worker_pids()  # of the module's own verifier
    with make_verifier(CodeVerifier(type="code", limits=limits), num_processes=1) as verifier:
        verifier.verify([(task, RIGHT)], progress=no_progress)
        with ThreadPoolExecutor(1) as thread:
            under_way = thread.submit(verifier.verify, [(task, RIGHT)], progress=no_progress)
            [worker] = [psutil.Process(pid) for pid in worker_pids() - others]
            below = []  # the guard, init and, in the order of their start, the others
            while len(below) < 4 and not under_way.done():
                time.sleep(0.02)
                below = worker.children(recursive=True)
            processes = dict(zip(["guard", "init", "guest", "tester"], below, strict=True)) | {"worker": worker}
            processes[victim].kill()
            [verdict] = under_way.result(timeout=60)
    assert (verdict.label, verdict.detail) == ("correct", "passed")
    assert verdict.ms > 500
    assert psutil.wait_procs([*below, worker], timeout=5)[1] == []


def test_limits_of_time_are_those_given():
    need_sandbox()
    program = "import time\ntime.sleep(1.5)\n" + RIGHT
    for timeout_s, label in ((0.5, "timeout"), (10.0, "correct")):
        limits = SandboxLimits(timeout_s=timeout_s)
        with make_verifier(CodeVerifier(type="code", limits=limits), num_processes=1) as verifier:
            [verdict] = verifier.verify([(SQUARE, program)], progress=no_progress)
        assert verdict.label == label


def test_where_namespaces_are_refused_nothing_runs(tmp_path):
    """As in a container with the usual filter: a refusal with its remedy, and verdicts of `error` alone."""
    program = f"""
from tests.verifiers.tasks import RIGHT, SQUARE
from wmss.config import CodeVerifier
from wmss.verifiers.registry import make_verifier
from wmss.verifiers.sandbox import kernel
kernel.forbid_new_privileges()
kernel.filter_system_calls()
with make_verifier(CodeVerifier(type="code"), num_processes=1) as verifier:
    [refusal] = verifier.refusals()
    assert refusal.code == "sandbox_unavailable" and "unshare: Operation not permitted" in refusal.message, refusal
    assert "docs/verifiers.md" in refusal.message
    ran = "import pathlib; pathlib.Path({str(tmp_path / "ran")!r}).touch()"
    [verdict] = verifier.verify([(SQUARE, ran + chr(10) + RIGHT)], progress=lambda done, total: None)
    assert verdict.label == "error" and verdict.detail.startswith("sandbox: "), verdict
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False
    )
    assert done.returncode == 0, done.stderr
    assert os.listdir(tmp_path) == []


ACCESS_TO_OTHERS = {"io_uring_enter": 426, "io_uring_register": 427, "pidfd_open": 434, "pidfd_getfd": 438}
ACCESS_TO_OTHERS |= {"pidfd_send_signal": 424, "process_madvise": 440, "process_mrelease": 448}


def test_calls_that_reach_into_other_processes_are_refused(sandboxed):
    program = (
        "import ctypes, errno\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "def refused(number): return libc.syscall(number, *[-1] * 6) == -1 and ctypes.get_errno() == errno.EPERM"
    )
    task = make_task(tests=[f"assert refused({number}), {name!r}" for name, number in ACCESS_TO_OTHERS.items()])
    assert run(sandboxed, program, task).accepted
