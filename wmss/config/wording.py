"""Validation errors in words: the field as the caller wrote it, what was expected, what was found."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel

from wmss.config.base import PATTERNS
from wmss.config.job import UNSUPPORTED
from wmss.errors import ConfigError, shortened, shown


def explain(errors: Sequence[Mapping[str, Any]], *kinds: Any) -> ConfigError:
    """One message for all of pydantic's `errors()`, `param` naming the first field (e.g. `method.wmss.alpha`).

    `kinds` are the types that were validated; a misspelt field is answered with theirs that it looks like.
    """
    texts: dict[str, tuple[list[str], str]] = {}  # of one field, all that it could have been
    for item in errors:
        field, text = _explain_one(item, kinds)
        got = "" if item["type"] in _SELF_EXPLAINED else f" (got {shown(item['input'])})"
        texts.setdefault(field, ([], got))[0].append(text)
    lines = []
    for field, (said, got) in list(texts.items())[:MAX_REPORTED]:
        text = " or ".join([said[0], *(other.removeprefix("expected ") for other in said[1:])]) + got
        lines.append(f"{field}: {text}" if field else text)
    if len(texts) > MAX_REPORTED:
        lines.append(f"and {len(texts) - MAX_REPORTED} more")
    return ConfigError("; ".join(lines), param=next(iter(texts)) or None)


MAX_REPORTED = 100
"""Most fields that one message lists."""
_OBJECT_EXPECTED = ("model_type", "model_attributes_type", "dict_type")
_SELF_EXPLAINED = ("extra_forbidden", "missing", "value_error", "union_tag_invalid", "union_tag_not_found")


def _explain_one(item: Mapping[str, Any], kinds: Sequence[Any]) -> tuple[str, str]:
    """The field of one of pydantic's errors, and what was expected of it."""
    if item["type"] == "extra_forbidden":
        field = field_path(item["loc"], named_by_caller=True)
        return field, UNSUPPORTED.get(field) or _unknown_field(item["loc"], kinds)
    field = field_path(item["loc"])
    match item["type"]:
        case "missing":
            return field, "required field is missing"
        case "union_tag_invalid":
            known, got = item["ctx"]["expected_tags"], item["ctx"]["tag"]
            return f"{field}.type", f"expected one of {known}, got {shown(got)}; others are not offered here"
        case "union_tag_not_found":
            return f"{field}.type", "required field is missing"
        case "string_pattern_mismatch":
            return field, f"expected {PATTERNS[item['ctx']['pattern']]}"
        case kind if kind in _OBJECT_EXPECTED:
            return field, "expected an object with fields"
        case _:
            return field, item["msg"].removeprefix("Value error, ").replace("Input should be", "expected")


def _unknown_field(location: tuple[int | str, ...], kinds: Sequence[Any]) -> str:
    known = {name for model in _models_at(location[:-1], kinds) for name in model.model_fields}
    near = difflib.get_close_matches(str(location[-1]), sorted(known), n=1, cutoff=0.7)
    return f"unknown field; did you mean {near[0]!r}?" if near else "unknown field; remove it or correct its spelling"


def _models_at(location: tuple[int | str, ...], kinds: Sequence[Any]) -> list[type[BaseModel]]:
    """The models one of which is meant at a place of a value of one of the types."""
    models = [model for kind in kinds for model in _models_in(kind)]
    for part in location:
        branch = [model for model in models if part == model.__name__ or part in _tags(model)]
        inside = [model.model_fields[part] for model in models if part in model.model_fields]
        if branch and len(models) > 1:
            models = branch
        elif inside:
            models = [model for field in inside for model in _models_in(field.annotation)]
        # else the number of an item, or a mark of pydantic's own: the same models
    return models


def _models_in(kind: Any) -> Iterator[type[BaseModel]]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
    for part in get_args(kind):
        yield from _models_in(part)


def _tags(model: type[BaseModel]) -> tuple[Any, ...]:
    return get_args(model.model_fields["type"].annotation) if "type" in model.model_fields else ()


_PYDANTICS_OWN = ("str", "int", "constrained-int", "float", "constrained-float", "[key]")


def field_path(location: tuple[int | str, ...], *, named_by_caller: bool = False) -> str:
    """A field's dotted path as the caller wrote it, without the union branches and "[key]" marks that pydantic adds.

    `named_by_caller`: whether the last part is a name of the caller's, which may look like one of pydantic's.
    """
    parts = [str(part) or "''" for part in location]
    if parts[:1] == ["method"] and len(parts) > 1:
        del parts[1]
    if parts[1:3] == ["self_improvement", "verifier"] and len(parts) > 4:
        del parts[3]
    of_the_caller = named_by_caller or (parts[:1] == ["metadata"] and parts[-1] != "[key]")
    if parts and not of_the_caller and (parts[-1] in _PYDANTICS_OWN or parts[-1].startswith(("literal[", "list["))):
        del parts[-1]
    return shortened(".".join(parts))
