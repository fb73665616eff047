"""The command line's grammar: verbs, options and overrides.

argparse, since the larger libraries take a third of the 0.3 s that `--help`, `ls`, `new` and
`validate` may take.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import jaxrecipes
from jaxrecipes.errors import UsageError

HELP = "Teach a pretrained language model something new without making it forget."
EPILOGUE = """\
overrides: every command that takes a CONFIG takes key.sub=value after it (or --key.sub value), for
example train.steps=100. --debug, anywhere, shows the traceback of an error.

exit codes: 0 done, 1 failure, 2 usage or config, 3 data, 4 out of memory, 5 diverged,
75 preempted and 130 interrupted (state saved: run the same command again).
"""

# `--seed 1` is an override like `--train.steps 1`, although it has no dot.
TOP_LEVEL_KEYS = ("recipe", "seed", "output", "name", "compare")
TAKES_CONFIG = ("validate", "preview", "plan", "run", "eval")
# Options of those commands whose value is no override, whatever it looks like.
TAKES_VALUE = ("--rows", "--checkpoint", "--topology", "--limit", "--json")
TAKES_VALUE += ("--tasks", "--include", "--shots")


class _Parser(argparse.ArgumentParser):
    """Reports a wrong command line like every other error, instead of printing and exiting."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}\n`{self.prog} --help` explains.")


def make_parser(verbs: Mapping[str, str]) -> argparse.ArgumentParser:
    """Makes the parser of the whole command line.

    Args:
        verbs: Verb -> one line of help, in the order of `--help`.
    """
    parser = _Parser(
        prog="jaxrecipes",
        description=HELP,
        epilog=EPILOGUE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=jaxrecipes.__version__)
    commands = parser.add_subparsers(dest="verb", metavar="COMMAND", required=True)
    parsers = {
        verb: commands.add_parser(
            verb, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False
        )
        for verb, text in verbs.items()
    }
    for verb in TAKES_CONFIG:
        parsers[verb].add_argument(
            "config",
            type=Path,
            metavar="CONFIG",
            help="YAML config, then key.sub=value",
            nargs="?" if verb in ("validate", "eval") else None,
        )
    recipe = parsers["new"]
    recipe.add_argument("recipe", metavar="RECIPE", help="a recipe that `ls` lists")
    recipe.add_argument("file", type=Path, metavar="FILE", help="where to; never overwritten")
    recipe.add_argument("--config", metavar="NAME", help="which config of the recipe")
    check = parsers["validate"]
    check.add_argument("--resolved", action="store_true", help="print each value and its origin")
    check.add_argument("--schema", action="store_true", help="print the JSON schema for editors")
    parsers["preview"].add_argument("--rows", type=int, default=3, help="rows to show (default 3)")
    estimate = parsers["plan"]
    estimate.add_argument(
        "--topology",
        metavar="CHIP:SHAPE",
        help="TPU slice to compile for, such as v5e:4x4; needs no TPU (default: devices at hand)",
    )
    estimate.add_argument(
        "--search", action="store_true", help="find the fastest mesh, micro-batch and remat"
    )
    estimate.add_argument(
        "--limit", type=int, metavar="N", help="compile at most N changes (16; 10 on overflow)"
    )
    estimate.add_argument("--json", type=Path, metavar="FILE", help="write everything there, too")
    estimate.add_argument("--no-cache", action="store_true", help="compile even what is known")
    measure = parsers["eval"]
    measure.add_argument(
        "--checkpoint", metavar="MODEL", help="what to evaluate (default: the base itself)"
    )
    measure.add_argument("--tasks", metavar="A,B", help="tasks of lm-eval, instead of the sets")
    measure.add_argument("--include", type=Path, metavar="FOLDER", help="task YAML files of yours")
    measure.add_argument("--shots", type=int, metavar="N", help="solved examples before an item")
    measure.add_argument("--limit", type=int, metavar="N", help="the first N items of each task")
    measure.add_argument("--chat", action="store_true", help="render with the chat template")
    measure.add_argument("--json", type=Path, metavar="FILE", help="where the table goes, too")
    _add_generate(parsers["generate"])
    for verb in ("export", "report"):
        parsers[verb].add_argument("run", type=Path, metavar="RUN", help="output folder of a run")
    write = parsers["export"]
    write.add_argument("destination", type=Path, metavar="FOLDER", help="must not exist yet")
    write.add_argument("--arm", help="which arm, where the run has several")
    write.add_argument(
        "--delta", action="store_true", help="only the new blocks, one safetensors file"
    )
    return parser


def _add_generate(answer: argparse.ArgumentParser) -> None:
    answer.add_argument("checkpoint", metavar="MODEL", help="folder, .gguf, hub id, package:NAME")
    answer.add_argument("prompts", metavar="PROMPT", nargs="*", help="default: lines of stdin")
    answer.add_argument(
        "--input", type=Path, metavar="FILE", help="prompts: .jsonl (prompt or messages), or lines"
    )
    answer.add_argument(
        "--output", type=Path, metavar="FILE", help="answers as .jsonl; the next run goes on there"
    )
    answer.add_argument("--max-new-tokens", type=int, default=128, help="default 128")
    answer.add_argument("--temperature", type=float, default=0.0, help="0: the likeliest token")
    answer.add_argument("--top-k", type=int, default=0, help="draw from the likeliest so many")
    answer.add_argument("--top-p", type=float, default=1.0, help="draw from this much probability")
    answer.add_argument(
        "--min-p", type=float, default=0.0, help="draw from at least this share of the likeliest"
    )
    answer.add_argument(
        "--repetition-penalty", type=float, default=1.0, help="above 1: fewer repetitions"
    )
    answer.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="answers end before it"
    )
    answer.add_argument("--samples", type=int, default=1, metavar="N", help="answers to a prompt")
    answer.add_argument("--seed", type=int, default=0, help="seed of the draws (default 0)")
    answer.add_argument(
        "--slots", type=int, default=32, metavar="N", help="answers written together (default 32)"
    )
    answer.add_argument("--raw", action="store_true", help="no chat template")


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Takes the overrides out of a command line.

    Args:
        arguments: The command line without the program's name.

    Returns:
        The other arguments, and the overrides as `key.sub=value` each, whether they were written
        so, as `--key.sub=value` or as `--key.sub value`. Commands without a config have none.

    Raises:
        UsageError: An override at the end without a value.
    """
    given = list(arguments)
    if given[0] not in TAKES_CONFIG:
        return given, []
    others, overrides = given[:1], []
    rest = iter(given[1:])
    for argument in rest:
        name, equals, value = argument.removeprefix("--").partition("=")
        if argument in TAKES_VALUE:
            others += [argument, *itertools.islice(rest, 1)]
        elif argument.startswith("--") and ("." in name or name in TOP_LEVEL_KEYS):
            if not equals:
                following = next(rest, None)
                if following is None:
                    raise UsageError(f"{argument} needs a value, for example {argument}=1")
                value = following
            overrides.append(f"{name}={value}")
        elif equals and not argument.startswith("-"):
            overrides.append(argument)
        else:
            others.append(argument)
    return others, overrides
