"""A job looked at without being made: for `POST /v1/fine_tuning/jobs/validate` and `wmss check`. Loads torch."""

import os
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import psutil
import torch

from services.catalog.names import local_store, named_models, registered_digests, registered_models, resolve_models
from services.jobs.room import refusals, uses_gpu
from services.jobs.tables import WeakCheckpointRow
from services.settings import Settings, engine_environment, ray_cpus
from wmss.config import JobSpec
from wmss.errors import WmssError
from wmss.models.limited import keep_answers
from wmss.rounds.before.dry_run import limited_report
from wmss.rounds.before.report import Machine, Report
from wmss.rounds.job import Sources
from wmss.rounds.phases import needs_engine


def dry_run(
    spec: JobSpec,
    *,
    models: Mapping[str, Path],
    files: Mapping[str, Path],
    file_names: Mapping[str, str],
    problems: Sequence[WmssError],
    registered: Mapping[str, WeakCheckpointRow],
    cluster: Mapping[str, float],
    settings: Settings,
) -> Report:
    """Check a job. Its names are resolved to `models` and `files`, or to `problems` where there is nothing of the name;
    `registered` are the models that must still have the digests they were registered with. Messages
    call the files `file_names`."""
    digests = {param: registered_digests(row) for param, row in registered.items()}
    sources = Sources(spec, models, files, digests, file_names)
    against = partial(refusals, scoring=needs_engine(spec), spec=spec, cluster=cluster)
    machine = _this_machine(settings, on_gpu=uses_gpu(spec.resources, cluster))
    return limited_report(sources, against, machine, problems)


def check_here(spec: JobSpec, settings: Settings) -> Report:
    """The same without a service: files are local paths, and the cluster is what `wmss serve` would make of this
    machine. Finished models are known if the home has a database."""
    keep_answers(settings.examined)
    with local_store(settings) as store:
        models, problems = resolve_models(spec, store, settings)
        registered = registered_models(named_models(spec), store)
    named = {"training_file": spec.training_file, "validation_file": spec.validation_file}
    return dry_run(
        spec,
        models=models,
        files={param: Path(name) for param, name in named.items() if name is not None},
        file_names={},
        problems=problems,
        registered=registered,
        cluster={"CPU": float(ray_cpus()), "GPU": float(torch.cuda.device_count())},
        settings=settings,
    )


def _this_machine(settings: Settings, *, on_gpu: bool) -> Machine:
    existing = next(folder for folder in (settings.root, *settings.root.parents) if folder.is_dir())
    return Machine(
        on_gpu=on_gpu,
        num_threads=settings.training_threads,
        num_cores=os.cpu_count() or 1,
        kv_cache_bytes=int(engine_environment()["VLLM_CPU_KVCACHE_SPACE"]) * 2**30,
        memory_bytes=psutil.virtual_memory().total,
        free_disk_bytes=shutil.disk_usage(existing).free,
    )
