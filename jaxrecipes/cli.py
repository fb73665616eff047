"""The command line. Thin: it parses, calls one function and returns its exit code.

Nothing heavy is imported at the top: `--help`, `ls`, `new` and `validate` run without JAX, and each
imports only what it needs.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jaxrecipes
from jaxrecipes.arguments import HELP, make_parser, split_overrides
from jaxrecipes.errors import UsageError
from jaxrecipes.failures import describe_failure

if TYPE_CHECKING:
    from jaxrecipes.config import Config, ExperimentSection

WELCOME = """\
jaxrecipes {version}: {help}

  jaxrecipes ls                                what there is
  jaxrecipes new block_expansion my.yaml       an annotated config to start from
  jaxrecipes validate my.yaml                  every mistake at once
  jaxrecipes preview my.yaml                   what the model will read
  jaxrecipes run my.yaml                       train, compare, report; again: go on

  jaxrecipes --help                            all commands
"""


def list_recipes(arguments: argparse.Namespace, overrides: list[str]) -> None:
    """Lists the recipes and the configs that ship with them."""
    from rich.console import Console
    from rich.table import Table

    from jaxrecipes.recipes import RECIPES

    table = Table(show_edge=False, pad_edge=False, padding=(0, 2, 1, 0))
    for heading in ("recipe", "what it does", "paper", "needs", "configs"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "recipe")
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


def new(arguments: argparse.Namespace, overrides: list[str]) -> None:
    """Copies an annotated config."""
    from jaxrecipes.shipped_configs import shipped_config

    file: Path = arguments.file
    source = shipped_config(arguments.recipe, arguments.config)
    if not file.parent.is_dir():
        raise UsageError(f"{file}: the folder {file.parent} does not exist; make it first")
    try:
        with file.open("x", encoding="utf-8") as target:
            target.write(source.read_text(encoding="utf-8"))
    except FileExistsError:
        raise UsageError(f"{file} exists and is not overwritten; give another name") from None
    print(f"{file}: a copy of {source.parent.name}/{source.name}.")
    print(f"Next: jaxrecipes validate {file}")


def validate(arguments: argparse.Namespace, overrides: list[str]) -> None:
    """Checks a config; nothing is downloaded or run."""
    if arguments.schema:
        import json

        from jaxrecipes.config import json_schema

        print(json.dumps(json_schema(), indent=2))
        return
    if arguments.config is None:
        raise UsageError("validate needs a CONFIG (or --schema)")
    config = _load_any(arguments.config, overrides)
    from jaxrecipes.config import config_hash, kind_of, resolved_yaml

    if arguments.resolved:
        print(resolved_yaml(config), end="")
        return
    arms = ", ".join(arm.name for arm in kind_of(config).arms(config))
    print(f"{arguments.config}: valid. Arms: {arms}. Hash: {config_hash(config)[:12]}")


def preview(arguments: argparse.Namespace, overrides: list[str]) -> int | None:
    """Shows what the model will read."""
    config = _load(arguments.config, overrides)
    from rich.console import Console

    from jaxrecipes.experiment import inspect

    return inspect.preview(config, console=Console(), rows=arguments.rows)


def plan(arguments: argparse.Namespace, overrides: list[str]) -> None:
    """Shows what a run would take."""
    config = _load(arguments.config, overrides)
    # A process with the threads of JAX cannot fork; whoever calls from Python is on their own.
    if arguments.topology is not None and "jax" not in sys.modules:
        from jaxrecipes.supervise import supervise

        supervise(
            "the TPU compiler was aborted; what it says is above. That is a fault of libtpu and "
            "not of the config, and it depends on shapes: try another train.micro_batch_size, "
            "train.loss_chunk, train.remat or mesh, or another version of libtpu. What was "
            "compiled before is kept",
            1,
        )
    from rich.console import Console

    from jaxrecipes.plan.command import plan as print_plan

    print_plan(
        config,
        console=Console(),
        topology=arguments.topology,
        search_best=arguments.search,
        limit=arguments.limit,
        json_file=arguments.json,
        cache=not arguments.no_cache,
    )


def run(arguments: argparse.Namespace, overrides: list[str]) -> int | None:
    """Runs an experiment, or goes on with it."""
    config = _load_any(arguments.config, overrides)
    import importlib

    from rich.console import Console

    from jaxrecipes.config import kind_of

    runner = importlib.import_module(kind_of(config).runner)
    return runner.run(config, console=Console())


def evaluate(arguments: argparse.Namespace, overrides: list[str]) -> int | None:
    """Evaluates a checkpoint against the base of a config, or on tasks of lm-eval."""
    if arguments.tasks is None:
        for name in ("include", "shots", "limit", "json"):
            if getattr(arguments, name) is not None:
                raise UsageError(f"eval --{name} is for tasks of lm-eval; give --tasks, too")
        if arguments.chat:
            raise UsageError("eval --chat is for tasks of lm-eval; give --tasks, too")
        if arguments.config is None:
            raise UsageError("eval needs a CONFIG, or --tasks with --checkpoint")
    if arguments.config is None and overrides:
        raise UsageError(f"{overrides[0]} overrides a config, and none is given")
    config = None if arguments.config is None else _load(arguments.config, overrides)
    from rich.console import Console

    if arguments.tasks is not None:
        from jaxrecipes.experiment.tasks import evaluate_tasks

        return evaluate_tasks(
            config,
            [name.strip() for name in arguments.tasks.split(",") if name.strip()],
            console=Console(),
            checkpoint=arguments.checkpoint,
            include=arguments.include,
            shots=arguments.shots,
            limit=arguments.limit,
            chat=arguments.chat,
            json_file=arguments.json,
        )
    assert config is not None

    from jaxrecipes.experiment import inspect

    return inspect.evaluate(config, console=Console(), checkpoint=arguments.checkpoint)


def generate(arguments: argparse.Namespace, overrides: list[str]) -> int | None:
    """Lets a model answer prompts."""
    prompts = arguments.prompts
    if not prompts and arguments.input is None:
        prompts = [line.rstrip("\n") for line in sys.stdin if line.strip()]
    if not prompts and arguments.input is None:
        raise UsageError("no prompt: give one after the checkpoint, --input, or lines on stdin")
    from rich.console import Console

    from jaxrecipes.experiment import answering
    from jaxrecipes.generate.sampling import Sampling

    return answering.generate(
        arguments.checkpoint,
        prompts,
        console=Console(),
        input_file=arguments.input,
        output=arguments.output,
        max_new_tokens=arguments.max_new_tokens,
        sampling=Sampling(
            temperature=arguments.temperature,
            top_k=arguments.top_k,
            top_p=arguments.top_p,
            min_p=arguments.min_p,
            repetition_penalty=arguments.repetition_penalty,
        ),
        stop=arguments.stop,
        samples=arguments.samples,
        seed=arguments.seed,
        slots=arguments.slots,
        raw=arguments.raw,
    )


def export(arguments: argparse.Namespace, overrides: list[str]) -> int | None:
    """Writes the checkpoint of an arm somewhere else."""
    from rich.console import Console

    from jaxrecipes.experiment import inspect

    return inspect.export(
        arguments.run,
        arguments.destination,
        console=Console(),
        arm=arguments.arm,
        delta=arguments.delta,
    )


def report(arguments: argparse.Namespace, overrides: list[str]) -> int | None:
    """Writes the report of a run again."""
    from rich.console import Console

    from jaxrecipes.experiment import inspect

    return inspect.report(arguments.run, console=Console())


def env(arguments: argparse.Namespace, overrides: list[str]) -> None:
    """Shows the machine and what is installed."""
    from rich.console import Console
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
    """Loads a config for a verb that knows one kind of them."""
    found = _load_any(config, overrides)
    from jaxrecipes.config import Config

    if not isinstance(found, Config):
        raise UsageError(
            f"{config}: this command does not know the config of recipe {found.recipe}; validate, "
            "run and report do"
        )
    return found


def _load_any(config: Path, overrides: Sequence[str]) -> ExperimentSection:
    # The search for pydantic plugins reads the metadata of every installed package: 0.05 s.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "true")
    from jaxrecipes.config import load_config

    return load_config(config, overrides)


# Verb -> (function, one line of help); the order of `--help`.
VERBS: dict[str, tuple[Callable[[argparse.Namespace, list[str]], int | None], str]] = {
    "ls": (list_recipes, "list the recipes and the configs that ship with them"),
    "new": (new, "copy an annotated config to start from"),
    "validate": (validate, "check a config: all mistakes at once, nothing is downloaded or run"),
    "preview": (preview, "show what the model will read: rows, supervised tokens, lengths"),
    "plan": (plan, "compile the step, for a TPU slice too: memory, speed at best, disk"),
    "run": (run, "run an experiment to its report; again: go on where it stopped"),
    "eval": (evaluate, "evaluate a checkpoint on a config's sets or on tasks of lm-eval"),
    "generate": (generate, "let a model answer prompts"),
    "export": (export, "write a checkpoint of an arm, read back and compared"),
    "report": (report, "write report.html of a run again and print its table"),
    "env": (env, "show Python, packages, devices, memory, disk and missing extras"),
}


def _check_verb(verb: str) -> None:
    if verb.startswith("-") or verb in VERBS:
        return
    close = difflib.get_close_matches(verb, VERBS, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(VERBS)}"
    raise UsageError(f"unknown command {verb!r}; {hint}")


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
        _check_verb(given[0])
        others, overrides = split_overrides(given)
        parsed = make_parser({verb: text for verb, (_, text) in VERBS.items()}).parse_args(others)
        code = VERBS[parsed.verb][0](parsed, overrides)
        sys.stdout.flush()
        return code or 0
    except SystemExit as stop:  # --help and --version
        return int(stop.code or 0)
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
    if not sys.stderr.isatty():
        print(f"jaxrecipes: error: {message}", file=sys.stderr)
        return
    from rich.console import Console
    from rich.panel import Panel
    from rich.text import Text

    console = Console(stderr=True)
    console.print(Panel(Text(message), title="error", title_align="left", border_style="red"))


if __name__ == "__main__":
    sys.exit(main())
