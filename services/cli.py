"""The `wmss` command: serve, models, checkpoints, convert, check, submit, score, watch, jobs, samples, rounds,
cancel, chat, export, plan, simulate, tasks, audit, knobs, demo."""

import logging
import os
import re
import sys
from pathlib import Path
from typing import Annotated, Literal

import openai
import typer
from pydantic import ValidationError
from rich.console import Console

from services.commands import client as service
from services.commands.chat import converse
from services.commands.check import show
from services.commands.convert import convert as convert_rows
from services.commands.export import export_model
from services.commands.job_options import JobOptions, takes_job
from services.commands.tables import show_table
from services.commands.watch import JobView, show_jobs, show_rounds, show_samples
from services.control.supervisor import Endpoint, ServeError, Supervisor
from services.settings import Settings, unread_variables
from wmss import __version__
from wmss.choices import DType, EngineChoice, TooLong
from wmss.config import parse_scores
from wmss.data.convert import FORMATS, CalculatorMarks
from wmss.data.convert_tasks import TASK_FORMATS
from wmss.data.dataset import by_reason
from wmss.data.tasks import MAX_LEVEL
from wmss.errors import WmssError, shortened, shown
from wmss.ids import is_checkpoint

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
models_app = typer.Typer(no_args_is_help=True, help="Models a job may start from.")
app.add_typer(models_app, name="models")
checkpoints_app = typer.Typer(no_args_is_help=True, help="Weak checkpoints, registered by their digests.")
app.add_typer(checkpoints_app, name="checkpoints")
console = Console()

Home = Annotated[Path | None, typer.Option(help="Folder of the service's state; default WMSS_HOME or ~/.wmss.")]
BaseUrl = Annotated[
    str | None, typer.Option(help="Service to talk to; default WMSS_BASE_URL or the running local one.")
]

MAX_TEMPERATURE = 100.0
"""Above it every answer is noise."""

ScoreFormat = Literal["parquet", "jsonl"]
DemoMethod = Literal["wmss", "self_improvement"]


def _version(asked: bool) -> None:
    if asked:
        console.print(f"wmss {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def before_every_command(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Warn of variables that look like settings and are none."""
    for warning in unread_variables():
        Console(stderr=True, soft_wrap=True).print("warning", warning, highlight=False, markup=False)


def main() -> None:
    """Entry point: every error that the user can cause ends in one line and exit code 1."""
    try:
        _check_arguments()
        app()
    except (WmssError, ServeError) as error:
        _stop(str(error))
    except ValidationError as error:  # of Settings: a variable WMSS_* cannot be read
        _stop("; ".join(f"WMSS_{str(item['loc'][0]).upper()}: {item['msg']}" for item in error.errors()))
    except openai.OpenAIError as error:
        _stop(service.explain_failure(error))
    except OSError as error:
        if error.filename is None:
            raise
        _stop(f"{shortened(str(error.filename))}: {error.strerror}; check the path, or name another one")


def _check_arguments() -> None:
    """Bytes of an argument that are not UTF-8 can be neither sent to a service nor written to a file."""
    for argument in sys.argv[1:]:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise WmssError(f"{shown(argument)}: expected UTF-8 text; correct it, or rename the file") from None


def _stop(message: str) -> None:
    Console(stderr=True, soft_wrap=True).print("error", message, highlight=False, markup=False)
    sys.exit(1)


def _settings(home: Path | None) -> Settings:
    return Settings(home=home) if home else Settings()


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port of the REST API.", min=1, max=65535)] = 8000,
    home: Home = None,
) -> None:
    """Run the service on this machine: a Ray head and the REST API. Ctrl-C stops everything."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    settings = _settings(home)

    def ready(endpoint: Endpoint) -> None:
        console.print(f"REST API       {endpoint.base_url}", highlight=False)
        console.print(f"Ray dashboard  {endpoint.dashboard_url}", highlight=False)
        console.print(f"Ray token      {endpoint.token_path}", highlight=False)
        console.print("Ready. Ctrl-C stops everything.", highlight=False)

    Supervisor(settings, host=host, port=port).run(ready)


@app.command()
@takes_job
def submit(
    job: JobOptions,
    follow: Annotated[bool, typer.Option("--watch", help="Watch the job until it ends.")] = False,
    base_url: BaseUrl = None,
) -> None:
    """Upload the files of a job and submit it. Prints the job's id."""
    spec = job.read()
    api = service.connect(base_url)
    job_id = service.submit(api, service.with_uploads(api, spec))
    console.print(job_id, highlight=False)
    if follow:
        _watch(api, job_id)


