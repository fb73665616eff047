"""The config file: its schema, how it is read, and what is said about mistakes.

The schema is in `experiment.py` and the section files beside it; `file.py` reads YAML and
overrides; `arms.py` makes the arms of a comparison; `resolved.py` writes the resolved config and
its hash. Nothing here imports JAX.
"""

from jaxrecipes.config.arms import Arm, expand_arms
from jaxrecipes.config.experiment import Config
from jaxrecipes.config.file import load_config
from jaxrecipes.config.resolved import config_hash, resolved_yaml

__all__ = ["Arm", "Config", "config_hash", "expand_arms", "load_config", "resolved_yaml"]
