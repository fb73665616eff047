"""Curated-TAPT (arXiv 2004.10964, section 5.1): TAPT on the pool that the task was drawn from.

Phases: masked (or causal) language modelling on the task's training texts and on the unlabelled
pool, then fine-tuning on the few labels.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxrecipes.data.plain_texts import PlainText, text_key


def new_texts(pool: Sequence[PlainText], known: Sequence[PlainText]) -> list[PlainText]:
    """Returns the texts of a pool that are not known yet, each once.

    Args:
        pool: The pool, in order.
        known: Texts that are read beside it: the task's. Equal is what differs in case and white
            space only.
    """
    seen = {text_key(text.texts) for text in known}
    found = []
    for text in pool:
        key = text_key(text.texts)
        if key not in seen:
            seen.add(key)
            found.append(text)
    return found
