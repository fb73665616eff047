"""What a model with a head is trained for: the class of a text, or its masked tokens.

An objective is a `perturb.Problem` made anew for each batch, so that every perturbation of word
embeddings works with it, and what has to happen to a batch before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxrecipes.models.config import ModelConfig
from jaxrecipes.models.encoder_config import EncoderConfig
from jaxrecipes.models.heads import (
    ClassificationHead,
    classify,
    masked_logits,
    masked_states,
)
from jaxrecipes.models.stacking import Layout
from jaxrecipes.params.partition import combine
from jaxrecipes.params.paths import Tree
from jaxrecipes.train.backbone import Backbone, Batch
from jaxrecipes.train.loss import next_token_targets
from jaxrecipes.train.masking import MaskingSettings, mask_tokens
from jaxrecipes.train.perturb import Problem, kl_divergence
from jaxrecipes.train.perturb.causal import causal_problem


@dataclass(frozen=True)
class Objective:
    """What a step minimises.

    Attributes:
        prepare: (batch, PRNG key of the step) -> the batch that the model reads.
        count: Prepared batch -> float32 scalar, what the sum of losses is divided by: examples or
            masked tokens.
        problem: (frozen tree, count of the whole batch) -> the problem of a part of its rows, whose
            losses add up to the loss of the batch.
    """

    prepare: Callable[[Batch, jax.Array], Batch]
    count: Callable[[Batch], jax.Array]
    problem: Callable[[Tree, jax.Array], Problem]


def classification_objective(
    backbone: Backbone, head: ClassificationHead, *, multi_label: bool = False
) -> Objective:
    """Trains a head, and what is below it, on labels.

    Args:
        backbone: The model up to the head.
        head: The head; its leaves are at `classifier` in the tree.
        multi_label: A text can have any number of classes: binary cross-entropy, averaged over the
            classes, instead of the cross-entropy of one class.

    Returns:
        The objective. A batch has `labels`: int32 [rows, segments], or with `multi_label` float
        [rows, segments, classes]. Segment ids of a row are 1 .. segments; a number that does not
        occur has no loss. Divided is by the number of texts; the divergence of predictions is KL of
        the classes' distributions, or of each class's own (averaged, too).
    """

    def divergence_of(first: jax.Array, second: jax.Array) -> jax.Array:
        if not multi_label:
            return kl_divergence(first, second)
        pairs = [jnp.stack([logits, jnp.zeros_like(logits)], axis=-1) for logits in (first, second)]
        return jnp.mean(kl_divergence(*pairs), axis=-1)

    def problem(frozen: Tree, count: jax.Array) -> Problem:
        def embed(trainable: Tree, batch: Batch) -> jax.Array:
            return backbone.embed(combine(trainable, frozen), batch)

        def outputs(trainable: Tree, embeddings: jax.Array, batch: Batch) -> jax.Array:
            return text_logits(backbone, head, combine(trainable, frozen), embeddings, batch)

        def loss(trainable: Tree, embeddings: jax.Array, batch: Batch) -> jax.Array:
            logits = outputs(trainable, embeddings, batch)
            if multi_label:
                losses = jnp.mean(_binary_losses(logits, batch["labels"]), axis=-1)
            else:
                losses = _class_losses(logits, batch["labels"])
            return jnp.sum(losses * _present(batch)) / count

        def divergence(first: Any, second: Any, batch: Batch) -> jax.Array:
            return jnp.sum(divergence_of(first, second) * _present(batch)) / count

        return Problem(embed, loss, outputs, divergence)

    return Objective(lambda batch, _: batch, lambda batch: jnp.sum(_present(batch)), problem)


def text_logits(
    backbone: Backbone,
    head: ClassificationHead,
    params: Tree,
    embeddings: jax.Array,
    batch: Batch,
) -> jax.Array:
    """Computes the logits of a batch's texts from word embeddings.

    Args:
        backbone: The model up to the head.
        head: The head.
        params: The whole tree.
        embeddings: Float [rows, length, hidden_size], from `backbone.embed`, perturbed or not.
        batch: What `backbone` reads, and `labels` [rows, segments, ...] for the number of segments;
            dropout only where it has `dropout_keys`.

    Returns:
        float32 [rows, segments, classes].
    """
    return classify(
        head,
        params["classifier"],
        backbone.states(params, embeddings, batch),
        batch["segment_ids"],
        segments=batch["labels"].shape[1],
        dropout_keys=batch.get("dropout_keys"),
    )


def masked_objective(
    backbone: Backbone,
    config: EncoderConfig,
    masking: MaskingSettings,
    *,
    chunk: int = 512,
) -> Objective:
    """Trains an encoder to guess masked tokens (arXiv 1810.04805, section 3.1).

    Hidden states are gathered at the masked tokens first, and logits are made in chunks, so that
    the logits of a whole batch never exist.

    Args:
        backbone: The encoder.
        config: The same encoder.
        masking: What is masked; every step draws anew.
        chunk: Masked tokens whose logits exist at the same time.

    Returns:
        The objective. The tree has `masked_head`, see `models.heads`; a batch is as `mask_tokens`
        takes it. Divided is by the number of masked tokens; the divergence of predictions is KL at
        them.
    """

    def prepare(batch: Batch, key: jax.Array) -> Batch:
        token_ids, targets, weights = mask_tokens(masking, batch, key)
        return {**batch, "token_ids": token_ids, "targets": targets, "weights": weights}

    def problem(frozen: Tree, count: jax.Array) -> Problem:
        def embed(trainable: Tree, batch: Batch) -> jax.Array:
            return backbone.embed(combine(trainable, frozen), batch)

        def outputs(
            trainable: Tree, embeddings: jax.Array, batch: Batch
        ) -> tuple[jax.Array, jax.Array, Tree]:
            params = combine(trainable, frozen)
            states = backbone.states(params, embeddings, batch)
            table = params["embedding"]["token"]["table"]
            flat = states.reshape(-1, states.shape[-1])
            return flat, table, params["masked_head"]

        def loss(trainable: Tree, embeddings: jax.Array, batch: Batch) -> jax.Array:
            states, table, head = outputs(trainable, embeddings, batch)

            def losses(states: jax.Array, targets: jax.Array) -> jax.Array:
                states = masked_states(config, head, states)
                return _class_losses(masked_logits(states, table, head["bias"]), targets)

            targets, weights = batch["targets"].reshape(-1), batch["weights"].reshape(-1)
            return sum_of_chosen(losses, (states, targets), weights, masking.rate, chunk) / count

        def divergence(first: Any, second: Any, batch: Batch) -> jax.Array:
            def divergences(states: jax.Array, others: jax.Array) -> jax.Array:
                logits = [
                    masked_logits(masked_states(config, head, one), table, head["bias"])
                    for one, (_, table, head) in ((states, first), (others, second))
                ]
                return kl_divergence(*logits)

            weights = batch["weights"].reshape(-1)
            pairs = (first[0], second[0])
            return sum_of_chosen(divergences, pairs, weights, masking.rate, chunk) / count

        return Problem(embed, loss, outputs, divergence)

    return Objective(prepare, lambda batch: jnp.sum(batch["weights"]), problem)


def causal_objective(
    config: ModelConfig,
    *,
    layout: Layout | None = None,
    compute_dtype: Any = jnp.float32,
    chunk: int = 512,
) -> Objective:
    """Trains a decoder to guess the next token of each text.

    Args:
        config: The decoder.
        layout: Layout of the trees; None for canonical ones.
        compute_dtype: dtype of activations and products.
        chunk: Tokens whose logits exist at the same time.

    Returns:
        The objective. A batch has `token_ids`, `segment_ids` and `positions`, int32 [rows, length].
        Divided is by the number of tokens that have one before them in their text.
    """

    def prepare(batch: Batch, _: jax.Array) -> Batch:
        return {**batch, "loss_mask": (batch["segment_ids"] > 0).astype(jnp.int32)}

    def count(batch: Batch) -> jax.Array:
        _, weights = next_token_targets(
            batch["token_ids"], batch["segment_ids"], batch["loss_mask"]
        )
        return jnp.sum(weights)

    def problem(frozen: Tree, count: jax.Array) -> Problem:
        return causal_problem(
            config,
            frozen,
            count=count,
            layout=layout,
            compute_dtype=compute_dtype,
            loss_chunk=chunk,
        )

    return Objective(prepare, count, problem)


def sum_of_chosen(
    values_of: Callable[..., jax.Array],
    arrays: tuple[jax.Array, ...],
    weights: jax.Array,
    rate: float,
    chunk: int,
) -> jax.Array:
    """Sums a function of tokens over those with a weight, in chunks that are computed twice.

    Chosen tokens are gathered in front, and as many are looked at as there usually are at `rate`;
    where a batch has more, all of them. So nothing is dropped, and little computed for nothing.

    Args:
        values_of: Arrays [chunk, ...] -> float [chunk]; the backward pass computes it again.
        arrays: Each [tokens, ...].
        weights: float32 [tokens]; 0 where a token does not count.
        rate: Expected share of tokens that do.
        chunk: Tokens that are computed together.

    Returns:
        float32 scalar.
    """
    tokens = weights.shape[0]
    weights, *arrays_of_all = (jnp.asarray(array) for array in (weights, *arrays))
    order = jnp.argsort(weights == 0, stable=True)  # the chosen first

    @jax.checkpoint
    def add(total: jax.Array, one: tuple[jax.Array, tuple[jax.Array, ...]]) -> tuple[Any, None]:
        weight, parts = one
        return total + jnp.sum(values_of(*parts) * weight), None

    def total_of_first(number: int) -> jax.Array:
        size = min(chunk, number)
        padded = -(-number // size) * size
        # Places after the tokens repeat the first one and weigh nothing.
        places = jnp.pad(order[:number], (0, padded - number))
        weight = jnp.where(jnp.arange(padded) < number, weights[places], 0.0)

        def cut(array: jax.Array) -> jax.Array:
            return array.reshape(-1, size, *array.shape[1:])

        parts = tuple(cut(array[places]) for array in arrays_of_all)
        return jax.lax.scan(add, jnp.zeros((), jnp.float32), (cut(weight), parts))[0]

    usual = int(1.25 * rate * tokens) + 64
    if usual >= tokens:
        return total_of_first(tokens)
    return jax.lax.cond(
        jnp.sum(weights != 0) <= usual,
        lambda: total_of_first(usual),
        lambda: total_of_first(tokens),
    )


def _class_losses(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Cross-entropy of each: float32 [..., classes] and int32 [...] -> [...] in nats."""
    log_p = jax.nn.log_softmax(logits, axis=-1)
    return -jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]


def _binary_losses(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Binary cross-entropy of each, the shape of both, as torch's BCEWithLogitsLoss."""
    return jax.nn.softplus(logits) - logits * targets


def _present(batch: Batch) -> jax.Array:
    """Returns float32 [rows, segments]: 1 where a row has a text of that number."""
    numbers = jnp.arange(1, batch["labels"].shape[1] + 1)
    found = jnp.any(batch["segment_ids"][:, None, :] == numbers[None, :, None], axis=-1)
    return found.astype(jnp.float32)
