"""The database's address and its password; a home that cannot be used; variables that nothing reads; paths."""

import errno
import tempfile
from pathlib import Path

import pytest
from pydantic import ValidationError

from services.settings import Settings, unread_variables
from wmss.errors import ConfigError


@pytest.mark.parametrize("url", ["sqlite:////tmp/x.db", "postgresql+psycopg://user:secret@host:5432/name"])
def test_database_urls_that_are_taken_as_they_are(url):
    settings = Settings(database_url=url)
    assert settings.database == url
    assert "secret" not in repr(settings)


@pytest.mark.parametrize(
    "url", ["", "nonsense:secret", "postgres://user:secret@host/name", "mysql+psycopg://user:secret@host/name"]
)
def test_other_database_urls_are_refused_without_being_shown(url):
    with pytest.raises(ValidationError, match=r"expected sqlite:///PATH or postgresql\+psycopg://") as refusal:
        Settings(database_url=url)
    assert "secret" not in str(refusal.value)


def test_a_home_that_cannot_be_used_is_refused_by_name(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    for home in (file, file / "inside", "/proc/no-such-folder", "/sys/no-such-folder"):
        with pytest.raises(
            ConfigError, match=r"--home: .* cannot be used .*; name a folder that this user may write to"
        ):
            Settings(home=home).make_home()
    Settings(home=tmp_path / "new").make_home()
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["models"]

    def no_room(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", no_room)
    with pytest.raises(ConfigError, match=r"the disk of .*new is full .*; free some space there"):
        Settings(home=tmp_path / "new").make_home()
    monkeypatch.setattr(Path, "mkdir", no_room)
    with pytest.raises(ConfigError, match=r"the disk of .*newer is full"):
        Settings(home=tmp_path / "newer").make_home()


def test_a_misspelt_variable_is_named_with_the_one_that_was_meant(monkeypatch):
    for name in ("WMSS_HOME", "wmss_max_engines", "WMSS_BASE_URL", "WMSS_API_KEY", "WMSS_TEST_ATTACH"):
        monkeypatch.setenv(name, "1")
    assert unread_variables() == []
    monkeypatch.setenv("WMSS_MAX_RUNING_JOBS", "2")
    monkeypatch.setenv("WMSS_COLOUR", "red")
    colour, jobs = unread_variables()
    assert jobs.startswith("WMSS_MAX_RUNING_JOBS: ") and jobs.endswith("did you mean WMSS_MAX_RUNNING_JOBS?")
    assert colour.startswith("WMSS_COLOUR: ") and "did you mean" not in colour


def test_clients_are_not_told_where_things_lie(tmp_path):
    settings = Settings(home=tmp_path / "home", model_roots=f"{tmp_path}/more:/")
    said = settings.for_clients
    assert said(f"{tmp_path}/home/models/mine has no config.json") == "mine has no config.json"
    assert said(f"in {tmp_path}/more/theirs; under {tmp_path}/more, {tmp_path}/home/models") == (
        "in theirs; under more, models"
    )
    assert said(f"({tmp_path}/home/files/file-1.jsonl)") == "(files/file-1.jsonl)"
    assert said(f"is full: {tmp_path}/home.") == "is full: home."
    for other in (f"{tmp_path}/homes/x", f"{tmp_path}/home-2", "see /v1/models", "/etc/x"):
        assert said(other) == other
