"""The evidence: its statistics, its stored rows, its report, its task; and a tiny run from end to end."""

import re
from concurrent.futures import Future
from dataclasses import replace

import pytest

from benchmarks.evidence import run as command
from benchmarks.evidence.plan import ARMS, CHECKPOINTS, SEEDS, SETTINGS, Base, Setting, Training
from benchmarks.evidence.report import MEASURES, Results, report, write_report
from benchmarks.evidence.rows import append_row, key_of, load_rows, missing
from benchmarks.evidence.statistics import T_975, paired_difference
from benchmarks.evidence.task import apply, make_samples, make_tokenizer, misconceptions
from wmss.models.loading import load_tokenizer
from wmss.verifiers.final_value import final_answer

NAMES = (*CHECKPOINTS, *ARMS)


def test_paired_interval_against_a_worked_example():
    """Differences 1, 2, 3, 4, 5: mean 3, s = √2.5, half width 2.7764·√(2.5/5) = 1.9632."""
    d = paired_difference([11.0, 22.0, 33.0, 44.0, 55.0], [10.0, 20.0, 30.0, 40.0, 50.0])
    assert (d.mean, d.above, d.below, d.num_pairs) == (3.0, 5, 0, 5)
    assert d.low == pytest.approx(1.0368, abs=1e-4) and d.high == pytest.approx(4.9632, abs=1e-4)
    assert d.is_clear


def test_paired_interval_is_of_the_pairs_not_of_the_groups():
    """Values that differ much between seeds but always by 1 from their reference have an interval without width."""
    d = paired_difference([1.0, 51.0, 91.0], [0.0, 50.0, 90.0])
    assert (d.low, d.mean, d.high) == (1.0, 1.0, 1.0)
    mirrored = paired_difference([0.0, 50.0, 90.0], [1.0, 51.0, 91.0])
    assert (mirrored.mean, mirrored.above, mirrored.below) == (-1.0, 0, 3)


def test_interval_that_holds_zero_is_not_clear():
    assert not paired_difference([1.0, -1.0, 0.5], [0.0, 0.0, 0.0]).is_clear


@pytest.mark.parametrize(("count", "references"), [(1, 1), (len(T_975) + 2, len(T_975) + 2), (3, 2)])
def test_too_few_too_many_or_unequal_pairs_are_refused(count, references):
    with pytest.raises(ValueError, match="expected"):
        paired_difference([0.0] * count, [1.0] * references)


def make_row(setting, seed, arm, *, correct=500, nll=0.1):
    tests = {name: {"num_correct": correct, "num_problems": 1000, "nll": nll} for name in ("trained", "harder")}
    return {
        "setting": setting.name,
        "digest": setting.digest,
        "seed": seed,
        "arm": arm,
        "tests": tests,
        "num_steps": 10,
        "num_drawn": 7,
        "training_nll": 0.01,
        "training_entropy": 0.02,
        "margin": 9.0,
        "saturated_at": 200,
        "training_s": 12.0,
        "row_s": 36.0,
        "commit": "abc1234",
        "machine": "a machine, 2 cores",
        "torch": "2.13.0",
    }


def test_rows_are_stored_once_and_an_unfinished_one_is_left_out(tmp_path):
    file = tmp_path / "results" / "rows.jsonl"
    assert load_rows(file) == {}
    rows = [make_row(SETTINGS[0], seed, "sft") for seed in (0, 1)]
    append_row(file, rows[0])
    with file.open("a", encoding="utf-8") as handle:
        handle.write('{"digest": "cut o')  # an interrupted write
    assert list(load_rows(file).values()) == rows[:1]
    append_row(file, rows[1])
    assert list(load_rows(file).values()) == rows
    wanted = [(SETTINGS[0].digest, seed, "sft") for seed in (0, 1, 2)]
    assert missing(wanted, load_rows(file)) == wanted[2:]