@app.command()
@takes_job
def check(job: JobOptions, home: Home = None) -> None:
    """Say what a job would do, cost and be refused for, without a service. Exits 1 if it would be refused."""
    spec = job.read()
    from services.preview import check_here

    report = check_here(spec, _settings(home))
    show(report, console)
    if not report.valid:
        sys.exit(1)


@app.command()
def plan(
    file: Annotated[Path, typer.Argument(help="Self-improvement job as TOML; paths in it are relative to it.")],
    prompts: Annotated[int, typer.Option(help="Prompts of each level.", min=1, max=100_000)] = 64,
    samples: Annotated[int, typer.Option(help="Responses to each prompt.", min=1, max=4096)] = 8,
    engine: Annotated[EngineChoice, typer.Option(help="What draws the responses.")] = "auto",
    complexity: Annotated[
        float | None, typer.Option(help="Difficulty a, if an earlier job showed it; default: a range of it.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Chart to write: a .png, or an .html with the tables.")] = None,
    home: Home = None,
) -> None:
    """Try a self-improvement job's model on its own tasks, without a service, and say which curriculum to take."""
    spec = JobOptions(file).read()
    _bars_on_terminals_only()
    from services.commands.plan import plan as run_plan

    run_plan(
        spec,
        _settings(home),
        console,
        engine=engine,
        num_prompts=prompts,
        num_samples=samples,
        complexity=complexity,
        out=out,
    )


def _job_id(value: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9_-]{1,100}", value) is None:
        raise WmssError(f"job id: expected one that `wmss jobs` lists, got {shown(value)}", param="job_id")
    return value


JobId = Annotated[str, typer.Argument(help="Id of the job.", callback=_job_id)]


@app.command()
def score(
    file: Annotated[Path, typer.Argument(help="JSONL file, as a training file.")],
    models: Annotated[list[str], typer.Argument(help="1 to 8 checkpoints with one tokenizer.")],
    tokens: Annotated[bool, typer.Option("--tokens", help="A table of every supervised token as well.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for the tables; without it they are summed up only.")] = None,
    format: Annotated[ScoreFormat, typer.Option(help="Of the tables.")] = "parquet",
    max_length: Annotated[int | None, typer.Option(help="Tokens per sample; default the models' context.")] = None,
    too_long: Annotated[TooLong, typer.Option(help="Rows over it; auto: cut, or refuse if nothing is left.")] = "auto",
    dtype: Annotated[DType, typer.Option(help="Precision of the models.")] = "float32",
    local: Annotated[bool, typer.Option("--local", help="In this process, without a service.")] = False,
    engine: Annotated[EngineChoice, typer.Option(help="With --local: what computes.")] = "auto",
    home: Home = None,
    base_url: BaseUrl = None,
) -> None:
    """Entropy, NLL and top-1 of every sample of a file under some checkpoints, and how much they differ."""
    if not os.path.isfile(file):
        raise WmssError(f"file: there is no file {shortened(str(file))}", param="file")
    values = {"file": str(file), "models": models, "tokens": tokens, "dtype": dtype, "too_long": too_long}
    spec = parse_scores(values | ({} if max_length is None else {"max_length": max_length}))
    _bars_on_terminals_only()
    from services.commands.score import Output, score_there

    if local:
        from services.commands.score_here import score_here

        score_here(spec, Output(out, format), _settings(home), console, engine=engine)
    elif engine != "auto":
        raise WmssError("--engine: expected --local as well, a service has its own engines")
    else:
        score_there(service.connect(base_url), spec, Output(out, format), console)


@app.command()
def watch(job_id: JobId, base_url: BaseUrl = None) -> None:
    """Show a job's phases, progress and messages until it ends. Exits 1 unless it succeeded."""
    _watch(service.connect(base_url), job_id)


def _watch(api: openai.OpenAI, job_id: str) -> None:
    with JobView(console, job_id) as view:
        job = service.watch(api, job_id, view.update)
    if job.status == "succeeded":
        console.print("succeeded", job.fine_tuned_model, highlight=False, markup=False)
        return
    # All of the message stood among the events.
    why = job.error.message.splitlines()[0].rstrip(":") if job.error and job.error.message else ""
    _stop(f"{job_id} {job.status}" + (f": {why}" if why else ""))


