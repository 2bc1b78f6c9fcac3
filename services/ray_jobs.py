"""Drivers as Ray jobs, over the dashboard's REST interface (`/api/jobs/`).

Ray's own client has no timeouts and reports an unknown job as text; a dashboard that accepts but does not answer
would hang the reconcile loop.
"""

import os
import shlex
import subprocess
import sys
from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import Any

import httpx

from services.settings import Settings, engine_environment

TIMEOUT_S = 10.0
DELETE_ENGINES_TIMEOUT_S = 30.0


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


class RayDrivers:
    """The drivers that Ray runs."""

    def __init__(self, settings: Settings) -> None:
        # trust_env=False: a proxy for the outside world must not be asked for the cluster's own dashboard.
        self._http = httpx.Client(
            base_url=settings.ray_dashboard_url, headers=_authorization(), timeout=TIMEOUT_S, trust_env=False
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def ping(self) -> None:
        """Raise unless the dashboard answers."""
        self._http.get("/api/version").raise_for_status()

    def cluster_resources(self) -> dict[str, float]:
        """What all living nodes have together, by kind ("CPU", "GPU")."""
        response = self._http.get("/api/v0/nodes", params={"limit": 10_000}).raise_for_status()
        nodes = response.json()["data"]["result"]["result"]
        total: Counter[str] = Counter()
        for node in nodes:
            if node["state"] == "ALIVE":
                total.update(node["resources_total"])
        return dict(total)

    def status(self, submission_id: str) -> DriverStatus | None:
        """Status of a driver, or None if Ray has never heard of it."""
        response = self._http.get(f"/api/jobs/{submission_id}")
        if response.status_code == httpx.codes.NOT_FOUND:
            return None
        return DriverStatus(response.raise_for_status().json()["status"])

    def submit(self, submission_id: str, job_id: str, attempt: int) -> None:
        """Start a driver as the Ray job `submission_id`; Ray refuses an id that it has seen."""
        body: dict[str, Any] = {
            "entrypoint": shlex.join([sys.executable, "-m", "services.driver", job_id, str(attempt)]),
            "submission_id": submission_id,
            "runtime_env": {"env_vars": engine_environment()},
            "metadata": {"wmss_job": job_id, "attempt": str(attempt)},
        }
        self._http.post("/api/jobs/", json=body).raise_for_status()

    def stop(self, submission_id: str) -> None:
        """SIGTERM, then SIGKILL; returns at once. Train workers go with the driver."""
        self._http.post(f"/api/jobs/{submission_id}/stop").raise_for_status()

    def delete_engines(self, apps: list[str]) -> None:
        """In a process of its own: a process attached to Ray dies with Ray, and this one must not."""
        command = [sys.executable, "-m", "services.engines", *apps]
        run = subprocess.run(command, timeout=DELETE_ENGINES_TIMEOUT_S, capture_output=True, text=True)
        if run.returncode != 0:
            raise RuntimeError(f"Serve applications {apps} could not be deleted: {run.stderr[-2000:]}")


def _authorization() -> dict[str, str]:
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if os.environ.get("RAY_AUTH_MODE") != "token" or path is None:
        return {}
    return {"Authorization": f"Bearer {Path(path).read_text(encoding='utf-8').strip()}"}
