"""Imports point one way, in the library and in the service; and what must stay light is light."""

from importlib.util import find_spec

import pytest

import wmss
from tests.imports import ROOT, arrows, circle, loaded_by, modules

LEAVES = {"__version__", "choices", "config", "errors", "extras", "ids", "records", "startup", "units"}
LIBRARY = {
    "choices": set(),
    "config": {"choices", "errors"},
    "errors": set(),
    "extras": {"errors"},
    "ids": set(),
    "records": set(),
    "startup": set(),
    "units": set(),
    "core": {"choices"},
    "theory": LEAVES | {"core"},
    "data": LEAVES | {"core"},
    "models": LEAVES | {"core"},
    "training": LEAVES | {"core", "data", "models"},
    "verifiers": LEAVES | {"core", "data"},
    "scoring": LEAVES | {"core", "data", "models", "verifiers"},
    "integrations": LEAVES | {"core", "models"},
    "tasks": LEAVES | {"core", "data", "models", "training", "scoring", "verifiers"},
    "rounds": LEAVES | {"core", "theory", "data", "models", "training", "scoring", "verifiers"},
}
"""What each part of `wmss` may import of the others."""
SERVICE = (
    {"settings", "failures"},
    {"jobs"},
    {"catalog", "engines", "results"},
    {"chat"},
    {"control", "driver", "preview"},
    {"api", "commands"},
    {"cli"},
)
"""Layers of `services`, the lowest first; none imports its own layer or one above."""
METHODS = {"improvement", "scores", "weak_driven", "run", "in_process"}
ROUNDS = {
    "job": METHODS | {"before"},
    "journal": METHODS | {"before"},
    "phases": METHODS | {"before"},
    "messages": METHODS,
    "before": METHODS,
    "scores": {"improvement", "weak_driven", "run"},
    "improvement": {"scores", "weak_driven", "run"},
    "weak_driven": {"improvement", "run"},
}
"""What parts of `wmss.rounds` may not import: what happens before the first GPU second, and what every phase uses,
knows neither the methods nor the run."""
FORBIDDEN_IN_LIBRARY = {"ray", "fastapi", "sqlalchemy", "alembic", "uvicorn", "openai", "typer", "services"}
MAX_LOOSE_FILES = 5
HEAVY = {"torch", "ray", "vllm", "transformers"}
needs_all = pytest.mark.skipif(
    not all(map(find_spec, ("torch", "transformers", "fastapi"))), reason="torch or the service is not installed"
)


@pytest.mark.parametrize("part", sorted(arrows("wmss").keys() - {"__version__"}))
def test_the_library_points_one_way(part):
    assert part in LIBRARY, f"wmss/{part}: say in this file what it may import"
    assert arrows("wmss")[part] <= LIBRARY[part]


@pytest.mark.parametrize("part", sorted(arrows("services")))
def test_the_service_points_one_way(part):
    place = next((place for place, layer in enumerate(SERVICE) if part in layer), None)
    assert place is not None, f"services/{part}: give it a layer in this file"
    assert arrows("services")[part] <= set().union(*SERVICE[:place])


@pytest.mark.parametrize("part", sorted(ROUNDS))
def test_the_rounds_point_one_way(part):
    assert not arrows("wmss.rounds").get(part, set()) & ROUNDS[part]


@pytest.mark.parametrize("package", ["wmss", "services", "wmss.rounds"])
def test_no_folders_import_each_other(package):
    assert circle(package) == []


def test_the_library_knows_no_service():
    found = {name: {each.split(".")[0] for each in names} for name, names in modules("wmss").items()}
    assert {name: roots & FORBIDDEN_IN_LIBRARY for name, roots in found.items() if roots & FORBIDDEN_IN_LIBRARY} == {}


def test_vllm_is_imported_in_files_of_its_own():
    found = [name for name, names in modules("wmss").items() if "vllm" in {each.split(".")[0] for each in names}]
    assert [name for name in found if not name.split(".")[-1].startswith("vllm_")] == []


def test_few_files_lie_loose_in_the_service():
    assert len(list((ROOT / "services").glob("*.py"))) <= MAX_LOOSE_FILES


@pytest.fixture(scope="module")
def light():
    """What is loaded after the configuration, then also the command, then also the API."""
    modules_in_turn = ("wmss", "wmss.config", "services.cli", "services.api.app")
    return dict(zip(modules_in_turn, loaded_by(*(f"import {each}" for each in modules_in_turn)), strict=True))


@needs_all
@pytest.mark.parametrize("module", ["wmss", "wmss.config"])
def test_library_and_config_are_light(light, module):
    assert not light[module] & (HEAVY | {"fastapi", "sqlalchemy"})


@needs_all
@pytest.mark.parametrize("name", wmss.__all__)
def test_every_public_name_is_where_it_is_said_to_be(name):
    public = getattr(wmss, name)
    assert public.__module__.startswith("wmss.")
    assert public.__doc__, f"{name}: a public name needs its docstring"


def test_no_other_name_is_public():
    assert set(wmss._HOMES) == set(wmss.__all__) <= set(dir(wmss))
    with pytest.raises(AttributeError, match="no attribute 'score_folder'"):
        wmss.score_folder  # noqa: B018


@needs_all
@pytest.mark.parametrize("module", ["services.cli", "services.api.app"])
def test_command_and_api_start_light(light, module):
    assert not light[module] & HEAVY


@needs_all
def test_core_and_training_need_neither_ray_nor_vllm():
    names = (
        "wmss.core.mixing, wmss.core.entropy, wmss.core.sample_weights, wmss.training.loop, wmss.scoring.torch_scorer"
    )
    (loaded,) = loaded_by(f"import {names}")
    assert not loaded & {"ray", "vllm", "peft", "fastapi", "sqlalchemy"}


@needs_all
@pytest.mark.parametrize(
    ("module", "absent"),
    [
        # Two processes more on the way to a job's first step, each for some ten seconds on one core.
        ("services.driver.__main__", {"alembic", "mako", "vllm", "peft", "torchao"}),
        ("services.driver.worker", {"alembic", "mako", "vllm", "peft", "torchao", "fastapi", "uvicorn"}),
        ("services.driver.handover", {"torch", "ray", "transformers", "sqlalchemy"}),
        ("wmss.training.checkpoint_files", {"transformers", "accelerate", "pandas", "sympy"}),
    ],
)
def test_drivers_and_workers_load_nothing_that_they_never_use(module, absent):
    (loaded,) = loaded_by(f"import {module}")
    assert not loaded & absent


@needs_all
def test_a_driver_loads_nothing_of_the_training_loop():
    (loaded,) = loaded_by("import services.driver.__main__", whole=True)
    assert not loaded & {"wmss.training.loop", "wmss.training.checkpoints", "torch.distributed.checkpoint"}


def test_a_running_job_knows_no_dry_run():
    importers = [name for name, names in modules("wmss").items() if "wmss.rounds.before.dry_run" in names]
    assert importers == []
