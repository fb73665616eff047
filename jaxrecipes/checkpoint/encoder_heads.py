"""Heads of encoder checkpoints: read where they are there, drawn anew and said so where not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxrecipes.checkpoint.config_reader import read_json
from jaxrecipes.checkpoint.encoder import ImportedEncoder, read_leaf
from jaxrecipes.checkpoint.encoder_names import (
    ENCODER_BUFFERS,
    EncoderTensor,
    linear_rows,
    norm_rows,
    plain_names,
)
from jaxrecipes.checkpoint.sentence_folder import read_sentence_settings
from jaxrecipes.checkpoint.tensor_files import StoredTensor, open_tensor_files
from jaxrecipes.errors import CheckpointError
from jaxrecipes.models.encoder_config import EncoderConfig
from jaxrecipes.models.heads import ClassificationHead, init_classifier, init_masked_head
from jaxrecipes.params.paths import Tree, flatten, unflatten

Rows = tuple[EncoderTensor, ...]


@dataclass(frozen=True)
class ImportedHead:
    """A head in memory, beside its encoder.

    Attributes:
        params: Its tree, float32: what stands at `classifier` or `masked_head`.
        drawn: Paths of the leaves that were drawn anew, because the checkpoint does not have them;
            empty where it has the whole head.
        origin: The same as a sentence for the log.
    """

    params: Tree
    drawn: tuple[str, ...]
    origin: str


def classifier_rows(config: EncoderConfig, head: ClassificationHead) -> Rows:
    """Lists the tensors of a classification head as `transformers` names them.

    Args:
        config: The encoder.
        head: The head.

    Returns:
        Rows with paths below `classifier`, without the encoder's prefix.

    Raises:
        CheckpointError: No class of `transformers` computes this head.
    """
    bert = config.family == "bert"
    if head.pooling != "cls" or not (head.dense and head.bias) or head.drop_inputs == bert:
        raise CheckpointError(
            f"a classification head with {head.pooling} pooling"
            f"{'' if head.dense else ' and without its dense layer'} has no form in transformers "
            f"for the family {config.family}; only that of models.heads.family_head has one"
        )
    output = linear_rows("output", "classifier" if bert else "classifier.out_proj")
    dense = linear_rows("dense", "pooler.dense" if bert else "classifier.dense")
    return _with_shapes((*dense, *output), init_classifier, head, config.hidden_size)


def masked_head_rows(config: EncoderConfig) -> Rows:
    """Lists the tensors of a head of masked language modelling, with paths below `masked_head`."""
    bert = config.family == "bert"
    place = "cls.predictions" if bert else "lm_head"
    rows = (
        *linear_rows("dense", f"{place}.transform.dense" if bert else f"{place}.dense"),
        *norm_rows("norm", f"{place}.transform.LayerNorm" if bert else f"{place}.layer_norm"),
        EncoderTensor("bias", f"{place}.bias"),
    )
    return _with_shapes(rows, init_masked_head, config)


def read_labels(folder: Path) -> tuple[str, ...] | None:
    """Reads the names of the classes from `config.json`.

    Returns:
        They in the order of their numbers; None where there are none.

    Raises:
        CheckpointError: `id2label` is not a mapping from 0, 1, ... to names.
    """
    values = read_json(folder / "config.json").get("id2label")
    if values is None:
        return None
    numbers = [str(number) for number in range(len(values))] if isinstance(values, dict) else []
    if not numbers or set(values) != set(numbers):
        raise CheckpointError(
            f"{folder / 'config.json'}: key 'id2label' is {values!r}; expected a name for each of "
            "0, 1, ..."
        )
    return tuple(str(values[number]) for number in numbers)


def import_classifier(
    encoder: ImportedEncoder,
    head: ClassificationHead,
    labels: Sequence[str],
    key: jax.Array,
) -> ImportedHead:
    """Reads the classification head of an encoder's checkpoint.

    Its output layer is only read where the checkpoint's classes are `labels`, in this order; its
    dense layer (BERT's pooler) also without.

    Args:
        encoder: From `import_encoder`.
        head: What to compute; its classes are the labels.
        labels: Names of the classes.
        key: PRNG key of leaves that are drawn.

    Returns:
        The head; `drawn` and `origin` say what is not from the checkpoint.

    Raises:
        CheckpointError: `labels` are not as many as the head's classes, or a tensor is damaged or
            of another shape.
    """
    if len(labels) != head.classes:
        raise CheckpointError(f"{len(labels)} labels for a head of {head.classes} classes")
    folder = read_sentence_settings(encoder.source).folder
    drawn = init_classifier(head, encoder.config.hidden_size, key)
    rows: Rows = ()
    reason = "the checkpoint does not have them"
    if head.pooling == "cls" and head.dense and head.bias:
        rows = classifier_rows(encoder.config, head)
        found = read_labels(folder)
        if found != tuple(labels):
            rows = tuple(row for row in rows if not row.canonical.startswith("output/"))
            reason = "the checkpoint has no head for these classes"
    return _read(folder, rows, drawn, "classifier", reason)


def import_masked_head(encoder: ImportedEncoder, key: jax.Array) -> ImportedHead:
    """Reads the head of masked language modelling of an encoder's checkpoint.

    Args:
        encoder: From `import_encoder`.
        key: PRNG key of leaves that are drawn.

    Returns:
        The head; `drawn` and `origin` say what is not from the checkpoint: all of it for a sentence
        encoder such as MiniLM.

    Raises:
        CheckpointError: A tensor is damaged or of another shape, or the decoder is not tied to the
            token table.
    """
    folder = read_sentence_settings(encoder.source).folder
    _refuse_untied(folder, encoder)
    drawn = init_masked_head(encoder.config, key)
    reason = "the checkpoint does not have them"
    return _read(folder, masked_head_rows(encoder.config), drawn, "masked_head", reason)


def _read(folder: Path, rows: Rows, drawn: Tree, name: str, reason: str) -> ImportedHead:
    tensors = _tensors(folder)
    leaves = flatten(drawn)
    read = {
        row.canonical: jnp.asarray(read_leaf(folder, tensors[row.huggingface], row, np.float32))
        for row in rows
        if row.huggingface in tensors
    }
    missing = tuple(f"{name}/{path}" for path in leaves if path not in read)
    origin = f"{name}: read from {folder}"
    if missing:
        origin = f"{name}: {', '.join(missing)} drawn anew, since {reason}"
        origin += f"; the rest is read from {folder}" if read else f" ({folder})"
    return ImportedHead(unflatten({**leaves, **read}), missing, origin)


def _refuse_untied(folder: Path, encoder: ImportedEncoder) -> None:
    """A decoder of its own would be another model than the one that is computed here."""
    place = "cls.predictions" if encoder.config.family == "bert" else "lm_head"
    decoder = _tensors(folder).get(f"{place}.decoder.weight")
    if decoder is None:
        return
    table = np.asarray(encoder.params["embedding"]["token"]["table"], np.float32)
    if decoder.shape != table.shape or not np.allclose(
        decoder.read().astype(np.float32), table, rtol=0.01, atol=1e-6
    ):
        raise CheckpointError(
            f"{folder}: tensor {decoder.name} is not the token table; a head of masked language "
            "modelling that is not tied to it is not supported"
        )


def _tensors(folder: Path) -> dict[str, StoredTensor]:
    return plain_names(open_tensor_files(folder, buffers=ENCODER_BUFFERS))


def _with_shapes(rows: Rows, init: Callable[..., Tree], *arguments: object) -> Rows:
    shapes = flatten(jax.eval_shape(lambda: init(*arguments, jax.random.key(0))))
    return tuple(replace(row, shape=tuple(shapes[row.canonical].shape)) for row in rows)
