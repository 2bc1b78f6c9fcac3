"""Runs what is missing, a row per (setting, seed, arm), in a few processes of one thread each."""

import multiprocessing
import os
import platform
import subprocess
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch
from transformers.utils.logging import disable_progress_bar

from benchmarks.evidence.experiment import Experiment
from benchmarks.evidence.plan import ARMS, CHECKPOINTS, SEEDS, SETTINGS
from benchmarks.evidence.rows import Key, Row, append_row, load_rows, missing

ROOT = Path(__file__).resolve().parents[2]


def run_missing(file: Path, cache: Path, *, workers: int) -> None:
    """Compute and store every row that is not there, in `workers` processes."""
    wanted = [(setting.digest, seed, arm) for setting in SETTINGS for seed in SEEDS for arm in (*CHECKPOINTS, *ARMS)]
    keys = missing(wanted, load_rows(file))
    # Every arm starts from M0 and M1 of its seed. One task makes them in all settings, so that they are made once.
    of_seed = {seed: [key for key in keys if key[1] == seed] for seed in SEEDS}
    stamp = {"commit": commit(), "machine": machine(), "torch": torch.__version__}
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        checkpoints = [pool.submit(compute, of_seed[seed], cache, only=CHECKPOINTS) for seed in SEEDS if of_seed[seed]]
        for done in as_completed(checkpoints):
            store(file, done.result(), stamp)
        arms = [pool.submit(compute, [key], cache, only=tuple(ARMS)) for key in keys if key[2] in ARMS]
        for done in as_completed(arms):
            store(file, done.result(), stamp)


def compute(keys: list[Key], cache: Path, *, only: tuple[str, ...]) -> list[Row]:
    """Rows of those of `keys` whose arm is in `only`; M0 and M1 are made for all of them."""
    torch.set_num_threads(1)
    disable_progress_bar()
    settings = {setting.digest: setting for setting in SETTINGS}
    rows = []
    for digest, seed in sorted({key[:2] for key in keys}):
        experiment = Experiment(settings[digest], seed, cache)
        experiment.trained("strong")
        for arm in [key[2] for key in keys if key[:2] == (digest, seed) and key[2] in only]:
            started = time.perf_counter()
            rows.append(experiment.row(arm) | {"row_s": round(time.perf_counter() - started, 1)})
    return rows


def store(file: Path, rows: list[Row], stamp: Row) -> None:
    """Append finished rows, each with the commit and the machine it was made with."""
    for row in rows:
        append_row(file, row | stamp)
        accuracy = {name: f"{100 * t['num_correct'] / t['num_problems']:.1f}" for name, t in row["tests"].items()}
        print(f"{time.strftime('%H:%M:%S')} {row['setting']} seed {row['seed']} {row['arm']}: {accuracy} %", flush=True)


def commit() -> str:
    """The checked-out commit, with a mark where files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def machine() -> str:
    """Processor and number of cores."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if platform.system() == "Linux" else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"
