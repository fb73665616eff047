"""Heads over hidden states: a class for a text, a token for a masked place.

A classification head is `classifier` beside the leaves of the model::

    classifier/dense/{kernel,bias}     [hidden_size, hidden_size]  where the head has a tanh layer
    classifier/output/kernel           [hidden_size, classes]
    classifier/output/bias             [classes]                   where the head has one

and the head of masked language modelling, whose decoder is the token table::

    masked_head/dense/{kernel,bias}    [hidden_size, hidden_size]
    masked_head/norm/{scale,bias}      [hidden_size]
    masked_head/bias                   [vocab_size]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from jaxrecipes.errors import ConfigError
from jaxrecipes.models.dense import Dense
from jaxrecipes.models.dropout import Dropout
from jaxrecipes.models.encoder_config import EncoderConfig
from jaxrecipes.models.encoder_layers import ACTIVATIONS, LayerNorm
from jaxrecipes.models.pooling import pool

Tree = dict[str, Any]
HeadPooling = Literal["cls", "mean", "last"]


@dataclass(frozen=True)
class ClassificationHead:
    """From the hidden states of a text to a logit for each class.

    Attributes:
        classes: Number of classes.
        pooling: The state that is read: "cls" the text's first token, "mean" of all tokens, special
            ones included, "last" the text's last token.
        dense: A layer with tanh stands before the output layer (BERT's pooler, RoBERTa's dense).
        drop_inputs: Dropout before the dense layer too, as RoBERTa does.
        bias: The output layer has a bias.
        dropout: Probability of an entry to be dropped before the output layer, in training.
    """

    classes: int
    pooling: HeadPooling = "cls"
    dense: bool = True
    drop_inputs: bool = False
    bias: bool = True
    dropout: float = 0.1

    def __post_init__(self) -> None:
        """Refuses values outside of their range.

        Raises:
            ConfigError: Names the field, its value and what was expected.
        """
        if self.classes < 1:
            raise ConfigError(f"classes is {self.classes}; a head needs at least 1")
        if self.pooling not in get_args(HeadPooling):
            raise ConfigError(
                f"pooling is {self.pooling!r}; expected one of {', '.join(get_args(HeadPooling))}"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"dropout is {self.dropout}; expected 0 or more and less than 1")


def family_head(family: str, classes: int, *, dropout: float = 0.1) -> ClassificationHead:
    """Returns the head that `transformers` puts on a family for sequence classification.

    Args:
        family: "bert", "roberta" or "xlm-roberta" (`BertForSequenceClassification` and so on); any
            other name is a decoder's (`LlamaForSequenceClassification`: `score`, without a bias).
        classes: Number of classes.
        dropout: Of an encoder's head; those of decoders have none.
    """
    if family == "bert":
        return ClassificationHead(classes, dropout=dropout)
    if family in ("roberta", "xlm-roberta"):
        return ClassificationHead(classes, drop_inputs=True, dropout=dropout)
    return ClassificationHead(classes, pooling="last", dense=False, bias=False, dropout=0.0)


def mean_head(classes: int, *, dropout: float = 0.1) -> ClassificationHead:
    """Returns a head for sentence encoders such as MiniLM: the mean of all tokens, one layer."""
    return ClassificationHead(classes, pooling="mean", dense=False, dropout=dropout)


def init_classifier(head: ClassificationHead, hidden_size: int, key: jax.Array) -> Tree:
    """Draws a head: normal(0, 0.02) kernels, zero biases, float32; see the module's docstring."""
    dense_key, output_key = jax.random.split(key)
    states = jnp.zeros((1, hidden_size), jnp.float32)
    tree: Tree = {}
    if head.dense:
        tree["dense"] = Dense(hidden_size, True, jnp.float32).init(dense_key, states)["params"]
    output = Dense(head.classes, head.bias, jnp.float32)
    tree["output"] = output.init(output_key, states)["params"]
    return tree


