"""One line a step: a JSONL file that survives a kill, and optional trackers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxrecipes.errors import ConfigError, DataError

TRACKERS = ("tensorboard", "wandb", "mlflow")
Tracker = Callable[[int, Mapping[str, float]], None]


class MetricsFile:
    """Appends records to a JSONL file, and forgets those that a resumed run will write again.

    A line that a kill cut off in the middle is dropped on opening; every other line is kept.
    """

    def __init__(self, path: Path, *, last_step: int, writes: bool = True) -> None:
        """Opens the file, keeping the records up to a step.

        Args:
            path: The file; its folder is made.
            last_step: Records with a later step are removed: their steps will be run again.
            writes: False drops every record: of several hosts only one writes.
        """
        self._file = None
        if not writes:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        records = [record for record in read_records(path) if record["step"] <= last_step]
        temporary = path.with_suffix(".partial")
        temporary.write_text("".join(json.dumps(record) + "\n" for record in records))
        os.replace(temporary, path)
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends a record; it must have a `step`."""
        if self._file is not None:
            self._file.write(json.dumps(record) + "\n")

    def flush(self) -> None:
        """Forces all records to disk."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Forces all records to disk and closes the file."""
        self.flush()
        if self._file is not None:
            self._file.close()


def read_records(path: Path) -> list[dict[str, Any]]:
    """Reads a JSONL file of records; a last line that a kill cut off is left out.

    Raises:
        DataError: A line other than the last is not JSON.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise DataError(
                f"{path}:{number}: not a JSON record ({error.msg}); the file was edited or "
                "damaged, remove the line or the run's folder"
            ) from None
    return records


def open_trackers(names: Sequence[str], folder: Path, run_name: str) -> list[Tracker]:
    """Opens the trackers that the user asked for; none is used by default.

    Args:
        names: Any of `TRACKERS`.
        folder: Where TensorBoard writes its events.
        run_name: Name of the run on a tracking server.

    Returns:
        Functions that take a step and its scalars.

    Raises:
        ConfigError: An unknown tracker, or one whose package is not installed.
    """
    return [_open_tracker(name, folder, run_name) for name in names]


def _open_tracker(name: str, folder: Path, run_name: str) -> Tracker:
    try:
        if name == "tensorboard":
            from tensorboardX import SummaryWriter

            writer = SummaryWriter(str(folder))

            def to_tensorboard(step: int, scalars: Mapping[str, float]) -> None:
                for key, value in scalars.items():
                    writer.add_scalar(key, value, step)
                writer.flush()

            return to_tensorboard
        if name == "wandb":
            import wandb  # pyright: ignore[reportMissingImports]

            run = wandb.init(project="jaxrecipes", name=run_name, resume="allow", id=run_name)
            return lambda step, scalars: run.log(dict(scalars), step=step)
        if name == "mlflow":
            import mlflow  # pyright: ignore[reportMissingImports]

            mlflow.start_run(run_name=run_name)
            return lambda step, scalars: mlflow.log_metrics(dict(scalars), step=step)
    except ImportError as error:
        raise ConfigError(
            f"tracker {name!r} needs a package that is not installed ({error}); "
            f"pip install 'jaxrecipes[{name}]', or take it out of train.trackers"
        ) from None
    raise ConfigError(f"unknown tracker {name!r}; expected one of {TRACKERS}")
