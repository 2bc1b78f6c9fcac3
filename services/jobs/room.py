"""The one rule about CPUs and GPUs: jobs first, then the chat engine where a place is left, then idle engines.

A job's phases follow each other, and its training workers (of a request for entropy scores, its engines) are the most
that any of them occupies. So a chat engine that leaves every running job its place can stay beside them without a wait
on either side. An idle engine is kept only while no job and no chat needs its place; of CPUs it needs none.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from services.jobs.kinds import resources_of
from services.jobs.states import State
from services.jobs.store import Store
from wmss.config import JobSpec, Resources, ScoreSpec
from wmss.errors import ConfigError, WmssError
from wmss.scoring.vllm_families import check_family


class Cluster(Protocol):
    """Where the rule gets its numbers."""

    def cluster_resources(self) -> dict[str, float]:
        """What all living nodes have together, by kind ("CPU", "GPU")."""


def room_for_chat(store: Store, cluster: Cluster) -> bool:
    """Whether a chat engine may be there now, given the jobs that run."""
    running = running_jobs(store)
    return not running or leaves_room(cluster.cluster_resources(), running)


def room_left(total: Mapping[str, float], running: Iterable[Resources], *, chat: bool) -> dict[str, float]:
    """CPUs and GPUs of `total` that neither the running jobs nor a chat engine may occupy, by kind."""
    taken = [occupied_by(resources, total) for resources in running] + ([_chat_engine(total)] if chat else [])
    return {kind: total.get(kind, 0) - sum(each[kind] for each in taken) for kind in ("CPU", "GPU")}


def running_jobs(store: Store, *, exclude: str | None = None) -> list[Resources]:
    """What the jobs that run asked for."""
    jobs = [job for job in store.active_jobs() if job.state != State.QUEUED and job.id != exclude]
    return [resources_of(job) for job in jobs]


def leaves_room(total: Mapping[str, float], running: Iterable[Resources]) -> bool:
    """Whether one CPU, and on a cluster with GPUs one GPU, of `total` is left over beside the running jobs."""
    return all(left >= 0 for left in room_left(total, running, chat=True).values())


def leaves_room_to_wait(total: Mapping[str, float], running: Iterable[Resources], *, chat: bool) -> bool:
    """Whether each running job may have workers that wait for its next training phase, besides what it uses now. All
    drivers decide by this, so that the workers that wait never take what one of the jobs needs."""
    running = list(running)
    return all(left >= 0 for left in room_left(total, [*running, *running], chat=chat).values())


def _chat_engine(total: Mapping[str, float]) -> dict[str, int]:
    """CPUs and GPUs of the chat engine."""
    return {"CPU": 1, "GPU": 1 if total.get("GPU", 0) > 0 else 0}


def occupied_by(resources: Resources, total: Mapping[str, float]) -> dict[str, int]:
    """CPUs and GPUs that a job takes at most."""
    return {"CPU": resources.num_workers, "GPU": resources.num_workers if uses_gpu(resources, total) else 0}


def cpus_held(nodes: Iterable[Mapping[str, Any]], *, use_gpu: bool) -> int:
    """CPUs that each replica of an engine holds of what Ray counts, on these nodes (`ray.nodes()`).

    None where every node has CPUs: an idle engine uses none, and one in use runs on the CPUs of its job, which are
    counted for it (`occupied_by`) whether it trains or scores. So no training has to evict it. Where a node has none,
    as the head of a larger cluster, holding a CPU is what keeps an engine off that node.
    """
    everywhere = all(node["Resources"].get("CPU", 0) > 0 for node in nodes if node["Alive"])
    return 0 if everywhere and not use_gpu else 1


def uses_gpu(resources: Resources, total: Mapping[str, float]) -> bool:
    """Whether workers and engines of a job get a GPU each: as asked, or if the cluster has any."""
    return total.get("GPU", 0) > 0 if resources.use_gpu is None else resources.use_gpu


def refusals(
    checkpoints: Mapping[str, Path], *, scoring: bool, spec: JobSpec | ScoreSpec, cluster: Mapping[str, float]
) -> list[WmssError]:
    """Why a job with these checkpoints {field: folder} could not run there; empty if it could."""
    problems: list[WmssError] = []
    workers, counted, where = "training workers", "num_workers", "resources."
    if isinstance(spec, ScoreSpec):
        workers, counted, where = "engines", "num_replicas", ""
    for kind, needed in occupied_by(spec.resources, cluster).items():
        if needed > cluster.get(kind, 0):
            field = "use_gpu" if kind == "GPU" and spec.resources.num_workers == 1 else counted
            message = (
                f"{field}: {needed} {kind}s are needed for {spec.resources.num_workers} {workers}, the cluster has "
                f"{cluster.get(kind, 0):g}; ask for fewer {workers} or use_gpu=false"
            )
            problems.append(ConfigError(message, param=where + field))
    for param, checkpoint in checkpoints.items() if scoring else ():
        try:
            check_family(checkpoint, param=param)
        except WmssError as error:
            problems.append(error)
    return problems
