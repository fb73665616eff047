"""What is wrong with a config, all of it at once, in words that say what to do."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import ValidationError

from jaxrecipes.config.arms import merge_arm
from jaxrecipes.config.experiment import Config
from jaxrecipes.config.kinds import ALL_RECIPES, kind_of
from jaxrecipes.config.recipe_options import RECIPE_SECTIONS
from jaxrecipes.config.section import Section
from jaxrecipes.config.yaml_text import Path

_TYPES = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a section (keys with values, indented)",
    "model_type": "a section (keys with values, indented)",
    "model_attributes_type": "a section (keys with values, indented)",
    "finite_number": "a finite number",
}
_BOUNDS = {
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be {ge} or more",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be {le} or less",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
    "too_short": "must have at least {min_length} item(s)",
    "string_pattern_mismatch": "must be made of letters, digits and _ . + - only",
}


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        path: Keys and list indices from the top.
        message: What is wrong, what was expected, what to do.
    """

    path: Path
    message: str


def find_problems(data: Any) -> list[Problem]:
    """Checks plain data against the schema, each arm of the comparison included.

    Args:
        data: What a YAML file says, overrides applied.

    Returns:
        All problems, none twice; empty if its schema's `model_validate(data)` works for it and its
        arms.
    """
    if not isinstance(data, Mapping):
        return [Problem((), "a config is a mapping of keys to values; see `jaxrecipes new`")]
    schema = kind_of(data).schema
    problems = _validate(data, schema)
    # Arms of the other schema are whole in themselves.
    arms = data.get("compare") if schema is Config else []
    for number, arm in enumerate(arms if isinstance(arms, list) else []):
        if not isinstance(arm, Mapping):
            continue
        found = _validate(merge_arm(data, arm), schema)
        for problem in found:
            if _belongs_to_arm(problem.path, arm):
                problems.append(Problem(("compare", number, *problem.path), problem.message))
    return list(dict.fromkeys(problems))


def _belongs_to_arm(path: Path, arm: Mapping[str, Any]) -> bool:
    """Whether a problem of a merged config comes from what the arm itself says."""
    if path[:1] and path[0] in RECIPE_SECTIONS:
        return True
    return path[:1] == ("train",) and _follow(arm, path) == path


def _validate(data: Mapping[str, Any], schema: type[Section]) -> list[Problem]:
    try:
        schema.model_validate(data)
    except ValidationError as error:
        grouped: dict[Path, list[str]] = {}
        for item in error.errors(include_url=False):
            for path, message in _explain(dict(item), data, schema):
                grouped.setdefault(path, []).append(message)
        return [
            Problem(path, _join(list(dict.fromkeys(messages))))
            for path, messages in grouped.items()
        ]
    return []


def _join(messages: list[str]) -> str:
    """Several errors at one key come from a value that may have several types."""
    start = messages[0].partition("; expected ")[0]
    if all(message.startswith(f"{start}; expected ") for message in messages):
        rest = [message.removeprefix(f"{start}; expected ") for message in messages]
        return f"{start}; expected {', or '.join(rest)}"
    return "; ".join(messages)