@app.command()
def jobs(limit: Annotated[int, typer.Option(help="How many.", min=1, max=100)] = 20, base_url: BaseUrl = None) -> None:
    """List jobs, newest first."""
    show_jobs(service.connect(base_url).fine_tuning.jobs.list(limit=limit).data, console)


@app.command()
def samples(
    job_id: JobId,
    sort: Annotated[str, typer.Option(help='Column to sort by; "-" before it: largest first.')] = "-weight",
    limit: Annotated[int, typer.Option(help="How many.", min=1, max=100)] = 20,
    round: Annotated[int, typer.Option(help="Round of the job.", min=1)] = 1,
    base_url: BaseUrl = None,
) -> None:
    """Show why samples were drawn: both entropies (nats), their difference, weight and draws."""
    page = service.samples(service.connect(base_url), job_id, sort=sort, limit=limit, round=round)
    show_samples(page["data"], console)
    _say(f"{len(page['data'])} of {page['total']:,} samples")


@app.command()
def rounds(
    job_id: JobId,
    chart: Annotated[Path | None, typer.Option(help="Draw them to this file as well: .png, .svg or .pdf.")] = None,
    base_url: BaseUrl = None,
) -> None:
    """Show how the rounds of a self-improvement job went: acceptance and held-out pass@1 by level, and forecasts."""
    from services.commands import charts

    if chart is not None:
        charts.check_suffix(chart, param="--chart")
    found = service.rounds(service.connect(base_url), job_id)
    if not found:
        _say("no round has been decided yet; `wmss watch` shows what is under way")
        return
    show_rounds(found, console)
    if found[-1]["stop"] is not None:
        _say(f"no further round: {found[-1]['stop']['message']}")
    if chart is not None:
        charts.draw_rounds({job_id: found}, chart)
        console.print(str(chart), highlight=False, soft_wrap=True)


@app.command()
def cancel(job_id: JobId, base_url: BaseUrl = None) -> None:
    """Cancel a job, or a request for scores; its workers go within seconds."""
    status = service.cancel(service.connect(base_url), job_id)
    console.print(f"{job_id} {status}" + (", stopping" if status == "running" else ""), highlight=False)


