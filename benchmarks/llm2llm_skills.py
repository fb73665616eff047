"""LLM2LLM against its controls on ten programmatic skills of unequal difficulty.

A decoder of 1.3 million parameters learns a little of ten skills on short strings and numbers; then
each arm trains it further from 10 seeds a skill. The teacher is a program that writes a right item
of the parent's skill. All arms have the same number of new items and of optimizer steps:

    python benchmarks/llm2llm_skills.py --seeds 3

prints the report's tables, accuracy for each skill, and which share of the new items went to the
three skills that are worst after the first round. It goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import jax
from rich.console import Console

from jaxrecipes.checkpoint.export_model import export_checkpoint
from jaxrecipes.checkpoint.random_model import byte_tokenizer
from jaxrecipes.config.experiment import ModelSection
from jaxrecipes.config.llm2llm import Llm2llmConfig
from jaxrecipes.config.tuning import TuningSection
from jaxrecipes.durable import write_json_lines
from jaxrecipes.experiment.llm2llm import run
from jaxrecipes.experiment.tuning import tune
from jaxrecipes.generate.program_teacher import ProgramTeacher
from jaxrecipes.generate.teacher import Request
from jaxrecipes.models.config import FULL_ATTENTION, ModelConfig
from jaxrecipes.models.decoder import init_params

LETTERS = "abcdefghijklmnopqrstuvwxy"
LAYERS, WIDTH = 4, 160


def _word(draw: random.Random, length: int) -> str:
    return "".join(draw.choice(LETTERS) for _ in range(length))


def _copy(draw: random.Random) -> tuple[str, str]:
    word = _word(draw, 4)
    return word, word


def _first(draw: random.Random) -> tuple[str, str]:
    word = _word(draw, 4)
    return word, word[0]


def _last(draw: random.Random) -> tuple[str, str]:
    word = _word(draw, 4)
    return word, word[-1]


def _swap(draw: random.Random) -> tuple[str, str]:
    word = _word(draw, 3)
    return word, word[2] + word[1] + word[0]


def _next(draw: random.Random) -> tuple[str, str]:
    word = _word(draw, 2)
    return word, "".join(chr(ord(letter) + 1) for letter in word)


def _sort(draw: random.Random) -> tuple[str, str]:
    word = _word(draw, 3)
    return word, "".join(sorted(word))


def _count(draw: random.Random) -> tuple[str, str]:
    word = "".join(draw.choice("abc") for _ in range(6))
    return word, str(word.count("a"))


def _max(draw: random.Random) -> tuple[str, str]:
    one, other = draw.randrange(10, 100), draw.randrange(10, 100)
    return f"{one} {other}", str(max(one, other))


def _add(draw: random.Random) -> tuple[str, str]:
    one, other = draw.randrange(10, 50), draw.randrange(10, 50)
    return f"{one} {other}", str(one + other)


def _sub(draw: random.Random) -> tuple[str, str]:
    one, other = draw.randrange(50, 100), draw.randrange(10, 50)
    return f"{one} {other}", str(one - other)


SKILLS: dict[str, Callable[[random.Random], tuple[str, str]]] = {
    "copy": _copy,
    "first": _first,
    "last": _last,
    "mirror": _swap,
    "next": _next,
    "sort": _sort,
    "count": _count,
    "max": _max,
    "add": _add,
    "sub": _sub,
}


def items(skill: str, count: int, draw: random.Random, taken: set[str]) -> list[dict[str, str]]:
    """Draws items of a skill whose questions are not taken; takes them."""
    found = []
    while len(found) < count:
        argument, answer = SKILLS[skill](draw)
        question = f"{skill} {argument}"
        if question not in taken:
            taken.add(question)
            number = len(found)
            found.append({"id": f"{skill}-{number}", "question": question, "answer": answer})
    return found


def write_data(folder: Path, counts: dict[str, int]) -> None:
    """Writes the sets; no question is in two of them."""
    draw, taken = random.Random(0), set[str]()
    for name, count in counts.items():
        rows = [row for skill in SKILLS for row in items(skill, count, draw, taken)]
        write_json_lines(folder / f"{name}.jsonl", rows)


def make_base(folder: Path, steps: int, console: Console) -> Path:
    """Trains the base: random weights that have seen a few items of each skill."""
    config = ModelConfig(
        family="llama",
        vocab_size=258,
        hidden_size=WIDTH,
        intermediate_size=448,
        num_layers=LAYERS,
        num_heads=4,
        num_kv_heads=4,
        head_dim=WIDTH // 4,
        max_position_embeddings=256,
        layer_types=(FULL_ATTENTION,) * LAYERS,
        query_scale=(WIDTH // 4) ** -0.5,
    )
    start = folder / "random"
    if not start.exists():
        with tempfile.TemporaryDirectory() as tokenizer:
            byte_tokenizer(config.max_position_embeddings).save_pretrained(tokenizer)
            params = init_params(config, jax.random.key(0))
            export_checkpoint(
                start,
                config,
                params,
                tokenizer_source=tokenizer,
                hf_config=None,
                model_card="",
            )
    lines = (folder / "pretrain.jsonl").read_text().splitlines()
    rows = [
        {"id": row["id"], "prompt": f"{row['question']}\n", "completion": f" {row['answer']}"}
        for row in map(json.loads, lines)
    ]
    train = {
        "steps": steps,
        "batch_size": 16,
        "optimizer": {"learning_rate": 2e-3, "weight_decay": 0.1},
        "remat": "none",
        "checkpoint": {"every_steps": 100},
    }
    return tune(
        "base",
        base_folder=start,
        rows=rows,
        section=TuningSection.model_validate({"length": 64, "train": train}),
        model=ModelSection(checkpoint=str(start), compute_dtype="float32"),
        folder=folder / "base",
        seed=0,
        console=console,
    ).folder


def write_item(request: Request) -> str:
    """The teacher: another item of the skill of the exercise that it is shown."""
    text = request.messages[0].content
    shown = text.partition("[exercise ")[2].partition("\n")[2]
    skill = shown.split(" ", 1)[0]
    argument, answer = SKILLS[skill](random.Random(request.seed))
    return f"Question: {skill} {argument}\nAnswer: {answer}"


def skill_of(question: str) -> str:
    """Returns the skill that a question is of."""
    return question.split(" ", 1)[0]


def by_skill(output: Path, folder: Path, console: Console) -> None:
    """Prints accuracy for each skill, and where new items went."""
    found = json.loads((output / "llm2llm.json").read_text())
    lines = (folder / "test.jsonl").read_text().splitlines()
    skills = [skill_of(json.loads(line)["question"]) for line in lines]
    console.print(f"{'arm':14}" + "".join(f"{skill:>8}" for skill in SKILLS) + "   worst 3")
    for arm in found["arms"]:
        right, asked, shares = Counter[str](), Counter[str](), []
        for run_ in arm["runs"]:
            for skill, hit in zip(skills, run_["test_right"], strict=True):
                right[skill] += hit
                asked[skill] += 1
            place = output / "arms" / arm["name"] / f"seed-{run_['seed']}"
            first = json.loads((place / "round-0" / "done" / "round.json").read_text())
            score = Counter[str]()
            for skill, hit in zip(skills, first["test_right"], strict=True):
                score[skill] += hit
            worst = {skill for skill, _ in sorted(score.items(), key=lambda pair: pair[1])[:3]}
            new = [
                json.loads(line)
                for path in place.glob("round-*/done/new.jsonl")
                for line in path.read_text().splitlines()
            ]
            if new:
                hits = sum(skill_of(record["question"]) in worst for record in new)
                shares.append(hits / len(new))
        cells = "".join(f"{100 * right[skill] / asked[skill]:8.1f}" for skill in SKILLS)
        share = f"{100 * sum(shares) / len(shares):8.1f} %" if shares else ""
        console.print(f"{arm['name']:14}{cells}{share}", highlight=False)


def main() -> None:
    """Runs the experiment."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--base-steps", type=int, default=400)
    parser.add_argument("--pretrain-items", type=int, default=300)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--arms", default="uniform,one_shot,step_matched")
    parser.add_argument("--folder", type=Path, default=Path("runs/llm2llm_skills"))
    given = parser.parse_args()
    console = Console(width=120)
    folder: Path = given.folder
    folder.mkdir(parents=True, exist_ok=True)
    write_data(folder, {"seeds": 10, "test": 40, "pretrain": given.pretrain_items})
    base = make_base(folder, given.base_steps, console)
    jax.clear_caches()
    config = Llm2llmConfig.model_validate(
        {
            "version": 1,
            "recipe": "llm2llm",
            "seeds": given.seeds,
            "output": str(folder / "run"),
            "model": {"checkpoint": str(base), "compute_dtype": "float32"},
            "task": {
                "kind": "plain",
                "seeds": {"source": str(folder / "seeds.jsonl")},
                "test": {"source": str(folder / "test.jsonl")},
            },
            "augment": {"rounds": given.rounds, "attempts": 10},
            "probe": {"max_new_tokens": 6, "slots": 100},
            "tuning": {
                "length": 64,
                "train": {
                    "steps": given.steps,
                    "batch_size": 8,
                    "remat": "none",
                    "optimizer": {"learning_rate": given.learning_rate},
                    "checkpoint": {"every_steps": 1000},
                },
            },
            "compare": [{"control": name} for name in given.arms.split(",") if name],
        }
    )
    run(config, console=console, teacher=ProgramTeacher(write_item, {"program": "skills"}))
    by_skill(folder / "run", folder, console)


if __name__ == "__main__":
    main()
