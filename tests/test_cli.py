"""The command line as a user meets it: what it prints, where, and what it returns."""

import errno
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from jaxrecipes import errors, failures
from jaxrecipes.arguments import split_overrides
from jaxrecipes.cli import main
from jaxrecipes.recipes import RECIPES
from jaxrecipes.shipped_configs import shipped_config

VERBS = ["ls", "new", "validate", "preview", "plan", "run", "eval", "generate", "export", "report"]
VERBS += ["env"]


def tiny() -> str:
    return str(shipped_config("block_expansion", "tiny"))


def test_nothing_typed_says_what_to_type(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    assert all(f"jaxrecipes {verb}" in out for verb in ("ls", "new", "validate", "preview", "run"))


def test_help_lists_every_verb(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f" {verb} " in out for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb, capsys):
    assert main([verb, "--help"]) == 0
    assert f"jaxrecipes {verb}" in capsys.readouterr().out


def test_ls_shows_every_recipe_and_config(capsys):
    assert main(["ls"]) == 0
    out = capsys.readouterr().out
    for recipe in RECIPES:
        assert recipe.name in out
        assert all(name in out for name in recipe.configs)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_new_copies_a_config_that_is_valid(recipe, tmp_path, capsys):
    for name in recipe.configs:
        target = tmp_path / f"{name}.yaml"
        assert main(["new", recipe.name, str(target), "--config", name]) == 0
        assert main(["validate", str(target)]) == 0
    assert "valid. Arms: " in capsys.readouterr().out


def test_new_never_overwrites(tmp_path, capsys):
    target = tmp_path / "mine.yaml"
    target.write_text("mine")
    assert main(["new", "full", str(target)]) == 2
    assert target.read_text() == "mine"
    assert "exists and is not overwritten" in capsys.readouterr().err
    assert main(["new", "full", str(tmp_path / "no" / "x.yaml")]) == 2
    assert "make it first" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bogus"], "unknown command 'bogus'"),
        (["validat"], "did you mean validate?"),
        (["run"], "required: CONFIG"),
        (["run", "--nonsense"], "required: CONFIG"),
        (["validate"], "needs a CONFIG"),
        (["validate", "nowhere.yaml"], "no such file"),
        (["new", "ful", "x.yaml"], "did you mean full?"),
        (["new", "full", "x.yaml", "--config", "tny"], "did you mean tiny?"),
        (["validate", tiny(), "--train.steps"], "needs a value"),
        (["validate", tiny(), "steps"], "unrecognized arguments: steps"),
        (["validate", tiny(), "--nonsense"], "unrecognized arguments: --nonsense"),
        (["validate", tiny(), ".=3"], "expected key.sub=value"),
        (["validate", tiny(), "train.stepz=1"], "did you mean steps?"),
        (["generate", "random:tiny-llama", "hello", "--seed", "x"], "invalid int value"),
    ],
)
def test_usage_and_config_errors_end_with_2_and_help_on_stderr(arguments, words, capsys):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.out == ""
    assert "Traceback" not in captured.err


def test_validate_prints_all_mistakes(tmp_path, capsys):
    path = tmp_path / "bad.yaml"
    path.write_text("version: 1\nrecipe: ful\nbogus: 1\n")
    assert main(["validate", str(path)]) == 2
    error = capsys.readouterr().err
    assert "bad.yaml:2: recipe:" in error and "bad.yaml:3: bogus:" in error
    assert "did you mean full?" in error and "train: is missing" in error


def test_validate_prints_the_schema_and_the_resolved_config(capsys):
    assert main(["validate", "--schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "Config"
    assert main(["validate", tiny(), "--resolved", "--seed", "5"]) == 0
    assert "seed: 5  # command line (seed=5)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["run", "a.yaml", "--train.steps", "3"], (["run", "a.yaml"], ["train.steps=3"])),
        (["run", "a.yaml", "--train.steps=-3"], (["run", "a.yaml"], ["train.steps=-3"])),
        (["run", "a.yaml", "train.steps=3"], (["run", "a.yaml"], ["train.steps=3"])),
        (["run", "--seed", "1", "a.yaml"], (["run", "a.yaml"], ["seed=1"])),
        (["run", "a.yaml", "output=x=y"], (["run", "a.yaml"], ["output=x=y"])),
        (
            ["eval", "a.yaml", "--checkpoint", "x=1", "seed=2"],
            (["eval", "a.yaml", "--checkpoint", "x=1"], ["seed=2"]),
        ),
        (["generate", "m", "a=b", "--seed", "1"], (["generate", "m", "a=b", "--seed", "1"], [])),
    ],
)
def test_all_dialects_of_overrides_mean_the_same(given, expected):
    assert split_overrides(given) == expected


