"""Every knob: bounds, presets, refusals that name the field, and one declaration for REST, TOML and the trainer."""

import ast
import json
from pathlib import Path

import pytest
from pydantic import BaseModel

from wmss.choices import DEFAULT_MIXING_WEIGHT
from wmss.config import (
    JobSpec,
    WeakDrivenUpdate,
    WmssConfig,
    parse_job,
    read_toml,
    resolve_batch_size,
    resolve_max_length,
)
from wmss.errors import ConfigError

ROOT = Path(__file__).parent.parent
MINIMAL = {"model": "m", "training_file": "f"}


def wmss(**values):
    return MINIMAL | {"method": {"type": "wmss", "wmss": values}}


@pytest.mark.parametrize(
    "values",
    [
        {"mixing_weight": 0.42, "hyperparameters": {"max_steps": 7}},
        {"strong_model": "s"},
        {"weighting": "uniform"},
        {"preset": "wmss-v1"},
        {"alpha": None, "hyperparameters": {"sft_epochs": None}},
        {"preset": "efficient", "strong_model": "s", "weighting": "uniform"},
        {"hyperparameters": {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"}},
        {"hyperparameters": {"learning_rate_multiplier": 2.5}},
    ],
)
def test_resolved_job_reads_back_as_itself(values):
    """The database stores the resolved JSON and every process validates it again."""
    spec = parse_job(wmss(**values))
    assert JobSpec.model_validate(json.loads(spec.model_dump_json())) == spec


def test_what_people_send_to_openai_is_a_job():
    hyperparameters = {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"}
    method = {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}
    spec = parse_job(MINIMAL | {"method": method, "hyperparameters": None, "integrations": []})
    echoed = spec.model_dump(mode="json")["method"]["supervised"]["hyperparameters"]
    assert {name: echoed[name] for name in hyperparameters} == hyperparameters
    assert (spec.hyperparameters.num_epochs, spec.hyperparameters.peak_learning_rate) == (1, 1e-5)


@pytest.mark.parametrize(
    ("knobs", "expected"),
    [
        ({}, 1e-5),
        ({"learning_rate": 3e-4}, 3e-4),
        ({"learning_rate": None}, 1e-5),
        ({"learning_rate_multiplier": 2}, 2e-5),
        ({"learning_rate_multiplier": 0.1}, 1e-6),
        ({"learning_rate": 3e-4, "learning_rate_multiplier": None}, 3e-4),
    ],
)
def test_peak_learning_rate(knobs, expected):
    assert parse_job(wmss(hyperparameters=knobs)).hyperparameters.peak_learning_rate == pytest.approx(expected)


def test_null_is_the_presets_value():
    config = parse_job(wmss(alpha=None, hyperparameters={"sft_epochs": None})).method.wmss
    assert (config.alpha, config.hyperparameters.sft_epochs) == (0.1, 1)


def test_what_cannot_be_used_stays_null():
    assert parse_job(wmss(strong_model="s")).method.wmss.hyperparameters.sft_epochs is None
    uniform = parse_job(wmss(weighting="uniform")).method.wmss
    assert (uniform.alpha, uniform.beta, uniform.gamma, uniform.coefficients) == (None, None, None, {})


def test_defaults_are_the_papers():
    config = parse_job(wmss()).method.wmss
    assert (config.preset, config.mixing_weight, config.weak_update) == ("wmss-v2", 0.5, "joint")
    assert (config.weighting, config.alpha, config.beta, config.gamma) == ("v2", 0.1, 0.8, 0.1)
    assert config.deduplicate
    knobs = config.hyperparameters
    assert (knobs.learning_rate, knobs.warmup_ratio, knobs.gradient_clip) == (1e-5, 0.1, 1.0)
    assert (knobs.sft_epochs, knobs.n_epochs) == (1, 1)


def test_presets_fill_what_is_left_out():
    v1 = parse_job(wmss(preset="wmss-v1", deduplicate=True)).method.wmss
    assert (v1.weighting, v1.deduplicate, v1.hyperparameters.warmup_ratio) == ("per_term", True, 0.0)
    assert parse_job(wmss(preset="wmss-v1", hyperparameters={"warmup_ratio": 0.2})).hyperparameters.warmup_ratio == 0.2
    assert parse_job(wmss(preset="efficient")).method.wmss.weak_update == "frozen"


@pytest.mark.parametrize(
    ("values", "param", "message"),
    [
        (wmss(mixing_weight=1.5), "method.wmss.mixing_weight", r"less than or equal to 1 \(got 1.5\)"),
        (wmss(mixing_weight=float("nan")), "method.wmss.mixing_weight", "finite"),
        (wmss(lamda=0.5), "method.wmss.lamda", "unknown field; remove it or correct its spelling"),
        (wmss(mixing_wieght=0.5), "method.wmss.mixing_wieght", r"unknown field; did you mean 'mixing_weight'\?"),
        (wmss(hyperparameters={"epochs": 1}), "method.wmss.hyperparameters.epochs", "did you mean 'n_epochs'"),
        (wmss(hyperparameters={"lora": {"rnk": 4}}), "method.wmss.hyperparameters.lora.rnk", "did you mean 'rank'"),
        (MINIMAL | {"sufix": "x"}, "sufix", "did you mean 'suffix'"),
        (MINIMAL | {"method": {"type": "wmss", "wms": {}}}, "method.wms", "did you mean 'wmss'"),
        (
            MINIMAL
            | {"method": {"type": "self_improvement", "self_improvement": {"verifier": {"type": "math", "x": 1}}}},
            "method.self_improvement.verifier.x",
            "unknown field; remove it",
        ),
        (wmss(hyperparameters={"lr": 1}), "method.wmss.hyperparameters.lr", "unknown field"),
        (wmss(preset="wmss-v3"), "method.wmss.preset", "wmss-v2"),
        (wmss(alpha=0, beta=0, gamma=0), "method.wmss", "at least one above 0"),
        (wmss(weighting="uniform", alpha=0.2), "method.wmss", "unused with weighting 'uniform'"),
        (wmss(strong_model="s", hyperparameters={"sft_epochs": 2}), "method.wmss", "unused when strong_model is given"),
        (wmss(weighting="all", max_share=0.1), "method.wmss", "max_share: unused with weighting 'all'"),
        (wmss(weighting="uniform", max_share=0.1), "method.wmss", "max_share: unused with weighting 'uniform'"),
        (wmss(mixing="off", weak_shares=[1.0]), "method.wmss", "weak_shares: unused with mixing 'off'"),
        (wmss(mixing="off", mixing_weight=0.9), "method.wmss", "mixing_weight: unused with mixing 'off'"),
        (wmss(mixing="strong_scaled", mixing_weight=0.0), "method.wmss", "mixing_weight: expected above 0 with mixing"),
        (
            wmss(mixing="strong_scaled", weighting="all", weak_model="w"),
            "method.wmss",
            "weak_model: unused with mixing 'strong_scaled' and weighting 'all'",
        ),
        (wmss(mixing="off", more_weak_models=["w"]), "method.wmss", "more_weak_models: unused with mixing 'off'"),
        (
            wmss(mixing="strong_scaled", weak_cache=True),
            "method.wmss",
            "weak_cache: unused with mixing 'strong_scaled'",
        ),
        (wmss(mixing="off", mixing_schedule="linear", mixing_weight_end=1.0), "method.wmss", "which has no λ"),
        (wmss(mixing_schedule="linear"), "method.wmss", "mixing_schedule and mixing_weight_end: expected both"),
        (wmss(mixing_weight_end=0.9), "method.wmss", "mixing_schedule and mixing_weight_end: expected both"),
        (wmss(weak_cache=True), "method.wmss", "weak_cache: expected weak_update 'frozen'"),
        (
            wmss(preset="efficient", weak_cache=True, more_weak_models=["w"]),
            "method.wmss",
            "weak_cache: for a single weak model only",
        ),
        (wmss(weak_shares=[0.5, 0.5]), "method.wmss", "weak_shares: expected 1 numbers"),
        (
            wmss(more_weak_models=["w"], weak_shares=[0.5, 0.4]),
            "method.wmss",
            "weak_shares: expected numbers that sum to 1, got a sum of 0.9",
        ),
        (wmss(strong_model="s", start_at="saturation"), "method.wmss", "which strong_model replaces"),
        (
            wmss(start_at="saturation", hyperparameters={"telemetry_every": None}),
            "method.wmss",
            "give hyperparameters.telemetry_every a number",
        ),
        (
            wmss(hyperparameters={"lora": {}, "activation_checkpointing": "full"}),
            "method.wmss",
            "not with two adapters in training on one model",
        ),
        (wmss(hyperparameters=5), "method.wmss.hyperparameters", r"expected an object with fields \(got 5\)$"),
        (MINIMAL | {"resources": None}, "resources", r"expected an object with fields \(got None\)$"),
        (MINIMAL | {"validation_file": ""}, "validation_file", "at least 1 character"),
        (MINIMAL | {"training_file": "f" * 10**6}, "training_file", "at most 4096 characters"),
        (
            wmss(hyperparameters={"batch_size": 0}),
            "method.wmss.hyperparameters.batch_size",
            r"batch_size: expected greater than or equal to 1 or 'auto' \(got 0\)$",
        ),
        (wmss(hyperparameters={"max_length": 1}), "method.wmss.hyperparameters.max_length", "or equal to 2 or 'auto'"),
        (
            wmss(hyperparameters={"learning_rate_multiplier": 0.0}),
            "method.wmss.hyperparameters.learning_rate_multiplier",
            r"expected greater than 0 or 'auto' \(got 0.0\)$",
        ),
        (
            wmss(hyperparameters={"learning_rate_multiplier": "auto", "learning_rate": 1e-4}),
            "method.wmss.hyperparameters",
            "learning_rate and learning_rate_multiplier: expected one of them, got both; remove",
        ),
        (wmss(hyperparameters={"n_epochs": 0}), "method.wmss.hyperparameters.n_epochs", "greater than or equal to 1"),
        (wmss(hyperparameters={"learning_rate": 1e9}), "method.wmss.hyperparameters.learning_rate", "less than"),
        ({"training_file": "f"}, "model", "required field is missing"),
        (MINIMAL | {"seed": -1}, "seed", "greater than or equal to 0"),
        (MINIMAL | {"checkpointing": {"keep": "best"}}, None, "checkpointing.keep: expected a validation_file"),
        (
            wmss(hyperparameters={"eval_every": 5}),
            None,
            "method.wmss.hyperparameters.eval_every: expected a validation_",
        ),
        (
            MINIMAL
            | {
                "validation_file": "v",
                "checkpointing": {"keep": "best"},
                "method": {
                    "type": "self_improvement",
                    "self_improvement": {"verifier": {"type": "exact"}},
                },
            },
            None,
            "checkpointing.keep: unused with self_improvement",
        ),
        (
            MINIMAL | {"suffix": "a/b"},
            "suffix",
            "expected up to 64 letters, digits, .* beginning with a letter or digit",
        ),
        (MINIMAL | {"metadata": {"k" * 65: "v"}}, "metadata", "expected a key of 1 to 64 characters, without quotes"),
        (MINIMAL | {"metadata": {'a"b': "v"}}, "metadata", "expected a key of 1 to 64 characters, without quotes"),
        (MINIMAL | {"metadata": {"a": "\x00"}}, "metadata", "expected up to 512 characters, none of them NUL"),
        (wmss(preset=[]), "method.wmss.preset", "wmss-v2"),
        (wmss(alpha=1e308), "method.wmss.alpha", "less than or equal"),
        (wmss(hyperparameters={"batch_size": True}), "method.wmss.hyperparameters.batch_size", "got True"),
        (wmss(hyperparameters={"n_epochs": "8"}), "method.wmss.hyperparameters.n_epochs", "valid integer"),
        (MINIMAL | {"checkpointing": {"keep_last": 10**30}}, "checkpointing.keep_last", "less than or equal"),
        (
            MINIMAL | {"method": {"type": "dpo"}},
            "method.type",
            "expected one of 'supervised', 'wmss', 'self_improvement', got 'dpo'",
        ),
        (MINIMAL | {"method": {"type": "reinforcement", "reinforcement": {}}}, "method.type", "'supervised', 'wmss'"),
        (MINIMAL | {"method": {"wmss": {}}}, "method.type", "required field is missing"),
        (MINIMAL | {"hyperparameters": {"n_epochs": 3}}, "hyperparameters", "deprecated by OpenAI; move it into the"),
        (MINIMAL | {"integrations": [{"type": "wandb"}]}, "integrations", "not supported; remove it, and read"),
        (MINIMAL | {"method": {"type": "supervised", "wmss": {}}}, "method.wmss", "unknown field"),
        ([], None, "expected an object with fields"),
    ],
)
def test_refusals_name_the_field(values, param, message):
    with pytest.raises(ConfigError, match=message) as caught:
        parse_job(values)
    if param == "metadata":
        assert caught.value.param.startswith("metadata")
    else:
        assert caught.value.param == param


def test_every_problem_is_reported():
    with pytest.raises(ConfigError) as caught:
        parse_job(wmss(mixing_weight=2, alpha=-1))
    assert "mixing_weight" in caught.value.message
    assert "alpha" in caught.value.message


def test_a_refusal_repeats_no_more_than_a_person_reads():
    for unknown in ({"k" * 10**6: 1}, {f"key{number}": 1 for number in range(10**4)}):
        with pytest.raises(ConfigError) as caught:
            parse_job(MINIMAL | unknown)
        assert len(caught.value.message) < 10_000
        assert len(caught.value.param) < 200
    assert caught.value.message.endswith("; and 9900 more")


def test_what_becomes_of_long_rows_is_no_question_of_self_improvement():
    improvement = {"type": "self_improvement", "self_improvement": {"hyperparameters": {"too_long": "drop"}}}
    with pytest.raises(ConfigError, match=r"hyperparameters\.too_long: unused with self_improvement") as caught:
        parse_job(MINIMAL | {"method": improvement, "validation_file": "v"})
    assert caught.value.param == "method.self_improvement"
    assert parse_job(wmss(hyperparameters={"too_long": "drop"})).hyperparameters.too_long == "drop"
    with pytest.raises(ConfigError, match="too_long: expected 'auto', 'refuse', 'drop' or 'cut'"):
        parse_job(wmss(hyperparameters={"too_long": "truncate"}))


def test_the_largest_multiplier_is_the_one_that_is_documented():
    assert (
        parse_job(wmss(hyperparameters={"learning_rate_multiplier": 100_000})).hyperparameters.peak_learning_rate == 1
    )


def test_toml_with_a_byte_order_mark_is_read(tmp_path):
    file = tmp_path / "job.toml"
    file.write_bytes(b'\xef\xbb\xbfmodel = "m"')
    assert read_toml(file) == {"model": "m"}


def test_toml_is_the_same_declaration(tmp_path):
    file = tmp_path / "job.toml"
    file.write_text(
        'model = "m"\ntraining_file = "f"\n[wmss]\nmixing_weight = 0.42\n[wmss.hyperparameters]\nmax_steps = 7'
    )
    assert parse_job(read_toml(file)) == parse_job(wmss(mixing_weight=0.42, hyperparameters={"max_steps": 7}))


@pytest.mark.parametrize("file", sorted((ROOT / "examples").glob("*.toml")), ids=lambda file: file.name)
def test_examples_are_valid(file):
    assert parse_job(read_toml(file)).validation_file.endswith("held_out.jsonl")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model = ", "expected a readable TOML file"),
        ("model = " + "[" * 5000, "expected a readable TOML file"),
        ('model = "m"\ntraining_file = "f"\n[wmss]\n[supervised]', "expected one table"),
        ('model = "m"\ntraining_file = "f"\n[wmss]\nfoo = 1', "method.wmss.foo: unknown field"),
        ('model = "m"\ntraining_file = "f"\n[wmss]\npresett = 1', "method.wmss.presett: .* did you mean 'preset'"),
    ],
)
def test_toml_refusals(tmp_path, text, message):
    file = tmp_path / "job.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        parse_job(read_toml(file))


@pytest.mark.parametrize(
    ("preset", "num_samples", "expected"),
    [("wmss-v2", 100_000, 512), ("wmss-v1", 100_000, 256), ("wmss-v2", 2000, 250), ("wmss-v2", 3, 1)],
)
def test_automatic_batch_size(preset, num_samples, expected):
    assert resolve_batch_size(parse_job(wmss(preset=preset)), num_samples) == expected


def test_length_is_bounded_by_the_context():
    assert resolve_max_length(parse_job(wmss()), 512) == 512
    assert resolve_max_length(parse_job(wmss()), 32_768) == 4096
    with pytest.raises(ConfigError, match="at most the model's context of 512 tokens, got 600") as caught:
        resolve_max_length(parse_job(wmss(hyperparameters={"max_length": 600})), 512)
    assert caught.value.param == "method.wmss.hyperparameters.max_length"


def leaves(model: type[BaseModel], seen: set[type] | None = None) -> dict[str, str | None]:
    """Every knob's name and its help text."""
    found: dict[str, str | None] = {}
    for name, field in model.model_fields.items():
        kinds = [t for t in [field.annotation, *getattr(field.annotation, "__args__", ())] if isinstance(t, type)]
        nested = [t for t in kinds if issubclass(t, BaseModel)]
        if nested:
            for kind in nested:
                found |= leaves(kind)
        found[name] = field.description
    return found


def test_every_knob_has_help_and_is_read_somewhere():
    read = {
        node.attr
        for folder in ("wmss", "services")
        for file in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
    }
    knobs = leaves(JobSpec)
    assert {"mixing_weight", "gradient_clip", "num_workers", "every_steps"} <= set(knobs)
    assert not [name for name, text in knobs.items() if not text]
    # `metadata` is the caller's own: it is stored and filtered on as JSON, never interpreted.
    assert not [name for name in knobs if name not in read | {"metadata"}]


NAMES_OF_LAMBDA = {"mixing_weight", "mix_weight", "strong_weight", "lam", "lambda_", "lmbda", "λ"}


def declarations_of_lambda(file: Path) -> list[str]:
    """`Class.field` and `function(parameter)` where a file declares λ, by the rule of the test below."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef):
            fields = [
                each for each in node.body if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
            ]
            knobs = file.is_relative_to(ROOT / "wmss/config")
            named = [each for each in fields if each.target.id in NAMES_OF_LAMBDA and (each.value is not None or knobs)]
            found += [f"{node.name}.{each.target.id}" for each in named]
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            arguments = node.args
            positional = [*arguments.posonlyargs, *arguments.args]
            with_default = positional[len(positional) - len(arguments.defaults) :]
            with_default += [
                a for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if d is not None
            ]
            found += [f"{getattr(node, 'name', 'lambda')}({a.arg})" for a in with_default if a.arg in NAMES_OF_LAMBDA]
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and node.attr in NAMES_OF_LAMBDA:
            found.append(f".{node.attr} =")
    return found


def test_lambda_is_declared_twice():
    """Once for each method that has it, outside the pure functions of wmss/core.

    A declaration is, in wmss/ without wmss/core/ and in services/: a field of a class in wmss/config/ that is named
    λ in code (`NAMES_OF_LAMBDA`); a field of any other class or a parameter of a function that is named so and has
    a default; and an attribute that is named so and assigned. A field or parameter without a default only hands on.
    """
    files = [file for folder in ("wmss", "services") for file in (ROOT / folder).rglob("*.py")]
    found = [
        (str(file.relative_to(ROOT)), declaration)
        for file in files
        if not file.is_relative_to(ROOT / "wmss/core")
        for declaration in declarations_of_lambda(file)
    ]
    assert sorted(found) == [
        ("wmss/config/improvement.py", "WeakDrivenUpdate.mixing_weight"),
        ("wmss/config/weak_driven.py", "WmssConfig.mixing_weight"),
    ]
    assert WmssConfig().mixing_weight == WeakDrivenUpdate().mixing_weight == DEFAULT_MIXING_WEIGHT


def test_every_form_of_a_declaration_of_lambda_is_seen(tmp_path):
    file = tmp_path / "declarations.py"
    file.write_text(
        "class A:\n    mixing_weight: float = 0.5\n    lam: float\n"
        "def f(mixing_weight, *, lam=1.0): ...\n"
        "def g(a, mixing_weight=1.0): ...\n"
        "a.mixing_weight = 2.0\n"
    )
    assert sorted(declarations_of_lambda(file)) == [".mixing_weight =", "A.mixing_weight", "f(lam)", "g(mixing_weight)"]


@pytest.mark.parametrize(
    ("knobs", "field"),
    [
        ({"curriculum": {"policy": "clock", "target": 0.5}}, "target"),
        ({"curriculum": {"policy": "uniform", "patience": 5}}, "patience"),
        ({"curriculum": {"band": [0.5, 0.6]}}, "band"),
        ({"curriculum": {"probe_fraction": 0.5, "replay_fraction": 0.5}}, "probe_fraction"),
        ({"weak_driven": {"mixing_weight": 0.7}}, "mixing_weight"),
        ({"weak_driven": {"when": "on_saturation"}, "start_from": "restart"}, "weak_driven"),
        ({"samples_per_round": 10, "samples_per_prompt": 4, "accept": {"min_accepted": 1}}, "samples_per_round"),
        ({"accept": {"max_per_prompt": 9}}, "max_per_prompt"),
        ({"accept": {"min_accepted": 5000}}, "min_accepted"),
        ({"sampling": {"temperature": 0}}, "temperature"),
        ({"stop": {"max_samples": 10}}, "max_samples"),
        ({"hyperparameters": {"max_steps": 10}}, "max_steps"),
        ({"hyperparameters": {"n_epochs": 2}}, "n_epochs"),
    ],
)
def test_knobs_of_self_improvement_that_contradict_or_nobody_reads_are_refused(knobs, field):
    body = {"model": "m", "training_file": "t", "validation_file": "v"}
    with pytest.raises(ConfigError, match=field):
        parse_job(body | {"method": {"type": "self_improvement", "self_improvement": knobs}})
    with pytest.raises(ConfigError, match="validation_file: required with self_improvement"):
        parse_job({"model": "m", "training_file": "t", "method": {"type": "self_improvement"}})
