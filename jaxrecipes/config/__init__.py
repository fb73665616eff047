"""The config file: its schema, how it is read, and what is said about mistakes.

Which recipes have which schema is in the table of `kinds.py`. The schema of most is in
`experiment.py`, that of others in a file of their own, and in the section files beside them;
`file.py` reads YAML and overrides; `arms.py` makes the arms of a comparison;
`resolved.py` writes the resolved config and its hash. Nothing here imports JAX.
"""

from jaxrecipes.config.adaptive import AdaptiveArm, AdaptiveConfig, adaptive_arms
from jaxrecipes.config.arms import Arm, expand_arms
from jaxrecipes.config.experiment import Config
from jaxrecipes.config.file import load_config
from jaxrecipes.config.kinds import KINDS, kind_of
from jaxrecipes.config.resolved import config_hash, resolved_yaml
from jaxrecipes.config.schema import json_schema
from jaxrecipes.config.section import ExperimentSection

__all__ = [
    "KINDS",
    "AdaptiveArm",
    "AdaptiveConfig",
    "Arm",
    "Config",
    "ExperimentSection",
    "adaptive_arms",
    "config_hash",
    "expand_arms",
    "json_schema",
    "kind_of",
    "load_config",
    "resolved_yaml",
]
