"""Every mutation still finds its text, and, among the long tests, is seen by a test."""

import pytest

from tests.mutations import MUTATIONS, ROOT, mutated, survivors


@pytest.mark.parametrize("change", MUTATIONS, ids=lambda change: change.name)
def test_mutation_finds_its_text_and_leaves_python(change):
    source = (ROOT / change.file).read_text(encoding="utf-8")
    changed = mutated(source, change)
    assert changed != source
    compile(changed, change.file, "exec")
    assert all((ROOT / test.split("::")[0]).exists() for test in change.tests)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_mutation_is_seen():
    assert survivors(MUTATIONS) == []
