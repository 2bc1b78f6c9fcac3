"""A supervisor with a stand-in for Ray: `python -m tests.services.failing_ray_head HOME ATTEMPT...`.

A process of its own, because a supervisor ends all children of its process.
"""

import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil

from services.control.supervisor import Supervisor
from services.settings import Settings


class _Ok(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()


def _answer(option: str) -> None:
    port = next(int(word.partition("=")[2]) for word in sys.argv if word.startswith(option))
    threading.Thread(target=ThreadingHTTPServer(("127.0.0.1", port), _Ok).serve_forever, daemon=True).start()


def head(what: str) -> None:
    """The dashboard answers. Then the node starts, or the head ends, as Ray's does where its agents are too slow."""
    _answer("--dashboard-port")
    if what == "ends":
        time.sleep(1)
        sys.exit(1)
    _answer("--dashboard-agent-listen-port")
    time.sleep(60)


def supervise(home: Path, *attempts: str) -> None:
    """Start the head; attempt by attempt it is one that `starts` or one that `ends`."""
    supervisor, remaining = Supervisor(Settings(home=home), host="127.0.0.1", port=8000), list(attempts)

    def spawn(name: str, command: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-m", __spec__.name, "head", remaining.pop(0), *command])

    supervisor._spawn = spawn
    try:
        supervisor._start_ray(home / "token")
    finally:
        supervisor._stop_children()
        supervisor._cleanup.close()
        print(f"{len(remaining)} attempts left, {len(psutil.Process().children())} processes left")


if __name__ == "__main__":
    if sys.argv[1] == "head":
        head(sys.argv[2])
    else:
        supervise(Path(sys.argv[1]), *sys.argv[2:])
