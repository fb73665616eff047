"""The model that a perturbation attacks in place of the one that trains (Kim and Kang, 2022)."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxrecipes.checkpoint.huggingface import import_checkpoint, read_model_config
from jaxrecipes.checkpoint.reference import resolve_reference
from jaxrecipes.config import Config
from jaxrecipes.durable import hash_file, hash_values
from jaxrecipes.errors import CheckpointError, ConfigError
from jaxrecipes.experiment.devices import model_shardings
from jaxrecipes.experiment.program import ArmProgram, build_weights
from jaxrecipes.models.config import ModelConfig
from jaxrecipes.params.paths import Tree, flatten


def locate_teacher(config: Config, base: ModelConfig) -> Path | None:
    """Finds the checkpoint of a fixed teacher, before anything that takes time.

    Args:
        config: The arm's config.
        base: The base model.

    Returns:
        Its folder; None where the method reads none.

    Raises:
        CheckpointError: There is no such checkpoint, or it is not a folder of one.
        ConfigError: It is another model than the base.
    """
    section = config.train.perturb
    if section is None or section.teacher is None:
        return None
    try:
        folder = resolve_reference(section.teacher)
    except CheckpointError as error:
        raise CheckpointError(f"train.perturb.teacher: {error}") from error
    if not folder.is_dir():
        raise CheckpointError(
            f"train.perturb.teacher: {folder} is a file; expected the folder of a trained model, "
            "such as final/model of a run"
        )
    found = read_model_config(folder)
    if found != base:
        raise ConfigError(
            f"train.perturb.teacher: {folder} computes another function than the base (layers "
            f"{found.num_layers} and {base.num_layers}, width {found.hidden_size} and "
            f"{base.hidden_size}); give a model that was trained from the same base in place"
        )
    return folder


def read_teacher(
    folder: Path, config: Config, program: ArmProgram, frozen: Tree, mesh: Mesh | None
) -> Tree:
    """Reads the leaves of a fixed teacher that train in this arm.

    Args:
        folder: From `locate_teacher`.
        config: The arm's config.
        program: The arm.
        frozen: The arm's frozen leaves.
        mesh: The arm's devices.

    Returns:
        A tree like `program.trainable`.

    Raises:
        ConfigError: The teacher differs from the base in a leaf that is frozen here, so that with
            the arm's frozen leaves it would be neither model.
    """
    model = read_model_config(folder)
    teacher = import_checkpoint(folder, shardings=model_shardings(model, mesh))
    trainable, others = build_weights(config, program, teacher, with_trainable=True)
    own = flatten(frozen)
    for path, leaf in flatten(others).items():
        if not bool(jax.jit(jnp.array_equal)(leaf, own[path])):
            raise ConfigError(
                f"train.perturb.teacher: {folder} differs from the base in {path}, which is frozen "
                "in this arm; give a teacher that trained no other leaves than this arm does"
            )
    return trainable


def teacher_fingerprint(config: Config) -> str | None:
    """Returns SHA-256 over the teacher's weights and configuration; None without a teacher."""
    section = config.train.perturb
    if section is None or section.teacher is None:
        return None
    folder = resolve_reference(section.teacher)
    files = sorted([*folder.glob("*.safetensors"), folder / "config.json"])
    return hash_values({path.name: hash_file(path) for path in files})