@app.command()
def chat(
    model: Annotated[str, typer.Argument(help="Model, checkpoint, or id of a succeeded job.")],
    message: Annotated[str | None, typer.Argument(help="One question; without it, a conversation.")] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    temperature: Annotated[
        float | None, typer.Option(help="0 = greedy; default the model's own.", min=0, max=MAX_TEMPERATURE)
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer.", min=1)] = None,
    base_url: BaseUrl = None,
) -> None:
    """Talk to a model. The first question waits until its engine has started."""
    api = service.connect(base_url)
    converse(api, model, message, system, console, temperature=temperature, max_tokens=max_tokens)


@app.command()
def export(
    job_id: JobId,
    target: Annotated[Path, typer.Argument(help="Folder to make.")],
    base_url: BaseUrl = None,
) -> None:
    """Copy a finished model to a folder: config, safetensors and tokenizer, ready for transformers or vLLM."""
    export_model(service.connect(base_url), job_id, target, Settings())
    console.print(str(target), highlight=False)


@models_app.command("add")
def add(
    source: Annotated[str, typer.Argument(help="smollm2, a .gguf file, or a folder with a Hugging Face model.")],
    name: Annotated[str | None, typer.Option(help="Name for jobs to use; default the source's own.")] = None,
    home: Home = None,
) -> None:
    """Make a model folder in the service's home: float32 safetensors and tokenizer, checked."""
    _bars_on_terminals_only()
    settings = _settings(home)
    settings.make_home()
    from wmss.models.importing import add_model

    folder = add_model(source, settings.models, name=name, report=_say)
    console.print(f"{folder.name}  {folder}", highlight=False, soft_wrap=True)


def _say(message: str) -> None:
    console.print(f"  {message}", highlight=False, markup=False)


def _bars_on_terminals_only() -> None:
    """The libraries' progress bars fill a log file with copies of themselves; they read this when imported."""
    if not console.is_terminal:
        os.environ.setdefault("TQDM_DISABLE", "1")


@models_app.command("list")
def list_models(home: Home = None, base_url: BaseUrl = None) -> None:
    """List what a job may name: of a service given by URL, or of the home on this machine, running or not."""
    from services.catalog.names import local_models

    if base_url or (home is None and os.environ.get("WMSS_BASE_URL")):
        found = [(model.id, model.owned_by) for model in service.connect(base_url).models.list().data]
    else:
        found = [(model.id, model.owned_by) for model in local_models(_settings(home))]
    if not found:
        _say("no models yet; `wmss models add smollm2` adds a small one")
        return
    show_table(console, ("model", "owned by"), found)


@checkpoints_app.command("add")
def add_checkpoint(
    model: Annotated[str, typer.Argument(help="What a job may name, or a hub's model as ORG/NAME@REVISION.")],
    base_url: BaseUrl = None,
) -> None:
    """Register a checkpoint and print its id, which a job may name. Reads all of it, for its digest."""
    console.print(service.register_checkpoint(service.connect(base_url), model)["id"], highlight=False)


@checkpoints_app.command("list")
def list_checkpoints(
    limit: Annotated[int, typer.Option(help="How many.", min=1, max=100)] = 20, base_url: BaseUrl = None
) -> None:
    """List registered checkpoints, newest first."""
    rows = [
        (row["id"], f"{row['num_parameters']:,}", row["weights_digest"][:12], row["architecture"], row["model"])
        for row in service.checkpoints(service.connect(base_url), limit=limit)
    ]
    show_table(console, ("id", "parameters", "digest", "architecture", "model"), rows, below=2)


@checkpoints_app.command("remove")
def remove_checkpoint(
    checkpoint_id: Annotated[str, typer.Argument(help="Id of the checkpoint.")], base_url: BaseUrl = None
) -> None:
    """Forget a checkpoint. A model's folder stays; what was downloaded from the hub is deleted."""
    if not is_checkpoint(checkpoint_id):
        raise WmssError(f"checkpoint id: expected one that `wmss checkpoints list` lists, got {checkpoint_id!r}")
    service.remove_checkpoint(service.connect(base_url), checkpoint_id)
    console.print(checkpoint_id, highlight=False)


_FORMATS_HELP = (
    f"Form of the source: {', '.join(FORMATS)}; with --to tasks {', '.join(TASK_FORMATS)}. Default: recognised."
)


@app.command()
def convert(
    source: Annotated[
        Path, typer.Argument(help="JSON lines, e.g. question/answer rows or an OpenAI chat file; or text.")
    ],
    target: Annotated[Path, typer.Argument(help="File to write; never overwritten.")],
    to: Annotated[
        Literal["samples", "tasks"], typer.Option(help="Rows to fine-tune on, or tasks for self-improvement.")
    ] = "samples",
    format: Annotated[str | None, typer.Option(help=_FORMATS_HELP)] = None,
    level: Annotated[
        int | None, typer.Option(help="Level of every task; default: the source's.", min=1, max=MAX_LEVEL)
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Rows to read, from the first.", min=1)] = None,
    system: Annotated[str | None, typer.Option(help="Text of a system message for every row.")] = None,
    calculator_marks: Annotated[
        CalculatorMarks, typer.Option(help="GSM8K's <<48/2=24>>: take them out, or leave them as text.")
    ] = "strip",
    skip_unusable: Annotated[
        bool,
        typer.Option("--skip-unusable", help="With --to tasks: leave out, and name, rows that cannot be converted."),
    ] = False,
    split_turns: Annotated[
        bool,
        typer.Option("--split-turns", help="A row for each assistant turn, for templates that drop earlier thinking."),
    ] = False,
) -> None:
    """Turn a file into rows a job takes, and say what was changed."""
    done = convert_rows(
        source,
        target,
        to=to,
        format=format,
        level=level,
        limit=limit,
        system=system,
        calculator_marks=calculator_marks,
        skip_unusable=skip_unusable,
        split_turns=split_turns,
    )
    if done.skipped:
        _say(f"{len(done.skipped)} rows left out:{by_reason(done.skipped)}")
    _say(f"{done.format}: {done.num_read} rows read, {done.num_written} written")
    for change, count in done.changes.items():
        _say(f"{count} rows: {change}")
    console.print(str(target), highlight=False, soft_wrap=True)


@app.command()
def simulate(
    start: Annotated[list[float], typer.Option(help="Acceptance of a level at the start, easy to hard; repeatable.")],
    complexity: Annotated[float, typer.Option(help="Difficulty a: accepted samples of a pilot, times its failures.")],
    samples: Annotated[int, typer.Option(help="Responses in a round.")],
    kappa: Annotated[float | None, typer.Option(help="Acceptance of a level, over that of the one before.")] = None,
    levels: Annotated[int | None, typer.Option(help="With --kappa: number of levels.")] = None,
    rounds: Annotated[int, typer.Option(help="Rounds of the run.")] = 12,
    repetitions: Annotated[int, typer.Option(help="Simulated runs.")] = 200,
    alpha: Annotated[float, typer.Option(help="Rate of learning: 1 = fast, 0.5 = slow.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the simulation.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Chart to write: a .png, or an .html with the table.")] = None,
) -> None:
    """Say which curriculum self-improvement should follow, and where it would end. Needs no service and no model."""
    from services.commands import simulate as simulation

    numbers = {"complexity": complexity, "num_samples": samples, "rounds": rounds, "repetitions": repetitions}
    starts = simulation.level_starts(start, kappa, levels)
    simulation.simulate(starts, out, console, **numbers, alpha=alpha, seed=seed)


@app.command()
def tasks(
    name: Annotated[str, typer.Argument(help="arithmetic, graph_hops or graph_path.")],
    out: Annotated[Path, typer.Option(help="Folder for the files; made if it is not there.")],
    training: Annotated[int, typer.Option(help="Training rows of each level.")] = 64,
    validation: Annotated[int, typer.Option(help="Held-out rows of each level, by which rounds stop.")] = 16,
    test: Annotated[int, typer.Option(help="Held-out rows of each level for the final report.")] = 16,
    levels: Annotated[int, typer.Option(help="Levels, from 1 to this number.")] = 4,
    seed: Annotated[int, typer.Option(help="The same seed gives the same rows.")] = 0,
) -> None:
    """Write the files of a shipped task, with levels, and a self-improvement job that reads them."""
    from services.commands.tasks import write_tasks

    write_tasks(name, out, console, training=training, validation=validation, test=test, levels=levels, seed=seed)


@app.command()
def audit(
    file: Annotated[Path, typer.Argument(help='JSONL file of {"answer" or "task", "response", "correct"}.')],
    verifier: Annotated[str, typer.Option(help="Its name, its JSON object, or a job's TOML file.")],
    processes: Annotated[int, typer.Option(help="Responses to judge at once.", min=1)] = os.cpu_count() or 1,
) -> None:
    """Say how often a verifier accepts right and wrong responses. Exits 1 if it cannot be used on the file."""
    from services.commands.audit import run_audit, show_audit

    show_audit(run_audit(file, verifier, num_processes=processes), console)


@app.command()
def knobs() -> None:
    """Print every knob of a job and of the service as Markdown: name, type, default, meaning."""
    from services.commands.knobs import describe

    sys.stdout.write(describe())


@app.command()
def demo(
    home: Annotated[
        Path | None, typer.Option(help="Folder of the demo's service; default WMSS_HOME or ~/.wmss.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Real weights, as `wmss models add` takes them; default: a toy made here.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="With --model: the file to train on, as `wmss convert` takes it.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="With --model: rows of the file to use; default 64.", min=1)] = None,
    control: Annotated[bool, typer.Option(help="Run the plain fine-tuning control as well.")] = True,
    method: Annotated[DemoMethod, typer.Option(help="Which of the two systems is shown.")] = "wmss",
) -> None:
    """Run the main job on this machine: base model, weak-driven job, plain fine-tuning control, one table. Or compare
    curricula of self-improvement."""
    _bars_on_terminals_only()
    from services.commands.demo_wmss import DEFAULT_LIMIT, run_demo, run_model_demo

    if method == "self_improvement":
        if model is not None or data is not None or limit is not None or not control:
            raise WmssError("--method self_improvement: brings its own model and tasks; remove the other options")
        from services.commands.demo_improvement import run_improvement_demo

        run_improvement_demo(_settings(home), console)
    elif model is not None and data is not None:
        run_model_demo(_settings(home), console, model=model, data=data, limit=limit or DEFAULT_LIMIT, control=control)
    elif model is not None or data is not None or limit is not None:
        raise WmssError("--model, --data: expected both or neither; the toy demo makes its own model and data")
    else:
        run_demo(_settings(home), console, control=control)


if __name__ == "__main__":
    main()
