"""An encoder with a head -> a Hugging Face folder that `transformers` loads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from jaxrecipes.checkpoint.config_reader import read_json
from jaxrecipes.checkpoint.encoder import ImportedEncoder, import_encoder
from jaxrecipes.checkpoint.encoder_heads import (
    classifier_rows,
    import_classifier,
    import_masked_head,
    masked_head_rows,
)
from jaxrecipes.checkpoint.encoder_names import EncoderTensor, encoder_tensors
from jaxrecipes.checkpoint.export_model import (
    dtype_name,
    new_folder,
    refuse_wrong_leaves,
    write_weights,
)
from jaxrecipes.checkpoint.sentence_folder import read_sentence_settings
from jaxrecipes.checkpoint.tokenizer import copy_tokenizer
from jaxrecipes.errors import CheckpointError
from jaxrecipes.models.heads import ClassificationHead
from jaxrecipes.params.paths import Tree, flatten

HeadKind = Literal["none", "classification", "masked"]
_CLASSES = {"bert": "Bert", "roberta": "Roberta", "xlm-roberta": "XLMRoberta"}
_SUFFIXES: dict[HeadKind, str] = {
    "none": "Model",
    "classification": "ForSequenceClassification",
    "masked": "ForMaskedLM",
}
# An encoder has less than this; the largest that is known, XLM-RoBERTa-XL, has 14 GB.
_ONE_FILE = 5_000_000_000


def export_encoder(
    folder: str | Path,
    encoder: ImportedEncoder,
    params: Tree,
    *,
    model_card: str,
    head: ClassificationHead | None = None,
    labels: Sequence[str] = (),
) -> Path:
    """Writes an encoder, with the head that stands in its tree.

    Everything goes to a hidden folder beside `folder`, is read back and compared tensor by tensor,
    and only then renamed.

    Args:
        folder: Where to; created. An earlier export there is replaced.
        encoder: Where config and tokenizer are from.
        params: Canonical tree, with `classifier` (then `head` and `labels` are needed),
            `masked_head`, or neither.
        model_card: Markdown, written as README.md.
        head: Of `classifier`.
        labels: Names of its classes, written as `id2label` and `label2id`.

    Returns:
        `folder`.

    Raises:
        CheckpointError: `params` do not fit, the head has no form in `transformers` (mean pooling),
            there are two heads, `folder` holds something else, or the disk is full.
    """
    folder = Path(folder).absolute()
    kind = _kind(params, head, labels)
    rows = {path: _placed(row, encoder, kind) for path, row in _rows(encoder, head, kind).items()}
    leaves = flatten(params)
    refuse_wrong_leaves(rows, leaves)
    settings = read_sentence_settings(encoder.source)
    source = settings.folder
    values = dict(read_json(source / "config.json"))
    values["architectures"] = [_CLASSES[encoder.config.family] + _SUFFIXES[kind]]
    values["torch_dtype" if "torch_dtype" in values else "dtype"] = dtype_name(leaves, None)
    for key in ("id2label", "label2id", "num_labels", "problem_type"):
        values.pop(key, None)
    if kind == "classification":
        values["id2label"] = {str(number): name for number, name in enumerate(labels)}
        values["label2id"] = {name: number for number, name in enumerate(labels)}
        values["problem_type"] = "single_label_classification"
    with new_folder(folder) as partial:
        write_weights(partial, rows, leaves, None, _ONE_FILE)
        text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
        (partial / "config.json").write_text(text, encoding="utf-8")
        (partial / "README.md").write_text(model_card, encoding="utf-8")
        if settings.lower_case:
            # Said beside the tokenizer there; transformers reads the tokenizer alone.
            encoder.tokenizer.save_pretrained(str(partial))
        else:
            copy_tokenizer(source, partial)
        _compare(partial, leaves, head, labels, kind)
    return folder


def _kind(params: Tree, head: ClassificationHead | None, labels: Sequence[str]) -> HeadKind:
    if "classifier" in params and "masked_head" in params:
        raise CheckpointError(
            "the parameters have two heads, classifier and masked_head; a checkpoint holds one: "
            "leave the other out"
        )
    if "classifier" not in params:
        return "masked" if "masked_head" in params else "none"
    if head is None or len(labels) != head.classes or len(set(labels)) != len(labels):
        raise CheckpointError(
            f"the parameters have a classifier, and {len(labels)} labels are given for it; give "
            "its head, and a name of its own for each class"
        )
    return "classification"


def _rows(
    encoder: ImportedEncoder, head: ClassificationHead | None, kind: HeadKind
) -> dict[str, EncoderTensor]:
    rows = encoder_tensors(encoder.config)
    if kind == "classification" and head is not None:
        added, place = classifier_rows(encoder.config, head), "classifier"
    else:
        added, place = (masked_head_rows(encoder.config) if kind == "masked" else ()), "masked_head"
    return rows | {f"{place}/{row.canonical}": row for row in added}


def _placed(row: EncoderTensor, encoder: ImportedEncoder, kind: HeadKind) -> EncoderTensor:
    """Puts the prefix of the encoder before names, as in checkpoints with a head."""
    if kind == "none" or row.huggingface.startswith(("cls.", "lm_head.", "classifier.")):
        return row
    prefix = "bert" if encoder.config.family == "bert" else "roberta"
    return replace(row, huggingface=f"{prefix}.{row.huggingface}")


def _compare(
    folder: Path,
    leaves: dict[str, Any],
    head: ClassificationHead | None,
    labels: Sequence[str],
    kind: HeadKind,
) -> None:
    """Reads a folder back and compares it with what should be in it."""
    again = import_encoder(folder)
    found = flatten(again.params)
    key = jax.random.key(0)
    if kind == "classification" and head is not None:
        read = import_classifier(again, head, labels, key)
        found |= flatten({"classifier": read.params})
    elif kind == "masked":
        read = import_masked_head(again, key)
        found |= flatten({"masked_head": read.params})
    for path, leaf in leaves.items():
        if not np.array_equal(np.asarray(found[path]), np.asarray(leaf).astype(found[path].dtype)):
            raise CheckpointError(f"{folder}: parameter {path} reads back with other values")
