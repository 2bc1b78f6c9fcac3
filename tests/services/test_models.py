"""Which models a job may name, read from a home whose service does not run."""

import shutil

from services.catalog.names import local_models
from services.jobs.store import Store
from services.settings import Settings


def test_models_of_a_home_without_a_service(checkpoints, tmp_path):
    settings = Settings(home=tmp_path / "home", model_roots=str(tmp_path / "more"))
    assert local_models(settings) == []
    for folder in ("home/models/mine", "home/models/half.partial", "home/models/ftjob-1", "more/theirs"):
        shutil.copytree(checkpoints["qwen3"], tmp_path / folder)
    assert [(model.id, model.owned_by) for model in local_models(settings)] == [("mine", "local"), ("theirs", "local")]
    assert not settings.database_file.exists()
    store = Store(settings.database)
    store.migrate()
    store.close()
    assert [model.id for model in local_models(settings)] == ["mine", "theirs"]
