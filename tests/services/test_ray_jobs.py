"""What is read from Ray's Jobs API, behind a transport of the test's."""

import httpx2
import pytest

from services.control.ray_jobs import DriverEnd, RayDrivers, RayUnavailableError, SubmissionRefusedError
from services.settings import Settings

LOG = """Traceback (most recent call last):
services.failures.EngineError: the engine chat-1 did not start: no such architecture
\x1b[36m(ServeController pid=7)\x1b[0m     raise RuntimeError(
(ServeReplica:chat-1:ChatReplica pid=8, ip=10.0.0.1) ERROR
"""


@pytest.fixture
def asking(tmp_path):
    """Makes drivers of a Ray that answers everything in one way."""
    made = []

    def make(status=200, **answer):
        drivers = RayDrivers(Settings(home=tmp_path))
        drivers._http = httpx2.Client(
            base_url="http://ray", transport=httpx2.MockTransport(lambda request: httpx2.Response(status, **answer))
        )
        made.append(drivers)
        return drivers

    yield make
    for drivers in made:
        drivers.close()


def test_last_words_are_the_jobs_own(asking):
    assert asking(json={"logs": LOG}).error_tail("chat-1") == LOG.splitlines()[1]


def nodes(*found):
    listed = [{"state": state, "is_head_node": head, "resources_total": {"CPU": 2.0}} for state, head in found]
    return {"data": {"result": {"result": listed}}}


@pytest.mark.parametrize("listed", [[], [("DEAD", True)], [("ALIVE", False)], [("DEAD", True), ("ALIVE", False)]])
def test_a_dashboard_without_a_living_head_node_is_not_ready(asking, listed):
    with pytest.raises(RayUnavailableError):
        asking(json=nodes(*listed)).ping()


def test_a_living_head_node_is_ready(asking):
    drivers = asking(json=nodes(("ALIVE", True), ("DEAD", False), ("ALIVE", False)))
    drivers.ping()
    assert drivers.cluster_resources() == {"CPU": 4.0}


def test_a_refused_submission_says_rays_last_line(asking):
    said = "Traceback (most recent call last):\n  File\nUnicodeEncodeError: 'ascii' codec can't encode '\\xfc'\n"
    with pytest.raises(SubmissionRefusedError, match=r"^HTTP 500: UnicodeEncodeError: 'ascii' codec can't encode"):
        asking(500, text=said).submit("ftjob-a-1", "ftjob-a", 1)
    with pytest.raises(SubmissionRefusedError, match=r"^HTTP 503: Service Unavailable$"):
        asking(503).submit("ftjob-a-1", "ftjob-a", 1)


# What Ray 2.60 said of a driver that was killed, and says of a supervisor actor whose node is gone.
KILLED = (
    "Job entrypoint command failed with exit code -9, last available logs (truncated to 20,000 chars):\nsecond line\n"
)
NODE_DIED = (
    "Job supervisor actor died: The actor died unexpectedly.\nThe actor died because its node has died. Node Id: 5"
)


@pytest.mark.parametrize(
    ("job", "expected"),
    [
        (
            {"message": KILLED, "end_time": 1795688310500, "driver_exit_code": -9},
            DriverEnd("Job entrypoint command failed with exit code -9", at=1795688310.5, exit_code=-9),
        ),
        ({"message": NODE_DIED}, DriverEnd("The actor died because its node has died. Node Id: 5", node_died=True)),
        ({"message": None, "end_time": None, "driver_exit_code": None}, DriverEnd("Ray does not say why")),
    ],
)
def test_how_a_driver_ended(asking, job, expected):
    assert asking(json=job).end_of("ftjob-a-1") == expected
