"""The database's address: what it may be, and that its password is not shown."""

import pytest
from pydantic import ValidationError

from services.settings import Settings


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
