"""Flax definitions of the model families: configuration, layers, attention and the decoder."""

from jaxrecipes.models.config import (
    LinearScaling,
    Llama3Scaling,
    ModelConfig,
    RopeConfig,
)

__all__ = ["LinearScaling", "Llama3Scaling", "ModelConfig", "RopeConfig"]
