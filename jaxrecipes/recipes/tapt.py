"""TAPT (arXiv 2004.10964, section 4): pretraining goes on on the task's own training texts.

Phases: masked (or causal) language modelling on the unlabelled training texts, then fine-tuning.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxrecipes.data.plain_texts import Overlap, PlainText


def task_texts(
    train: Sequence[PlainText], overlaps: Sequence[Overlap], *, transductive: bool
) -> list[PlainText]:
    """Chooses the texts that TAPT reads.

    Args:
        train: Texts of all training rows, in order.
        overlaps: Those of them that are dev or test texts as well.
        transductive: Whether pretraining may read these.

    Returns:
        The training texts, each once in every row that has it; without overlaps unless
        `transductive`. Fine-tuning has them in any case, since they are labelled rows.
    """
    refused = set() if transductive else {overlap.where for overlap in overlaps}
    return [text for text in train if text.where not in refused]