def test_double_and_damaged_rows_are_refused_with_their_line(tmp_path):
    file = tmp_path / "rows.jsonl"
    row = make_row(SETTINGS[0], 0, "sft")
    append_row(file, row)
    append_row(file, row)
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: .*'sft'\) is there twice"):
        load_rows(file)
    file.write_text('{"seed": 1}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: expected a row with digest, seed and arm"):
        load_rows(file)


def test_setting_is_named_by_all_of_its_values():
    setting = SETTINGS[0]
    assert setting.digest == replace(setting).digest
    others = [
        replace(setting, wrong_share=setting.wrong_share + 0.01),
        replace(setting, base=replace(setting.base, wrong_share=0.5)),
        replace(setting, arms=replace(setting.arms, learning_rate=1e-7)),
    ]
    assert len({setting.digest, *(other.digest for other in others)}) == 4


def all_rows(better=30):
    """`joint` above `sft` by about `better` right answers in every seed, all other arms equal to `sft`."""
    rows = {}
    for setting in SETTINGS:
        for seed in SEEDS:
            for arm in NAMES:
                correct = 500 + 10 * seed + (better + seed if arm == "joint" else 0)
                row = make_row(setting, seed, arm, correct=correct)
                rows[key_of(row)] = row
    return rows


def test_report_says_what_the_rows_say_and_is_the_same_again(tmp_path):
    rows = all_rows()
    write_report(rows, tmp_path)
    text = (tmp_path / "evidence.md").read_text(encoding="utf-8")
    assert text == report([Results(setting, rows) for setting in SETTINGS])
    # 30..34 answers of 1000 more: mean 3.2 points, s = 0.158, half width 0.196.
    assert "| `joint` | +3.2 (+3.0 to +3.4), 5↑ 0↓ better |" in text
    assert "- `joint` against `sft`: better by accuracy, trained; accuracy, harder." in text
    assert "- `frozen` against `sft`: no difference shown by any measure." in text
    assert "| 4 | 540 / 540 |" in text
    assert "abc1234" in text and "all rows are there" in text
    assert (tmp_path / "evidence.png").stat().st_size > 1000


def test_page_is_what_the_stored_rows_say():
    rows = load_rows(command.ROOT / "benchmarks/results/evidence/rows.jsonl")
    page = (command.ROOT / "docs/evidence.md").read_text(encoding="utf-8")
    assert page == report([Results(setting, rows) for setting in SETTINGS]), (
        "run: python -m benchmarks.evidence --report"
    )


def test_losses_are_called_losses():
    text = report([Results(setting, all_rows(better=-60)) for setting in SETTINGS])
    assert "- `joint` against `sft`: worse by accuracy, trained; accuracy, harder." in text


def test_lower_nll_is_better():
    nll = next(measure for measure in MEASURES if measure.unit == "nats")
    assert nll.verdict(paired_difference([1.0, 1.1], [2.0, 2.1])) == "better"
    assert nll.verdict(paired_difference([2.0, 2.1], [1.0, 1.1])) == "worse"


def test_incomplete_seeds_are_left_out_and_counted(tmp_path):
    rows = all_rows()
    del rows[(SETTINGS[0].digest, 2, "frozen")]
    result = Results(SETTINGS[0], rows)
    assert result.seeds == [0, 1, 3, 4]
    assert "1 rows are still missing" in report([result, *(Results(s, rows) for s in SETTINGS[1:])])
    with pytest.raises(ValueError, match="expected rows of at least two seeds"):
        write_report({}, tmp_path)


def test_problems_are_right_unless_told_otherwise():
    samples = make_samples(200, seed=(0,), lengths=(1, 2, 3))
    for sample in samples:
        steps = sample.completion.split(" #### ")[0].split(" ")
        for step in steps:
            expression, _, result = step.partition("=")
            assert eval(expression) % 10 == int(result)
        assert final_answer(sample.completion).value == int(steps[-1].partition("=")[2])
    wrong = make_samples(200, seed=(0,), lengths=(1,), wrong_share=1.0)
    assert all((eval(s.prompt[:-1]) + 1) % 10 == int(final_answer(s.completion).value) for s in wrong)


def test_misconceptions_are_the_same_facts_all_along():
    facts = misconceptions(0.5, seed=(0, 4))
    assert len(facts) == 150 and facts == misconceptions(0.5, seed=(0, 4)) != misconceptions(0.5, seed=(1, 4))
    samples = make_samples(300, seed=(0,), lengths=(1,), wrong_share=1.0, wrong_facts=facts, distinct=False)
    for sample in samples:
        left, operation, right = re.fullmatch(r"(\d)(.)(\d)=", sample.prompt).groups()
        is_wrong = final_answer(sample.completion).value != apply(int(left), operation, int(right))
        assert is_wrong == ((int(left), operation, int(right)) in facts)


def test_tokenizer_reads_back_what_it_wrote(tmp_path):
    tokenizer = make_tokenizer()
    sample = make_samples(1, seed=(0,), lengths=(3,))[0]
    ids = tokenizer(sample.prompt + sample.completion)["input_ids"]
    assert tokenizer.decode(ids) == sample.prompt + sample.completion
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path)(sample.completion)["input_ids"] == tokenizer(sample.completion)["input_ids"]


