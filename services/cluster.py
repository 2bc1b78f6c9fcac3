"""What a Ray cluster can never do for a job, told before the job waits for it for ever."""

from collections.abc import Mapping
from pathlib import Path

from services.jobs.room import occupied_by
from wmss.config import Resources
from wmss.errors import ConfigError, WmssError
from wmss.scoring.vllm_families import check_family


def refusals(
    checkpoints: Mapping[str, Path], *, scoring: bool, resources: Resources, cluster: Mapping[str, float]
) -> list[WmssError]:
    """Why a job with these checkpoints {field: folder} could not run there; empty if it could."""
    problems: list[WmssError] = []
    for kind, needed in occupied_by(resources, cluster).items():
        if needed > cluster.get(kind, 0):
            field = "use_gpu" if kind == "GPU" and resources.num_workers == 1 else "num_workers"
            message = (
                f"{field}: {needed} {kind}s are needed for {resources.num_workers} training workers, the cluster has "
                f"{cluster.get(kind, 0):g}; ask for fewer workers or use_gpu=false"
            )
            problems.append(ConfigError(message, param=f"resources.{field}"))
    for param, checkpoint in checkpoints.items() if scoring else ():
        try:
            check_family(checkpoint, param=param)
        except WmssError as error:
            problems.append(error)
    return problems
