"""The teacher that a config's section describes."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
from rich.console import Console

from jaxrecipes.checkpoint.huggingface import import_checkpoint, read_model_config
from jaxrecipes.config.teacher import LocalTeacherSection, OpenAITeacherSection, TeacherSection
from jaxrecipes.experiment.base_model import BaseModel, locate_base
from jaxrecipes.experiment.devices import local_execution, model_shardings
from jaxrecipes.generate.budget import Budget
from jaxrecipes.generate.local_teacher import LocalTeacher
from jaxrecipes.generate.openai_call import Dialect
from jaxrecipes.generate.openai_teacher import OpenAITeacher, Server
from jaxrecipes.generate.retry import Retries
from jaxrecipes.generate.teacher import Teacher


def make_teacher(
    section: TeacherSection,
    base: BaseModel,
    output: Path,
    *,
    compute_dtype: str,
    seed: int,
    console: Console,
) -> Teacher:
    """Makes a teacher; a local one's weights are read here.

    Args:
        section: Who it is.
        base: The experiment's model, for a local teacher without a checkpoint of its own.
        output: Folder where a checkpoint that has to be converted first is put.
        compute_dtype: Number type of a local teacher.
        seed: Seed of a random model.
        console: Where to say what is done.

    Returns:
        The teacher.

    Raises:
        CheckpointError: There is no usable checkpoint.
        ConfigError: The client or the key of a server is missing.
    """
    if isinstance(section, OpenAITeacherSection):
        return OpenAITeacher(_server(section))
    model = base
    if section.checkpoint is not None:
        model = locate_base(
            section.checkpoint, section.revision, output, seed=seed, console=console
        )
    return _local(section, model, compute_dtype)


def budget_of(section: TeacherSection) -> Budget | None:
    """Returns what may be spent on a teacher; None where it costs nothing but time."""
    if isinstance(section, LocalTeacherSection):
        return None
    return Budget(section.budget.requests, section.budget.tokens)


def _server(section: OpenAITeacherSection) -> Server:
    return Server(
        section.base_url,
        section.model,
        key_variable=section.key_variable,
        concurrency=section.concurrency,
        timeout=section.timeout,
        retries=Retries(section.attempts, section.first_wait),
        give_up_after=section.give_up_after,
        dialect=Dialect(section.stream, section.last_turn, section.token_limit),
    )


def _local(section: LocalTeacherSection, model: BaseModel, compute_dtype: str) -> LocalTeacher:
    # On this host's devices alone: of several hosts, one asks.
    places = model_shardings(read_model_config(model.folder), local_execution().mesh)
    dtype = jnp.dtype(compute_dtype)
    imported = import_checkpoint(model.folder, dtype=dtype, shardings=places)
    return LocalTeacher(
        imported.config,
        imported.params,
        model.tokenizer,
        identity={"weights": model.fingerprint},
        slots=section.slots,
        compute_dtype=dtype,
    )
