"""A whole experiment: base, data, arms, export, report."""

from __future__ import annotations

import fcntl
import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from jaxrecipes import __version__
from jaxrecipes.checkpoint.huggingface import Imported, import_checkpoint, read_model_config
from jaxrecipes.config import (
    Arm,
    Config,
    ExperimentSection,
    config_hash,
    expand_arms,
    resolved_yaml,
)
from jaxrecipes.durable import write_json
from jaxrecipes.environment import describe_environment
from jaxrecipes.errors import CheckpointError, ConfigError, JaxrecipesError
from jaxrecipes.experiment.arm import TrainedArm, train_arm
from jaxrecipes.experiment.base_model import BaseModel, locate_base
from jaxrecipes.experiment.data_sets import DataSets, prepare_data
from jaxrecipes.experiment.devices import Devices, choose_devices, model_shardings
from jaxrecipes.experiment.finish import write_model
from jaxrecipes.experiment.inspect import report
from jaxrecipes.experiment.measure import Measure, build_measure
from jaxrecipes.experiment.model_card import model_card
from jaxrecipes.experiment.program import build_program
from jaxrecipes.experiment.teacher import locate_teacher, teacher_fingerprint
from jaxrecipes.hosts import Hosts, join_hosts
from jaxrecipes.models.config import ModelConfig
from jaxrecipes.models.decoder import abstract_params
from jaxrecipes.report.results import ORDERS, REWRITES
from jaxrecipes.sharding.host import on_host
from jaxrecipes.stages import run_stage, why_stale
from jaxrecipes.train.signals import termination_as_error

RUN_FILE = "run.yaml"
IDENTITY_FILE = "identity.json"
# A mounted bucket may show a new file late.
_SHARED_SECONDS = 60.0


def run(config: Config, *, console: Console) -> int | None:
    """Runs an experiment, or goes on with it where it stopped.

    Args:
        config: The experiment.
        console: For everything that is said.

    Returns:
        None: done.

    Raises:
        JaxrecipesError: Of the many that its parts raise; each has its exit code.
    """
    hosts = join_hosts()
    try:
        with termination_as_error():
            code = _run(config, hosts, console if hosts.is_first else Console(quiet=True))
    except BaseException as error:
        hosts.explain(error)
        hosts.fail(error)
        raise
    hosts.leave()
    return code


def _run(config: Config, hosts: Hosts, console: Console) -> int | None:
    output = Path(config.output)
    said = {"code": __version__, "jax": jax.__version__, "mesh": config.mesh.model_dump_json()}
    hosts.agree("config", {"config": config_hash(config), "output": str(output), **said})
    with locked_folder(output) if hosts.is_first else nullcontext():
        hashes = {arm.name: config_hash(arm.config) for arm in expand_arms(config)}
        hosts.only_first("claim", lambda: claim_folder(config, hashes, output))
        _check_shared(output, hosts)
        enable_compilation_cache(output)
        base = hosts.first(
            "base",
            lambda: locate_base(
                config.model.checkpoint,
                config.model.revision,
                output,
                seed=config.seed,
                console=console,
                chat_template=config.data.supervise.chat_template,
            ),
        )
        arms = expand_arms(config)
        model = read_model_config(base.folder)
        devices = check_arms(arms, model)
        data = hosts.first("data", lambda: prepare_data(config, arms, base, output, console))
        hosts.agree(
            "data",
            {
                "base": base.fingerprint,
                "data": str({arm.name: data.fingerprint(arm.name) for arm in arms}),
            },
        )
        hosts.only_first("orders", lambda: _write_orders(data, output))
        measure: Measure | None = None
        for arm in arms:
            folder = output / "arms" / arm.name
            inputs = arm_inputs(arm, base, data)
            if not hosts.say(f"{arm.name}/stale", partial(why_stale, folder / "final", inputs)):
                console.print(f"{arm.name}: done before", highlight=False)
                continue
            if measure is None:
                console.print("measuring the base model …", highlight=False)
                execution = devices[arm.name].execution
                places = model_shardings(model, execution.mesh)
                imported = import_checkpoint(base.folder, shardings=places)
                measure = build_measure(config, imported, base.tokenizer, data, execution)
                del imported
            trained = train_arm(
                arm.name,
                arm.config,
                base.folder,
                data,
                folder,
                {"config": inputs["config"], "data": inputs["data"]},
                measure,
                devices[arm.name],
                hosts,
                console,
            )
            finish = partial(_finish, arm, trained, base, folder, inputs, console)
            hosts.only_first(f"{arm.name}/final", finish)
            del trained, finish
            # The next arm compiles other programs; the memory of this one's is given back.
            jax.clear_caches()
        hosts.only_first("report", lambda: report(output, console=console))
    return None


def _write_orders(data: DataSets, output: Path) -> None:
    for name, sources in data.orders.items():
        write_json(output / "arms" / name / ORDERS, {"sources": sources})
    for name, sources in data.rewrites.items():
        write_json(output / "arms" / name / REWRITES, {"sources": sources})


