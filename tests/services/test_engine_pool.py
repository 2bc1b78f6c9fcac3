"""A driver's use of an engine: what is deployed, what takes other weights, what leaves, and what is told of it."""

import types
import warnings
from dataclasses import replace

import pytest

from services.engines.engine_store import EngineStore, TakeResult
from services.jobs.store import Store
from tests.services.test_engines import driver, engine

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of Ray Serve's own import
    from services.engines import pool as pool_module
    from services.engines.pool import EnginePool


@pytest.fixture
def store(tmp_path):
    store = Store(f"sqlite:///{tmp_path}/jobs.db")
    store.migrate()
    yield store
    store.close()


@pytest.fixture
def cluster(monkeypatch):
    """Applications by name, each with the weights that its replica has."""
    apps = {}
    serve = types.SimpleNamespace(
        status=lambda: types.SimpleNamespace(applications=dict(apps)), get_app_handle=lambda app: app
    )
    monkeypatch.setattr(pool_module, "serve", serve)
    monkeypatch.setattr(pool_module, "delete_apps", lambda names: [apps.pop(name) for name in names])
    return apps


@pytest.fixture
def fence(store):
    return driver(store, "ftjob-a")


@pytest.fixture
def pool(store, fence):
    return EnginePool(EngineStore(store), fence, places=2, free=lambda: {"CPU": 0})


class Client:
    def __init__(self, apps, app, weights):
        self._apps, self.app, self._weights = apps, app, weights

    def load(self):
        before, self._apps[self.app] = self._apps[self.app], self._weights
        return "started" if before is None else "there" if before == self._weights else "loaded"


def use(pool, apps, wanted):
    def deploy(app):
        apps[app] = None
        return app

    with pool.use(wanted, deploy, lambda app: Client(apps, app, wanted.weights)) as client:
        assert apps[client.app] == wanted.weights
        return client.app


def told(store):
    return [event.message for event in store.events("ftjob-a", after=None, limit=99)[0][::-1]]


def test_one_engine_takes_the_weights_of_three_checkpoints_in_turn(store, pool, cluster):
    wanted = [engine("a", weights=f"w{number}", num_cpus=0, app=f"app-{number}") for number in (1, 2, 3, 3)]
    apps = [use(pool, cluster, replace(each, label=f"scorer of {each.weights}")) for each in wanted]
    assert apps == ["app-1"] * 4
    assert cluster == {"app-1": "w3"}
    started, second, third, there = told(store)[-4:]
    assert started.startswith("the scorer of w1 started in")
    assert second.startswith("the scorer of w2 has its weights after")
    assert third.startswith("the scorer of w3 has its weights after")
    assert there == "the scorer of w3 is there already"


def test_an_engine_that_was_lost_with_its_cluster_is_deployed_again(store, pool, cluster):
    use(pool, cluster, engine("a", num_cpus=0))
    cluster.clear()
    assert use(pool, cluster, engine("a", weights="w2", num_cpus=0, app="no")) == "scorer-a"
    assert cluster == {"scorer-a": "w2"}


def test_a_new_engine_that_does_not_take_its_weights_leaves(store, pool, fence, cluster, monkeypatch):
    monkeypatch.setattr(Client, "load", lambda self: (_ for _ in ()).throw(RuntimeError("self-check")))
    with pytest.raises(RuntimeError, match="self-check"):
        use(pool, cluster, engine("a", num_cpus=0))
    assert cluster == {}
    assert EngineStore(store).take(engine("a"), fence, places=1)[0] is TakeResult.NEW


def test_training_evicts_idle_engines_for_their_memory_but_not_for_cpus(store, pool, cluster):
    for name in ("a", "b"):
        use(pool, cluster, engine(name, num_cpus=0))
    pool.make_room({"CPU": 2}, purpose="training")
    pool.spare_memory(lambda: 0.5, purpose="training")
    assert set(cluster) == {"scorer-a", "scorer-b"}
    pool.spare_memory(lambda: 0.4 if len(cluster) == 2 else 0.6, purpose="training ftjob-a")
    assert set(cluster) == {"scorer-b"}
    assert told(store)[-1] == "the scorer of models/a left: its memory is needed for training ftjob-a"
    pool.spare_memory(lambda: 0.1, purpose="training")
    assert cluster == {}
