"""The command line. Thin: it parses, calls one function and returns its exit code.

Nothing heavy is imported at the top: `--help`, `ls`, `new` and `validate` run without JAX.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console

import jaxrecipes
from jaxrecipes.errors import UsageError
from jaxrecipes.failures import describe_failure

if TYPE_CHECKING:
    from jaxrecipes.config import Config

HELP = "Teach a pretrained language model something new without making it forget."
EPILOGUE = (
    "Overrides: every command that takes a CONFIG takes key.sub=value after it (or --key.sub "
    "value), for example train.steps=100. --debug shows the traceback of an error. Exit codes: 0 "
    "done, 1 failure, 2 usage or config, 3 data, 4 out of memory, 5 diverged, 75 preempted and 130 "
    "interrupted (state saved: run the same command again)."
)
WELCOME = """\
jaxrecipes {version}: {help}

  jaxrecipes ls                                what there is
  jaxrecipes new block_expansion my.yaml       an annotated config to start from
  jaxrecipes validate my.yaml                  every mistake at once
  jaxrecipes preview my.yaml                   what the model will read
  jaxrecipes run my.yaml                       train, compare, report; again: go on

  jaxrecipes --help                            all commands
"""

# `--seed 1` is an override like `--train.steps 1`, although it has no dot.
TOP_LEVEL_KEYS = ("recipe", "seed", "output", "name", "compare")
TAKES_CONFIG = ("validate", "preview", "plan", "run", "eval")

Overrides = Annotated[str, Parameter(help="key.sub=value, as many as needed.")]
ConfigFile = Annotated[Path, Parameter(help="YAML config.")]

app = App(
    name="jaxrecipes",
    help=HELP,
    help_epilogue=EPILOGUE,
    help_format="plaintext",
    version=jaxrecipes.__version__,
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)


@app.command(name="ls")
def list_recipes() -> None:
    """List the recipes and the configs that ship with them."""
    from rich.table import Table

    from jaxrecipes.recipes import RECIPES

    table = Table(title=None, show_edge=False, pad_edge=False, padding=(0, 2, 1, 0))
    for heading in ("recipe", "what it does", "paper", "needs", "configs"):
        table.add_column(heading, overflow="fold")
    for recipe in RECIPES:
        table.add_row(
            f"[bold]{recipe.name}[/bold]",
            recipe.summary,
            recipe.paper,
            recipe.needs,
            "\n".join(recipe.configs),
        )
    console = Console()
    console.print(table)
    console.print("jaxrecipes new RECIPE FILE copies a config; --config NAME chooses which.")


@app.command
def new(
    recipe: Annotated[str, Parameter(help="A recipe that `ls` lists.")],
    file: Annotated[Path, Parameter(help="Where to; an existing file is never overwritten.")],
    /,
    *,
    config: Annotated[str | None, Parameter(help="Which config of the recipe.")] = None,
) -> None:
    """Copy an annotated config to start from."""
    from jaxrecipes.recipes.shipped import shipped_config

    source = shipped_config(recipe, config)
    if not file.parent.is_dir():
        raise UsageError(f"{file}: the folder {file.parent} does not exist; make it first")
    try:
        with file.open("x", encoding="utf-8") as target:
            target.write(source.read_text(encoding="utf-8"))
    except FileExistsError:
        raise UsageError(f"{file} exists and is not overwritten; give another name") from None
    print(f"{file}: a copy of {recipe}/{source.name}. Next: jaxrecipes validate {file}")


@app.command
def validate(
    config: Annotated[Path | None, Parameter(help="YAML config.")] = None,
    /,
    *overrides: Overrides,
    schema: Annotated[bool, Parameter(help="Print the JSON schema for editors.")] = False,
    resolved: Annotated[
        bool, Parameter(help="Print the resolved config with the origin of each value.")
    ] = False,
) -> None:
    """Check a config: all mistakes at once, nothing is downloaded or run."""
    if schema:
        import json

        from jaxrecipes.config import Config

        print(json.dumps(Config.model_json_schema(), indent=2))
        return
    if config is None:
        raise UsageError("validate needs a CONFIG (or --schema)")
    loaded = _load(config, overrides)
    from jaxrecipes.config import config_hash, expand_arms, resolved_yaml

    if resolved:
        print(resolved_yaml(loaded), end="")
        return
    arms = ", ".join(arm.name for arm in expand_arms(loaded))
    print(f"{config}: valid. Arms: {arms}. Hash: {config_hash(loaded)[:12]}")


@app.command
def preview(
    config: ConfigFile,
    /,
    *overrides: Overrides,
    rows: Annotated[int, Parameter(help="Rows to show.")] = 3,
) -> int | None:
    """Show what the model will read: format, rows, supervised tokens, lengths, duplicates."""
    loaded = _load(config, overrides)
    from jaxrecipes.recipes import inspect

    return inspect.preview(loaded, console=Console(), rows=rows)


@app.command
def plan(config: ConfigFile, /, *overrides: Overrides) -> int | None:
    """Show what a run would take: parameters, memory, steps, tokens, disk. Nothing runs."""
    loaded = _load(config, overrides)
    from jaxrecipes.recipes import experiment

    return experiment.plan(loaded, console=Console())


@app.command
def run(config: ConfigFile, /, *overrides: Overrides) -> int | None:
    """Run an experiment to its report. The same command again goes on where it stopped."""
    loaded = _load(config, overrides)
    from jaxrecipes.recipes import experiment

    return experiment.run(loaded, console=Console())


@app.command(name="eval")
def evaluate(
    config: ConfigFile,
    /,
    *overrides: Overrides,
    checkpoint: Annotated[
        str | None, Parameter(help="Model to evaluate against the base; default: the base.")
    ] = None,
) -> int | None:
    """Evaluate a checkpoint on a config's learn and keep sets, against its base model."""
    loaded = _load(config, overrides)
    from jaxrecipes.recipes import inspect

    return inspect.evaluate(loaded, console=Console(), checkpoint=checkpoint)


