"""The draw of a job, explained sample by sample: order, filters, pages, texts, download, and jobs without one."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from openai import BadRequestError

from services.api.samples import SampleQuery
from services.jobs.fence import Fence
from services.jobs.states import State
from services.jobs.store import Store
from services.results.draws import COLUMNS
from services.settings import Settings
from tests.services.requests import problem, upload
from wmss.config import parse_job

NUM_SAMPLES = 30
ENTROPIES = ("weak_entropy", "strong_entropy", "entropy_delta", "weak_nll", "strong_nll")


def make_rows():
    """A file whose every third line is blank, so that lines are not positions; weights come in threes."""
    rows, lines = [], []
    for number in range(NUM_SAMPLES):
        question, answer = f"{number} + 1 = ?" + " " * 10 + "x" * 200, f"#### {number + 1}"
        chat = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
        row = {"messages": chat} if number % 2 else {"prompt": question, "completion": answer}
        rows.append(json.dumps(row) + "\n")
        lines.append(number + number // 2 + 1)
        if number % 2:
            rows.append("\n")
    return "".join(rows).encode(), lines


def make_table(lines):
    random = np.random.default_rng(1)
    weak, strong = random.uniform(0, 3, NUM_SAMPLES), random.uniform(0, 3, NUM_SAMPLES)
    weight = np.repeat(np.arange(1, 11), 3).astype(float)
    return {
        "line": lines,
        "num_targets": random.integers(1, 9, NUM_SAMPLES),
        "weight": weight / weight.sum(),
        "times_drawn": np.arange(NUM_SAMPLES) % 4,
        "weak_entropy": weak,
        "strong_entropy": strong,
        "entropy_delta": strong - weak,
        "weak_nll": random.uniform(0, 3, NUM_SAMPLES),
        "strong_nll": random.uniform(0, 3, NUM_SAMPLES),
    }


@pytest.fixture
def settings(tmp_path, database_url):
    # The reconcile loop is not to look for the drivers that these tests pretend to be.
    return Settings(home=tmp_path, database_url=database_url, reconcile_s=3600)


@pytest.fixture
def api(serve, settings):
    with serve(settings) as client:
        yield client


@pytest.fixture
def file(api):
    return upload(api, make_rows()[0]).json()["id"]


@pytest.fixture
def add_job(settings, file):
    """Makes a job whose driver has begun; returns its id and the driver's hand on it."""
    store = Store(settings.database)

    def add(name, **method):
        method = method or {"type": "wmss", "wmss": {"rounds": 2}}
        spec = parse_job({"model": "m", "training_file": file, "method": method}).model_dump(mode="json")
        job = store.create_job(name, spec=spec, paths={}, fine_tuned_model=name, request_digest=name)
        return name, Fence(store, name, store.claim(job, message="Starting"), lease_s=300)

    yield add
    store.close()


@pytest.fixture
def draw(settings, add_job):
    """Makes a job that has drawn these columns in its first round."""

    def make(columns, name="ftjob-1"):
        job, fence = add_job(name)
        table = settings.job_folder(job) / "curriculum.parquet"
        table.parent.mkdir(parents=True)
        pq.write_table(pa.table(columns, metadata={"wmss": json.dumps({"round": 1})}), table)
        fence.start_phase("weigh")
        draw = {"num_unique": 0, "num_duplicates": 0, "effective_sample_size": 1.0, "largest_share": 1.0}
        fence.finish_phase("weigh", {"table": str(table), "indices": [], **draw})
        return job, fence

    return make


@pytest.fixture
def job(draw):
    return draw(make_table(make_rows()[1]))[0]


def ask(api, job, **query):
    return api.get(f"/v1/fine_tuning/jobs/{job}/samples", params=query)


def lines_of(api, job, **query):
    response = ask(api, job, limit=100, **query)
    assert response.status_code == 200, response.text
    assert response.json()["total"] == len(response.json()["data"])
    return [row["line"] for row in response.json()["data"]]


def test_a_sample_says_what_decided_over_it(api, job):
    page = ask(api, job).json()
    assert (page["object"], page["total"], page["has_more"], page["round"]) == ("list", NUM_SAMPLES, True, 1)
    assert [row["line"] for row in page["data"]] == make_rows()[1][:20]
    table = make_table(make_rows()[1])
    for index, row in enumerate(page["data"]):
        assert row["id"] == f"sample-{row['line']}"
        assert {name: row[name] for name in COLUMNS} == {name: table[name][index] for name in COLUMNS}
        assert row["entropy_delta"] == row["strong_entropy"] - row["weak_entropy"]


