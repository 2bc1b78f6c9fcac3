"""Answers about model folders are kept while nothing in them changes. No process is asked here."""

import os
import shutil

import pytest

from wmss.errors import BusyError, ModelError
from wmss.models import kept_answers, limited
from wmss.models.limited import check_checkpoint, check_pair


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "model"
    (folder / "additional_chat_templates").mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "additional_chat_templates/tools.jinja"):
        (folder / name).write_text("{}")
    return folder


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """What the process was asked; it says that the first folder has one layer, and refuses others."""
    questions = []

    def answer(function, arguments, **_):
        questions.append(function.partition(":")[2])
        if arguments.get("path", "").endswith("bad"):
            return {"raised": ["ModelError", "model: no", "model"]}
        if arguments.get("path", "").endswith("slow"):
            raise ModelError("model: was not examined within 20 s", param="model")
        return {"returned": {"number": len(questions)}}

    monkeypatch.setattr(limited, "_answer", answer)
    monkeypatch.setattr(limited, "_kept", None)
    limited.keep_answers(tmp_path / "kept")
    return questions


def test_a_folder_is_looked_at_once(folder, asked):
    assert [check_checkpoint(folder, param="model") for _ in range(3)] == [{"number": 1}] * 3
    check_pair(folder, folder, param="weak")
    check_pair(folder, folder, param="weak")
    assert asked == ["folder", "pair"]


def test_another_question_is_another_answer(folder, asked):
    check_checkpoint(folder, param="model")
    check_checkpoint(folder, param="weak")
    check_checkpoint(folder, param="model", lora={"rank": 2})
    check_checkpoint(shutil.copytree(folder, folder.with_name("copy")), param="model")
    assert len(asked) == 4


def test_a_refusal_is_kept(folder, asked):
    bad = folder.rename(folder.with_name("bad"))
    for _ in range(2):
        with pytest.raises(ModelError, match="model: no") as caught:
            check_checkpoint(bad, param="model")
        assert caught.value.param == "model"
    assert len(asked) == 1


def test_limits_that_were_passed_are_not_kept(folder, asked):
    slow = folder.rename(folder.with_name("slow"))
    for _ in range(2):
        with pytest.raises(ModelError, match="within 20 s"):
            check_checkpoint(slow, param="model")
    assert len(asked) == 2


def same_size_and_time(folder):
    file = folder / "config.json"
    before = file.stat()
    file.write_text("[]")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def through_a_link(folder):
    elsewhere = folder.with_name("elsewhere")
    elsewhere.write_text("12")
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(elsewhere)


@pytest.mark.parametrize(
    "change",
    [
        same_size_and_time,
        through_a_link,
        lambda folder: (folder / "tokenizer.json").unlink(),
        lambda folder: (folder / "other").touch(),
        lambda folder: (folder / "other").symlink_to("nowhere"),
        lambda folder: (folder / "additional_chat_templates/tools.jinja").write_text("[]"),
    ],
)
def test_a_change_is_seen(folder, asked, change):
    check_checkpoint(folder, param="model")
    change(folder)
    assert check_checkpoint(folder, param="model") == {"number": 2}


def test_another_release_of_a_library_is_asked_again(folder, asked, monkeypatch):
    check_checkpoint(folder, param="model")
    monkeypatch.setattr(kept_answers, "_releases", lambda: ["other"])
    check_checkpoint(folder, param="model")
    assert len(asked) == 2


def test_what_is_kept_is_bounded_and_may_be_lost(folder, asked, tmp_path, monkeypatch):
    monkeypatch.setattr(kept_answers, "MAX_KEPT", 2)
    for number in range(5):
        check_checkpoint(folder, param=f"model{number}")
    assert len(list((tmp_path / "kept").iterdir())) == 2
    for file in (tmp_path / "kept").iterdir():
        file.write_text("{")
    check_checkpoint(folder, param="model4")
    assert len(asked) == 6
    limited.keep_answers(folder / "config.json")  # no folder can be made there
    check_checkpoint(folder, param="model4")


def test_a_folder_of_very_many_files_is_always_looked_at(folder, asked, monkeypatch):
    monkeypatch.setattr(kept_answers, "MAX_ENTRIES", 3)
    check_checkpoint(folder, param="model")
    check_checkpoint(folder, param="model")
    assert len(asked) == 2


def test_more_questions_than_places_are_refused():
    places = limited._Places(1, 0)
    with places, pytest.raises(BusyError, match="try again"), places:
        pass
    with places:
        pass