@app.command
def generate(
    checkpoint: Annotated[str, Parameter(help="A model: folder, .gguf, hub id, package:NAME.")],
    /,
    *prompts: Annotated[str, Parameter(help="Prompts; none: one a line from standard input.")],
    max_new_tokens: Annotated[int, Parameter(help="Longest answer, in tokens.")] = 128,
    temperature: Annotated[float, Parameter(help="0: always the likeliest token.")] = 0.0,
    top_k: Annotated[int | None, Parameter(help="Draw from the likeliest so many.")] = None,
    top_p: Annotated[float | None, Parameter(help="Draw from this much probability.")] = None,
    seed: Annotated[int, Parameter(help="Seed of the draws.")] = 0,
    raw: Annotated[bool, Parameter(help="Continue the prompt; no chat template.")] = False,
) -> int | None:
    """Let a model answer prompts."""
    given = list(prompts) or [line.rstrip("\n") for line in sys.stdin if line.strip()]
    if not given:
        raise UsageError("no prompt: give one after the checkpoint, or lines on standard input")
    from jaxrecipes.recipes import inspect

    return inspect.generate(
        checkpoint,
        given,
        console=Console(),
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        raw=raw,
    )


@app.command
def export(
    run_folder: Annotated[Path, Parameter(help="Output folder of a run.")],
    destination: Annotated[Path, Parameter(help="Folder to write; must not exist.")],
    /,
    *,
    arm: Annotated[str | None, Parameter(help="Which arm; default: the main one.")] = None,
    step: Annotated[int | None, Parameter(help="Which saved step; default: the end.")] = None,
    delta: Annotated[bool, Parameter(help="Only the leaves that trained.")] = False,
) -> int | None:
    """Write a Hugging Face checkpoint of an arm, checked against what was trained."""
    from jaxrecipes.recipes import inspect

    return inspect.export(
        run_folder, destination, console=Console(), arm=arm, step=step, delta=delta
    )


