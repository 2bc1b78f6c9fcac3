"""/healthz: this process is alive. /readyz: it can also take jobs (database and Ray answer)."""

from typing import Any

from fastapi import APIRouter

from services.api.error_responses import Problem
from services.api.state import Service

router = APIRouter(tags=["health"])


@router.get("/healthz")
def healthz() -> dict[str, str]:
    """Always ok while the process answers."""
    return {"status": "ok"}


@router.get("/readyz")
def readyz(service: Service) -> dict[str, Any]:
    """503 with the part that does not answer."""
    for name, ping in (("database", service.store.ping), ("ray", service.drivers.ping)):
        try:
            ping()
        except Exception as error:  # any failure means: not ready
            text = f"{name} does not answer: {type(error).__name__}"
            raise Problem(503, f"{name}_unavailable", text, retry_after=5) from error
    return {"status": "ready"}