def _check_shared(output: Path, hosts: Hosts) -> None:
    """Makes sure that all hosts see one run folder, and not each its own."""
    path = output / ".hosts"
    token = hosts.say("shared", lambda: _leave_token(path))
    if hosts.count == 1:
        return
    deadline = time.monotonic() + _SHARED_SECONDS
    while not (path.exists() and path.read_text(encoding="utf-8") == token):
        if time.monotonic() > deadline:
            raise ConfigError(
                f"output: host {hosts.index} does not see in {output} what host 0 wrote there; "
                "several hosts need one folder that all of them see (NFS, or a mounted bucket)"
            )
        time.sleep(0.2)


def _leave_token(path: Path) -> str:
    token = uuid.uuid4().hex
    path.write_text(token, encoding="utf-8")
    return token


def check_arms(arms: Sequence[Arm], model: ModelConfig) -> dict[str, Devices]:
    """Builds every arm from shapes, so that one that cannot train is refused before any work.

    Args:
        arms: All arms of an experiment.
        model: The base model.

    Returns:
        Arm -> its devices.

    Raises:
        CheckpointError: An arm's teacher cannot be used; names the arm.
        ConfigError: Options or rules of an arm do not fit the model; likewise.
    """
    base = Imported(model, abstract_params(model), Path(), {})
    devices = {}
    for arm in arms:
        # The number of steps shapes the schedule only; with epochs, the data decide it later.
        try:
            devices[arm.name] = choose_devices(arm.config, model)
            steps = arm.config.train.steps or 1_000_000
            build_program(arm.config, base, steps, devices[arm.name].execution)
            locate_teacher(arm.config, model)
        except (CheckpointError, ConfigError) as error:
            raise type(error)(f"arm {arm.name}: {error}") from error
    return devices


def arm_inputs(arm: Arm, base: BaseModel, data: DataSets) -> dict[str, Any]:
    """Returns everything that determines what an arm ends with."""
    inputs = {
        "config": config_hash(arm.config),
        "base": base.fingerprint,
        "data": data.fingerprint(arm.name),
        "code": __version__,
    }
    teacher = teacher_fingerprint(arm.config)
    return inputs if teacher is None else {**inputs, "teacher": teacher}


def _finish(
    arm: Arm,
    trained: TrainedArm,
    base: BaseModel,
    folder: Path,
    inputs: dict[str, Any],
    console: Console,
) -> None:
    def build(target: Path) -> None:
        card = model_card(arm, trained.summary, folder)
        write_model(target, arm, trained, base, card, console)

    write_json(folder / "summary.json", trained.summary)
    console.print(f"{arm.name}: exporting and comparing …", highlight=False)
    with on_host():
        run_stage(folder / "final", inputs, build)


def claim_folder(config: ExperimentSection, arms: Mapping[str, str], output: Path) -> None:
    """Refuses a folder that belongs to another experiment; marks a new one as ours.

    Args:
        config: The experiment.
        arms: Hash of each arm, in order.
        output: The run folder, which is there.

    Raises:
        ConfigError: The folder holds another experiment, or something else.
        JaxrecipesError: It cannot be written.
    """
    identity = {"main": config_hash(config), "arms": dict(arms)}
    path = output / IDENTITY_FILE
    if path.exists():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise JaxrecipesError(f"{path} cannot be read ({error}); remove {output}") from error
        changed = [
            name
            for name, value in found.get("arms", {}).items()
            if identity["arms"].get(name, value) != value
        ]
        if found.get("main") != identity["main"] or changed:
            raise ConfigError(
                f"output: {output} holds another experiment (its config is {output / RUN_FILE}"
                + (f"; changed arms: {', '.join(changed)}" if changed else "")
                + "); give another output, or remove that folder"
            )
    elif (output / RUN_FILE).exists() or (output / "arms").exists():
        raise ConfigError(f"output: {output} is not empty; give another output folder")
    write_json(output / "environment.json", describe_environment(output))
    try:
        (output / RUN_FILE).write_text(resolved_yaml(config), encoding="utf-8")
    except OSError as error:
        raise JaxrecipesError(f"cannot write {output / RUN_FILE}: {error.strerror}") from error
    write_json(path, identity)


@contextmanager
def locked_folder(output: Path) -> Iterator[None]:
    """Keeps two processes from working in one run folder, which is made."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        file = (output / ".lock").open("w")
    except OSError as error:
        raise JaxrecipesError(
            f"output: cannot write into {output}: {error.strerror}; give another folder"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise JaxrecipesError(
                f"output: another process is running in {output}; wait for it or "
                "give another folder"
            ) from None
        yield


def enable_compilation_cache(output: Path) -> None:
    """Keeps compiled programs beside the run, so that a resumed run does not compile again."""
    if (
        getattr(jax.config, "jax_compilation_cache_dir", None) is None
        and "JAX_COMPILATION_CACHE_DIR" not in os.environ
    ):
        jax.config.update("jax_compilation_cache_dir", str((output / "cache").absolute()))
