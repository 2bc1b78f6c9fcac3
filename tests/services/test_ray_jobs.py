"""What is read from Ray's Jobs API, behind a transport of the test's."""

import httpx2

from services.control.ray_jobs import RayDrivers
from services.settings import Settings

LOG = """Traceback (most recent call last):
services.failures.EngineError: the engine chat-1 did not start: no such architecture
\x1b[36m(ServeController pid=7)\x1b[0m     raise RuntimeError(
(ServeReplica:chat-1:ChatReplica pid=8, ip=10.0.0.1) ERROR
"""


def test_last_words_are_the_jobs_own(tmp_path):
    drivers = RayDrivers(Settings(home=tmp_path))
    drivers._http = httpx2.Client(
        base_url="http://ray", transport=httpx2.MockTransport(lambda request: httpx2.Response(200, json={"logs": LOG}))
    )
    assert drivers.error_tail("chat-1") == LOG.splitlines()[1]
    drivers.close()
