"""A driver's lease on its job, renewed in the background for as long as the driver works on it."""

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from services.jobs.fence import Fence, LostLeaseError

logger = logging.getLogger(__name__)


@contextmanager
def keep_lease(fence: Fence, *, every_s: float) -> Iterator[None]:
    """Renew the lease inside the block. A driver that lost its lease exits at once: another one may be running.

    Renewal has stopped when the block is left: otherwise a driver that then closes its job would look like one that
    lost it.
    """
    fence.renew()
    stop = threading.Event()
    thread = threading.Thread(target=_renew, args=(fence, every_s, stop), daemon=True, name="lease")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _renew(fence: Fence, every_s: float, stop: threading.Event) -> None:
    while not stop.wait(every_s):
        try:
            fence.renew()
        except LostLeaseError as error:
            logger.error("%s; this driver stops", error)
            os._exit(3)
        except Exception:
            logger.exception("the lease could not be renewed; retrying")