@pytest.mark.parametrize("column", COLUMNS)
def test_every_column_sorts_both_ways_with_ties_in_file_order(api, job, column):
    table = make_table(make_rows()[1])
    rising = sorted(range(NUM_SAMPLES), key=lambda i: (table[column][i], table["line"][i]))
    falling = sorted(range(NUM_SAMPLES), key=lambda i: (-table[column][i], table["line"][i]))
    assert lines_of(api, job, sort=column) == [table["line"][i] for i in rising]
    assert lines_of(api, job, sort=f"-{column}") == [table["line"][i] for i in falling]


@pytest.mark.parametrize("column", [name for name in COLUMNS if name != "line"])
def test_every_column_is_filtered_by_both_ends(api, job, column):
    table = make_table(make_rows()[1])
    values = np.asarray(table[column])
    low, high = np.sort(values)[[5, 20]]
    kept = (values >= low) & (values <= high)
    assert 0 < kept.sum() < NUM_SAMPLES
    found = lines_of(api, job, **{f"min_{column}": repr(float(low)), f"max_{column}": repr(float(high))})
    assert found == np.asarray(table["line"])[kept].tolist()


def test_every_column_can_be_filtered():
    names = {f"{end}_{column}" for end in ("min", "max") for column in COLUMNS if column != "line"}
    assert names <= set(SampleQuery.model_fields)


def test_samples_never_drawn_and_one_line(api, job):
    table = make_table(make_rows()[1])
    never = [line for line, times in zip(table["line"], table["times_drawn"], strict=True) if times == 0]
    assert lines_of(api, job, times_drawn=0) == never
    assert lines_of(api, job, line=4) == [4]
    assert lines_of(api, job, line=3) == []  # a blank line
    assert lines_of(api, job, times_drawn=0, min_entropy_delta=99) == []


@pytest.mark.parametrize("sort", ["-weight", "times_drawn", "line"])
def test_pages_put_together_are_the_whole(api, job, sort):
    whole = lines_of(api, job, sort=sort, max_times_drawn=2)
    found, after = [], None
    while True:
        query = {"sort": sort, "limit": 7, "max_times_drawn": 2} | ({"after": after} if after else {})
        page = ask(api, job, **query).json()
        assert page["total"] == len(whole)
        found += [row["line"] for row in page["data"]]
        after = page["data"][-1]["id"]
        if not page["has_more"]:
            break
    assert found == whole


def test_texts_are_shortened_unless_all_is_asked_for(api, job):
    completion, chat = ask(api, job, limit=2).json()["data"]
    assert (len(completion["prompt"]), completion["completion"], completion["shortened"]) == (200, "#### 1", True)
    assert chat["prompt"].startswith("system: Be brief.\nuser: 1 + 1 = ?")
    assert chat["completion"] == "#### 2"
    full = ask(api, job, limit=2, text="full").json()["data"]
    assert full[0]["prompt"] == "0 + 1 = ?" + " " * 10 + "x" * 200
    assert not any(row["shortened"] for row in full)
    silent = ask(api, job, limit=2, text="none").json()["data"]
    assert {(row["prompt"], row["completion"], row["shortened"]) for row in silent} == {(None, None, None)}


def test_the_numbers_outlive_the_file(api, draw, file):
    job, fence = draw(make_table(make_rows()[1]))
    fence.end(State.SUCCEEDED, error=None, message="done", trained_tokens=1)
    assert api.delete(f"/v1/files/{file}").status_code == 200
    row = ask(api, job).json()["data"][0]
    assert row["weight"] > 0
    assert (row["prompt"], row["shortened"]) == (None, None)


def test_the_whole_table_can_be_downloaded(api, job, tmp_path):
    response = api.get(f"/v1/fine_tuning/jobs/{job}/samples/download")
    assert response.status_code == 200
    assert f"{job}-curriculum.parquet" in response.headers["content-disposition"]
    (tmp_path / "got.parquet").write_bytes(response.content)
    got = pq.read_table(tmp_path / "got.parquet")
    table = make_table(make_rows()[1])
    assert {name: got[name].to_pylist() for name in COLUMNS} == {name: list(table[name]) for name in COLUMNS}
    assert json.loads(got.schema.metadata[b"wmss"]) == {"round": 1}


