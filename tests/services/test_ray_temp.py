"""Ray's temp folder: short and ASCII whatever the home is called, for one user alone, the same at each start."""

import os
import stat
import tempfile
from pathlib import Path

import pytest

from services.control.ray_temp import MAX_SOCKET_ROOT, make_empty, ray_temp_folder

SUFFIX = "/session_2026-11-26_10-18-30_123456_1234567/sockets/plasma_store"
"""The longest that Ray adds."""


def test_a_plain_short_home_holds_it():
    assert ray_temp_folder(Path("/srv/wmss-1.0")) == Path("/srv/wmss-1.0/ray")


@pytest.mark.parametrize(
    "home", ["/h/ü", "/h/a b", '/h/"q"', "/h/it's", "/h/a;b", "/h/日本", "/h/" + "x" * 200, "/h/a\nb"]
)
@pytest.mark.parametrize("system", ["/tmp", "/tmp/ü", "/var/" + "t" * 90])
def test_any_other_home_has_one_elsewhere(home, system, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", system)
    folder = ray_temp_folder(Path(home))
    assert folder == ray_temp_folder(Path(home)) != ray_temp_folder(Path(home + "2"))
    assert str(folder).isascii() and " " not in str(folder)
    assert folder.is_relative_to("/tmp") and not folder.is_relative_to("/tmp/ü")
    assert len(str(folder) + SUFFIX) <= 107


def test_a_home_is_measured_in_bytes():
    name = "x" * (MAX_SOCKET_ROOT - len("/h//ray"))
    assert ray_temp_folder(Path("/h") / name) == Path("/h") / name / "ray"
    assert ray_temp_folder(Path("/h") / (name + "x")) != Path("/h") / (name + "x") / "ray"


def test_what_a_killed_service_left_goes(tmp_path):
    folder = tmp_path / "wmss-ray"
    make_empty(folder)
    (folder / "session").mkdir()
    folder.chmod(0o777)
    make_empty(folder)
    assert list(folder.iterdir()) == []
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_what_is_not_ours_is_left_alone(tmp_path, monkeypatch):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "theirs")
    (tmp_path / "plain").touch()
    for name in ("link", "plain"):
        with pytest.raises(FileExistsError, match="not a folder of this user"):
            make_empty(tmp_path / name)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(FileExistsError, match="not a folder of this user"):
        make_empty(tmp_path / "theirs")
    assert (tmp_path / "theirs" / "file").exists()
