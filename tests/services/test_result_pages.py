"""Pages of tables with many row groups: the same rows as from the whole table, and no more is read than is shown."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from services.jobs.store import UnknownCursorError
from services.results import draws, rollouts
from services.results.draws import Filter
from services.results.kept import Kept

NUM_ROWS, ROWS_A_GROUP = 95, 10


@pytest.fixture
def read(monkeypatch):
    """The row groups that are read, and whole tables."""
    seen = []
    read_row_group, read_table = pq.ParquetFile.read_row_group, pq.read_table
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_group", lambda self, i, **k: seen.append(i) or read_row_group(self, i, **k)
    )
    monkeypatch.setattr(pq, "read_table", lambda *a, **k: seen.append("all") or read_table(*a, **k))
    return seen


def write_draw(path, lines, **options):
    columns = {"line": lines, "num_targets": [3] * len(lines), "weight": [1 / line for line in lines]}
    pq.write_table(pa.table(columns | {"times_drawn": [line % 4 for line in lines]}), path, **options)
    return path


def pages(select, **query):
    """Ids of all pages, one after the other."""
    ids, after = [], None
    while True:
        page = select(after=after, limit=7, **query)
        ids += [row["id"] for row in page.rows]
        assert page.more == (len(ids) < page.total)
        if not page.more:
            return ids
        after = ids[-1]


def draw_pages(file, *, sort="line", filters=()):
    return pages(lambda **query: draws.select(file, sort=sort, filters=filters, **query))


@pytest.mark.parametrize(
    ("lines", "options"),
    [
        (list(range(3, 3 + 2 * NUM_ROWS, 2)), {"row_group_size": ROWS_A_GROUP}),
        (list(range(3, 3 + 2 * NUM_ROWS, 2)), {}),
        (list(range(3, 3 + 2 * NUM_ROWS, 2)), {"row_group_size": ROWS_A_GROUP, "write_statistics": False}),
        (list(range(1, NUM_ROWS + 1))[::-1], {"row_group_size": ROWS_A_GROUP}),
        ([5, 3, 4, 1, 2, 19, 18, 17, 16, 15], {"row_group_size": 5}),
        ([5], {}),
    ],
    ids=["groups", "one group", "no statistics", "falling", "no order in groups", "one row"],
)
def test_pages_of_a_draw_are_its_rows_in_order(tmp_path, lines, options):
    file = write_draw(tmp_path / "draw.parquet", lines, **options)
    expected = [f"sample-{line}" for line in sorted(lines)]
    assert draw_pages(file) == expected
    assert draw_pages(file, sort="weight") == expected[::-1]
    odd = Filter("times_drawn", 1, 1)
    assert draw_pages(file, sort="-line", filters=[odd]) == [f"sample-{n}" for n in sorted(lines)[::-1] if n % 4 == 1]
    for after in (f"sample-{max(lines) + 1}", "sample-0", "sample-x", "5"):
        with pytest.raises(UnknownCursorError):
            draws.select(file, sort="line", filters=(), after=after, limit=7)
        with pytest.raises(UnknownCursorError):
            draws.select(file, sort="weight", filters=(), after=after, limit=7)


def test_an_empty_draw(tmp_path):
    page = draws.select(write_draw(tmp_path / "draw.parquet", []), sort="line", filters=(), after=None, limit=7)
    assert (page.rows, page.total, page.more) == ([], 0, False)


def test_a_page_of_a_draw_reads_the_row_groups_that_it_shows(tmp_path, read):
    file = write_draw(tmp_path / "draw.parquet", list(range(1, NUM_ROWS + 1)), row_group_size=ROWS_A_GROUP)
    draws.select(file, sort="line", filters=(), after="sample-44", limit=7)
    assert read == [4, 4, 5]  # the cursor's place, and rows 45 to 51
    read.clear()
    draw_pages(file, sort="-weight")
    assert read == ["all"]
    write_draw(file, [1, 2], row_group_size=1)
    assert draw_pages(file, sort="-weight") == ["sample-1", "sample-2"]


def write_rollouts(path):
    columns = {name: [0] * NUM_ROWS for name in rollouts.COLUMNS} | {
        "line": [9 - n // 12 for n in range(NUM_ROWS)],  # in the order they were asked for, not that of lines
        "sample": [n % 12 for n in range(NUM_ROWS)],
        "label": ["correct" if n % 5 else "wrong" for n in range(NUM_ROWS)],
        "token_ids": [[n] for n in range(NUM_ROWS)],
    }
    pq.write_table(pa.table(columns), path, row_group_size=ROWS_A_GROUP)
    return path


def test_pages_of_rollouts_are_those_asked_for_in_order(tmp_path, read):
    file = write_rollouts(tmp_path / "judged.parquet")
    ids = [f"rollout-{9 - n // 12}-{n % 12}" for n in range(NUM_ROWS)]
    select = lambda **query: rollouts.select(file, **query)  # noqa: E731
    assert pages(select, equal={}) == ids
    assert read.count("all") == 1
    assert pages(select, equal={"label": "wrong"}) == ids[::5]
    assert pages(select, equal={"line": 7, "label": "correct"}) == [
        each for n, each in enumerate(ids[24:36], 24) if n % 5
    ]
    assert pages(select, equal={"line": 99}) == []
    read.clear()
    page = rollouts.select(file, equal={}, after=ids[44], limit=7)
    assert read == [4, 5] and list(page.rows[0]) == ["id", *rollouts.COLUMNS]
    for after in ("rollout-9-99", "rollout-09-1", f"rollout-{2**32}-1", "rollout-9", "rollout-9-1-1"):
        with pytest.raises(UnknownCursorError):
            rollouts.select(file, equal={}, after=after, limit=7)
    with pytest.raises(UnknownCursorError):
        rollouts.select(file, equal={"label": "wrong"}, after=ids[1], limit=7)


def test_what_was_used_last_is_kept_within_its_bytes(tmp_path):
    file, made = tmp_path / "f", []
    file.touch()
    kept = Kept(max_bytes=10)
    ask = lambda key, size: kept.of(file, key, lambda: made.append(key) or key, lambda _: size)  # noqa: E731
    for key, size in (("a", 4), ("b", 4), ("a", 4), ("c", 4), ("a", 4), ("b", 4), ("big", 11), ("big", 11), ("b", 4)):
        assert ask(key, size) == key
    assert made == ["a", "b", "c", "b", "big", "big"]
    file.write_text("other")
    ask("b", 4)
    assert made[-1] == "b"
