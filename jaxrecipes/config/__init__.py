"""The config file: its schema, how it is read, and what is said about mistakes.

The schema is in `experiment.py`, for the adaptive recipes in `adaptive.py`, and in the section
files beside them; `file.py` reads YAML and overrides; `arms.py` makes the arms of a comparison;
`resolved.py` writes the resolved config and its hash. Nothing here imports JAX.
"""

from jaxrecipes.config.adaptive import AdaptiveArm, AdaptiveConfig, adaptive_arms
from jaxrecipes.config.arms import Arm, expand_arms
from jaxrecipes.config.experiment import Config
from jaxrecipes.config.file import load_config
from jaxrecipes.config.resolved import config_hash, resolved_yaml
from jaxrecipes.config.schema import json_schema

__all__ = [
    "AdaptiveArm",
    "AdaptiveConfig",
    "Arm",
    "Config",
    "adaptive_arms",
    "config_hash",
    "expand_arms",
    "json_schema",
    "load_config",
    "resolved_yaml",
]
