"""Every shipped config is valid, annotated and listed; every key of the schema is read."""

import importlib
import re
import sys
from pathlib import Path

import pytest
from rich.console import Console

import jaxrecipes.recipes
from jaxrecipes.cli import main
from jaxrecipes.config import KINDS, Config, expand_arms, kind_of, load_config
from jaxrecipes.config.kinds import ALL_RECIPES
from jaxrecipes.config.recipe_options import RECIPE_SECTIONS, RecipeName
from jaxrecipes.config.section import Section
from jaxrecipes.config.teacher import LocalTeacherSection, OpenAITeacherSection
from jaxrecipes.experiment.base_model import locate_base, peek_model_config
from jaxrecipes.experiment.run import check_arms
from jaxrecipes.experiment.teachers import budget_of, make_teacher
from jaxrecipes.recipes import RECIPES
from jaxrecipes.shipped_configs import shipped_config, shipped_folder
from tests.config.schema_keys import schema_keys

FOLDER = Path(__file__).parent.parent / "configs"
FILES = sorted(FOLDER.rglob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_shipped_config_is_valid_and_its_arms_too(path):
    config = load_config(path)
    assert config.recipe == path.parent.name
    assert len(kind_of(config).arms(config)) >= 1 + len(config.compare)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_shipped_configs_begin_with_what_they_are_and_explain_their_sections(path):
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ")
    assert all(len(line) <= 100 for line in lines)
    assert sum(line.lstrip().startswith("#") for line in lines) >= 12


def test_the_table_the_folders_and_the_schema_name_the_same_recipes():
    names = {recipe.name for recipe in RECIPES}
    assert names == {*ALL_RECIPES} == {path.parent.name for path in FILES}
    assert len(ALL_RECIPES) == len(set(ALL_RECIPES)) and set(RecipeName.__args__) <= names
    assert set(RECIPE_SECTIONS) <= names
    assert shipped_folder() == FOLDER
    listed = {shipped_config(recipe.name, name) for recipe in RECIPES for name in recipe.configs}
    assert listed == set(FILES)


def test_every_kind_of_experiment_can_be_run():
    for kind in KINDS:
        assert callable(importlib.import_module(kind.runner).run)


def test_every_recipe_has_its_own_file_and_page_and_a_tiny_config():
    modules = {path.stem for path in Path(jaxrecipes.recipes.__file__).parent.glob("[!_]*.py")}
    assert modules == {recipe.name for recipe in RECIPES}
    pages = {path.stem for path in (FOLDER.parent / "docs" / "recipes").glob("*.md")}
    assert modules <= pages
    for recipe in RECIPES:
        importlib.import_module(f"jaxrecipes.recipes.{recipe.name}")
        assert "tiny" in recipe.configs
        assert re.search(
            r"^\s+checkpoint: random:", shipped_config(recipe.name, "tiny").read_text(), re.M
        )


def make_teachers(folder: Path) -> None:
    """Makes the teachers that a tiny run does not: those of other checkpoints, and of servers."""
    console = Console(quiet=True)
    base = locate_base("random:tiny-llama", None, folder, seed=0, console=console)
    server = OpenAITeacherSection(kind="openai", base_url="http://127.0.0.1:1/v1", model="m")
    local = LocalTeacherSection(kind="local", checkpoint="random:tiny-llama")
    for section in (server, local):
        budget_of(section)
        make_teacher(
            section, base, folder / "other", compute_dtype="float32", seed=1, console=console
        )


@pytest.mark.long
def test_a_run_reads_every_key_of_the_schema(tmp_path, monkeypatch):
    """Records which keys are read by code outside of the config package while tiny runs run."""
    reads: set[tuple[str, str]] = set()
    plain = Section.__getattribute__

    def recording(self, name):
        fields = type(self).model_fields
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if caller.startswith("jaxrecipes") and not caller.startswith("jaxrecipes.config"):
            # A section that is dumped as a whole is handed on as a whole.
            read = fields if name == "model_dump" else {name} & fields.keys()
            reads.update(
                (kind.__name__, key)
                for key in read
                for kind in type(self).__mro__
                if key in getattr(kind, "model_fields", {})
            )
        return plain(self, name)

    monkeypatch.setattr(Section, "__getattribute__", recording)
    tiny = str(FOLDER / "block_expansion" / "tiny.yaml")
    rules = "[{pattern: 'layers/5/.*', train: true}, {pattern: '.*', train: false}]"
    arms = (
        f"compare=[{{recipe: freeze, freeze: {{rules: {rules}}}}}, "
        "{recipe: strided_freeze, strided_freeze: {blocks: 2}}, "
        "{recipe: lora, lora: {rank: 2, targets: [q_proj]}}]"
    )
    # Options of recipes are read where a recipe is applied, which every run does before it trains.
    check_arms(
        expand_arms(load_config(Path(tiny), [arms])), peek_model_config("random:tiny-llama", None)
    )
    short = ["train.steps=2", "evaluate.points=1", "evaluate.limit_items=2", "compare=[]"]
    without = ["evaluate.points=1", "evaluate.choices=null", "evaluate.last_words=null"]
    by_epochs = ["train.steps=null", "train.epochs=0.004", *without]
    assert main(["run", tiny, *short, f"output={tmp_path / 'own'}"]) == 0
    notes = tmp_path / "notes.txt"
    notes.write_text("A stone is hard. Water is wet.\n\nThe sky is blue in the day.\n")
    source = f"{{source: {notes}, unit: paragraph}}"
    keep = f"data.keep={{kind: documents, sources: [{source}]}}"
    arguments = ["run", tiny, *by_epochs, "compare=[]", keep, f"output={tmp_path / 'documents'}"]
    assert main(arguments) == 0
    ordered = str(FOLDER / "in_context_pretraining" / "tiny.yaml")
    short = ["train.steps=1", "compare=[]", *without, "train.perturb={method: neftune}"]
    assert main(["run", ordered, *short, f"output={tmp_path / 'ordered'}"]) == 0
    rewriting = str(FOLDER / "sdft_rewrite" / "tiny.yaml")
    short = ["train.steps=1", "sdft_rewrite.semantic={encoder: 'random:tiny-bert'}"]
    arguments = ["run", rewriting, *short, *without, f"output={tmp_path / 'rewritten'}"]
    assert main(arguments) == 0
    make_teachers(tmp_path)
    # The version is checked by the schema; arms are read by expand_arms, which makes whole configs.
    by_schema = {("Config", "version"), ("Config", "name"), ("Config", "compare")}
    keys = schema_keys(Config)
    by_schema |= {key for key in keys if key[0] in ("ArmSection", "ArmTrainSection")}
    by_schema |= {("OwnAnswers", "kind"), ("KeepDocuments", "kind")}
    assert keys - by_schema - reads == set()
