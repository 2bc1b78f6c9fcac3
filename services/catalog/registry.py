"""Weak checkpoints are registered: a name is resolved once, and what lies there is kept by its digests."""

import hashlib
import json
from pathlib import Path

from services.catalog.hub import PREFIX, HubModel, fetch, forget, hub_model, lacks_revision
from services.catalog.names import resolve_model
from services.jobs.store import Store
from services.jobs.tables import WeakCheckpointRow
from services.settings import Settings
from wmss.errors import ModelError, shown
from wmss.ids import is_checkpoint
from wmss.models.files import file_stamps
from wmss.models.limited import check_checkpoint


def register(
    name: str, labels: dict[str, str] | None, *, store: Store, settings: Settings, param: str = "model"
) -> WeakCheckpointRow:
    """Look at the checkpoint that `name` stands for, read its digests and keep them under an id.

    `name` is what a job may name, or a model of the Hugging Face hub with its revision. What a job would refuse is
    refused. The same content under the same name is registered once.

    Raises:
        ModelError: the name leads nowhere or to more than one place, or what lies there cannot be used.
        HubUnavailableError: the model has to be downloaded, and the hub does not answer.
    """
    from wmss.models.loading import TOKENIZER_FILES  # it loads torch, which the API starts without

    on_hub = _on_hub(name, store, settings, param)
    if on_hub is None:
        return _keep(name, _local(name, store, settings, param), None, labels, store, param)
    patterns = ["config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", *TOKENIZER_FILES]
    folder = fetch(on_hub, patterns, settings, param=param)
    try:
        return _keep(name, folder, folder.name, labels, store, param)
    except ModelError:
        forget_download(folder, store, settings)
        raise


def forget_download(folder: Path, store: Store, settings: Settings) -> None:
    """Delete what was downloaded for a checkpoint, unless a registered one still lies there. Other folders stay."""
    if folder.is_relative_to(settings.hub_cache) and folder.is_dir() and not store.is_registered(folder):
        forget(folder, settings)


def _on_hub(name: str, store: Store, settings: Settings, param: str) -> HubModel | None:
    """The hub's model that is meant; None where `name` is one for jobs."""
    model = hub_model(name)
    if model is None and name.startswith(PREFIX) and not lacks_revision(name):
        raise ModelError(f"{param}: expected {PREFIX}ORGANISATION/NAME@REVISION, got {shown(name)}", param=param)
    if model is None or name.startswith(PREFIX):
        return model
    try:
        folder = resolve_model(name, store, settings, param=param)
    except ModelError:
        return model
    raise ModelError(
        f"{param}: {shown(name)} may be the folder {folder} or a model of the hub; write {PREFIX}{name} for the hub's, "
        "or rename the folder",
        param=param,
    )


def _local(name: str, store: Store, settings: Settings, param: str) -> Path:
    if is_checkpoint(name):
        raise ModelError(f"{param}: {name} is registered already; use the id where a job names a model", param=param)
    try:
        return resolve_model(name, store, settings, param=param)
    except ModelError as error:
        if not lacks_revision(name):
            raise
        raise ModelError(
            f"{error.message}; for a model of the hub add the revision, {name}@REVISION (a commit, tag or branch): "
            "what a bare name leads to changes, and a score must say what it was made with",
            param=param,
        ) from None


def _keep(
    name: str, folder: Path, revision: str | None, labels: dict[str, str] | None, store: Store, param: str
) -> WeakCheckpointRow:
    from wmss.models.loading import checkpoint_digests, tokenizer_files, weight_files
    from wmss.scoring.vllm_families import check_family

    known = check_checkpoint(folder, param=param)
    architecture = check_family(folder, param=param)
    stamps = file_stamps([*weight_files(folder), *tokenizer_files(folder)])  # first: a later change is seen
    digests = checkpoint_digests(folder)
    content = json.dumps([name, digests.weights, digests.tokenizer])
    return store.add_weak_checkpoint(
        name=name,
        path=str(folder),
        revision=revision,
        content_key=hashlib.sha256(content.encode()).hexdigest(),
        architecture=architecture,
        num_parameters=known["num_parameters"],
        vocab_size=known["vocab_size"],
        weights_digest=digests.weights,
        tokenizer_digest=digests.tokenizer,
        files=stamps,
        labels=labels,
    )