def last_states(hidden_states: jax.Array, segment_ids: jax.Array, segments: int) -> jax.Array:
    """Returns the state of the last token of every text.

    Args:
        hidden_states: [rows, length, hidden_size].
        segment_ids: int32 [rows, length]; 0 is padding.
        segments: Texts that a row holds at most.

    Returns:
        [rows, segments, hidden_size]; zeros where a row has no text of that number.
    """
    member = segment_ids[:, None, :] == jnp.arange(1, segments + 1)[None, :, None]
    length = segment_ids.shape[1]
    last = length - 1 - jnp.argmax(member[:, :, ::-1], axis=-1)  # [rows, segments]
    states = jnp.take_along_axis(hidden_states, last[:, :, None], axis=1)
    return jnp.where(jnp.any(member, axis=-1)[:, :, None], states, 0)


def classify(
    head: ClassificationHead,
    params: Tree,
    hidden_states: jax.Array,
    segment_ids: jax.Array,
    *,
    segments: int = 1,
    dropout_keys: jax.Array | None = None,
) -> jax.Array:
    """Computes the logits of every text.

    Args:
        head: What to compute.
        params: The tree `classifier`.
        hidden_states: [rows, length, hidden_size], of the model's last layer.
        segment_ids: int32 [rows, length]: 1 .. `segments` for the texts of a row, 0 is padding.
        segments: Texts that a row holds at most.
        dropout_keys: PRNG keys [rows]; None drops nothing.

    Returns:
        float32 [rows, segments, classes]; they mean nothing where a row has no such text.
    """
    if head.pooling == "last":
        states = last_states(hidden_states, segment_ids, segments)
    else:
        states = pool(hidden_states, segment_ids, head.pooling, segments=segments)
    states = states.astype(hidden_states.dtype)
    dropout = Dropout(head.dropout, dropout_keys)
    if head.dense:
        if head.drop_inputs:
            states = dropout(states, "head_inputs")
        dense = Dense(states.shape[-1], True, states.dtype)
        states = jnp.tanh(_array(dense.apply({"params": params["dense"]}, states)))
    states = dropout(states, "head_outputs")
    output = Dense(head.classes, head.bias, jnp.float32)
    return _array(output.apply({"params": params["output"]}, states.astype(jnp.float32)))


def init_masked_head(config: EncoderConfig, key: jax.Array) -> Tree:
    """Draws a head of masked language modelling: normal(0, 0.02), zero biases, a neutral norm.

    Float32; see the module's docstring. The decoder itself is the token table, which is not drawn.
    """
    states = jnp.zeros((1, config.hidden_size), jnp.float32)
    dense = Dense(config.hidden_size, True, jnp.float32)
    return {
        "dense": dense.init(key, states)["params"],
        "norm": LayerNorm(config.norm_epsilon).init(key, states)["params"],
        "bias": jnp.zeros((config.vocab_size,), jnp.float32),
    }


def masked_states(config: EncoderConfig, params: Tree, hidden_states: jax.Array) -> jax.Array:
    """Computes what the token table is multiplied with: dense, activation, LayerNorm.

    Args:
        config: The model; RoBERTa's activation is always the exact gelu.
        params: The tree `masked_head`.
        hidden_states: [..., hidden_size].

    Returns:
        The shape and dtype of `hidden_states`.
    """
    dense = Dense(config.hidden_size, True, hidden_states.dtype)
    states = _array(dense.apply({"params": params["dense"]}, hidden_states))
    states = ACTIVATIONS[config.activation if config.family == "bert" else "gelu"](states)
    return _array(LayerNorm(config.norm_epsilon).apply({"params": params["norm"]}, states))


def masked_logits(states: jax.Array, table: jax.Array, bias: jax.Array) -> jax.Array:
    """Computes the logits of tokens.

    Args:
        states: [tokens, hidden_size], from `masked_states`. Give a chunk of them: a batch's logits
            are gigabytes.
        table: [vocab_size, hidden_size], the token table.
        bias: [vocab_size].

    Returns:
        float32 [tokens, vocab_size].
    """
    logits = jnp.einsum(
        "th,vh->tv", states, table.astype(states.dtype), preferred_element_type=jnp.float32
    )
    return logits + bias.astype(jnp.float32)


def _array(value: Any) -> jax.Array:
    assert isinstance(value, jax.Array)
    return value
