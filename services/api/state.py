"""What every route needs, made once per process."""

from dataclasses import dataclass
from typing import Annotated

import httpx2
from fastapi import Depends, Request

from services.chat.chat_store import ChatStore
from services.control.ray_jobs import RayDrivers
from services.control.reconcile import Reconciler
from services.jobs.store import Store
from services.settings import Settings


@dataclass(frozen=True)
class ServiceState:
    """The service's parts."""

    settings: Settings
    store: Store
    chat: ChatStore
    drivers: RayDrivers
    reconciler: Reconciler
    http: httpx2.AsyncClient
    """To Ray Serve's proxy."""


def service_state(request: Request) -> ServiceState:
    """The parts of the app that answers this request."""
    state: ServiceState = request.app.state.service
    return state


Service = Annotated[ServiceState, Depends(service_state)]
