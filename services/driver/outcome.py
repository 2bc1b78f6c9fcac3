"""What an error of a driver is: the job's own, or one of what the driver runs on.

A cluster that dies takes engines, workers and controllers along one after the other, and each of them is an error in a
driver that still lives. None of these is a verdict on the job.
"""

import os
import time

import psutil
import ray
from ray.exceptions import LocalRayletDiedError, NodeDiedError

from services.failures import ProcessLost, causes, is_from_outside
from services.jobs.attempts import NODE_DIED_SIGNS, AttemptEnd
from services.jobs.database import may_be_retried
from services.settings import SUPERVISOR_PID

SETTLE_S = 10.0
"""Time a dying cluster has to be seen dying, on a busy machine too: its workers go first, its head last."""
_NODE_DIED = (NodeDiedError, LocalRayletDiedError)


def end_of_attempt(error: Exception) -> AttemptEnd | None:
    """How the attempt ends that this error ended, or None if the error is the job's verdict."""
    reasons = list(causes(error))
    if any(may_be_retried(reason) for reason in reasons if isinstance(reason, Exception)):
        return _lost("the job database was away for too long")
    if any(map(_tells_of_a_dead_node, reasons)):
        return _lost("a node died")
    if not is_from_outside(error):
        return None
    if not _is_cluster_there():
        return _lost("the cluster went away")
    if isinstance(error, ProcessLost):
        return AttemptEnd(error.code, error.message, counts=True)
    return None


def _lost(message: str) -> AttemptEnd:
    return AttemptEnd("attempts_lost", message, counts=False)


def _tells_of_a_dead_node(error: BaseException) -> bool:
    return isinstance(error, _NODE_DIED) or any(sign in str(error) for sign in NODE_DIED_SIGNS)


def _is_cluster_there() -> bool:
    """Whether head, this driver's node and, where there is one, `wmss serve` are still there after a while."""
    if not ray.is_initialized():
        return False
    time.sleep(SETTLE_S)
    node = ray.get_runtime_context().get_node_id()
    try:
        alive = {other["NodeID"] for other in ray.nodes() if other["Alive"]}
    except Exception:  # whatever keeps the head from answering
        return False
    return node in alive and _is_supervisor_there()


def _is_supervisor_there() -> bool:
    pid = os.environ.get(SUPERVISOR_PID)
    if pid is None:
        return True
    try:
        return psutil.Process(int(pid)).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
