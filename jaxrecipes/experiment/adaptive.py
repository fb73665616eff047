"""An experiment of the adaptive recipes: pretraining phases, fine-tunings for each seed, report."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from jaxrecipes import __version__
from jaxrecipes.checkpoint.export_encoder import export_encoder
from jaxrecipes.config import AdaptiveArm, AdaptiveConfig, adaptive_arms, config_hash
from jaxrecipes.durable import hash_values, write_json
from jaxrecipes.evaluate.seed_results import SeedResults
from jaxrecipes.experiment.adaptive_card import adaptive_card
from jaxrecipes.experiment.adaptive_data import AdaptiveData, read_adaptive_data
from jaxrecipes.experiment.fine_tuning import FineTuner, FineTuning, Outcome
from jaxrecipes.experiment.inspect import report
from jaxrecipes.experiment.perturbation import make_perturbation
from jaxrecipes.experiment.phase_optimizer import phase_optimizer
from jaxrecipes.experiment.phases import Pretrained, pretrain
from jaxrecipes.experiment.run import claim_folder, enable_compilation_cache, locked_folder
from jaxrecipes.experiment.task_model import TaskModel, read_task_model
from jaxrecipes.params.layout import to_canonical
from jaxrecipes.report.seeds import ADAPTIVE_FILE, SEED_RESULTS
from jaxrecipes.train.progress import training_progress
from jaxrecipes.train.signals import termination_as_error

EXPORTED = "exported.json"


def run(config: AdaptiveConfig, *, console: Console) -> None:
    """Runs an experiment, or goes on with it where it stopped.

    Args:
        config: The experiment.
        console: For everything that is said.

    Raises:
        JaxrecipesError: Of the many that its parts raise; each has its exit code.
    """
    output = Path(config.output)
    arms = adaptive_arms(config)
    with termination_as_error(), locked_folder(output):
        claim_folder(config, {arm.name: _arm_hash(arm) for arm in arms}, output)
        enable_compilation_cache(output)
        model = read_task_model(
            config.model.checkpoint,
            config.model.revision,
            output,
            compute_dtype=config.model.compute_dtype,
            seed=config.seed,
            console=console,
        )
        data = read_adaptive_data(config, model, output, console)
        _AdaptiveRun(config, model, data, output, console).arms(arms)
        report(output, console=console)


def _arm_hash(arm: AdaptiveArm) -> str:
    phases = [phase.model_dump() for phase in (*arm.pretraining, arm.finetune)]
    return hash_values({"phases": phases, "equal_compute": arm.equal_compute})


class _AdaptiveRun:
    """What the arms of one run share."""

    def __init__(
        self,
        config: AdaptiveConfig,
        model: TaskModel,
        data: AdaptiveData,
        output: Path,
        console: Console,
    ) -> None:
        self.config, self.model, self.data = config, model, data
        self.output, self.console = output, console
        self.results = SeedResults(output / SEED_RESULTS)
        self.summaries: dict[str, dict[str, Any]] = {}
        self.selection: dict[str, Any] | None = None
        self._tuners: dict[str, FineTuner] = {}

    def arms(self, arms: Sequence[AdaptiveArm]) -> None:
        for arm in arms:  # before any of them takes its time
            self.model.refuse_unread(arm.finetune.model_fields_set, f"fine-tuning of {arm.name}")
            self.model.head(self.config.model.head, 2, arm.finetune.dropout)
        main_tokens = 0
        for number, arm in enumerate(arms):
            pretrained = pretrain(
                self.config,
                arm.pretraining,
                self.model,
                self.data,
                self.output / "phases",
                self.console,
            )
            if number == 0:
                main_tokens = pretrained.tokens
            epochs = arm.finetune.epochs
            if arm.equal_compute:
                per_epoch = int(self.data.task.train.lengths.sum())
                epochs += math.ceil(main_tokens / per_epoch)
            self._fine_tune(arm, pretrained, epochs, is_main=number == 0)

    def _fine_tune(
        self, arm: AdaptiveArm, pretrained: Pretrained, epochs: int, *, is_main: bool
    ) -> None:
        patience = None if arm.equal_compute else arm.finetune.patience
        options = {
            "code": __version__,
            "start": pretrained.key,
            "finetune": arm.finetune.model_dump(),
            "epochs": epochs,
            "patience": patience,
            "head": self.config.model.head,
            "compute_dtype": self.config.model.compute_dtype,
            "task": self.data.fingerprint,
            "max_tokens": self.config.task.max_tokens,
            "score": self.config.task.score,
        }
        self._summarise(arm, pretrained, options)
        seeds = range(self.config.seed, self.config.seed + self.config.seeds)
        done = self.results.rows(arm.name, options)
        for seed in seeds:
            if seed in done:
                self.console.print(f"{arm.name} seed {seed}: done before", highlight=False)
                continue
            tuner = self._tuner(arm, epochs, patience)
            title = f"{arm.name} seed {seed}"
            with training_progress(self.console, title=title, start=0, total=tuner.total) as show:
                outcome = tuner.run(pretrained.params, seed, show=show)
            if is_main:
                self._export(arm, tuner, outcome, seed, options)
            self.results.add(outcome.row(arm.name, seed, options))

    def _tuner(self, arm: AdaptiveArm, epochs: int, patience: int | None) -> FineTuner:
        """Makes what compiles the programs of an arm; arms that are tuned alike share it."""
        section = arm.finetune
        key = hash_values({"section": section.model_dump(), "epochs": epochs, "patience": patience})
        if key not in self._tuners:
            head = self.model.head(
                self.config.model.head, len(self.data.task.labels.names), section.dropout
            )
            settings = FineTuning(
                epochs=epochs,
                make_optimizer=partial(phase_optimizer, section.optimizer, self.model.layout),
                patience=patience,
                rows=section.batch_size,
                dropout=section.dropout,
                score=self.config.task.score,
                perturbation=partial(make_perturbation, section.perturb),
            )
            self._tuners[key] = FineTuner(self.model, head, self.data.task, settings)
        return self._tuners[key]

    def _export(
        self,
        arm: AdaptiveArm,
        tuner: FineTuner,
        outcome: Outcome,
        seed: int,
        options: Mapping[str, Any],
    ) -> None:
        """Keeps the model of the main arm with the best dev score so far."""
        encoder = self.model.encoder
        if encoder is None or self.config.model.head != "family":
            return  # the report says why
        folder = self.output / "arms" / arm.name
        best = {"seed": seed, "dev": max(outcome.dev), "options": hash_values(options)}
        path = folder / EXPORTED
        if path.exists():
            before = json.loads(path.read_text(encoding="utf-8"))
            if before["options"] == best["options"] and before["dev"] >= best["dev"]:
                return
        folder.mkdir(parents=True, exist_ok=True)
        export_encoder(
            folder / "model",
            encoder,
            to_canonical(self.model.layout, outcome.params),
            model_card=adaptive_card(
                self.config, arm, self.summaries[arm.name]["phases"], self.data.task, outcome, seed
            ),
            head=tuner.head,
            labels=self.data.task.labels.names,
        )
        write_json(path, best)

    def _summarise(
        self, arm: AdaptiveArm, pretrained: Pretrained, options: Mapping[str, Any]
    ) -> None:
        """Writes what the report needs besides the results, as far as it is known."""
        self.summaries[arm.name] = {
            "name": arm.name,
            "phases": list(pretrained.records),
            "pretraining_tokens": pretrained.tokens,
            "epochs": options["epochs"],
            "patience": options["patience"],
            "learning_rate": arm.finetune.optimizer.learning_rate,
            "options": options,
        }
        task = self.data.task
        assert task.test.labels is not None
        reads = {name for phase in arm.pretraining for name in phase.read}
        if reads & {"selected", "random"}:
            self.selection = self.data.selection.statistics
        write_json(
            self.output / ADAPTIVE_FILE,
            {
                "schema": 1,
                "recipe": self.config.recipe,
                "config": config_hash(self.config),
                "model": self.config.model.checkpoint,
                "objective": self.model.objective_name,
                "exported": self._exported(),
                "labels": list(task.labels.names),
                "test_labels": task.test.labels.tolist(),
                "rows": {"train": len(task.train), "dev": len(task.dev), "test": len(task.test)},
                "training_tokens": int(task.train.lengths.sum()),
                "overlaps": len(self.data.overlaps),
                "transductive": self.config.task.transductive,
                "selection": self.selection,
                "arms": list(self.summaries.values()),
            },
        )

    def _exported(self) -> str:
        """Says where the best model is, or why there is none."""
        if self.model.encoder is None:
            return "none: a decoder with a classification head cannot be exported yet"
        if self.config.model.head != "family":
            return "none: a head on the mean has no form in transformers"
        return f"arms/{self.config.arm_name}/model"