def raised(error: BaseException, monkeypatch, capsys, *arguments: str) -> tuple[int, str]:
    """Runs a command whose work raises an error."""

    def describe(folder="."):
        raise error

    monkeypatch.setattr("jaxrecipes.environment.describe_environment", describe)
    code = main(["env", *arguments])
    return code, capsys.readouterr().err


def xla_error(text: str) -> Exception:
    return type("JaxRuntimeError", (RuntimeError,), {})(text)


FAILURES = [
    (errors.JaxrecipesError("m"), 1, "m"),
    (errors.UsageError("m"), 2, "m"),
    (errors.ConfigError("m"), 2, "m"),
    (errors.DataError("m"), 3, "m"),
    (errors.CheckpointError("m"), 3, "m"),
    (errors.DeviceMemoryError("m"), 4, "m"),
    (errors.DivergedError("m"), 5, "m"),
    (errors.PreemptedError("m"), 75, "m"),
    (errors.InterruptedRunError("m"), 130, "m"),
    (KeyboardInterrupt(), 130, "interrupted"),
    (MemoryError(), 4, "micro_batch_size"),
    (xla_error("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"), 4, "micro_batch_size"),
    (xla_error("INTERNAL: no such thing"), 1, "please report"),
    (OSError(errno.ENOSPC, "No space left on device", "/d/f"), 1, "the disk is full (/d/f)"),
    (ValueError("RESOURCE_EXHAUSTED: write: No space left on device"), 1, "the disk is full"),
    (PermissionError(errno.EACCES, "Permission denied", "/d/f"), 1, "no permission (/d/f)"),
    (OSError(errno.EROFS, "Read-only file system", "/d/f"), 1, "no permission (/d/f)"),
    (FileNotFoundError(errno.ENOENT, "No such file", "/d/f"), 1, "No such file (/d/f)"),
    (ModuleNotFoundError("No module named 'wandb'", name="wandb"), 1, "'wandb' is not installed"),
    (ZeroDivisionError("division by zero"), 1, "please report"),
]


@pytest.mark.parametrize(("error", "code", "words"), FAILURES, ids=lambda value: repr(value)[:50])
def test_failures_have_their_exit_code_and_no_traceback(error, code, words, monkeypatch, capsys):
    found, text = raised(error, monkeypatch, capsys)
    assert found == code
    assert words in text
    assert "Traceback" not in text


def test_every_error_class_has_a_documented_exit_code():
    for kind in vars(errors).values():
        if isinstance(kind, type):
            assert f"| {kind.exit_code} |" in failures.__doc__


def test_debug_shows_the_traceback(monkeypatch, capsys):
    code, text = raised(ZeroDivisionError("x"), monkeypatch, capsys, "--debug")
    assert code == 1
    assert "Traceback" in text and "ZeroDivisionError" in text


def test_work_gets_the_loaded_config_and_returns_its_exit_code(monkeypatch):
    seen = {}

    def run(config, *, console):
        seen["config"] = config
        return 75

    module = SimpleNamespace(run=run)
    monkeypatch.setitem(sys.modules, "jaxrecipes.experiment.run", module)
    monkeypatch.setattr("jaxrecipes.experiment.run", module, raising=False)
    assert main(["run", tiny(), "seed=9"]) == 75
    assert seen["config"].seed == 9


def test_env_shows_the_machine_and_no_secrets(monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    monkeypatch.setenv("WANDB_API_KEY", "canary2")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["env"]) == 0
    out = capsys.readouterr().out
    assert "python" in out and "jax" in out and "HF_HUB_OFFLINE" in out
    assert "canary" not in out


# Heavy packages that must stay unimported: they alone take longer than the 0.3 s of these commands.
HEAVY = {
    "jax",
    "flax",
    "optax",
    "orbax",
    "grain",
    "transformers",
    "datasets",
    "numpy",
    "matplotlib",
}


@pytest.mark.parametrize(
    "arguments",
    [[], ["--help"], ["run", "--help"], ["ls"], ["validate", tiny()], ["validate", tiny(), "x=1"]],
    ids=lambda arguments: " ".join(arguments[:1] + arguments[2:]) or "nothing",
)
def test_light_commands_import_nothing_heavy(arguments):
    code = f"import sys; from jaxrecipes.cli import main; main({arguments!r}); " + (
        "print('IMPORTED', *{name.partition('.')[0] for name in sys.modules})"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    imported = set(done.stdout.rpartition("IMPORTED")[2].split())
    assert "argparse" in imported
    assert imported & HEAVY == set()


def test_a_reader_that_goes_away_ends_the_command_quietly():
    command = f"{sys.executable} -m jaxrecipes.cli validate --schema | head -n 1"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        command, shell=True, capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout == "{\n"
    assert done.stderr == ""
