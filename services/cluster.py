"""What a Ray cluster can never do for a job, told before the job waits for it for ever."""

from collections.abc import Mapping
from pathlib import Path

from wmss.config import Resources
from wmss.errors import ConfigError, WmssError
from wmss.scoring.vllm_entropy import check_family


def uses_gpu(resources: Resources, cluster: Mapping[str, float]) -> bool:
    """Whether workers and engines of a job get a GPU each: as asked, or if the cluster {kind: number} has any."""
    return cluster.get("GPU", 0) > 0 if resources.use_gpu is None else resources.use_gpu


def refusals(
    checkpoints: Mapping[str, Path], *, scoring: bool, resources: Resources, cluster: Mapping[str, float]
) -> list[WmssError]:
    """Why a job with these checkpoints {field: folder} could not run there; empty if it could."""
    problems: list[WmssError] = []
    num_gpus = resources.num_workers if uses_gpu(resources, cluster) else 0
    for kind, needed in (("CPU", resources.num_workers), ("GPU", num_gpus)):
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
