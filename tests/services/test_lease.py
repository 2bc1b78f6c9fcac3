"""The lease: kept inside the block, over when the block is left, and its loss ends the driver."""

import os
import time

import pytest

from services.jobs.fence import Fence, LostLeaseError
from services.jobs.lease import keep_lease
from services.jobs.states import State
from services.jobs.store import Store


@pytest.fixture
def store(database_url):
    store = Store(database_url)
    store.migrate()
    store.create_job("j", spec={}, paths={}, fine_tuned_model="m", request_digest="d")
    store.claim(store.job("j"), message="Starting")
    yield store
    store.close()


@pytest.fixture
def exits(monkeypatch):
    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    return codes


def test_driver_that_ends_its_job_has_not_lost_it(store, exits):
    fence = Fence(store, "j", 1, lease_s=5)
    with keep_lease(fence, every_s=0.01):
        before = store.job("j").lease_expires_at
        time.sleep(0.1)
        assert store.job("j").lease_expires_at > before
    fence.end(State.SUCCEEDED, error=None, message="done", trained_tokens=1)
    time.sleep(0.1)
    assert exits == []


def test_driver_that_lost_its_job_ends_at_once(store, exits):
    with keep_lease(Fence(store, "j", 1, lease_s=5), every_s=0.01):
        store.claim(store.job("j"), message="Again")
        time.sleep(0.1)
    assert exits[:1] == [3]
    with pytest.raises(LostLeaseError), keep_lease(Fence(store, "j", 1, lease_s=5), every_s=1):
        raise AssertionError("a driver without a lease must not begin")
