"""The HTTP front end. `uvicorn services.api.app:create_app --factory`; settings come from `WMSS_*`."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2
from fastapi import Depends, FastAPI

from services.api import chat, entropy_scores, files, fine_tuning, health, models, rounds, samples, weak_checkpoints
from services.api.error_responses import install, known_json, known_query
from services.api.state import ServiceState
from services.chat.chat_store import ChatStore
from services.control.ray_jobs import RayDrivers
from services.control.reconcile import Reconciler
from services.jobs.store import Store
from services.settings import Settings, unread_variables
from wmss import __version__
from wmss.models.limited import keep_answers

logger = logging.getLogger(__name__)


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application, with its reconcile loop running from start-up to shutdown."""
    settings = settings or Settings()
    for warning in unread_variables():
        logger.warning("%s", warning)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        settings.root.mkdir(parents=True, exist_ok=True)
        settings.models.mkdir(exist_ok=True)
        keep_answers(settings.examined)
        files.sweep_partial_uploads(settings)
        store = Store(settings.database)
        store.migrate()
        drivers = RayDrivers(settings)
        reconciler = Reconciler(store, drivers, settings)
        # No limit on reading: an answer takes as long as it takes. A proxy for the outside world is not asked.
        timeout = httpx2.Timeout(None, connect=5.0)
        unlimited = httpx2.Limits(max_connections=None)
        async with httpx2.AsyncClient(timeout=timeout, limits=unlimited, trust_env=False) as http:
            app.state.service = ServiceState(settings, store, ChatStore(store), drivers, reconciler, http)
            reconciler.start()
            yield
        reconciler.stop()
        drivers.close()
        store.close()

    app = FastAPI(title="WMSS", version=__version__, lifespan=lifespan)
    install(app)
    for module in (files, fine_tuning, samples, rounds, entropy_scores, weak_checkpoints, models, chat, health):
        app.include_router(module.router, dependencies=[Depends(known_query), Depends(known_json)])
    return app
