"""The verbs around a run: look at data, evaluate a model, export it, report again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from rich.console import Console
from rich.rule import Rule

from jaxrecipes.checkpoint.delta import DELTA_FILE
from jaxrecipes.checkpoint.huggingface import export_checkpoint, import_checkpoint
from jaxrecipes.config import Config, expand_arms
from jaxrecipes.data.preview import preview_source, render_preview
from jaxrecipes.data.split import Split
from jaxrecipes.errors import CheckpointError, ConfigError, UsageError
from jaxrecipes.experiment.base_model import locate_base
from jaxrecipes.experiment.data_sets import prepare_data
from jaxrecipes.experiment.measure import build_measure
from jaxrecipes.experiment.sources import source_spec, supervision
from jaxrecipes.params.layout import plan_layout, to_runtime
from jaxrecipes.params.rules import label


def preview(config: Config, *, console: Console, rows: int = 3) -> int | None:
    """Shows what the model would read of each learn source.

    Args:
        config: The experiment.
        console: Where to show it.
        rows: Rows to show of each source.

    Returns:
        3 if a source could not be packed as the config says, else None.
    """
    base = locate_base(
        config.model.checkpoint,
        config.model.revision,
        Path(config.output),
        seed=config.seed,
        console=console,
        chat_template=config.data.supervise.chat_template,
    )
    from jaxrecipes.checkpoint.huggingface import read_model_config

    problems = 0
    for section in config.data.learn:
        console.print(Rule(section.source))
        found = preview_source(
            source_spec(section),
            base.tokenizer,
            vocab_size=read_model_config(base.folder).vocab_size,
            length=config.data.length,
            overlong=config.data.overlong,
            attend=config.data.attend,
            split=Split("train", config.data.held_out, config.seed),
            supervision=supervision(section, config.data.supervise),
        )
        console.print(render_preview(found, base.tokenizer, rows=rows))
        problems += found.problem is not None
    return 3 if problems else None


def evaluate(config: Config, *, console: Console, checkpoint: str | None = None) -> int | None:
    """Evaluates a checkpoint on the sets of a config, against the config's base.

    Args:
        config: The experiment.
        console: Where to print the result.
        checkpoint: The model to evaluate; None for the base itself.

    Returns:
        None: done.

    Raises:
        ConfigError: The checkpoint has another vocabulary than the base.
    """
    from jaxrecipes.report.terminal import render_evaluation

    output = Path(config.output)
    base = locate_base(
        config.model.checkpoint,
        config.model.revision,
        output,
        seed=config.seed,
        console=console,
        chat_template=config.data.supervise.chat_template,
    )
    data = prepare_data(config, expand_arms(config), base, output, console)
    imported = import_checkpoint(base.folder)
    measure = build_measure(config, imported, base.tokenizer, data)
    record = measure.base_record
    if checkpoint is not None:
        model = import_checkpoint(checkpoint)
        if model.config.vocab_size != imported.config.vocab_size:
            raise ConfigError(
                f"{checkpoint} has a vocabulary of {model.config.vocab_size} tokens, the base "
                f"{config.model.checkpoint} one of {imported.config.vocab_size}; evaluate models "
                "that share the base's tokenizer"
            )
        layout = plan_layout(model.config, label(model.params, [(".*", True)]))
        record = measure(
            model.config,
            to_runtime(layout, model.params),
            layout,
            step=0,
            tokens=0,
            with_items=True,
        )
    console.print(render_evaluation(record, title=checkpoint or config.model.checkpoint))
    return None


def export(
    run_folder: Path, destination: Path, *, console: Console, arm: str | None, delta: bool
) -> int | None:
    """Writes the model of a finished arm somewhere else, read back and compared.

    Args:
        run_folder: Output folder of a run.
        destination: A folder, or with `delta` a file, that does not exist yet.
        console: Where to say what was done.
        arm: Which arm; None if the run has only one.
        delta: Write the new blocks alone.

    Returns:
        None: done.

    Raises:
        UsageError: There is no such run or arm, or the destination exists.
        CheckpointError: The arm is not finished, or has no new blocks.
    """
    from jaxrecipes.report.kinds import report_kind

    exported = report_kind(run_folder).exported
    if exported is not None:
        raise UsageError(
            f"{run_folder}: a run of this recipe leaves its finished model as a folder of its own "
            f"already: {exported(run_folder)}"
        )
    arms = sorted(path.name for path in (run_folder / "arms").glob("*") if path.is_dir())
    if not arms:
        raise UsageError(f"{run_folder} is no run folder: it has no arms; give the config's output")
    if arm is None:
        identity = json.loads((run_folder / "identity.json").read_text(encoding="utf-8"))
        arm = next(iter(identity["arms"]))
    if arm not in arms:
        raise UsageError(f"{run_folder} has no arm {arm!r}; it has {', '.join(arms)}")
    if destination.exists():
        raise UsageError(f"{destination} exists and is not overwritten; give another path")
    final = run_folder / "arms" / arm / "final"
    if not (final / "stage.json").exists():
        raise CheckpointError(f"arm {arm} is not finished; run its config to the end first")
    if delta:
        source = final / DELTA_FILE
        if not source.exists():
            raise CheckpointError(f"arm {arm} inserted no blocks, so there is no delta to write")
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, destination)
    else:
        model = import_checkpoint(final / "model")
        export_checkpoint(
            destination,
            model.config,
            model.params,
            tokenizer_source=final / "model",
            hf_config=model.hf_config,
            model_card=(final / "model" / "README.md").read_text(encoding="utf-8"),
        )
    console.print(f"{arm} -> {destination}", highlight=False)
    return None


def report(run_folder: Path, *, console: Console) -> int | None:
    """Writes `results.json` and `report.html` of a run and prints its table.

    Args:
        run_folder: Output folder of a run.
        console: Where to print.

    Returns:
        None: done.
    """
    from jaxrecipes.report.kinds import report_kind

    kind = report_kind(run_folder)
    console.print(kind.render(kind.write(run_folder)))
    console.print(f"report: {run_folder / 'report.html'}", highlight=False)
    return None
