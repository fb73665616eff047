"""DAPT (arXiv 2004.10964, section 3): pretraining goes on on a large corpus of the domain.

Phases: masked (or causal) language modelling on the domain's documents, then fine-tuning. With
general text mixed in (replay) it is the continual pretraining of arXiv 2403.08763.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxrecipes.data.mixture import Part
from jaxrecipes.data.text_batches import TokenizedTexts


def domain_parts(sources: Sequence[tuple[TokenizedTexts, float]]) -> list[Part]:
    """Makes a domain's sources the parts of a mixture.

    Args:
        sources: For each source its texts and its weight, the passes over it in an epoch.

    Returns:
        A part for each, in order.
    """
    return [Part(texts, weight) for texts, weight in sources]