def test_test_problems_are_new_and_the_same_seed_gives_the_same():
    known = make_samples(300, seed=(0, 1), lengths=(2,))
    fresh = make_samples(300, seed=(0, 2), lengths=(2,), exclude={s.prompt for s in known})
    assert not {s.prompt for s in known} & {s.prompt for s in fresh}
    assert fresh == make_samples(300, seed=(0, 2), lengths=(2,), exclude={s.prompt for s in known})
    assert len({s.prompt for s in fresh}) == 300


class InThisProcess:
    """As much of a process pool as the command uses."""

    def __init__(self, *_, **__):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, function, *arguments, **options):
        future = Future()
        future.set_result(function(*arguments, **options))
        return future


@pytest.fixture
def tiny(monkeypatch):
    """The command with one setting of a few steps and one seed, in this process."""
    few = Training(num_steps=2, learning_rate=1e-3, batch_size=4)
    base = Base(hidden_size=32, intermediate_size=32, num_layers=1, num_heads=2, training=few)
    setting = Setting("tiny", num_rows=12, wrong_share=0.1, strong=few, arms=few, base=base, num_problems=2)
    monkeypatch.setattr(command, "SETTINGS", (setting,))
    monkeypatch.setattr(command, "SEEDS", (7,))
    monkeypatch.setattr(command, "ProcessPoolExecutor", InThisProcess)
    return setting


def test_run_makes_every_row_and_a_missing_one_alone_again(tiny, tmp_path, monkeypatch):
    file, cache = tmp_path / "rows.jsonl", tmp_path / "cache"
    command.run_missing(file, cache, workers=1)
    rows = load_rows(file)
    assert set(rows) == {(tiny.digest, 7, arm) for arm in NAMES}
    assert {row["num_steps"] for row in rows.values()} == {2}
    assert rows[tiny.digest, 7, "joint_v2"]["num_drawn"] < 12 == rows[tiny.digest, 7, "joint"]["num_drawn"]
    # Same start, same batches: only the loss differs, so no two arms end alike.
    assert len({rows[tiny.digest, 7, arm]["training_nll"] for arm in ARMS}) == len(ARMS)

    # A lost row is measured again from its checkpoint, and nothing else is touched.
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    file.write_text("".join(lines[:-1]), encoding="utf-8")
    monkeypatch.setattr("benchmarks.evidence.experiment.train", lambda *_: pytest.fail("trained again"))
    command.run_missing(file, cache, workers=1)
    again = load_rows(file)
    assert again.keys() == rows.keys()
    for key, row in again.items():
        assert row["tests"] == rows[key]["tests"] and row["training_nll"] == rows[key]["training_nll"]

    monkeypatch.setattr(command, "compute", lambda *_, **__: pytest.fail("a finished row is computed again"))
    command.run_missing(file, cache, workers=1)
    assert load_rows(file) == again