def test_a_draw_without_entropies_has_the_rest(api, draw):
    columns = {name: values for name, values in make_table(make_rows()[1]).items() if name not in ENTROPIES}
    job, _ = draw(columns)
    row = ask(api, job, sort="-times_drawn").json()["data"][0]
    assert (row["times_drawn"], row["weak_entropy"], row["entropy_delta"]) == (3, None, None)
    for query in ({"sort": "weak_nll"}, {"min_weak_nll": 0}):
        error = problem(ask(api, job, **query), 400)
        assert (error["code"], error["param"]) == ("no_entropies", "weak_nll")


@pytest.mark.parametrize(
    ("query", "param", "message"),
    [
        ({"sort": "colour"}, "sort", "expected one of line, num_targets"),
        ({"sort": "--line"}, "sort", "expected one of"),
        ({"after": "sample-3"}, "after", "the id of an item of this list"),
        ({"after": "4"}, "after", "the id of an item of this list"),
        ({"after": "sample-" + "9" * 30}, "after", "the id of an item of this list"),
        ({"limit": 0}, "limit", "greater than or equal to 1"),
        ({"limit": 101}, "limit", "less than or equal to 100"),
        ({"min_weight": "nan"}, "min_weight", "finite"),
        ({"min_weight": "much"}, "min_weight", "number"),
        ({"min_colour": 1}, "min_colour", "unknown query parameter"),
        ({"line": 10**30}, "line", "less than"),
        ({"text": "all"}, "text", "'short', 'full' or 'none'"),
        ({"round": 0}, "round", "greater than or equal to 1"),
        ({"weight": [1, 2]}, "weight", "unknown"),
        ({"sort": ["line", "weight"]}, "sort", "given twice"),
    ],
)
def test_questions_that_make_no_sense(api, job, query, param, message):
    error = problem(ask(api, job, **query), 400)
    assert error["param"] == param
    assert message in error["message"]


def test_jobs_without_a_draw(api, add_job, draw, job):
    path = "/v1/fine_tuning/jobs/{}/samples{}"
    supervised, _ = add_job("ftjob-2", type="supervised")
    every, _ = add_job("ftjob-3", type="wmss", wmss={"weighting": "all"})
    waiting, fence = add_job("ftjob-4")
    for ending in ("", "/download"):
        assert "its method is supervised" in problem(api.get(path.format(supervised, ending)), 404)["message"]
        assert "weighting is 'all'" in problem(api.get(path.format(every, ending)), 404)["message"]
        error = problem(api.get(path.format(waiting, ending)), 409)
        assert (error["code"], "/phases" in error["message"]) == ("samples_not_ready", True)
        error = problem(api.get(path.format(job, ending), params={"round": 3}), 404)
        assert (error["param"], "expected 1 to 2, got 3" in error["message"]) == ("round", True)
        assert "phase weigh_2" in problem(api.get(path.format(job, ending), params={"round": 2}), 409)["message"]
        assert problem(api.get(path.format("ftjob-x", ending)), 404)["param"] == "fine_tuning_job_id"
    fence.end(State.FAILED, error={"code": "c", "message": "m", "param": None}, message="m", trained_tokens=None)
    assert "has failed before its phase weigh" in problem(api.get(path.format(waiting, "")), 404)["message"]


def test_a_table_that_was_deleted_by_hand(api, job, settings):
    (settings.job_folder(job) / "curriculum.parquet").unlink()
    assert problem(ask(api, job), 404)["code"] == "not_found"


def test_samples_on_the_terminal(api, job, draw, command):
    table = make_table(make_rows()[1])
    lines = command(api, "samples", job, "--sort", "-times_drawn", "--limit", "2").splitlines()
    first = table["times_drawn"].tolist().index(3)
    figures = [f"{table[name][first]:.4f}" for name in ("weak_entropy", "strong_entropy", "entropy_delta")]
    cells = lines[1].split(maxsplit=6)
    assert cells == [str(table["line"][first]), *figures, f"{table['weight'][first]:.3g}", "3", f"#### {first + 1}"]
    assert lines[-1].strip() == f"2 of {NUM_SAMPLES} samples"
    plain, _ = draw({name: table[name] for name in ("line", "weight", "times_drawn")}, name="ftjob-plain")
    assert "2 of 30 samples" in command(api, "samples", plain, "--limit", "2")
    with pytest.raises(BadRequestError, match="expected one of line"):
        command(api, "samples", job, "--sort", "colour")
