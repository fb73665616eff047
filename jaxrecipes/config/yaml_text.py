"""YAML as configs use it: plain data with the line of every key, and numbers that read as numbers.

Differences from PyYAML's safe loader, each because of an error that it would hide: 1e-3 is a
number, only true and false are booleans, 010 is no octal number, a repeated key is an error, and
tags, anchors and aliases are refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import yaml

from jaxrecipes.errors import ConfigError

Path = tuple[str | int, ...]

_PREFIX = "tag:yaml.org,2002:"
# Tag, expression, possible first characters. The first match wins.
_RESOLVERS = (
    ("null", re.compile(r"^(?:~|null|)$"), ["~", "n", ""]),
    ("bool", re.compile(r"^(?:true|false)$"), list("tf")),
    ("int", re.compile(r"^[-+]?(?:0|[1-9][0-9]*(?:_[0-9]+)*)$"), list("-+0123456789")),
    (
        "float",
        re.compile(r"^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$"),
        list("-+.0123456789"),
    ),
)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}


class ConfigDumper(yaml.SafeDumper):
    """Writes YAML that `parse_yaml` reads back as the same values."""

    yaml_implicit_resolvers: dict[str, Any] = {}

    def ignore_aliases(self, data: Any) -> bool:
        """Writes equal values out each time: `parse_yaml` refuses aliases."""
        return True


for _tag, _expression, _first in _RESOLVERS:
    _Loader.add_implicit_resolver(_PREFIX + _tag, _expression, _first)
    ConfigDumper.add_implicit_resolver(_PREFIX + _tag, _expression, _first)


@dataclass(frozen=True)
class YamlText:
    """Parsed YAML.

    Attributes:
        data: None, bool, int, float, str, and lists and dicts (with str keys) of them.
        lines: Path of every key and list item -> line number, from 1.
    """

    data: Any
    lines: dict[Path, int]


def parse_yaml(text: str, name: str) -> YamlText:
    """Parses one YAML document.

    Args:
        text: The YAML.
        name: What messages call it, for example the file's path.

    Returns:
        The data and its lines; data is None for an empty text.

    Raises:
        ConfigError: Not valid YAML, or YAML that configs do not use; names the line.
    """
    try:
        loader = _Loader(text)
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                mark = event.start_mark
                line = f":{mark.line + 1}" if mark else ""
                raise ConfigError(
                    f"{name}{line}: anchors (&) and aliases (*) are not used "
                    "in configs; write the value out, or quote it if it is text"
                )
        node = loader.get_single_node()
        lines: dict[Path, int] = {}
        data = None if node is None else _construct(loader, node, (), lines, name)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(
            f"{name}{line}: not valid YAML: {error.problem or error.context}; check indentation "
            "(spaces only), quotes and colons near this line"
        ) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not valid YAML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{name}: not a config: values are nested too deeply") from None
    return YamlText(data, lines)


def _construct(
    loader: _Loader, node: yaml.Node, path: Path, lines: dict[Path, int], name: str
) -> Any:
    line = node.start_mark.line + 1
    lines.setdefault(path, line)
    kind = node.tag.removeprefix(_PREFIX)
    if isinstance(node, yaml.MappingNode) and kind == "map":
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key_line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise ConfigError(f"{name}:{key_line}: a key must be a word, not a list")
            key = key_node.value
            if key in result:
                first = lines[(*path, key)]
                raise ConfigError(
                    f"{name}:{key_line}: the key {key!r} is given twice (first in line {first}); "
                    "remove one of them"
                )
            lines[(*path, key)] = key_line
            result[key] = _construct(loader, value_node, (*path, key), lines, name)
        return result
    if isinstance(node, yaml.SequenceNode) and kind == "seq":
        return [
            _construct(loader, item, (*path, number), lines, name)
            for number, item in enumerate(node.value)
        ]
    if isinstance(node, yaml.ScalarNode):
        text = node.value
        if kind == "null":
            return None
        if kind == "bool" and text in ("true", "false"):
            return text == "true"
        try:
            if kind == "int":
                return int(text)
            if kind == "float":
                return float(text)
        except ValueError:  # an explicit tag on other text, or more digits than Python converts
            return text
        if kind == "str":
            return text
    raise ConfigError(f"{name}:{line}: {node.tag!r} tags are not used in configs; remove it")
