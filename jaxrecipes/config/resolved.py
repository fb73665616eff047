"""The resolved config: every value with its origin, and the hash by which configs are equal."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import yaml

from jaxrecipes.config.experiment import Config
from jaxrecipes.config.kinds import kind_of
from jaxrecipes.config.recipe_options import RECIPE_SECTIONS
from jaxrecipes.config.section import ExperimentSection
from jaxrecipes.config.yaml_text import ConfigDumper, parse_yaml


def resolved_yaml(config: ExperimentSection) -> str:
    """Writes a config with all defaults filled in, and each value's origin as a comment.

    Returns:
        YAML that `load_config` reads back as an equal config.
    """
    text = yaml.dump(
        config.model_dump(),
        Dumper=ConfigDumper,
        sort_keys=False,
        default_flow_style=False,
        allow_unicode=True,
        width=1_000_000,
    )
    parsed = parse_yaml(text, "resolved config")
    lines = text.splitlines()
    origins = config.origins
    for path, number in parsed.lines.items():
        value = _at(parsed.data, path)
        if isinstance(value, dict | list) and value or isinstance(value, str) and "\n" in value:
            continue
        key = ".".join(map(str, path))
        line = lines[number - 1].rstrip()
        lines[number - 1] = f"{line}  # {origins.get(key, 'default')}"
    return "\n".join(lines) + "\n"


def config_hash(config: ExperimentSection) -> str:
    """Hashes everything in a config that can change a result.

    `output`, `name`, `compare` and `train.trackers` are left out, so an arm has the same hash in
    every folder and in every comparison; so are `mesh` and `model.attention`, because a run may go
    on with other devices than it began with, and the sections of other recipes, of perturbations
    and of penalties that are not there. Defaults are filled in before hashing, so writing a default
    out changes nothing. What else a kind of experiments leaves out is in its row of `KINDS`.

    Returns:
        sha256, 64 hexadecimal digits.
    """
    data = config.model_dump(exclude={"output", "name", "compare", *kind_of(config).unhashed})
    if not isinstance(config, Config):
        return _hash(data)
    del data["train"]["trackers"], data["model"]["attention"]
    for name in RECIPE_SECTIONS:
        if data[name] is None:
            del data[name]
    for name in ("perturb", "penalty"):
        if data["train"][name] is None:
            del data["train"][name]
    return _hash(data)


def _hash(data: dict[str, Any]) -> str:
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _at(data: Any, path: tuple[str | int, ...]) -> Any:
    for part in path:
        data = data[part]
    return data
