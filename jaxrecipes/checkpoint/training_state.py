"""Saving and restoring the state of a run: arrays and a JSON card, atomically, newest N kept.

The arrays are written by Orbax v1 in the background into a temporary folder that is renamed when it
is complete, so a kill at any moment leaves the earlier steps as they were. Orbax does not notice a
flipped bit in the arrays; after the rename this module therefore writes a checksum of every file,
and a step whose files no longer match is put aside instead of being trained on.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from jaxrecipes.durable import folder_entries, hash_file, write_json
from jaxrecipes.errors import CheckpointError
from jaxrecipes.hosts import ONE_HOST, Hosts

_CHECKSUMS = "checksums.json"
_STATE = "state"
_TEMPORARY = ".orbax-checkpoint-tmp"
_DAMAGED = ".damaged"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Restored:
    """A state that was read back.

    Attributes:
        step: The step it was saved at.
        state: A tree of the structure that was asked for, of jax arrays.
        metadata: The JSON object that was saved with it.
    """

    step: int
    state: Any
    metadata: dict[str, Any]


class TrainingStates:
    """The saved states of one run, a folder with one folder a step.

    Use it as a context manager, or call `close`: a save runs on after `save` returns.
    """

    def __init__(self, folder: str | Path, *, keep: int = 2, hosts: Hosts = ONE_HOST) -> None:
        """Opens the folder, and makes it if it is not there.

        Args:
            folder: Where the steps are; with several hosts, where all of them see it.
            keep: Newest complete steps to keep; older ones are deleted after a save.
            hosts: Who saves and restores together.

        Raises:
            CheckpointError: `keep` is below 1, or the folder cannot be made.
        """
        if keep < 1:
            raise CheckpointError(f"keep is {keep}; at least one saved state must be kept")
        self._folder = Path(folder).absolute()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"{self._folder} cannot be made: {error.strerror}") from None
        self._keep = keep
        self._hosts = hosts
        hosts.only_first(f"{self._folder}/clean", self._remove_incomplete)
        # Made at the first save: Orbax reads every step's card then, and a damaged one would raise.
        self._checkpointer: ocp.training.Checkpointer | None = None
        self._background = ThreadPoolExecutor(1, thread_name_prefix="training-state")
        self._pending: Future[None] | None = None

    def __enter__(self) -> TrainingStates:
        """Returns itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Waits for the save that is under way."""
        self.close()

    def steps(self) -> tuple[int, ...]:
        """Returns the steps that are completely saved, oldest first."""
        names = (path.name for path in self._folder.iterdir() if path.is_dir())
        return tuple(sorted(int(name) for name in names if name.isdecimal()))

    def save(self, step: int, state: Any, metadata: Mapping[str, Any]) -> None:
        """Starts to save a state; waits for the save before it, if that still runs.

        The arrays may be donated or changed as soon as this returns.

        Args:
            step: Above every saved step.
            state: Any tree of arrays.
            metadata: JSON object that says what the state belongs to: data position, config hash.

        Raises:
            CheckpointError: The earlier save failed, or this one could not start.
        """
        self.wait()
        leaves = _named_leaves(state)
        card = {"metadata": dict(metadata), "leaves": _shapes(leaves)}
        try:
            json.dumps(card)
            if self._checkpointer is None:
                self._checkpointer = self._open()
            response = self._checkpointer.save_checkpointables_async(
                step, {_STATE: leaves}, custom_metadata=card
            )
        except Exception as error:  # Orbax and TensorStore raise many classes
            raise self._not_saved(step, error) from None
        if response is None:
            raise CheckpointError(
                f"{self._folder}: step {step} was not saved; step {self.steps()[-1]} is there"
            )
        self._pending = self._background.submit(self._finish, step, response)

    def wait(self) -> None:
        """Waits until the save that is under way is complete.

        Raises:
            CheckpointError: It failed, for example because the disk is full.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Waits as `wait` does and lets the folder go."""
        try:
            self.wait()
        finally:
            self._background.shutdown()
            if self._checkpointer is not None:
                self._checkpointer.close()
                self._checkpointer = None

    def restore(
        self, abstract_state: Any, *, expected: Mapping[str, Any] | None = None
    ) -> Restored | None:
        """Reads the newest state that is whole.

        A damaged step is renamed to `<step>.damaged`, with a warning in the log, and the one before
        it is tried.

        Args:
            abstract_state: Tree of `jax.ShapeDtypeStruct` (or arrays). Leaves with a sharding are
                read straight into it, others onto the default device.
            expected: Entries that the saved metadata must have, for example the config hash.

        Returns:
            The state, or None where there is none to go on from.

        Raises:
            CheckpointError: The newest whole step belongs to something else: the message names the
                leaf whose path, shape or dtype differs, or the metadata entry.
        """
        self.wait()
        while True:
            # One host reads all files to verify them, and says which step all restore.
            chosen = self._hosts.say(f"{self._folder}/restore", self._newest_whole)
            if not chosen:
                return None
            step = int(chosen)
            card = self._read_card(step)
            _refuse_other_run(f"{self._folder / chosen}", card, abstract_state, expected or {})
            try:
                return Restored(step, self._read_state(step, abstract_state), card["metadata"])
            except _DamagedError as error:
                if self._hosts.count > 1:
                    raise CheckpointError(
                        f"{self._folder / chosen}: {error}; remove that folder, and the run goes "
                        "on from the step before it"
                    ) from None
                self._put_aside(step, str(error))

    def _newest_whole(self) -> str:
        for step in reversed(self.steps()):
            try:
                self._verify_files(step)
                self._read_card(step)
            except _DamagedError as error:
                self._put_aside(step, str(error))
            else:
                return str(step)
        return ""

    def _read_card(self, step: int) -> dict[str, Any]:
        try:
            card = ocp.checkpointables_metadata(str(self._folder / str(step))).custom_metadata
        except Exception as error:
            raise _DamagedError(f"its card cannot be read ({_first_line(error)})") from None
        if not isinstance(card, dict) or not {"metadata", "leaves"} <= set(card):
            raise _DamagedError("its card is missing")
        return card

    def _read_state(self, step: int, abstract_state: Any) -> Any:
        paths, structure = jax.tree_util.tree_flatten_with_path(abstract_state)
        default = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        abstract = {
            _name(path): jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or default
            )
            for path, leaf in paths
        }
        try:
            path = str(self._folder / str(step))
            leaves = ocp.load_checkpointables(path, {_STATE: abstract})[_STATE]
        except Exception as error:
            raise _DamagedError(f"its arrays cannot be read ({_first_line(error)})") from None
        return jax.tree_util.tree_unflatten(structure, [leaves[_name(path)] for path, _ in paths])

    def _finish(self, step: int, response: Any) -> None:
        try:
            response.result()
            if self._hosts.is_first:
                _write_checksums(self._folder / str(step))
        except Exception as error:
            raise self._not_saved(step, error) from None

    def _not_saved(self, step: int, error: Exception) -> CheckpointError:
        return CheckpointError(
            f"{self._folder}: the state of step {step} could not be saved: {_first_line(error)}. "
            f"Earlier saved steps are untouched; check free space and permissions"
        )

    def _verify_files(self, step: int) -> None:
        folder = self._folder / str(step)
        path = folder / _CHECKSUMS
        if not path.exists():
            # Killed between Orbax's commit and our checksums: the arrays are complete.
            return
        try:
            checksums = json.loads(path.read_text(encoding="utf-8"))
            for name, (size, digest) in checksums.items():
                file = folder / name
                if not file.exists():
                    raise _DamagedError(f"{name} is missing")
                if file.stat().st_size != size:
                    raise _DamagedError(
                        f"{name} has {file.stat().st_size} bytes; {size} were written"
                    )
                if hash_file(file) != digest:
                    raise _DamagedError(f"{name} is not what was written")
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise _DamagedError(f"{_CHECKSUMS} cannot be read ({_first_line(error)})") from None

    def _put_aside(self, step: int, reason: str) -> None:
        folder = self._folder / str(step)
        aside = folder.with_name(folder.name + _DAMAGED)
        logger.warning(
            "the saved state %s is damaged: %s; it is kept as %s and an earlier one is used",
            folder,
            reason,
            aside.name,
        )
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
        if self._checkpointer is not None:
            self._checkpointer.reload()

    def _open(self) -> ocp.training.Checkpointer:
        training = ocp.training
        # Orbax's own policies do not fit its protocols by the letter.
        return training.Checkpointer(
            str(self._folder),
            save_decision_policy=training.save_decision_policies.FixedIntervalPolicy(1),  # pyright: ignore[reportArgumentType]
            preservation_policy=training.preservation_policies.LatestN(self._keep),  # pyright: ignore[reportArgumentType]
        )

    def _remove_incomplete(self) -> None:
        for path in sorted(self._folder.iterdir()):
            if _TEMPORARY in path.name:
                logger.warning(
                    "%s is a state that was not saved completely, because the process was ended "
                    "meanwhile; it is removed and an earlier one is used",
                    path,
                )
                shutil.rmtree(path, ignore_errors=True)


class _DamagedError(Exception):
    """A saved step that cannot be used; caught in this module."""


def _refuse_other_run(
    where: str, card: Mapping[str, Any], abstract_state: Any, expected: Mapping[str, Any]
) -> None:
    for key, value in expected.items():
        saved = card["metadata"].get(key)
        if saved != value:
            raise CheckpointError(
                f"{where} was saved with {key} = {saved!r}, this run has {value!r}; it belongs to "
                f"another run. Use another output folder, or go back to the config it was made with"
            )
    wanted = _shapes(_named_leaves(abstract_state))
    saved = card["leaves"]
    for name in sorted({*wanted, *saved}):
        if wanted.get(name) != saved.get(name):
            raise CheckpointError(
                f"{where} does not fit this run at leaf {name}: saved "
                f"{_describe(saved.get(name))}, this run has {_describe(wanted.get(name))}. Use "
                f"another output folder, or go back to the config it was made with"
            )


def _describe(shape: list[Any] | None) -> str:
    return "nothing" if shape is None else f"{shape[1]} {shape[0]}"


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _named_leaves(tree: Any) -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = _name(path)
        if name in leaves or not hasattr(leaf, "dtype"):
            raise CheckpointError(f"leaf {name!r} of the state is not an array of its own")
        leaves[name] = leaf
    return leaves


def _shapes(leaves: Mapping[str, Any]) -> dict[str, list[Any]]:
    # Lists, because that is what JSON gives back.
    return {
        name: [list(leaf.shape), np.dtype(leaf.dtype).name] for name, leaf in sorted(leaves.items())
    }


def _write_checksums(folder: Path) -> None:
    entries = folder_entries(folder)
    write_json(
        folder / _CHECKSUMS,
        {name: [entry["bytes"], entry["sha256"]] for name, entry in entries.items()},
    )


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__