def _explain(
    item: dict[str, Any], data: Mapping[str, Any], schema: type[Section]
) -> Iterator[tuple[Path, str]]:
    kind, context = item["type"], item.get("ctx", {})
    path = _follow(data, item["loc"])
    value = item["input"]
    if kind == "conflicts":
        for key, message in context["problems"]:
            yield tuple(int(part) if part.isdigit() else part for part in key.split(".")), message
    elif kind == "missing":
        path = (*path, item["loc"][-1])
        yield path, f"is missing: {_description(path, schema)}"
    elif kind == "extra_forbidden":
        yield path, _unknown_key(path, schema)
    elif kind == "literal_error":
        allowed = re.findall(r"'([^']*)'", context["expected"]) or [context["expected"]]
        if path == ("recipe",):
            allowed = list(ALL_RECIPES)
        close = difflib.get_close_matches(str(value), allowed, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        yield path, f"is {_show(value)}; expected {' | '.join(allowed)}{hint}"
    elif kind == "union_tag_invalid":
        expected = " | ".join(re.findall(r"'([^']*)'", context["expected_tags"]))
        yield (*path, "kind"), f"is {_show(context['tag'])}; expected {expected}"
    elif kind == "union_tag_not_found":
        tags = [
            str(get_args(one.model_fields["kind"].annotation)[0])
            for one in sections_at(path, schema)
        ]
        yield (*path, "kind"), f"is missing; expected {' | '.join(tags)}"
    elif kind in _TYPES:
        yield path, f"is {_show(value)}; expected {_TYPES[kind]}{_number_hint(kind, value)}"
    elif kind in _BOUNDS:
        yield path, f"is {_show(value)}; {_BOUNDS[kind].format(**context)}"
    else:
        yield path, f"is {_show(value)}; {item['msg'][:1].lower()}{item['msg'][1:]}"


def _number_hint(kind: str, value: Any) -> str:
    if kind not in ("int_type", "float_type") or not isinstance(value, str):
        return ""
    try:
        float(value)
    except ValueError:
        return ""
    return " (remove the quotes)"


def _follow(data: Any, location: tuple[str | int, ...]) -> Path:
    """Keeps the parts of an error's location that are keys of the data, dropping union labels."""
    path: list[str | int] = []
    here: Any = data
    for part in location:
        if _has(here, part):
            here = here[part]
            path.append(part)
    return tuple(path)


def _has(container: Any, part: str | int) -> bool:
    if isinstance(container, Mapping):
        return part in container
    return isinstance(container, list) and isinstance(part, int) and part < len(container)


def _show(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a section"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    text = f"{value!r}" if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def sections_at(path: Path, schema: type[Section] = Config) -> list[type[Section]]:
    """Returns the schema classes that the section at a path may have, empty if it is no section."""
    found: list[type[Section]] = [schema]
    for part in path:
        if isinstance(part, int):
            continue
        found = [
            section
            for parent in found
            if part in parent.model_fields
            for section in section_types(parent.model_fields[part].annotation)
        ]
    return found


def section_types(annotation: Any) -> list[type[Section]]:
    """Lists the schema classes inside an annotation such as `list[A] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [found for argument in get_args(annotation) for found in section_types(argument)]


def _description(path: Path, schema: type[Section]) -> str:
    for section in sections_at(path[:-1], schema):
        field = section.model_fields.get(str(path[-1]))
        if field is not None and field.description:
            return field.description
    return "required"


def _unknown_key(path: Path, schema: type[Section]) -> str:
    name = str(path[-1])
    sections = sections_at(path[:-1], schema)
    valid = list(dict.fromkeys(key for part in sections for key in part.model_fields))
    close = difflib.get_close_matches(name, valid, n=1)
    if close:
        return f"unknown key; did you mean {close[0]}?"
    elsewhere = [key for key in dotted_keys(schema) if key.split(".")[-1] == name]
    if elsewhere and len(elsewhere) <= 3:
        return f"unknown key here; did you mean {' or '.join(elsewhere)}?"
    return f"unknown key; valid here: {', '.join(valid)}"


def dotted_keys(section: type[Section] = Config, prefix: str = "") -> list[str]:
    """Lists every key of the schema, for example train.optimizer.learning_rate; lists as [].

    Args:
        section: Where to start.
        prefix: Put before each key.

    Returns:
        Keys in the order of the schema, sections before what they hold. Arms are left out: what an
        item of `compare` may hold is in the other sections.
    """
    keys: list[str] = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        mark = "[]" if "list[" in str(field.annotation) else ""
        if name != "compare":
            for inner in section_types(field.annotation):
                keys += dotted_keys(inner, f"{prefix}{name}{mark}.")
    return list(dict.fromkeys(keys))
