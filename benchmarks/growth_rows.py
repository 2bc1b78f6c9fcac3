"""What a file costs before and after training, at a thousand, ten thousand and a hundred thousand rows.

And the encoding of a chat of 20, 80 and 200 turns. Both are to grow in proportion.

Each repetition of a size runs in a process of its own: upload's check, dry run, tokens as `validate` leaves them, draw
from made scores, and the pages of that draw, all of them one after the other. Seconds are CPU seconds of that process;
memory is the most it ever held. Sizes take turns.

python -m benchmarks.growth_rows
"""

import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import REPETITIONS, GateError, Line, Target, interleave, line, log_slope, print_lines
from benchmarks.models import Shape, make_model
from benchmarks.scaling_samples import peak_mib
from services.results.draws import select, texts
from wmss.config import WmssConfig, parse_job
from wmss.data.dataset import Sample, read_samples
from wmss.data.line_index import samples_at
from wmss.data.rendering import Renderer
from wmss.data.tasks import check_rows
from wmss.data.tokenization import load_tokenized, save_tokenized, tokenize_samples
from wmss.models.loading import load_tokenizer
from wmss.rounds.before import dry_run
from wmss.rounds.before.report import Machine
from wmss.rounds.weighing import Pair, draw_samples, save_draw, weighed
from wmss.scoring.tables import EntropyTable
from wmss.tasks.base_model import make_tokenizer

SHAPE = Shape(vocabulary=512, width=32, layers=2)
SIZES = (1_000, 10_000, 100_000)
TURNS = (20, 80, 200)
WORDS = (
    "the",
    "model",
    "answers",
    "each",
    "question",
    "with",
    "a",
    "number",
    "and",
    "short",
    "reasons",
    "about",
    "trains",
)
WORDS_A_TEXT = 6
MAX_LENGTH = 256
PAGE, WARM_ROWS = 100, 200
SLOPE = Target("growth with rows", at_most=1.05, aim=1.0)
TURNS_SLOPE = Target("growth with turns", at_most=1.05, aim=1.0)
STAGES = ("upload", "check", "validate", "weigh", "pages by line", "pages by weight")


def run(
    *, sizes: tuple[int, ...] = SIZES, turns: tuple[int, ...] = TURNS, repetitions: int = REPETITIONS
) -> Iterator[Line]:
    """Chats of `turns`, then every size `repetitions` times. A slope is that between the two largest."""
    yield from _turns(turns, repetitions)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_model(SHAPE, seed=0, attention="sdpa").save_pretrained(folder / "model")
        make_tokenizer().save_pretrained(folder / "model")
        for name, size in [("warm", WARM_ROWS), *((str(size), size) for size in sizes)]:
            _write_rows(folder / f"{name}.jsonl", size)
        seconds: dict[tuple[int, str], list[float]] = {(size, stage): [] for size in sizes for stage in STAGES}
        peaks: dict[int, list[float]] = {size: [] for size in sizes}
        for _ in range(repetitions):
            for size in sizes:
                taken, peak = _in_process(folder, size)
                peaks[size].append(peak)
                for stage in STAGES:
                    seconds[size, stage].append(taken[stage])
    for stage in STAGES:
        for size in sizes:
            last = {"slope": log_slope(sizes[-2:], [min(seconds[each, stage]) for each in sizes[-2:]])}
            yield line(
                "growth_rows",
                f"{stage}, {size} rows",
                {"words a text": WORDS_A_TEXT, "vocabulary": SHAPE.vocabulary},
                seconds=seconds[size, stage],
                figures={"ms_a_row": 1e3 * min(seconds[size, stage]) / size} | (last if size == sizes[-1] else {}),
                targets={"slope": SLOPE} if size == sizes[-1] else {},
            )
    for size in sizes:
        yield line(
            "growth_rows",
            f"memory, {size} rows",
            {"words a text": WORDS_A_TEXT},
            figures={"process_mib": min(peaks[size]), "mib_more": min(peaks[size]) - min(peaks[sizes[0]])},
        )


