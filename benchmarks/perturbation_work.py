"""What a step with perturbed embeddings costs: its matrix products over those of a clean step.

    python benchmarks/perturbation_work.py [--model FOLDER]

Counted in the program of the step, where every layer trains; nothing is compiled and nothing runs.
Without --model the decoder is a small one, so wide that its head is a small part of the work.
Options are the methods' own.
"""

from __future__ import annotations

import argparse
from typing import Any

import jax
import jax.numpy as jnp

from jaxrecipes.checkpoint.import_model import import_checkpoint
from jaxrecipes.config.perturb import METHOD_OPTIONS
from jaxrecipes.models.config import FULL_ATTENTION, ModelConfig
from jaxrecipes.models.decoder import abstract_params
from jaxrecipes.params.layout import plan_layout, to_runtime
from jaxrecipes.params.paths import flatten
from jaxrecipes.train.flops import count_flops
from jaxrecipes.train.optimizer import OptimizerSettings, learning_rate_schedule, make_optimizer
from jaxrecipes.train.perturb.options import build_method
from jaxrecipes.train.perturb.schedule import UNPERTURBED, Perturbation
from jaxrecipes.train.state import create_state
from jaxrecipes.train.step import make_train_step

ROWS, LENGTH, LAYERS = 4, 128, 8
SMALL = ModelConfig(
    family="llama",
    vocab_size=1024,
    hidden_size=256,
    intermediate_size=704,
    num_layers=LAYERS,
    num_heads=4,
    num_kv_heads=4,
    head_dim=64,
    max_position_embeddings=LENGTH,
    layer_types=(FULL_ATTENTION,) * LAYERS,
    query_scale=64**-0.5,
)


def step_flops(config: ModelConfig, perturbation: Perturbation) -> int:
    """Counts the operations of one training step."""
    settings = OptimizerSettings(total_steps=10, learning_rate=1e-3)
    paths = flatten(abstract_params(config))
    layout = plan_layout(config, dict.fromkeys(paths, True))
    optimizer = make_optimizer(settings, layout=layout, decays=dict.fromkeys(paths, False))

    def start(params: Any) -> Any:
        trainable = to_runtime(layout, params)
        teacher = perturbation.first_teacher(trainable, trainable)
        return create_state(trainable, optimizer, spike_window=8, teacher=teacher)

    step = make_train_step(
        config,
        optimizer,
        learning_rate_schedule(settings),
        layout=layout,
        loss_chunk=ROWS * LENGTH,
        perturbation=perturbation,
    )
    integers = ("token_ids", "segment_ids", "positions")
    batch = {name: jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32) for name in integers}
    batch["loss_mask"] = jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.bool_)
    return count_flops(step, jax.eval_shape(start, abstract_params(config)), {}, batch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="of another decoder: folder, hub id or package:NAME")
    options = parser.parse_args()
    config = SMALL if options.model is None else import_checkpoint(options.model).config
    clean = step_flops(config, UNPERTURBED)
    print("| method | work |\n|---|---|")
    for name in METHOD_OPTIONS:
        if name != "none":
            work = step_flops(config, Perturbation(build_method(name, {}))) / clean
            print(f"| `{name}` | {work:.1f} |")


if __name__ == "__main__":
    main()
