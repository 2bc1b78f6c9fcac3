"""Files of the shipped tasks: read by the product's own reader, equal for equal seeds, without a shared instance."""

import pytest

from wmss.data.contamination import prompt_text, refuse_shared_prompts
from wmss.data.tasks import read_tasks
from wmss.tasks.files import SHIPPED_TASKS, write_task_files
from wmss.verifiers.final_value import is_verifiable

SIZES = {"num_training": 30, "num_validation": 6, "num_test": 4}


def read(folder, task, **options):
    folder.mkdir()
    training, held_out = write_task_files(folder, task, **(SIZES | {"seed": 1} | options))
    return (
        read_tasks(training, param="training_file"),
        read_tasks(held_out, param="validation_file", held_out=True),
    )


@pytest.mark.parametrize("task", SHIPPED_TASKS)
def test_files_are_what_a_job_takes(tmp_path, task):
    training, held_out = read(tmp_path / "a", task, num_levels=3 if task == "arithmetic" else 4)
    levels = sorted({one.level for one in training})
    assert levels == [1, 2, 3] if task == "arithmetic" else [1, 2, 3, 4]
    for level in levels:
        assert sum(one.level == level for one in training) == 30
        assert [one.split for one in held_out if one.level == level] == ["validation"] * 6 + ["test"] * 4
    prompts = [prompt_text(one) for one in [*training, *held_out]]
    assert len(set(prompts)) == len(prompts)
    refuse_shared_prompts(training, held_out)
    assert all(one.answer for one in training)


@pytest.mark.parametrize("task", SHIPPED_TASKS)
def test_files_depend_on_the_seed_alone_and_held_out_ones_not_on_training(tmp_path, task):
    sizes = {"num_levels": 2}
    one = read(tmp_path / "a", task, **sizes)
    assert one == read(tmp_path / "b", task, **sizes)
    assert one != read(tmp_path / "c", task, **sizes, seed=2)
    assert one[1] == read(tmp_path / "d", task, **sizes, num_training=50)[1]


def test_arithmetic_has_steps_by_level_and_a_final_value(tmp_path):
    training, _ = read(tmp_path / "a", "arithmetic")
    for one in training:
        assert one.answer is not None
        assert is_verifiable(one.answer)
        assert one.answer.count("=") == {1: 1, 2: 2, 3: 4, 4: 6}[one.level]


def test_a_level_with_too_few_instances_is_refused(tmp_path):
    with pytest.raises(ValueError, match="arithmetic: expected 500 more instances of level 1, found"):
        write_task_files(tmp_path, "arithmetic", seed=0, num_training=500, num_validation=1)
    assert not list(tmp_path.iterdir())
