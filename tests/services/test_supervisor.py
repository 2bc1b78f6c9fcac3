"""What `wmss serve` hands down to Ray and the API."""

from services.control.supervisor import Supervisor
from services.settings import Settings


def test_children_use_the_database_of_the_supervisor(tmp_path, monkeypatch):
    monkeypatch.setenv("WMSS_DATABASE_URL", "postgresql+psycopg://user:secret@host/other")
    url = "postgresql+psycopg://user:secret@host/name"
    for database_url, expected in ((url, url), (None, f"sqlite:///{tmp_path}/wmss.db")):
        settings = Settings(home=tmp_path, database_url=database_url)
        environment = Supervisor(settings, host="127.0.0.1", port=8000)._environment(tmp_path / "token")
        assert environment["WMSS_DATABASE_URL"] == expected
