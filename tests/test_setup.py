"""`make setup` is never silent: a step that says nothing for long, in a log file and on a terminal."""

import itertools
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

INSTALL = Path(__file__).parents[1] / "requirements" / "install.py"
MAX_GAP_S = 5.0
SILENT_S = 9.0
STEP = f"""
import runpy, sys
names = runpy.run_path({str(INSTALL)!r})
progress, found = names["progress"], names["growth"](7)
with progress.step("a slow one", found):
    assert progress.run([sys.executable, "-c", "import time; time.sleep({SILENT_S}); print('a line of its own')"])
progress.say("done")
"""


def timed_output(code, read, output):
    """What a process prints, in pieces with their times; `output` is its end of what `read` reads."""
    started = time.monotonic()
    environment = os.environ | {"TORCH_CPU_INDEX": "unused"}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=output, stderr=subprocess.STDOUT, env=environment)
    os.close(output)
    pieces = [(0.0, "")]
    while True:
        try:
            piece = os.read(read, 4096)
        except OSError:  # a terminal whose other end is closed
            break
        if not piece:
            break
        pieces.append((time.monotonic() - started, piece.decode()))
    os.close(read)
    assert process.wait(60) == 0, pieces
    return pieces


def gaps(pieces):
    times = [at for at, _ in pieces]
    return [after - before for before, after in itertools.pairwise(times)]


def test_a_silent_step_says_every_five_seconds_how_far_it_is():
    pieces = timed_output(STEP, *os.pipe())
    assert max(gaps(pieces)) < MAX_GAP_S
    lines = "".join(piece for _, piece in pieces).splitlines()
    assert lines[0] == "setup: a slow one"
    assert len(lines) == 5, lines
    for seconds, line in zip((4, 8), lines[1:3], strict=True):
        assert re.fullmatch(rf"setup: a slow one: {seconds} s, \d+ of 7 packages in place, [\d,]+ MB more on .*", line)
    assert lines[3:] == ["a line of its own", "done"]


def test_on_a_terminal_the_line_is_rewritten():
    pieces = timed_output(STEP, *pty.openpty())
    assert max(gaps(pieces)) < MAX_GAP_S
    text = "".join(piece for _, piece in pieces)
    assert text.count("\r\x1b[K") >= 2 and text.count("\rsetup: a slow one: ") >= SILENT_S - 2
    assert [line.rsplit("\x1b[K")[-1] for line in text.split("\r\n")] == [
        "setup: a slow one",
        "a line of its own",
        "done",
        "",
    ]


def test_byte_compilation_counts_its_files(tmp_path):
    for number in range(40):
        (tmp_path / f"module_{number}.py").write_text(f"NUMBER = {number}\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "module.py").write_text("")
    script = tmp_path / "compile.py"
    script.write_text(f"""
import importlib.util, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("install", {str(INSTALL)!r})
install = importlib.util.module_from_spec(spec)
sys.modules["install"] = install
spec.loader.exec_module(install)
if __name__ == "__main__":
    install.PACKAGES = Path({str(tmp_path)!r})
    said = []
    install.progress.step = lambda what, how_far: said.append(how_far) or install.threading.Lock()
    install.compile_packages()
    print(said[0]())
""")
    environment = os.environ | {"TORCH_CPU_INDEX": "unused"}
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, timeout=60)
    assert run.stdout == ", 41 of 41 files\n", run.stdout + run.stderr
    assert len(list((tmp_path / "__pycache__").glob("*.pyc"))) == 41
    assert not (tmp_path / "tests" / "__pycache__").exists()
