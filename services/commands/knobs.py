"""Every knob there is as a page of text: names, types, defaults and meaning, from the declarations themselves."""

import json
from collections.abc import Iterator
from typing import Any

from services.settings import Settings
from wmss.config import PRESET_BATCH_SIZE, PRESETS, JobSpec, ScoreSpec

HEADER = """# Knobs

Made by `wmss knobs` from the declarations in `wmss/config/` and `services/settings.py`; change it there. A job is
JSON over REST or a TOML file, where a table `[wmss]`, `[supervised]`
or `[self_improvement]` stands for `method`. Unknown knobs are
refused."""


def describe() -> str:
    """The page: one Markdown table per object of a job, then presets, entropy scores and the service's own settings."""
    schema = JobSpec.model_json_schema()
    parts = [HEADER, "\n".join(_table("Job", schema))]
    for name, definition in schema["$defs"].items():
        if definition.get("type") == "object":
            parts.append("\n".join(_table(name, definition)))
    scores = _table("Entropy scores", ScoreSpec.model_json_schema())
    parts += ["\n".join(lines) for lines in (_presets(), scores, _settings())]
    return "\n\n".join(parts) + "\n"


def _table(name: str, definition: dict[str, Any]) -> Iterator[str]:
    yield f"## {name}\n"
    yield f"{_one_line(definition.get('description', ''))}\n"
    yield "| knob | type | default | meaning |"
    yield "|---|---|---|---|"
    required = definition.get("required", [])
    for knob, field in definition["properties"].items():
        default = "required" if knob in required else _default(field.get("default"))
        yield f"| `{knob}` | {_kind(field)} | {default} | {_one_line(field.get('description', ''))} |"


def _presets() -> Iterator[str]:
    yield "## Presets\n"
    yield "What `preset` gives to the knobs of `WmssConfig` that are left out.\n"
    yield f"| knob | {' | '.join(f'`{name}`' for name in PRESETS)} |"
    yield "|---" * (len(PRESETS) + 1) + "|"
    flat = {name: {**values, **values["hyperparameters"]} for name, values in PRESETS.items()}
    for knob in dict.fromkeys(knob for values in flat.values() for knob in values if knob != "hyperparameters"):
        yield f"| `{knob}` | {' | '.join(_default(values.get(knob)) for values in flat.values())} |"
    yield f'| `batch_size` "auto", at most | {" | ".join(str(PRESET_BATCH_SIZE[name]) for name in PRESETS)} |'


def _settings() -> Iterator[str]:
    yield "## Service\n"
    yield "Environment variables, read by every process of the service when it starts.\n"
    yield "| variable | type | default | meaning |"
    yield "|---|---|---|---|"
    for name, field in Settings.model_json_schema()["properties"].items():
        default = _default(field.get("default"))
        yield f"| `WMSS_{name.upper()}` | {_kind(field)} | {default} | {_one_line(field['description'])} |"


def _kind(field: dict[str, Any]) -> str:
    """A JSON schema as a reader would say it."""
    if "$ref" in field:
        name = field["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    if "discriminator" in field:
        kinds = field["discriminator"]["mapping"].items()
        return "by its `type`: " + ", ".join(f"[{kind}](#{ref.rsplit('/', 1)[1].lower()})" for kind, ref in kinds)
    for union in ("anyOf", "oneOf"):
        if union in field:
            return " or ".join(_kind(option) for option in field[union])
    if "enum" in field:
        return ", ".join(f'"{value}"' for value in field["enum"])
    if "const" in field:
        return f'"{field["const"]}"'
    if "items" in field:
        return f"{_length(field)} {_kind(field['items'])}"
    bounds = [
        f"{sign} {_number(field[key])}"
        for key, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
        if key in field
    ]
    return " ".join([str(field.get("type", "object")), *bounds])


def _length(field: dict[str, Any]) -> str:
    """How many members a list has."""
    least, most = field.get("minItems", 0), field.get("maxItems")
    if most is None:
        return "list:"
    return f"list of {least}:" if least == most else f"list of {least} to {most}:"


def _number(value: float) -> str:
    return f"{value:g}" if abs(value) < 100_000 else f"{value:,.0f}"


def _default(value: Any) -> str:
    if isinstance(value, dict):
        return f"`{value['type']}`" if "type" in value else "its own defaults"
    return f"`{json.dumps(value)}`" if value is not None else "null"


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
