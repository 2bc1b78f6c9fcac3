"""What a driver makes of an error: a verdict on the job, a failed attempt, or one that was lost with what it ran on."""

import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest
from ray.exceptions import ActorDiedError, ActorUnschedulableError, NodeDiedError, RayActorError, RaySystemError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from services.driver import outcome
from services.failures import engine_error, training_error
from services.settings import SUPERVISOR_PID
from wmss.errors import DataError, ResultError

pytestmark = pytest.mark.filterwarnings("ignore")  # of Ray Train, when it is imported

VERDICT, FAILED, LOST = "verdict", True, False


class Cluster:
    """Ray as an attached driver sees it; the test takes parts of it away."""

    def __init__(self):
        self.attached, self.alive, self.answers = True, True, True

    def is_initialized(self):
        return self.attached

    def get_runtime_context(self):
        return SimpleNamespace(get_node_id=lambda: "n1")

    def nodes(self):
        if not self.answers:
            raise RaySystemError("the GCS is gone")
        return [{"NodeID": "n1", "Alive": self.alive}, {"NodeID": "n2", "Alive": True}]


@pytest.fixture
def cluster(monkeypatch):
    found = Cluster()
    monkeypatch.setattr(outcome, "ray", found)
    monkeypatch.setattr(outcome, "SETTLE_S", 0.0)
    monkeypatch.delenv(SUPERVISOR_PID, raising=False)
    return found


def judged(error):
    end = outcome.end_of_attempt(error)
    return VERDICT if end is None else end.counts


def trained(*failures):
    """What training raises after its workers failed so."""
    raised = WorkerGroupError("workers failed", dict(enumerate(failures)))
    return chained(training_error("the training workers", raised, max_failures=3), raised)


def chained(error, cause):
    error.__cause__ = cause
    return error


GONE = WorkerHealthCheckFailedError("A worker health check failed.", ActorDiedError())
NODE_GONE = RayActorError(error_msg="The actor died because its node has died. Node Id: 5")
# What a driver saw of a service that was killed while its training started.
UNPLACED = ActorUnschedulableError(
    "The node specified via NodeAffinitySchedulingStrategy doesn't exist any more or is infeasible, and soft=False was "
    "specified."
)
AWAY = UserExceptionWithTraceback(PoolTimeoutError(), "Traceback")
ODD = UserExceptionWithTraceback(ZeroDivisionError(), "Traceback")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (DataError("line 3", param="training_file"), VERDICT),
        (ResultError("the saved model is another"), VERDICT),
        (ZeroDivisionError(), VERDICT),
        (trained(ODD), VERDICT),
        (engine_error("scorer-1", RuntimeError("ValueError: bad head")), VERDICT),
        (trained(GONE), FAILED),
        (trained(GONE, GONE), FAILED),
        (engine_error("scorer-1", ActorDiedError()), FAILED),
        (trained(RayActorError(error_msg="killed due to the node running low on memory")), FAILED),
        (trained(NODE_GONE), LOST),
        (trained(WorkerHealthCheckFailedError("", NODE_GONE)), LOST),
        (trained(AWAY), LOST),
        (chained(engine_error("scorer-1", NODE_GONE), NODE_GONE), LOST),
        (NodeDiedError("gone"), LOST),
        (trained(UNPLACED), LOST),
        (ControllerError(NODE_GONE), LOST),
        (PoolTimeoutError(), LOST),
    ],
)
def test_on_a_cluster_that_lives(cluster, error, expected):
    assert judged(error) == expected


FROM_OUTSIDE = [
    trained(GONE),
    trained(ODD),
    engine_error("scorer-1", ActorDiedError()),
    engine_error("scorer-1", RuntimeError("no answer")),
    RuntimeError("The Serve controller is gone"),
    ConnectionError("no cluster"),
    ActorDiedError(),
]


@pytest.mark.parametrize("error", FROM_OUTSIDE)
@pytest.mark.parametrize("gone", ["attached", "alive", "answers"])
def test_nothing_that_a_dying_cluster_says_is_a_verdict(cluster, error, gone):
    setattr(cluster, gone, False)
    assert judged(error) == LOST


def test_what_the_job_itself_does_wrong_is_a_verdict_on_any_cluster(cluster):
    cluster.alive = False
    assert judged(DataError("line 3")) == VERDICT


def test_a_supervisor_that_was_killed_takes_the_verdict_along(cluster, monkeypatch):
    """Before Ray is seen to die; also while nobody has waited for it."""
    monkeypatch.setenv(SUPERVISOR_PID, str(os.getpid()))
    assert judged(trained(ODD)) == VERDICT
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as supervisor:
        monkeypatch.setenv(SUPERVISOR_PID, str(supervisor.pid))
        assert judged(trained(ODD)) == VERDICT
        supervisor.send_signal(signal.SIGKILL)
        while psutil.Process(supervisor.pid).status() != psutil.STATUS_ZOMBIE:
            pass
        assert judged(trained(ODD)) == LOST
    assert judged(trained(ODD)) == LOST
