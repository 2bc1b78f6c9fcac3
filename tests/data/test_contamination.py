"""Held-out prompts among training prompts: whole, in 13 words, and the template that all of them share."""

import numpy as np
import pytest

from wmss.data.contamination import SharedPrompt, refuse_shared_prompts, shared_prompts
from wmss.errors import DataError
from wmss.records import Task

TEMPLATE = "Solve the problem below and write nothing but the final value as one whole number, no steps. Problem:"


def tasks(*prompts, start=1):
    return [Task(line=start + i, prompt=prompt) for i, prompt in enumerate(prompts)]


def words(seed, num=30):
    return " ".join(f"w{i}" for i in np.random.default_rng(seed).integers(0, 5000, size=num))


def test_equal_prompts_whatever_their_length_case_and_spaces():
    chat = Task(line=9, messages=({"role": "user", "content": "Two plus"}, {"role": "assistant", "content": "two?"}))
    found = shared_prompts([*tasks("1+1=", "2+2="), chat], tasks("3+3=", " 2+2= ", "two  PLUS two?"))
    assert found == [SharedPrompt(2, 2, "2+2="), SharedPrompt(9, 3, "two plus two?")]


def test_thirteen_words_in_a_row_and_not_twelve():
    one = words(1)
    middle = one.split()[5:18]
    taken, left = f"{words(2, 9)} {' '.join(middle)} {words(3, 9)}", f"{words(2, 9)} {' '.join(middle[:12])} {words(3)}"
    assert shared_prompts(tasks(words(0), one), tasks(taken)) == [SharedPrompt(2, 1, " ".join(middle))]
    assert shared_prompts(tasks(words(0), one), tasks(left)) == []


@pytest.mark.parametrize("num_training", [3, 40, 1000])
def test_a_template_is_no_contamination_and_does_not_hide_any(num_training):
    training = tasks(*(f"{TEMPLATE} {words(i)}" for i in range(num_training)))
    held_out = tasks(*(f"{TEMPLATE} {words(10_000 + i)}" for i in range(20)), f"{TEMPLATE} Now {words(2)}", start=1)
    assert shared_prompts(training, held_out[:-1]) == []
    (found,) = shared_prompts(training, held_out)
    assert (found.training_line, found.held_out_line) == (3, 21)
    assert found.words == " ".join(words(2).split()[:13])


def test_refusal_names_lines_words_and_remedy():
    refuse_shared_prompts(tasks("a"), tasks("b"))
    message = r"validation_file: .* got 1 that are, .*; remove them .*:\n  line 2 and training line 1 share 'a'$"
    with pytest.raises(DataError, match=message):
        refuse_shared_prompts(tasks("a"), tasks("b", "A"))
    many = tasks(*map(str, range(30)))
    with pytest.raises(DataError, match=r"got 30 that are, .*") as caught:
        refuse_shared_prompts(many, many)
    assert len(caught.value.message.splitlines()) == 5
    assert caught.value.message.endswith("\n  and 27 more")
