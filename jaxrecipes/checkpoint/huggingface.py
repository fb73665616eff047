"""Hugging Face checkpoints: the public names for reading and writing them."""

from __future__ import annotations

from jaxrecipes.checkpoint.export_model import export_checkpoint
from jaxrecipes.checkpoint.import_model import Imported, import_checkpoint
from jaxrecipes.checkpoint.model_config import read_model_config
from jaxrecipes.checkpoint.model_config_write import write_model_config

__all__ = [
    "Imported",
    "export_checkpoint",
    "import_checkpoint",
    "read_model_config",
    "write_model_config",
]
