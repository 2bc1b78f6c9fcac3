"""The one rule about CPUs and GPUs: jobs come first, and a chat engine takes a place only where one is left over.

A job's phases follow each other, and its training workers (of a request for entropy scores, its engines) are the most
that any of them occupies. So a chat engine that leaves those of every running job their place can stay beside them, and
nobody waits for anybody.
"""

from collections.abc import Iterable, Mapping
from typing import Protocol

from services.jobs.kinds import resources_of
from services.jobs.states import State
from services.jobs.store import Store
from wmss.config import Resources


class Cluster(Protocol):
    """Where the rule gets its numbers."""

    def cluster_resources(self) -> dict[str, float]:
        """What all living nodes have together, by kind ("CPU", "GPU")."""


def room_for_chat(store: Store, cluster: Cluster) -> bool:
    """Whether a chat engine may be there now, given the jobs that run."""
    running = [job for job in store.active_jobs() if job.state != State.QUEUED]
    return not running or leaves_room(cluster.cluster_resources(), map(resources_of, running))


def leaves_room(total: Mapping[str, float], running: Iterable[Resources]) -> bool:
    """Whether one CPU, and on a cluster with GPUs one GPU, of `total` is left over beside the running jobs."""
    jobs = [occupied_by(resources, total) for resources in running]
    needed = {"CPU": 1, "GPU": 1 if total.get("GPU", 0) > 0 else 0}
    return all(total.get(kind, 0) - sum(job[kind] for job in jobs) >= count for kind, count in needed.items())


def occupied_by(resources: Resources, total: Mapping[str, float]) -> dict[str, int]:
    """CPUs and GPUs that a job takes at most."""
    return {"CPU": resources.num_workers, "GPU": resources.num_workers if uses_gpu(resources, total) else 0}


def uses_gpu(resources: Resources, total: Mapping[str, float]) -> bool:
    """Whether workers and engines of a job get a GPU each: as asked, or if the cluster has any."""
    return total.get("GPU", 0) > 0 if resources.use_gpu is None else resources.use_gpu