def _turns(turns: tuple[int, ...], repetitions: int) -> Iterator[Line]:
    renderer = Renderer(make_tokenizer())
    rows = {number: [_chat(number, seed) for seed in range(2000 // number + 1)] for number in turns}

    def encode(number: int) -> Callable[[], object]:
        return lambda: [renderer.sample(row) for row in rows[number]]

    seconds = interleave({number: encode(number) for number in turns}, repetitions=repetitions)
    ms_a_turn = {number: 1e3 * min(seconds[number]) / len(rows[number]) / number for number in turns}
    slope = log_slope(turns[:1] + turns[-1:], [ms_a_turn[number] * number for number in turns[:1] + turns[-1:]])
    for number in turns:
        last = number == turns[-1]
        yield line(
            "growth_rows",
            f"a chat of {number} turns",
            {"words a text": WORDS_A_TEXT},
            seconds=[each / len(rows[number]) for each in seconds[number]],
            figures={"ms_a_turn": ms_a_turn[number]} | ({"slope": slope} if last else {}),
            targets={"slope": TURNS_SLOPE} if last else {},
        )


def _chat(num_turns: int, seed: int) -> Sample:
    words = np.random.default_rng(seed).choice(WORDS, (num_turns, WORDS_A_TEXT))
    messages = [
        {"role": ("user", "assistant")[number % 2], "content": " ".join(text)} for number, text in enumerate(words)
    ]
    return Sample(line=1, messages=tuple(messages))


def _write_rows(file: Path, size: int) -> None:
    with file.open("w", encoding="utf-8") as rows:
        for seed in range(size):
            rows.write(json.dumps({"messages": _chat(2, seed).messages}) + "\n")


def _in_process(folder: Path, size: int) -> tuple[dict[str, float], float]:
    """CPU seconds of every stage, and MiB."""
    here, there = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_work, args=(folder, size, there))
    process.start()
    there.close()
    try:
        taken, peak = here.recv()
    except EOFError:
        raise GateError(f"growth_rows: the process for {size} rows died") from None
    finally:
        process.join()
    return taken, peak


def _work(folder: Path, size: int, answer: Connection) -> None:
    # What is taken once, when libraries and tokenizer are first used, belongs to no size.
    _stages(folder, folder / "warm.jsonl")
    answer.send((_stages(folder, folder / f"{size}.jsonl"), peak_mib()))


def _stages(folder: Path, file: Path) -> dict[str, float]:
    """Seconds of each stage for one file."""
    tokens, table = file.with_suffix(".tokens"), file.with_suffix(".parquet")
    stages: dict[str, Callable[[], object]] = {
        "upload": lambda: check_rows(file, param="file", name=file.name),
        "check": lambda: _check(folder / "model", file),
        "validate": lambda: _validate(folder / "model", file, tokens),
        "weigh": lambda: _weigh(tokens, table),
        "pages by line": lambda: _pages(file, table, "line"),
        "pages by weight": lambda: _pages(file, table, "-weight"),
    }
    seconds = {}
    for name, stage in stages.items():
        started = time.process_time()
        stage()
        seconds[name] = time.process_time() - started
    return seconds


def _check(model: Path, file: Path) -> None:
    """What a dry run does in its own process."""
    spec = parse_job({"model": "m", "training_file": "f", "method": {"type": "wmss", "wmss": {}}})
    machine = Machine(on_gpu=False, num_threads=1, num_cores=1, kv_cache_bytes=2**30)
    said = dry_run.answer(
        spec=spec.model_dump(mode="json"),
        models={"model": str(model)},
        sound={"model": str(model)},
        files={"training_file": str(file)},
        file_names={},
        named=(),
        found=(),
        judged=(),
        machine=machine.model_dump(mode="json"),
    )
    if not said["valid"]:
        raise GateError(f"growth_rows: the rows are refused: {said['problems']}")


def _validate(model: Path, file: Path, tokens: Path) -> None:
    samples = read_samples(file)
    tokenized, _ = tokenize_samples(samples, load_tokenizer(model), max_length=MAX_LENGTH, source=file.name)
    save_tokenized(tokenized, tokens)


def _weigh(tokens: Path, table: Path) -> None:
    samples, wmss = load_tokenized(tokens), WmssConfig()
    rng = np.random.default_rng(0)
    weak = rng.gamma(4.0, 0.13, len(samples))
    strong = np.maximum(weak + rng.normal(-0.08, 0.07, len(samples)), 0.0)
    counts = np.array([sample.num_targets for sample in samples], dtype=np.int32)
    lines = np.array([sample.line for sample in samples], dtype=np.int32)
    made: dict[str, Any] = {"engine": "made"}
    pair = Pair(*(EntropyTable(lines, counts, each, each, np.ones_like(each), made) for each in (weak, strong)))
    drawn = draw_samples(wmss, len(samples), pair, seed=0)
    save_draw(drawn, samples, pair, table, origin={})
    weighed(wmss, drawn, pair, table=table).model_dump_json()


def _pages(file: Path, table: Path, sort: str) -> None:
    """Every page with its texts, as the API makes them."""
    found, after, more = 0, None, True
    while more:
        page = select(table, sort=sort, filters=(), after=after, limit=PAGE)
        at = samples_at(file, {row["line"] for row in page.rows})
        found += len([texts(at[row["line"]], full=False) for row in page.rows])
        after, more = page.rows[-1]["id"], page.more
    if found != page.total:
        raise GateError(f"growth_rows: pages by {sort} show {found} of {page.total} rows")


if __name__ == "__main__":
    print_lines(run())
