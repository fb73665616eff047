"""Writes docs/config_reference.md and docs/config.schema.json from the config's schema.

`python docs/write_reference.py` writes, with --check it fails where a file is out of date.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from jaxrecipes.config import KINDS, json_schema
from jaxrecipes.config.problems import section_types
from jaxrecipes.config.section import Section

FOLDER = Path(__file__).parent
SIGNS = ((Gt, "gt", ">"), (Ge, "ge", ">="), (Lt, "lt", "<"), (Le, "le", "<="))
HEADER = """\
# Config reference

Written by `docs/write_reference.py` from the schema; do not edit. `jaxrecipes validate --schema`
prints the same as a JSON schema, which editors use to complete and check a config: put
`# yaml-language-server: $schema=config.schema.json` in its first line.

Every key can be given on the command line as `key.sub=value` or `--key.sub value`; items of a list
by their number (`data.learn.0.source=notes.txt`). Unknown keys are errors. Paths are relative to
the folder in which the command runs. A section named like a recipe holds that recipe's options.
"""


def type_name(annotation: Any) -> str:
    """Names a type as the reader of a YAML file knows it."""
    if annotation is type(None):
        return "null"
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return "section"
    names = {int: "whole number", float: "number", str: "text", bool: "true, false"}
    if annotation in names:
        return names[annotation]
    text = str(annotation)
    arguments = get_args(annotation)
    if text.startswith("typing.Annotated"):
        return type_name(arguments[0])
    if text.startswith("typing.Literal"):
        return ", ".join(f"`{value}`" for value in arguments)
    if get_origin(annotation) is list:
        return f"list of {type_name(arguments[0])}s"
    if get_origin(annotation) is dict:
        return "section"
    return " or ".join(dict.fromkeys(type_name(argument) for argument in arguments))


def bounds(field: FieldInfo) -> str:
    """Writes the bounds of a value, for example "> 0, <= 1"."""
    found = [
        f"{sign} {getattr(item, name)}"
        for item in field.metadata
        for kind, name, sign in SIGNS
        if isinstance(item, kind)
    ]
    for item in field.metadata:
        if isinstance(item, MinLen) and "list" in str(field.annotation):
            found.append(f"at least {item.min_length}")
        if isinstance(item, MaxLen):
            found.append(f"at most {item.max_length} characters")
    return ", ".join(found)


def default(field: FieldInfo) -> str:
    """Writes a default as YAML would have it."""
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "**required**"
    if isinstance(value, Section):
        return ""
    if isinstance(value, list):
        if value and isinstance(value[0], Section):
            value = [item.model_dump() for item in value]
        return f"<code>{json.dumps(value)}</code>"
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


OTHER = """\
# Config of {title}

Recipe{plural} {recipes} {verb} a schema of {own} own.
"""


def other_kinds() -> list[str]:
    """Writes the schemas of the recipes that have others than most."""
    lines: list[str] = []
    for kind in KINDS[1:]:
        names = [f"`{name}`" for name in kind.recipes]
        several = len(names) > 1
        listed = f"{', '.join(names[:-1])} and {names[-1]}" if several else names[0]
        words = {"plural": "s" if several else "", "verb": "have" if several else "has"}
        own = "their" if several else "its"
        lines.append(OTHER.format(title=kind.title, recipes=listed, own=own, **words))
        lines += table(kind.schema, "Top level", 2)
    return lines


def table(section: type[Section], title: str, level: int) -> list[str]:
    """Writes one section and the sections inside it."""
    lines = [f"{'#' * level} {title}", "", (section.__doc__ or "").strip().split("\n\n")[0], ""]
    lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
    inner: list[tuple[type[Section], str]] = []
    for name, field in section.model_fields.items():
        limit = bounds(field)
        kind = type_name(field.annotation) + (f" ({limit})" if limit else "")
        meaning = (field.description or "").replace("<", "&lt;")
        cells = (f"`{name}`", kind, default(field), meaning)
        lines.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |")
        if title == "`compare[]`" and name != "train":
            continue  # described above: they are those of the top level
        mark = "[]" if "list[" in str(field.annotation) else ""
        prefix = "" if title == "Top level" else title.strip("`").split("` (")[0] + "."
        found = section_types(field.annotation)
        for kind_of in found:
            label = f"`{prefix}{name}{mark}`"
            if len(found) > 1:
                label += f" ({kind_of.model_fields['kind'].annotation.__args__[0]})"
            inner.append((kind_of, label))
    lines.append("")
    for kind_of, label in inner:
        lines += table(kind_of, label, 2)
    return lines


def main() -> int:
    """Writes or checks the two files; returns the exit code."""
    files = {
        FOLDER / "config_reference.md": "\n".join(
            [HEADER, *table(KINDS[0].schema, "Top level", 2), *other_kinds()]
        ),
        FOLDER / "config.schema.json": json.dumps(json_schema(), indent=2) + "\n",
    }
    stale = []
    for path, text in files.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(path.name)
            if "--check" not in sys.argv[1:]:
                path.write_text(text, encoding="utf-8")
    if stale and "--check" in sys.argv[1:]:
        print(f"out of date: {', '.join(stale)}; run python docs/write_reference.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