@app.command
def report(run_folder: Annotated[Path, Parameter(help="Output folder of a run.")], /) -> int | None:
    """Write report.html of a run again and print its table."""
    from jaxrecipes.recipes import inspect

    return inspect.report(run_folder, console=Console())


@app.command
def env() -> None:
    """Show Python, packages, devices, memory, disk and missing extras."""
    from rich.table import Table

    from jaxrecipes.environment import describe_environment

    found = describe_environment()
    table = Table(show_header=False, show_edge=False, box=None)
    table.add_row("python", f"{found['python']} on {found['platform']}")
    gib = 2**30
    table.add_row("processors", str(found["cpus"]))
    table.add_row(
        "memory",
        f"{found['memory_bytes'] / gib:.1f} GiB, {found['memory_available_bytes'] / gib:.1f} free",
    )
    table.add_row("disk", f"{found['disk_free_bytes'] / gib:.1f} GiB free here")
    for device in found.get("devices", []):
        memory = device["memory_bytes"]
        size = f", {memory / gib:.1f} GiB" if memory else ""
        table.add_row("device", f"{device['platform']} {device['id']}: {device['kind']}{size}")
    if "devices_error" in found:
        table.add_row("devices", f"[red]not usable[/red]: {found['devices_error']}")
    for name, version in found["packages"].items():
        table.add_row(name, version or "not installed")
    for name, value in found["variables"].items():
        table.add_row(name, value)
    missing = ", ".join(found["missing_extras"]) or "none"
    table.add_row("extras not installed", f"{missing} (pip install 'jaxrecipes\\[NAME]')")
    Console().print(table)


def _load(config: Path, overrides: Sequence[str]) -> Config:
    # The search for pydantic plugins reads the metadata of every installed package: 0.05 s.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "true")
    from jaxrecipes.config import load_config

    return load_config(config, overrides)


def split_overrides(arguments: Sequence[str]) -> list[str]:
    """Rewrites `--key.sub value` and `--key.sub=value` as `key.sub=value`.

    Args:
        arguments: The command line without the program's name.

    Returns:
        Arguments for the parser. Those of commands that take no config are returned as they are.

    Raises:
        UsageError: An override at the end without a value.
    """
    given = list(arguments)
    if not given or given[0] not in TAKES_CONFIG:
        return given
    result: list[str] = []
    position = 0
    while position < len(given):
        argument = given[position]
        name, equals, value = argument[2:].partition("=")
        if argument.startswith("--") and ("." in name or name in TOP_LEVEL_KEYS):
            if not equals:
                position += 1
                if position == len(given):
                    raise UsageError(f"{argument} needs a value, for example {argument}=1")
                value = given[position]
            result.append(f"{name}={value}")
        else:
            result.append(argument)
        position += 1
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: Without the program's name; None for those of the process.

    Returns:
        The exit code; see `failures.py`.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    if not given:
        print(WELCOME.format(version=jaxrecipes.__version__, help=HELP), end="")
        return 0
    try:
        code = app(split_overrides(given), exit_on_error=False, print_error=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except CycloptsError as error:
        _print_error(f"{error}\n`jaxrecipes --help` lists the commands and their options.")
        return UsageError.exit_code
    except BrokenPipeError:
        # The reader (`| head`) has gone: nothing can be printed, not even at exit.
        sys.stdout = None  # type: ignore[assignment]
        return 1
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            import traceback

            traceback.print_exc()
        failure = describe_failure(error)
        _print_error(failure.message)
        return failure.exit_code


def _print_error(message: str) -> None:
    console = Console(stderr=True)
    if not console.is_terminal:
        print(f"jaxrecipes: error: {message}", file=sys.stderr)
        return
    from rich.panel import Panel
    from rich.text import Text

    console.print(Panel(Text(message), title="error", title_align="left", border_style="red"))


if __name__ == "__main__":
    sys.exit(main())
