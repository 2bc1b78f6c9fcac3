"""Places for engines: never more than there are, used in turn, given up by whoever dies; on both databases."""

import threading
import time

import pytest

from services.engines.engine_store import LEAVING_S, Engine, EngineStore, TakeResult, too_many
from services.jobs.fence import Fence, LostLeaseError
from services.jobs.room import cpus_held
from services.jobs.states import State


def engine(name, *, weights="w", num_replicas=1, num_cpus=1, use_gpu=False, app=None):
    """One of an architecture `name`."""
    label = f"scorer of models/{name}"
    sizes = {"num_replicas": num_replicas, "num_cpus": num_cpus, "use_gpu": use_gpu}
    return Engine(app=app or f"scorer-{name}", key=f"key-{name}", weights=weights, label=label, **sizes)


def driver(store, name):
    row = store.create_job(name, spec={"resources": {}}, paths={}, fine_tuned_model=name, request_digest=name)
    return Fence(store, name, store.claim(row, message="Starting"), lease_s=30)


@pytest.fixture
def engines(job_store):
    return EngineStore(job_store)


@pytest.fixture
def fence(job_store):
    return driver(job_store, "ftjob-a")


def took(engines, wanted, fence, *, places):
    found, app = engines.take(wanted, fence, places=places)
    assert app == ("" if found is TakeResult.FULL else wanted.app)
    return found


def deploy(engines, fence, *given, places=9):
    """Deployed and idle, the first one not used longest."""
    for each in given:
        assert took(engines, each, fence, places=places) is TakeResult.NEW
        engines.ready(each.app, fence)
        engines.release(each.app, fence)


def test_an_engine_is_deployed_once_and_then_there(engines, fence, job_store):
    other = driver(job_store, "ftjob-b")
    assert took(engines, engine("a"), fence, places=1) is TakeResult.NEW
    assert took(engines, engine("a"), other, places=1) is TakeResult.STARTING
    engines.ready("scorer-a", fence)
    assert took(engines, engine("a"), other, places=1) is TakeResult.READY
    assert sorted(engines.users()) == ["ftjob-a", "ftjob-b"]
    engines.release("scorer-a", fence)
    assert not engines.leave("scorer-a"), "the other driver uses it"
    engines.release("scorer-a", other)
    assert [each.label for each in engines.idle()] == ["scorer of models/a"]


def test_the_engine_that_was_not_used_longest_makes_room(engines, fence):
    deploy(engines, fence, engine("a"), engine("b"))
    assert took(engines, engine("a"), fence, places=2) is TakeResult.READY
    engines.release("scorer-a", fence)
    assert took(engines, engine("c"), fence, places=2) is TakeResult.FULL
    assert [each.app for each in engines.idle()] == ["scorer-b", "scorer-a"]
    assert engines.leave("scorer-b")
    assert took(engines, engine("b"), fence, places=2) is TakeResult.FULL, (
        "its place is taken until its application is gone"
    )
    assert took(engines, engine("c"), fence, places=2) is TakeResult.FULL, "until its application is gone"
    engines.remove(["scorer-b"])
    assert took(engines, engine("c"), fence, places=2) is TakeResult.NEW


def test_an_engine_that_died_with_its_driver_is_deployed_by_the_next_one(engines, fence, job_store):
    assert took(engines, engine("a"), fence, places=1) is TakeResult.NEW
    again = Fence(job_store, "ftjob-a", job_store.claim(job_store.job("ftjob-a"), message="Again"), lease_s=30)
    with pytest.raises(LostLeaseError):
        engines.ready("scorer-a", fence)
    assert engines.abandoned(idle_s=1e9) == ["scorer-a"]
    assert took(engines, engine("a"), again, places=1) is TakeResult.NEW
    assert engines.abandoned(idle_s=1e9) == []


