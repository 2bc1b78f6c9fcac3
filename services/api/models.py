"""/v1/models: what can be named as `model`."""

from fastapi import APIRouter

from services.api.error_responses import not_found
from services.api.schemas import ModelObject, Page
from services.api.state import Service
from services.catalog.names import known_models

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("")
def list_models(service: Service) -> Page[ModelObject]:
    """Folders under the allowed roots, and the models of finished jobs."""
    models = known_models(service.store, service.settings)
    return Page(data=[ModelObject.of(model) for model in models], has_more=False)


@router.get("/{model:path}")
def retrieve(service: Service, model: str) -> ModelObject:
    """One of them."""
    for known in known_models(service.store, service.settings):
        if known.id == model:
            return ModelObject.of(known)
    raise not_found("model", model, "model")
