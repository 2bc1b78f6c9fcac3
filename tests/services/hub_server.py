"""A hub of one's own: the endpoints of the Hugging Face hub that a download asks, over HTTP on this machine."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMITS = {"main": "a" * 40, "v2": "b" * 40}


class Hub:
    """Repositories by name and revision, as folders; `requests` are the paths that were asked for."""

    def __init__(self) -> None:
        self.folders: dict[tuple[str, str], Path] = {}
        self.requests: list[str] = []
        self.url = ""

    def publish(self, repository: str, revision: str, folder: Path) -> str:
        """Offer a folder as a repository at a revision; returns its commit."""
        self.folders[repository, COMMITS[revision]] = folder
        return COMMITS[revision]

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body."""
        self.requests.append(path)
        parts = path.split("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            repository, kind, revision = "/".join(parts[2:4]), parts[4], parts[5]
        else:
            repository, kind, revision = "/".join(parts[:2]), parts[2], parts[3]
        known = {name for name, _ in self.folders}
        if repository not in known:
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        commit = COMMITS.get(revision, revision)
        folder = self.folders.get((repository, commit))
        if folder is None:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        if kind == "revision":
            return 200, {}, json.dumps({"id": repository, "sha": commit, "siblings": []}).encode()
        if kind == "tree":
            return 200, {}, json.dumps([self._entry(folder, file) for file in _files(folder)]).encode()
        data = (folder / "/".join(parts[4:])).read_bytes()
        return 200, {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": commit}, data

    def _entry(self, folder: Path, file: Path) -> dict[str, object]:
        oid = hashlib.sha256(file.read_bytes()).hexdigest()
        return {"type": "file", "path": str(file.relative_to(folder)), "size": file.stat().st_size, "oid": oid}


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub that answers until the end of the context."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = hub.answer(self.path)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *arguments: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
