"""The verb `eval --tasks`: a checkpoint, or a checkpoint and its base, on tasks of lm-eval."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from rich.console import Console

from jaxrecipes.checkpoint.huggingface import import_checkpoint
from jaxrecipes.checkpoint.reference import resolve_reference
from jaxrecipes.checkpoint.tokenizer import end_token_ids, load_tokenizer
from jaxrecipes.config import Config
from jaxrecipes.durable import write_json
from jaxrecipes.errors import UsageError
from jaxrecipes.evaluate.harness import HarnessResult, find_tasks, run_tasks
from jaxrecipes.experiment.base_model import locate_base

TASKS_FILE = "tasks.json"


def evaluate_tasks(
    config: Config | None,
    names: Sequence[str],
    *,
    console: Console,
    checkpoint: str | None = None,
    include: Path | None = None,
    shots: int | None = None,
    limit: int | None = None,
    chat: bool = False,
    json_file: Path | None = None,
) -> int | None:
    """Evaluates a model on tasks of lm-eval, prints the table and writes it as JSON.

    Args:
        config: Names the base and the compute dtype; None for a checkpoint alone, in float32.
        names: The tasks.
        console: Where to print.
        checkpoint: The model; None for the config's base. With a config the base is evaluated too,
            and the table shows the change.
        include: Folder with task files of your own.
        shots: Solved examples in front of each item; None for what each task says.
        limit: Answer only the first so many items of each task.
        chat: Render items with the model's chat template.
        json_file: Where to write the table; None for `tasks.json` in the config's output, or here.

    Returns:
        None: done.

    Raises:
        UsageError: There is neither a config nor a checkpoint, or a task is unknown.
        DataError: A task's data cannot be read.
        CheckpointError: A checkpoint cannot be used.
    """
    from jaxrecipes.report.terminal import render_tasks

    if config is None and checkpoint is None:
        raise UsageError("eval --tasks needs a model: a CONFIG, --checkpoint MODEL, or both")
    if limit is not None and limit < 1:
        raise UsageError(f"--limit is {limit}; expected at least 1 item of each task")
    if shots is not None and shots < 0:
        raise UsageError(f"--shots is {shots}; expected 0 or more")
    manager = find_tasks(names, include)
    dtype = jnp.dtype("float32" if config is None else config.model.compute_dtype)

    def score(source: str | Path) -> HarnessResult:
        console.print(f"evaluating {source} …", highlight=False)
        model = _model(source, dtype)
        return run_tasks(model, manager, names, shots=shots, limit=limit, chat=chat)

    base = None
    if config is not None:
        folder = locate_base(
            config.model.checkpoint,
            config.model.revision,
            Path(config.output),
            seed=config.seed,
            console=console,
        ).folder
        base = score(folder)
    result = base if checkpoint is None else score(checkpoint)
    assert result is not None
    title = checkpoint or (config.model.checkpoint if config is not None else "")
    table: dict[str, Any] = {
        "model": title,
        "base": config.model.checkpoint if config is not None and checkpoint is not None else None,
        "compute_dtype": dtype.name,
        "shots": shots,
        "limit": limit,
        "chat": chat,
        **result.to_json(base if checkpoint is not None else None),
    }
    if json_file is None:
        json_file = Path("." if config is None else config.output) / TASKS_FILE
    write_json(json_file, table)
    console.print(render_tasks(table))
    console.print(f"table: {json_file}", highlight=False)
    return None


def _model(reference: str | Path, dtype: Any) -> Any:
    """Reads a checkpoint as a model of lm-eval, which `find_tasks` has found installed."""
    from jaxrecipes.evaluate.harness_model import HarnessModel

    source = resolve_reference(reference)
    imported = import_checkpoint(source, dtype=dtype)
    return HarnessModel(
        imported.config,
        imported.params,
        load_tokenizer(source),
        eos_ids=end_token_ids(source, imported.hf_config),
        compute_dtype=dtype,
    )