def test_engines_are_abandoned_by_cancelled_drivers_and_by_time(engines, fence, job_store):
    deploy(engines, fence, engine("a"))
    assert engines.abandoned(idle_s=60) == []
    assert engines.abandoned(idle_s=-1) == ["scorer-a"]
    assert took(engines, engine("a"), fence, places=1) is TakeResult.READY
    assert engines.abandoned(idle_s=-1) == []
    job_store.end_job(job_store.job("ftjob-a"), State.CANCELLED, error=None, message="Cancelled")
    assert engines.abandoned(idle_s=60) == ["scorer-a"]
    assert engines.leave("scorer-a")
    assert engines.abandoned(idle_s=-1) == [], "somebody is deleting it"
    engines.remove(["scorer-a"])
    assert engines.abandoned(idle_s=-1) == []


def test_only_one_deletes_an_engine_and_another_if_that_one_died(engines, fence, monkeypatch):
    deploy(engines, fence, engine("a"))
    engines.remove(["scorer-a"])
    assert engines.idle(), "only what leaves is removed"
    assert engines.leave("scorer-a")
    assert not engines.leave("scorer-a")
    later = time.time() + LEAVING_S + 1
    monkeypatch.setattr(time, "time", lambda: later)
    assert engines.abandoned(idle_s=1e9) == ["scorer-a"]
    assert engines.leave("scorer-a")
    assert not engines.leave("scorer-a")


def test_a_cancelled_driver_that_is_late_takes_no_engine_from_the_next_one(engines, fence, job_store):
    """It is told to stop while it deploys; by then another driver has taken the deployment over."""
    other = driver(job_store, "ftjob-b")
    assert took(engines, engine("a"), fence, places=1) is TakeResult.NEW
    job_store.request_cancel("ftjob-a")
    assert took(engines, engine("a"), other, places=1) is TakeResult.NEW
    engines.release("scorer-a", fence)
    assert not engines.leave("scorer-a")
    engines.ready("scorer-a", other)
    engines.release("scorer-a", other)
    assert engines.abandoned(idle_s=60) == [], "what the first one left does not count any more"


def test_an_engine_lost_with_its_cluster_is_deployed_by_one_user_only(engines, fence, job_store):
    other = driver(job_store, "ftjob-b")
    deploy(engines, fence, engine("a"))
    assert took(engines, engine("a"), fence, places=1) is TakeResult.READY
    assert took(engines, engine("a"), other, places=1) is TakeResult.READY
    assert not engines.restart("scorer-a", fence)
    engines.release("scorer-a", other)
    assert engines.restart("scorer-a", fence)
    assert took(engines, engine("a"), other, places=1) is TakeResult.STARTING
    engines.ready("scorer-a", fence)
    assert took(engines, engine("a"), other, places=1) is TakeResult.READY


