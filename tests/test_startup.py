"""Imports without garbage collection: what is made meanwhile is never collected, and collection goes on afterwards."""

import gc

import pytest

from wmss.startup import quick_imports


def test_nothing_is_collected_meanwhile_and_what_was_made_is_left_out_afterwards():
    frozen = gc.get_freeze_count()
    with quick_imports():
        assert not gc.isenabled()
        made = [[] for _ in range(1000)]
    assert gc.isenabled()
    assert gc.get_freeze_count() >= frozen + len(made)


def test_an_import_that_fails_leaves_collection_as_it_was():
    with pytest.raises(ImportError), quick_imports():
        import wmss.nothing  # noqa: F401
    assert gc.isenabled()


def test_who_has_no_collection_does_not_get_it():
    gc.disable()
    try:
        with quick_imports():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
