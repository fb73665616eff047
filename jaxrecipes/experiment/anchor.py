"""What a penalty holds a model to: the leaves before the first step, and their Fisher information.

Neither changes while an arm trains. The leaves are made again from the base whenever the arm goes
on; the Fisher information, which costs a backward pass an example, is saved once, in the arm's
folder `fisher`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from jaxrecipes.checkpoint.training_state import TrainingStates
from jaxrecipes.config import Config
from jaxrecipes.config.penalty import PenaltySection
from jaxrecipes.data.store import PreparedSet
from jaxrecipes.durable import folder_entries, hash_values
from jaxrecipes.errors import ConfigError
from jaxrecipes.experiment.penalty import EXAMPLES, make_penalty
from jaxrecipes.experiment.program import ArmProgram, remat_policy
from jaxrecipes.hosts import Hosts
from jaxrecipes.params.paths import Tree
from jaxrecipes.train.fisher import accumulate_fisher, diagonal_fisher

FISHER_FOLDER = "fisher"
_SAY_EVERY = 50


def build_anchor(
    name: str,
    config: Config,
    program: ArmProgram,
    trainable: Tree,
    frozen: Tree,
    sets: Sequence[PreparedSet],
    folder: Path,
    identity: Mapping[str, Any],
    hosts: Hosts,
    console: Console,
) -> dict[str, Tree]:
    """Makes the anchor of an arm's penalty, or reads what is expensive of it.

    Args:
        name: The arm.
        config: Its config.
        program: Its program.
        trainable: The leaves before the first step; they stay the caller's.
        frozen: The frozen leaves.
        sets: Rows that the Fisher information is computed on.
        folder: The arm's folder.
        identity: What the saved information belongs to.
        hosts: Who trains.
        console: Says what takes time.

    Returns:
        The anchor, see `train.penalty`; empty without a penalty.

    Raises:
        ConfigError: The earlier Fisher information is missing.
        CheckpointError: It belongs to other leaves than these, or cannot be read.
        DataError: No row has a supervised token.
    """
    section = config.train.penalty
    if section is None or program.penalty is None:
        return {}
    if section.kind != "ewc":
        # A copy: the state gives the buffers of the leaves away one by one.
        return {"start": _copied(trainable)}
    locate_earlier(config)
    with TrainingStates(folder / FISHER_FOLDER, keep=1, hosts=hosts) as saved:
        found = saved.restore(program.anchor, expected=identity)
        if found is not None:
            return found.state
        anchor = _measured(name, config, section, program, trainable, frozen, sets, console)
        if section.earlier is not None:
            with TrainingStates(section.earlier, keep=1, hosts=hosts) as before:
                earlier = before.restore(program.anchor)
            assert earlier is not None
            anchor = accumulate_fisher(
                earlier.state,
                anchor["start"],
                anchor["fisher"],
                how=section.accumulate or "separate",
                decay=section.decay or 1.0,
            )
        if program.execution.mesh is not None:
            places = jax.tree.map(lambda leaf: leaf.sharding, program.anchor)
            anchor = jax.device_put(anchor, places)
        saved.save(0, anchor, identity)
    return anchor


def _measured(
    name: str,
    config: Config,
    section: PenaltySection,
    program: ArmProgram,
    trainable: Tree,
    frozen: Tree,
    sets: Sequence[PreparedSet],
    console: Console,
) -> dict[str, Tree]:
    wanted = section.examples or EXAMPLES
    console.print(
        f"{name}: Fisher information of up to {wanted} examples for train.penalty …",
        highlight=False,
    )

    def say(done: int) -> None:
        if done % _SAY_EVERY == 0:
            console.print(f"{name}: Fisher information, {done} examples", highlight=False)

    fisher, count = diagonal_fisher(
        program.config,
        trainable,
        frozen,
        _rows(sets),
        examples=wanted,
        targets=section.targets or "model",
        seed=config.seed,
        layout=program.layout,
        compute_dtype=jnp.dtype(config.model.compute_dtype),
        remat=remat_policy(config),
        loss_chunk=config.train.loss_chunk,
        execution=program.execution,
        on_example=say,
    )
    console.print(f"{name}: Fisher information of {count} examples", highlight=False)
    return {"start": _copied(trainable), "fisher": fisher}


def _rows(sets: Sequence[PreparedSet]) -> Iterator[dict[str, np.ndarray]]:
    """Yields the rows of all sets in turn, one of each, so that a limit takes from every set."""
    for number in range(max(map(len, sets), default=0)):
        for one in sets:
            if number < len(one):
                yield one[number]


def _copied(tree: Tree) -> Tree:
    return jax.tree.map(jnp.copy, tree)


def locate_earlier(config: Config) -> Path | None:
    """Finds the Fisher information of an earlier run, before anything that takes time.

    Raises:
        ConfigError: There is none in the folder.
    """
    section = config.train.penalty
    if section is None or section.earlier is None or make_penalty(section) is None:
        return None
    folder = Path(section.earlier)
    if not (folder / "0").is_dir():
        raise ConfigError(
            f"train.penalty.earlier: {folder} holds no Fisher information; give the folder "
            f"`arms/<name>/{FISHER_FOLDER}` of a run whose penalty is of kind ewc"
        )
    return folder


def earlier_fingerprint(config: Config) -> str | None:
    """Returns SHA-256 over the earlier Fisher information; None where there is none."""
    folder = locate_earlier(config)
    return None if folder is None else hash_values(folder_entries(folder / "0"))
