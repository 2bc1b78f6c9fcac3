"""Entropy scores as a product of their own: of a request's checkpoints in turn, or of one file from Python."""

import secrets
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from wmss.choices import DType, EngineChoice, TooLong
from wmss.config import MaxLength, ScoreSpec, parse_scores
from wmss.data.tokenization import load_tokenized, save_tokenized
from wmss.errors import raise_all
from wmss.models.loading import load_tokenizer
from wmss.records import CheckpointDigests
from wmss.rounds import messages
from wmss.rounds.before.figures import file_figures
from wmss.rounds.before.preflight import examine_scores
from wmss.rounds.in_process import PassingJournal, in_process
from wmss.rounds.job import ScoringEngines
from wmss.rounds.journal import Journal, once, required
from wmss.rounds.phase_records import RequestScored, RequestValidated
from wmss.rounds.phases import score_phases
from wmss.rounds.scores.cache import Scores, record_scores
from wmss.scoring.interfaces import Progress
from wmss.scoring.tables import EntropyTable, check_comparable


@dataclass(frozen=True)
class ScoreJob:
    """A request for entropy scores with every name resolved to a path."""

    id: str
    spec: ScoreSpec
    checkpoints: tuple[Path, ...]
    file: Path
    folder: Path
    """Where its tokenized samples lie."""
    cache: Path
    """Where scores are kept that all jobs share."""
    digests: Mapping[str, CheckpointDigests] = field(default_factory=dict)
    """What the folders of registered checkpoints must still hold, by field."""
    file_name: str | None = None
    """What messages call the file; None = its name on disk."""

    @property
    def models(self) -> dict[str, Path]:
        """Its checkpoints by field."""
        return {f"models.{number}": folder for number, folder in enumerate(self.checkpoints)}

    @property
    def samples_file(self) -> Path:
        """Its tokenized samples."""
        return self.folder / "samples.parquet"


def run_scores(job: ScoreJob, engines: ScoringEngines, journal: Journal) -> None:
    """Run all phases of a request, skipping what an earlier attempt finished: `validate`, then one per checkpoint.

    One checkpoint is loaded at a time. Raises a `WmssError` for what the caller can cause.
    """
    phases = score_phases(job.spec)
    done = partial(messages.phase_done, phases)
    validate = partial(_validate, job, engines, journal)
    validated = once(journal, "validate", RequestValidated, validate, done=partial(done, "validate"))
    scores = Scores(engines, cache=job.cache, max_length=validated.max_length, owner=job.id, tell=journal.event)
    scored = [
        once(
            journal,
            phase,
            RequestScored,
            partial(_score, job, scores, journal, phase, checkpoint),
            done=partial(done, phase),
            # Scores of before and after an upgrade of the engines cannot be compared.
            still_valid=lambda record: record.provenance == engines.provenance(),
        )
        for phase, checkpoint in zip(phases[1:], job.checkpoints, strict=True)
    ]
    if len(scored) == 2:
        first, second = (EntropyTable.load(record.table) for record in scored)
        check_comparable(first, second)
        journal.event(messages.entropy_shift(first.entropy, second.entropy, " → ".join(job.spec.models)))


def _validate(job: ScoreJob, engines: ScoringEngines, journal: Journal) -> RequestValidated:
    """Refuse what cannot work before an engine is started; tokenize once for every checkpoint."""
    refusals = partial(engines.refusals, scoring=True)
    found = examine_scores(job.spec, job.models, job.file, job.digests, refusals, name=job.file_name)
    raise_all(found.problems)
    assert found.training is not None and found.max_length is not None
    job.folder.mkdir(parents=True, exist_ok=True)
    save_tokenized(found.training.tokenized, job.samples_file)
    figures = file_figures(found.training, load_tokenizer(job.checkpoints[0]))
    journal.event(messages.file_read("file", figures), data=figures.model_dump())
    return RequestValidated(
        num_samples=figures.num_rows,
        num_tokens=figures.num_tokens,
        num_targets=figures.num_targets,
        num_truncated=figures.num_cut,
        max_length=found.max_length,
    )


def _score(job: ScoreJob, scores: Scores, journal: Journal, phase: str, checkpoint: Path) -> RequestScored:
    """Score the file under one checkpoint."""
    samples = load_tokenized(job.samples_file)
    outcome = scores.score(checkpoint, [samples], partial(journal.progress, phase), tokens=job.spec.tokens)
    table = record_scores(journal, phase, outcome)
    return RequestScored(
        **dict(table),
        tokens=outcome.tokens,
        digest=outcome.digest,
        num_tokens_scored=outcome.num_tokens,
        seconds=outcome.seconds,
    )


def score_file(
    file: str | Path,
    checkpoint: str | Path,
    *,
    engine: EngineChoice = "auto",
    dtype: DType = "float32",
    max_length: MaxLength = "auto",
    too_long: TooLong = "auto",
    tokens: str | Path | None = None,
    cache: str | Path | None = None,
    progress: Progress = lambda done, total: None,
) -> EntropyTable:
    """Exact entropy of every sample of a file under a checkpoint, in this process, without a service.

        import wmss

        weak = wmss.score_file("train.jsonl", "models/base", cache="cache")
        strong = wmss.score_file("train.jsonl", "models/tuned", cache="cache", tokens="tuned-tokens.parquet")
        print(weak.mean_entropy, strong.mean_entropy, (wmss.entropy_change(weak, strong) < 0).mean())

    Args:
        file: JSON lines, as a training file: chat `messages`, or `prompt` and `completion`.
        checkpoint: model folder: config, safetensors, tokenizer with a chat template where rows are chats.
        engine: "vllm"; "torch", which needs nothing else installed but is several times slower; "auto" = vLLM where it
            is installed.
        dtype: precision of the model. Scores of different engines or precisions are not comparable.
        max_length: tokens per sample. "auto" = 4096 or the model's context if shorter.
        too_long: of longer rows, "refuse" refuses the file, "drop" leaves them out, "cut" takes their beginning, or
            leaves out those without a supervised token in it; "auto" = "cut", but such rows refuse the file.
        tokens: parquet file to make, with a row for every supervised token (see `TokenTableWriter`).
        cache: folder in which scores are kept and looked up, e.g. `cache` in the home of a service; None = nowhere.
        progress: called with (samples done, samples in all).

    Returns:
        One row per sample that is not left out, in file order.

    Raises:
        WmssError: the file, the checkpoint or an argument cannot be used; the message says why.
    """
    values = {"file": str(file), "models": [str(checkpoint)], "dtype": dtype, "max_length": max_length}
    values |= {"too_long": too_long}
    spec = parse_scores(values | {"tokens": tokens is not None})
    with tempfile.TemporaryDirectory() as scratch:
        job = ScoreJob(
            id=f"local-{secrets.token_hex(6)}",
            spec=spec,
            checkpoints=(Path(checkpoint),),
            file=Path(file),
            folder=Path(scratch),
            cache=Path(scratch) if cache is None else Path(cache),
        )
        journal = PassingJournal(tell=lambda message: None, progress=lambda phase, done, total: progress(done, total))
        run_scores(job, in_process(engine, dtype), journal)
        scored = required(journal, "score_1", RequestScored)
        if tokens is not None:
            assert scored.tokens is not None, "a table of tokens was asked for"
            shutil.copyfile(scored.tokens, tokens)
        return EntropyTable.load(scored.table)
