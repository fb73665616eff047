"""Reading a config: a YAML file, then `key.sub=value` overrides, then the checks."""

from __future__ import annotations

import difflib
import os
import pathlib
from collections.abc import Iterable
from typing import Any

from jaxrecipes.config.kinds import kind_of
from jaxrecipes.config.problems import Problem, find_problems
from jaxrecipes.config.section import ExperimentSection
from jaxrecipes.config.yaml_text import Path, YamlText, parse_yaml
from jaxrecipes.errors import ConfigError

_LARGEST_FILE = 1_000_000  # bytes; the largest sensible config is a hundredth of that


def load_config(path: str | os.PathLike[str], overrides: Iterable[str] = ()) -> ExperimentSection:
    """Reads and checks a config.

    Args:
        path: A YAML file in UTF-8.
        overrides: `key.sub=value` each, the value as YAML (`train.optimizer.learning_rate=1e-4`,
            `data.learn.0.source=notes.txt`, `compare=[]`); later ones win.

    Returns:
        The config, of the schema that its recipe has, with the origin of each given value in
        `origins`.

    Raises:
        ConfigError: Every problem at once, each with file and line, key, what was expected and,
            for a mistyped key or word, the nearest valid one.
    """
    name = os.fspath(path)
    parsed = parse_yaml(_read(pathlib.Path(path)), name)
    if parsed.data is None:
        raise ConfigError(
            f"{name}: the file is empty; `jaxrecipes new RECIPE FILE` writes a config to start from"
        )
    if not isinstance(parsed.data, dict):
        raise ConfigError(
            f"{name}:1: a config is a mapping of keys to values (`recipe: full`); "
            "`jaxrecipes new RECIPE FILE` writes one to start from"
        )
    origins = {at: f"{name}:{line}" for at, line in parsed.lines.items() if at}
    for override in overrides:
        _override(parsed, origins, override)
    problems = find_problems(parsed.data)
    if problems:
        raise ConfigError(_report(name, problems, origins))
    config = kind_of(parsed.data).schema.model_validate(parsed.data)
    config._origins.update({".".join(map(str, at)): text for at, text in origins.items()})
    return config


def _read(path: pathlib.Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_FILE + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file{_nearby(path)}") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder; expected a YAML file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    if len(content) > _LARGEST_FILE:
        raise ConfigError(f"{path}: is larger than 1 MB; expected a config, is this a data file?")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path}:{line}: byte {content[error.start]:#04x} is not UTF-8; save the file as UTF-8"
        ) from None


def _nearby(path: pathlib.Path) -> str:
    folder = path.parent
    names = [entry.name for entry in folder.glob("*.y*ml")] if folder.is_dir() else []
    close = difflib.get_close_matches(path.name, names, n=1)
    if close:
        return f"; did you mean {folder / close[0]}?"
    return "; `jaxrecipes new RECIPE FILE` writes a config to start from"


def _override(parsed: YamlText, origins: dict[Path, str], override: str) -> None:
    """Puts one override into the data and notes where its values came from."""
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key or any(not part for part in key.split(".")):
        raise ConfigError(
            f"override {override!r}: expected key.sub=value, for example train.steps=100"
        )
    value = parse_yaml(text, f"override {override!r}").data
    path = tuple(int(part) if part.isdigit() else part for part in key.split("."))
    target: Any = parsed.data
    for depth, part in enumerate(path):
        last = depth == len(path) - 1
        where = ".".join(map(str, path[:depth])) or "the config"
        if isinstance(target, list):
            here: Any = part
            if not isinstance(part, int) or part >= len(target):
                raise ConfigError(
                    f"override {override!r}: {where} is a list of {len(target)}; expected an index "
                    f"from 0 to {len(target) - 1} after it"
                )
        elif isinstance(target, dict):
            here = str(part)
            if not last and target.get(here) is None:
                target[here] = {}
                origins[path[: depth + 1]] = f"command line ({override})"
        else:
            raise ConfigError(f"override {override!r}: {where} is a value, not a section")
        if last:
            target[here] = value
        else:
            target = target[here]
    for known in [at for at in origins if at[: len(path)] == path]:
        del origins[known]
    for at in _paths(value, path):
        origins[at] = f"command line ({override})"


def _paths(value: Any, path: Path) -> list[Path]:
    if isinstance(value, dict):
        items = list(value.items())
    else:
        items = list(enumerate(value)) if isinstance(value, list) else []
    return [path, *(found for key, inner in items for found in _paths(inner, (*path, key)))]


def _report(name: str, problems: list[Problem], origins: dict[Path, str]) -> str:
    lines: list[str] = []
    for problem in problems:
        origin = next(
            (
                origins[problem.path[:size]]
                for size in range(len(problem.path), 0, -1)
                if problem.path[:size] in origins
            ),
            name,
        )
        key = ".".join(map(str, problem.path))
        lines.append(
            f"{origin}: {key}: {problem.message}" if key else f"{origin}: {problem.message}"
        )
    if len(lines) == 1:
        return lines[0]
    lines.sort(key=lambda line: _line_number(line, name))
    return f"{name} has {len(lines)} problems:\n" + "\n".join(lines)


def _line_number(message: str, name: str) -> int:
    """Sorts messages by their line, those of no line last."""
    number = message.removeprefix(f"{name}:").partition(":")[0]
    return int(number) if number.isdigit() else 10**9
