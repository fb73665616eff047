"""What a run would take: the real step of the real config, compiled from shapes and not run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from jaxrecipes.checkpoint.huggingface import Imported
from jaxrecipes.config import Config, expand_arms
from jaxrecipes.experiment.base_model import locate_base, peek_model_config
from jaxrecipes.experiment.data_sets import prepare_data
from jaxrecipes.experiment.devices import choose_devices
from jaxrecipes.experiment.program import build_program, compile_step, summarise, total_steps
from jaxrecipes.models.config import ModelConfig
from jaxrecipes.models.decoder import abstract_params

_ARMS_BESIDE = 3


def plan(config: Config, *, console: Console) -> int | None:
    """Prints parameters trained and frozen, memory a device, steps, tokens and disk of each arm.

    The step is compiled for the devices at hand, from shapes alone. Where the length is given in
    epochs the data are prepared, which a later run reuses; nothing else is written.

    Args:
        config: The experiment.
        console: Where to print.

    Returns:
        None: done.
    """
    model = peek_model_config(config.model.checkpoint, config.model.revision)
    base = Imported(model, abstract_params(model, jnp.float32), Path(), {})
    rows = 0
    if config.train.steps is None:
        located = locate_base(
            config.model.checkpoint,
            config.model.revision,
            Path(config.output),
            seed=config.seed,
            console=console,
        )
        rows = prepare_data(config, located, Path(config.output), console).train_rows
    summaries = []
    for arm in expand_arms(config):
        devices = choose_devices(arm.config, model)
        steps = total_steps(arm.config, rows)
        program = build_program(arm.config, base, steps, devices.execution)
        compiled = compile_step(arm.config, program)
        summaries.append(summarise(arm.name, arm.config, program, compiled, devices))
    # As many arms beside each other as a narrow terminal holds.
    for first in range(0, len(summaries), _ARMS_BESIDE):
        shown = summaries[first : first + _ARMS_BESIDE]
        table = Table(title="plan", title_justify="left", show_edge=False)
        table.add_column("")
        for summary in shown:
            table.add_column(summary["arm"], justify="right", overflow="fold")
        for title, cell in _ROWS:
            table.add_row(title, *(cell(summary, config, model) for summary in shown))
        console.print(table)
    device = summaries[0]
    console.print(
        f"Compiled for {device['devices']} x {device['device']}; memory is the compiler's count of "
        "arguments, results and temporaries of a step. Nothing was run.",
        highlight=False,
    )
    return None


def _gib(count: float) -> str:
    return f"{count / 2**30:.2f} GiB"


def _checkpoint_bytes(summary: dict[str, Any], config: Config, _: ModelConfig) -> str:
    # Trained leaves and two moments, float32; one more exists while the oldest is deleted.
    return _gib(3 * summary["trained_bytes"] * (config.train.checkpoint.keep + 1))


def _export_bytes(summary: dict[str, Any], config: Config, _: ModelConfig) -> str:
    parameters = summary["trained_parameters"] + summary["frozen_parameters"]
    return f"up to {_gib(4 * parameters)}"


_ROWS: tuple[tuple[str, Any], ...] = (
    ("recipe", lambda s, c, m: s["recipe"]),
    ("parameters trained", lambda s, c, m: f"{s['trained_parameters']:,}"),
    ("parameters frozen", lambda s, c, m: f"{s['frozen_parameters']:,}"),
    ("layers", lambda s, c, m: f"{m.num_layers} -> {s['layers']}"),
    ("memory a device", lambda s, c, m: _gib(s["peak_memory_bytes"])),
    ("of it temporary", lambda s, c, m: _gib(s["temp_bytes"])),
    ("steps", lambda s, c, m: f"{s['steps']:,}"),
    ("tokens", lambda s, c, m: f"{s['tokens']:,}"),
    ("GFLOP a step", lambda s, c, m: f"{s['flops_per_step'] / 1e9:,.0f}"),
    ("compile time", lambda s, c, m: f"{s['compile_seconds']:.1f} s"),
    ("disk: training states", _checkpoint_bytes),
    ("disk: exported model", _export_bytes),
)
