"""What a Ray cluster can never do for a job, told before the job waits for it for ever."""

from collections.abc import Mapping
from pathlib import Path

from services.jobs.room import occupied_by
from wmss.config import JobSpec, ScoreSpec
from wmss.errors import ConfigError, WmssError
from wmss.scoring.vllm_families import check_family


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
