"""What would work, but probably not as meant: warnings of a self-improvement job."""

from collections.abc import Iterator

from wmss.config import JobSpec, SelfImprovementConfig, SelfImprovementMethod
from wmss.core.levels import MIN_PROBES, affords_probes
from wmss.rounds.before.report import Finding
from wmss.rounds.before.task_files import METHOD, TaskFiles

NO_TEST_ROWS = (
    "no rows of split 'test' in the validation file: the best round was chosen by the very tasks it is judged on, "
    "which flatters it"
)


def improvement_warnings(spec: JobSpec, files: TaskFiles) -> list[Finding]:
    """What would work, but probably not as meant."""
    assert isinstance(spec.method, SelfImprovementMethod)
    knobs = spec.method.self_improvement
    return [*_of_levels(knobs, files), *_of_updates(knobs), *_of_held_out(knobs, files)]


def _of_levels(knobs: SelfImprovementConfig, files: TaskFiles) -> Iterator[Finding]:
    num_levels = knobs.estimate_levels or len(files.training.levels)
    groups, size = knobs.samples_per_round // knobs.samples_per_prompt, knobs.samples_per_prompt
    curriculum = knobs.curriculum
    probes = affords_probes(num_levels, num_groups=groups, group_size=size, probe_fraction=curriculum.probe_fraction)
    if curriculum.policy == "acceptance_target" and not probes:
        message = (
            f"{knobs.samples_per_round} responses a round are too few to measure {num_levels} levels as well as train "
            f"({MIN_PROBES} responses each); 'clock' is better here, or a larger samples_per_round"
        )
        yield Finding(code="few_probes", message=message, param=f"{METHOD}.curriculum.policy")
    for level in files.training.levels:
        if len(files.training.of(level=level)) < 2:
            message = f"level {level} has a single prompt: what is learned from it is that prompt's answer; add rows"
            yield Finding(code="few_prompts", message=message, param="training_file")


def _of_updates(knobs: SelfImprovementConfig) -> Iterator[Finding]:
    if knobs.start_from == "restart":
        message = (
            "every update begins at the start model again and must make up for all rounds before it: measured, it "
            "needs many more steps a round than 'continue'"
        )
        yield Finding(code="restart", message=message, param=f"{METHOD}.start_from")
    if knobs.steps_per_round is None:
        message = (
            "with epochs over what was accepted, a round that accepts less also trains less: runs of different "
            "policies or budgets are then not comparable; set steps_per_round to compare them"
        )
        yield Finding(code="epochs_per_round", message=message, param=f"{METHOD}.steps_per_round")


def _of_held_out(knobs: SelfImprovementConfig, files: TaskFiles) -> Iterator[Finding]:
    num_tasks = len(files.held_out.of(split="validation"))
    error = 0.5 / num_tasks**0.5
    if 2 * error > max(0.02, knobs.stop.min_gain):
        message = (
            f"{num_tasks} held-out tasks tell pass@1 to within {200 * error:.0f} points at worst; gains below that are "
            "not seen when rounds are judged; add rows"
        )
        yield Finding(code="few_held_out", message=message, param="validation_file")
    if not files.held_out.of(split="test"):
        yield Finding(code="no_test_rows", message=NO_TEST_ROWS, param="validation_file")