def test_never_more_engines_than_places_however_many_want_one(engines, job_store):
    """Eight drivers at once on two places; whoever finds them full makes the oldest idle one leave."""
    fences = [driver(job_store, f"ftjob-{number}") for number in range(8)]
    used, most = [], []

    def work(fence, number):
        mine = engine(number)
        while (found := took(engines, mine, fence, places=2)) is not TakeResult.NEW:
            assert found is TakeResult.FULL
            for idle in engines.idle()[:1]:
                if engines.leave(idle.app):
                    engines.remove([idle.app])
            time.sleep(0.01)
        used.append(number)
        most.append(len(used))
        engines.ready(mine.app, fence)
        time.sleep(0.02)
        used.remove(number)
        engines.release(mine.app, fence)

    threads = [threading.Thread(target=work, args=given) for given in zip(fences, range(8), strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 8
    assert max(most) <= 2


@pytest.mark.parametrize(
    ("idle", "free", "leave"),
    [
        ([engine("a"), engine("b")], {"CPU": 2, "GPU": 0}, ""),
        ([engine("a"), engine("b")], {"CPU": 1, "GPU": 0}, "a"),
        ([engine("a"), engine("b", num_replicas=2)], {"CPU": 1}, "ab"),
        ([engine("a", use_gpu=True), engine("b")], {"CPU": 8, "GPU": 0}, "a"),
        ([engine("a"), engine("b", use_gpu=True)], {"CPU": 8, "GPU": 0}, "b"),
        ([engine("a")], {"CPU": -1}, "a"),
        ([engine("a", num_cpus=0), engine("b", num_cpus=0)], {"CPU": 0}, ""),
        ([engine("a", num_cpus=0), engine("b", num_cpus=0)], {"CPU": -1}, ""),
        ([engine("a", num_cpus=0), engine("b")], {"CPU": 0}, "b"),
        ([engine("a", num_cpus=0, use_gpu=True), engine("b", use_gpu=True)], {"CPU": 1, "GPU": 1}, "a"),
        ([], {"CPU": -1}, ""),
    ],
)
def test_as_many_idle_engines_leave_as_are_in_the_way(idle, free, leave):
    assert [each.app for each in too_many(idle, free)] == [f"scorer-{name}" for name in leave]


def test_an_idle_engine_takes_other_weights_before_a_place_is_used(engines, fence, job_store):
    deploy(engines, fence, engine("a", weights="w1"))
    other = driver(job_store, "ftjob-b")
    assert engines.take(engine("a", weights="w2", app="new"), other, places=9) == (TakeResult.READY, "scorer-a")
    # While it is in use its weights are not changed; who wants the same ones joins.
    assert engines.take(engine("a", weights="w2", app="no"), fence, places=9) == (TakeResult.READY, "scorer-a")
    engines.release("scorer-a", fence)
    assert engines.take(engine("a", weights="w1", app="no"), fence, places=1) == (TakeResult.FULL, "")
    assert engines.take(engine("a", weights="w1", app="second"), fence, places=2) == (TakeResult.NEW, "second")
    assert not engines.idle()
    assert sorted(engines.users()) == ["ftjob-a", "ftjob-b"]


def test_the_engine_that_has_the_weights_is_taken_first(engines, fence):
    """And of those that have others, the one that was not used longest."""
    deploy(engines, fence, engine("a", weights="w1", app="first"))
    assert took(engines, engine("a", weights="w1", app="first"), fence, places=9) is TakeResult.READY
    other = engine("a", weights="w2", app="second")
    assert engines.take(other, fence, places=9)[0] is TakeResult.NEW
    engines.ready("second", fence)
    engines.release("first", fence)
    engines.release("second", fence)
    assert engines.take(engine("a", weights="w2", app="no"), fence, places=9) == (TakeResult.READY, "second")
    engines.release("second", fence)
    assert engines.take(engine("a", weights="w3", app="no"), fence, places=9) == (TakeResult.READY, "first")


def test_a_start_for_other_weights_is_not_waited_for(engines, fence, job_store):
    other = driver(job_store, "ftjob-b")
    assert took(engines, engine("a", weights="w1", app="first"), fence, places=9) is TakeResult.NEW
    assert engines.take(engine("a", weights="w1", app="no"), other, places=9) == (TakeResult.STARTING, "first")
    assert engines.take(engine("a", weights="w2", app="second"), other, places=9) == (TakeResult.NEW, "second")


def test_no_engine_of_another_key_or_on_its_way_out_is_taken(engines, fence):
    deploy(engines, fence, engine("a"), engine("b"))
    assert engines.leave("scorer-a")
    assert engines.take(engine("a", app="again"), fence, places=3) == (TakeResult.NEW, "again")


@pytest.mark.parametrize(
    ("cpus", "use_gpu", "held"),
    [([2.0], False, 0), ([2.0, 8.0], False, 0), ([None, 8.0], False, 1), ([0.0, 8.0], False, 1), ([2.0], True, 1)],
)
def test_an_engine_holds_a_cpu_only_to_keep_off_nodes_without_any(cpus, use_gpu, held):
    nodes = [{"Alive": True, "Resources": {} if each is None else {"CPU": each}} for each in cpus]
    nodes.append({"Alive": False, "Resources": {}})
    assert cpus_held(nodes, use_gpu=use_gpu) == held
