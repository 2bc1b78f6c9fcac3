"""The Ray cluster over the dashboard's REST interface: drivers, and what else must run inside it, as Ray jobs.

The API is never attached to Ray: a process that is dies with it.

Ray's own client has no timeouts and reports an unknown job as text; a dashboard that accepts but does not answer
would hang the reconcile loop.
"""

import os
import re
import shlex
import sys
import time
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import httpx2

from services.jobs.attempts import NODE_DIED_SIGNS
from services.settings import Settings, engine_environment
from wmss.errors import shortened
from wmss.ids import DELETION, new_id

TIMEOUT_S = 10.0
DELETE_ENGINES_TIMEOUT_S = 60.0
_LOGS_FOLLOW = ", last available logs"
"""What Ray's message on a driver says before it repeats the end of its log."""
_OF_ANOTHER = re.compile(r"(\x1b\[\d+m)?\([^()]* pid=\d+")
"""How Ray begins a line that another process wrote and that it repeats in a job's log."""


class DriverStatus(StrEnum):
    """Ray's states of a job."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    STOPPED = "STOPPED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"

    @property
    def ended(self) -> bool:
        """Whether the driver's process is gone for good."""
        return self in (DriverStatus.STOPPED, DriverStatus.SUCCEEDED, DriverStatus.FAILED)


@dataclass(frozen=True)
class DriverEnd:
    """What Ray knows of a driver that ended."""

    message: str
    """Ray's own words, one line."""
    at: float | None = None
    """Unix seconds."""
    exit_code: int | None = None
    node_died: bool = False
    """Whether the driver ended because its node did."""


class SubmissionRefusedError(RuntimeError):
    """Ray answered a submission with an error; the text is Ray's."""


class RayUnavailableError(RuntimeError):
    """The dashboard answers, but no head node is there to run anything."""


class RayDrivers:
    """The drivers that Ray runs."""

    def __init__(self, settings: Settings) -> None:
        # trust_env=False: a proxy for the outside world must not be asked for the cluster's own dashboard.
        self._http = httpx2.Client(
            base_url=settings.ray_dashboard_url, headers=_authorization(), timeout=TIMEOUT_S, trust_env=False
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def ping(self) -> None:
        """Raise unless the head node is alive, by the dashboard: that one answers before a node can run anything."""
        if not any(node["is_head_node"] for node in self._living_nodes()):
            raise RayUnavailableError("Ray's head node is not alive")

    def cluster_resources(self) -> dict[str, float]:
        """What all living nodes have together, by kind ("CPU", "GPU")."""
        total: Counter[str] = Counter()
        for node in self._living_nodes():
            total.update(node["resources_total"])
        return dict(total)

    def _living_nodes(self) -> list[dict[str, Any]]:
        response = self._http.get("/api/v0/nodes", params={"limit": 10_000}).raise_for_status()
        return [node for node in response.json()["data"]["result"]["result"] if node["state"] == "ALIVE"]

    def status(self, submission_id: str) -> DriverStatus | None:
        """Status of a driver, or None if Ray has never heard of it."""
        response = self._http.get(f"/api/jobs/{submission_id}")
        if response.status_code == httpx2.codes.NOT_FOUND:
            return None
        return DriverStatus(response.raise_for_status().json()["status"])

    def end_of(self, submission_id: str) -> DriverEnd:
        """How a driver ended."""
        job = self._http.get(f"/api/jobs/{submission_id}").raise_for_status().json()
        said = str(job.get("message") or "").partition(_LOGS_FOLLOW)[0].strip().splitlines()
        message = shortened(said[-1]) if said else "Ray does not say why"
        node_died = any(sign in str(job.get("message")) for sign in NODE_DIED_SIGNS)
        ended_ms = job.get("end_time")
        return DriverEnd(message, ended_ms and ended_ms / 1000, job.get("driver_exit_code"), node_died)

    def submit(self, submission_id: str, job_id: str, attempt: int) -> None:
        """Start a driver as the Ray job `submission_id`; raises `SubmissionRefusedError` with what Ray answers."""
        metadata = {"wmss_job": job_id, "attempt": str(attempt)}
        self._submit(submission_id, "services.driver", job_id, str(attempt), metadata=metadata)

    def stop(self, submission_id: str) -> None:
        """SIGTERM, then SIGKILL; returns at once. Train workers go with the driver."""
        self._http.post(f"/api/jobs/{submission_id}/stop").raise_for_status()

    def start_chat(self, app: str, checkpoint: str, model: str) -> None:
        """Deploy a chat engine as the Serve application `app`, by a Ray job of this name that ends when it is up."""
        self._submit(app, "services.chat.engine", app, checkpoint, model, metadata={"wmss_chat": model})

    def error_tail(self, submission_id: str) -> str:
        """The last line that a Ray job wrote itself, or nothing where its log is gone."""
        response = self._http.get(f"/api/jobs/{submission_id}/logs")
        if response.is_error:
            return ""
        lines = str(response.json()["logs"]).split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip() and not _OF_ANOTHER.match(line)), "")

    def delete_engines(self, apps: list[str]) -> None:
        """Delete Serve applications and wait until they are gone."""
        submission_id = new_id(DELETION)
        self._submit(submission_id, "services.engines.delete", *apps, metadata={})
        deadline = time.monotonic() + DELETE_ENGINES_TIMEOUT_S
        while (status := self.status(submission_id)) is None or not status.ended:
            if time.monotonic() > deadline:
                raise RuntimeError(f"Serve applications {apps} are not gone after {DELETE_ENGINES_TIMEOUT_S:.0f} s")
            time.sleep(0.2)
        if status is not DriverStatus.SUCCEEDED:
            raise RuntimeError(f"Serve applications {apps} could not be deleted: {self.error_tail(submission_id)}")

    def _submit(self, submission_id: str, module: str, *arguments: str, metadata: dict[str, str]) -> None:
        """Run a Python module as the Ray job `submission_id`; Ray refuses an id that it has seen."""
        body: dict[str, Any] = {
            "entrypoint": shlex.join([sys.executable, "-m", module, *arguments]),
            "submission_id": submission_id,
            "runtime_env": {"env_vars": engine_environment()},
            "metadata": metadata,
        }
        response = self._http.post("/api/jobs/", json=body)
        if response.is_error:
            lines = response.text.strip().splitlines() or [response.reason_phrase]
            raise SubmissionRefusedError(f"HTTP {response.status_code}: {shortened(lines[-1])}")


def _authorization() -> dict[str, str]:
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if os.environ.get("RAY_AUTH_MODE") != "token" or path is None:
        return {}
    return {"Authorization": f"Bearer {Path(path).read_text(encoding='utf-8').strip()}"}
