"""kNN-TAPT (arXiv 2004.10964, section 5.2): TAPT on texts of the domain that are like the task's.

Every text of task and pool is embedded; for each text of the task its k nearest in the pool are
taken, the union without duplicates joins the task's texts. The control, RAND-TAPT, takes as many
others at random. The paper embeds with VAMPIRE, here any sentence encoder does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxrecipes import __version__
from jaxrecipes.checkpoint.encoder import ImportedEncoder
from jaxrecipes.config.adaptive import KnnSection
from jaxrecipes.data.plain_texts import PlainText
from jaxrecipes.durable import hash_values, write_json
from jaxrecipes.neighbors.embed import embed_texts
from jaxrecipes.neighbors.exact import ExactIndex
from jaxrecipes.neighbors.search import build_index, search_queries
from jaxrecipes.neighbors.select import select_neighbors
from jaxrecipes.neighbors.vectors import recall
from jaxrecipes.stages import run_stage

_RECALL_QUERIES = 1000
_SHOWN, _SHOWN_CHARACTERS = 3, 160


@dataclass(frozen=True)
class SelectedTexts:
    """What was selected.

    Attributes:
        selected: int64 [selected], rows of the pool.
        control: int64 [selected], as many other rows, drawn at random.
        statistics: JSON values for the report.
    """

    selected: np.ndarray
    control: np.ndarray
    statistics: dict[str, Any]


def select_texts(
    task: Sequence[PlainText],
    pool: Sequence[PlainText],
    options: KnnSection,
    folder: Path,
    *,
    encoder: ImportedEncoder,
    texts: Mapping[str, Any],
    seed: int,
    log: Callable[[str], None],
) -> SelectedTexts:
    """Selects texts of a pool, or reads what an earlier run selected.

    Args:
        task: The task's texts; a pair counts as its two texts joined.
        pool: The pool.
        options: The section `knn` of the config.
        folder: Where the stage leaves its result.
        encoder: The sentence encoder.
        texts: JSON values that determine task and pool.
        seed: Draws the control.
        log: Called with what is done, a line each.

    Returns:
        The selection.

    Raises:
        ConfigError: An option is wrong, or ScaNN was asked for and is missing.
        DataError: A text cannot be embedded, the index misses too many neighbours, or the pool is
            too small for a control.
    """
    inputs = {
        "code": __version__,
        "texts": dict(texts),
        "options": options.model_dump(),
        "encoder": encoder.fingerprint,
        "seed": seed,
    }

    def select(target: Path) -> None:
        log(f"embedding {len(task)} texts of the task and {len(pool)} of the pool …")
        vectors = [
            embed_texts(
                ["\n\n".join(text.texts) for text in part],
                encoder,
                max_tokens=options.encoder_tokens,
            )
            for part in (task, pool)
        ]
        index = build_index(
            vectors[1],
            options.neighbors,
            index=options.index,
            recall_floor=options.recall_floor,
            seed=seed,
            log=log,
        )
        lengths = np.array([sum(map(len, text.texts)) for text in pool], np.int64)
        found = select_neighbors(
            index,
            vectors[0],
            options.neighbors,
            lengths=lengths,
            similarity=options.similarity,
            seed=seed,
        )
        chosen = np.random.default_rng(seed).permutation(len(task))[:_RECALL_QUERIES]
        _, exact = search_queries(ExactIndex(vectors[1]), vectors[0][chosen], options.neighbors)
        np.savez(target / "selection.npz", selected=found.selected, control=found.control)
        near = found.similarities[np.isfinite(found.similarities)]
        shown = [
            {
                "task": _begin(task[row]),
                "selected": [_begin(pool[int(one)]) for one in found.neighbors[row, :_SHOWN]],
            }
            for row in range(min(_SHOWN, len(task)))
        ]
        statistics = {
            "task_texts": len(task),
            "pool_texts": len(pool),
            "neighbors": options.neighbors,
            "index": index.name,
            "recall": recall(found.similarities[chosen], exact),
            "found": found.found,
            "duplicates": len(found.duplicates.removed),
            "selected": len(found.selected),
            "mean_similarity": float(near.mean()),
            "examples": shown,
        }
        write_json(target / "statistics.json", statistics)

    place = folder / f"selection-{hash_values(inputs)[:12]}"
    made = run_stage(place, inputs, select).folder
    with np.load(made / "selection.npz") as arrays:
        selected, control = arrays["selected"], arrays["control"]
    statistics = json.loads((made / "statistics.json").read_text(encoding="utf-8"))
    log(
        f"kNN: {statistics['selected']} of {len(pool)} texts selected for {len(task)} texts of the "
        f"task ({statistics['found']} different neighbours, {statistics['duplicates']} duplicates; "
        f"recall {statistics['recall']:.3f})"
    )
    return SelectedTexts(selected, control, statistics)


def _begin(text: PlainText) -> str:
    return " / ".join(text.texts)[:_SHOWN_CHARACTERS]
