"""Small problems for perturbations: packed rows, the same texts one a row, three kinds of model."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrecipes.models.encoder import encode_embeddings, init_encoder_params
from jaxrecipes.models.encoder_config import EncoderConfig
from jaxrecipes.models.pooling import pool
from jaxrecipes.train.perturb import Problem, causal_problem, kl_divergence
from tests.tiny import tiny_config, tiny_params

LENGTHS = ((5, 9, 2), (12,), (3, 3, 7), (16,))
SEGMENTS = 3


def packed(vocabulary: int = 61, length: int = 20, seed: int = 0) -> dict[str, np.ndarray]:
    """Texts of LENGTHS in four rows, padding after them; all tokens supervised."""
    generator = np.random.default_rng(seed)
    token_ids, segment_ids, positions = np.zeros((3, len(LENGTHS), length), np.int32)
    # What stands on padding must not matter: it is not zero.
    token_ids += 7
    for row, lengths in enumerate(LENGTHS):
        start = 0
        for segment, size in enumerate(lengths, 1):
            span = slice(start, start + size)
            token_ids[row, span] = generator.integers(0, vocabulary, size)
            segment_ids[row, span] = segment
            positions[row, span] = np.arange(size)
            start += size
    labels = generator.integers(0, 3, (len(LENGTHS), SEGMENTS)).astype(np.int32)
    return {
        "token_ids": token_ids,
        "segment_ids": segment_ids,
        "positions": positions,
        "loss_mask": segment_ids > 0,
        "labels": labels,
    }


def places(batch: dict[str, np.ndarray]) -> list[tuple[int, np.ndarray]]:
    """(row, bool [length]) of each text, in order."""
    return [
        (row, ids == segment)
        for row, ids in enumerate(batch["segment_ids"])
        for segment in range(1, ids.max() + 1)
    ]


def apart(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same texts, one a row, in longer rows."""
    found = places(batch)
    length = batch["token_ids"].shape[1] + 4
    alone = {
        name: np.zeros((len(found), length), values.dtype)
        for name, values in batch.items()
        if name != "labels"
    }
    labels = np.zeros((len(found), SEGMENTS), np.int32)
    for number, (row, inside) in enumerate(found):
        for name, values in alone.items():
            size = inside.sum()
            values[number, :size] = 1 if name == "segment_ids" else batch[name][row][inside]
        labels[number, 0] = batch["labels"][row, batch["segment_ids"][row][inside][0] - 1]
    return {**alone, "labels": labels}


def cut(delta: Any, batch: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The part of each text: [length, width]."""
    return [np.asarray(delta)[row][inside] for row, inside in places(batch)]


def decoder_problem(kind: str = "llama") -> tuple[Problem, Any]:
    config = tiny_config(kind, num_layers=2)
    return causal_problem(config, {}, loss_chunk=16), tiny_params(config)


@cache
def _encoder() -> tuple[EncoderConfig, Any]:
    config = EncoderConfig(
        family="bert",
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_layers=2,
        num_heads=4,
        max_position_embeddings=64,
        type_vocab_size=2,
        norm_epsilon=1e-12,
        activation="gelu",
        position_offset=0,
        pad_token_id=0,
    )
    key = jax.random.key(0)
    params = init_encoder_params(config, key)
    params = jax.tree.map(
        lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.fold_in(key, leaf.size), leaf.shape),
        params,
    )
    params["classifier"] = 0.5 * jax.random.normal(key, (config.hidden_size, 3))
    return config, params


def encoder_problem() -> tuple[Problem, Any]:
    """A classifier of every text of a packed row."""
    config, params = _encoder()

    def outputs(params, embeddings, batch):
        states = encode_embeddings(
            config, params, embeddings, batch["segment_ids"], batch["positions"]
        )
        pooled = pool(states, batch["segment_ids"], "mean", segments=SEGMENTS)
        return pooled @ params["classifier"]

    return (
        _classifier(
            lambda params, batch: params["embedding"]["token"]["table"][batch["token_ids"]], outputs
        ),
        params,
    )


def toy_problem() -> tuple[Problem, Any]:
    """A classifier without attention: compiles in no time, and rounds little."""
    generator = np.random.default_rng(0)
    params = {
        "table": generator.normal(0, 1, (61, 8)).astype(np.float32),
        "hidden": generator.normal(0, 0.5, (8, 16)).astype(np.float32),
        "classifier": generator.normal(0, 0.5, (16, 3)).astype(np.float32),
    }

    def outputs(params, embeddings, batch):
        states = jnp.tanh(embeddings @ params["hidden"])
        pooled = pool(states, batch["segment_ids"], "mean", segments=SEGMENTS)
        return pooled @ params["classifier"]

    return _classifier(lambda params, batch: params["table"][batch["token_ids"]], outputs), params


def _classifier(embed: Any, outputs: Any) -> Problem:
    def present(batch):
        numbers = jnp.arange(1, SEGMENTS + 1)
        return jnp.any(batch["segment_ids"][:, None, :] == numbers[None, :, None], axis=-1)

    def loss(params, embeddings, batch):
        log_p = jax.nn.log_softmax(outputs(params, embeddings, batch))
        chosen = jnp.take_along_axis(log_p, batch["labels"][..., None], axis=-1)[..., 0]
        return -jnp.sum(chosen * present(batch))

    def divergence(first, second, batch):
        return jnp.sum(kl_divergence(first, second) * present(batch))

    return Problem(embed, loss, outputs, divergence)


PROBLEMS = {"decoder": decoder_problem, "encoder": encoder_problem}


def losses_of_texts(problem: Problem, params: Any) -> Any:
    """Compiles (batch, delta) -> the loss of each text alone at its part of the perturbation."""
    params = jax.tree.map(jnp.asarray, params)

    @jax.jit
    def losses(alone, deltas):
        def one(text, delta):
            text = jax.tree.map(lambda values: values[None], text)
            return problem.loss(params, problem.embed(params, text) + delta[None], text)

        return jax.vmap(one)(alone, deltas)

    def run(batch, delta):
        alone = apart(batch)
        own = np.zeros((*alone["token_ids"].shape, np.shape(delta)[-1]), np.float32)
        for number, part in enumerate(cut(delta, batch)):
            own[number, : len(part)] = part
        return np.asarray(losses(alone, own))

    return run
