"""Ids are told apart by their prefixes, and each kind by its own form."""

import re

import pytest

from wmss import ids


def test_new_ids_differ_and_have_the_prefix_and_24_digits():
    first, second = ids.new_id(ids.JOB), ids.new_id(ids.JOB)
    assert first != second
    assert re.fullmatch("ftjob-[0-9a-f]{24}", first)


def test_kinds_are_recognised():
    assert ids.is_job(ids.new_id(ids.JOB)) and not ids.is_job(ids.new_id(ids.SCORES)) and not ids.is_job("ftjobs")
    assert ids.is_scores(ids.new_id(ids.SCORES)) and not ids.is_scores(ids.new_id(ids.JOB))
    assert ids.is_checkpoint(ids.new_id(ids.CHECKPOINT))
    assert not ids.is_checkpoint("weak-points") and not ids.is_checkpoint(ids.new_id(ids.CHECKPOINT) + "0")


def test_prefixes_are_distinct_in_the_form_they_are_recognised_by():
    prefixes = [value for name, value in vars(ids).items() if name.isupper() and not name.startswith("_")]
    assert len(prefixes) == len(set(prefixes))


@pytest.mark.parametrize("event", ["ftevent-", "ftevent-1a", "file-1", "ftevent--1", "ftevent-" + "9" * 19, "7"])
def test_what_is_no_event_has_no_number(event):
    assert ids.event_number(event) is None


def test_events_are_counted():
    assert ids.event_number(ids.event_id(41)) == 41


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("Qwen3-0.6B", "ft:Qwen3-0.6B::ftjob-a"),
        ("org/name", "ft:name::ftjob-a"),
        ("hf:tiny", "ft:hf-tiny::ftjob-a"),
        ("ft:base:mine:ftjob-b", "ft:base::ftjob-a"),
    ],
)
def test_the_base_of_a_result_is_the_first_of_its_line(model, name):
    assert ids.fine_tuned_name(model, None, "ftjob-a") == name
    assert ids.is_fine_tuned(name)


def test_the_suffix_is_part_of_the_name():
    assert ids.fine_tuned_name("m", "v2", "ftjob-a") == "ft:m:v2:ftjob-a"


def test_an_attempt_has_a_ray_job_of_its_own():
    assert ids.submission_id("ftjob-a", 3) == "ftjob-a-3"
