"""Every chat template that the installed TRL ships, with a small tokenizer: what trains, what is refused and why."""

import pytest

from tests.data.small_tokenizers import byte_level
from tests.data.trl_templates import TEMPLATES, add_markup, check_template


@pytest.fixture(scope="module")
def tokenizer():
    return add_markup(byte_level())


@pytest.mark.skipif(not TEMPLATES, reason="TRL, whose templates are read here, is not installed")
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_row_trains_or_is_refused_for_the_true_cause(name, tokenizer):
    check_template(name, tokenizer)
