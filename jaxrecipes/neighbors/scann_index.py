"""Approximate search with ScaNN: a tree of partitions, quantised scores, exact rescoring.

https://github.com/google-research/google-research/tree/master/scann (arXiv 1908.10396; SOAR,
the second assignment of a vector to a partition: arXiv 2404.00774). The package runs on Linux
only, so it is imported when it is needed. It takes no seed: two builds from the same vectors differ
a little; a searcher that was saved and loaded does not.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxrecipes.durable import find_damage, folder_entries, write_json
from jaxrecipes.errors import ConfigError, DataError

INSTALL = "pip install scann"
# Below this a tree has too few points a partition, and the quantiser too few to be trained on.
TREE_FROM = 5_000
_MANIFEST = "scann.json"
_SCHEMA_VERSION = 1


@dataclass(frozen=True)
class ScannOptions:
    """Parameters of a searcher; 0 where ``choose_options`` is to choose from the corpus's size.

    Attributes:
        leaves: Partitions of the tree; 0: the square root of the rows.
        leaves_to_search: Partitions searched a query; more is slower and finds more; 0: a fifth of
            the leaves, or what ``widen`` finds to be enough.
        rescore: Candidates whose exact product is computed; 0: ten a neighbour, at least 100.
        soar_lambda: Weight of the second assignment (SOAR); None: one partition a vector.
        dimensions_per_block: Dimensions that share a code of 4 bits.
        anisotropic_threshold: Quantisation errors along a vector count more above it.
        training_rows: Rows that the partitions and the codes are trained on.
    """

    leaves: int = 0
    leaves_to_search: int = 0
    rescore: int = 0
    soar_lambda: float | None = 1.5
    dimensions_per_block: int = 2
    anisotropic_threshold: float = 0.2
    training_rows: int = 100_000


def missing_scann() -> str:
    """Says why ScaNN cannot be used on this machine; empty where it can."""
    if not sys.platform.startswith("linux"):
        return f"ScaNN is made for Linux only, this is {sys.platform}"
    try:
        _import_scann()
    except ImportError as error:
        return f"ScaNN cannot be imported ({error})"
    return ""


def make_options(overrides: Mapping[str, Any]) -> ScannOptions:
    """Makes options from names and values.

    Raises:
        ConfigError: A name is unknown or a value out of its range.
    """
    known = {field.name for field in fields(ScannOptions)}
    unknown = sorted(set(overrides) - known)
    if unknown:
        raise ConfigError(
            f"ScaNN options: {', '.join(unknown)} unknown; expected some of "
            f"{', '.join(sorted(known))}."
        )
    options = ScannOptions(**overrides)
    for name in ("leaves", "leaves_to_search", "rescore"):
        if getattr(options, name) < 0:
            raise ConfigError(f"ScaNN options: {name} is {getattr(options, name)}, expected >= 0.")
    for name in ("dimensions_per_block", "training_rows"):
        if getattr(options, name) < 1:
            raise ConfigError(f"ScaNN options: {name} is {getattr(options, name)}, expected >= 1.")
    if options.soar_lambda is not None and options.soar_lambda < 0:
        raise ConfigError(f"ScaNN options: soar_lambda is {options.soar_lambda}, expected >= 0.")
    return options


def choose_options(options: ScannOptions, *, rows: int, count: int) -> ScannOptions:
    """Fills in what is 0, from the size of the corpus.

    Args:
        options: What the user chose.
        rows: Rows of the index.
        count: Neighbours a query.

    Returns:
        Options without a 0, with no more leaves than rows (ScaNN raises otherwise).
    """
    leaves = min(options.leaves or round(math.sqrt(rows)), rows)
    to_search = options.leaves_to_search or math.ceil(leaves / 5)
    return replace(
        options,
        leaves=leaves,
        leaves_to_search=min(to_search, leaves),
        rescore=options.rescore or max(100, 10 * count),
        training_rows=min(options.training_rows, rows),
    )


class ScannIndex:
    """A searcher over rows; made by ``build`` or ``load``.

    ScaNN holds a copy of the rows beside the caller's and half a byte a ``dimensions_per_block``
    (twice that with SOAR): about ``8.5 * rows * width`` bytes in all with the defaults.

    Attributes:
        name: ``scann``.
        rows: [rows, width] float32.
        options: What it was built with.
    """

    name = "scann"

    def __init__(self, searcher: Any, rows: np.ndarray, options: ScannOptions) -> None:
        """Wraps ScaNN's searcher."""
        self._searcher = searcher
        self.rows = rows
        self.options = options

    @classmethod
    def build(
        cls, rows: np.ndarray, *, count: int, options: ScannOptions | None = None
    ) -> ScannIndex:
        """Builds a searcher; below ``TREE_FROM`` rows one that compares with every row.

        Args:
            rows: [rows, width] float32, checked by ``check_vectors``: a NaN ends the process.
            count: Neighbours that will be asked for; more can be.
            options: Parameters; chosen from the number of rows where they are 0.

        Raises:
            ConfigError: ScaNN is not there, or refuses the options.
        """
        scann = require_scann()
        chosen = choose_options(options or ScannOptions(), rows=len(rows), count=count)
        builder = scann.builder(rows, count, "dot_product")
        try:
            if len(rows) < TREE_FROM:
                searcher = builder.score_brute_force().build()
            else:
                searcher = (
                    builder.tree(
                        num_leaves=chosen.leaves,
                        num_leaves_to_search=chosen.leaves_to_search,
                        training_sample_size=chosen.training_rows,
                        soar_lambda=chosen.soar_lambda,
                    )
                    .score_ah(
                        chosen.dimensions_per_block,
                        anisotropic_quantization_threshold=chosen.anisotropic_threshold,
                        training_sample_size=chosen.training_rows,
                    )
                    .reorder(chosen.rescore)
                    .build()
                )
        except (RuntimeError, ValueError) as error:
            raise ConfigError(
                f"ScaNN cannot build an index of {len(rows)} rows with {asdict(chosen)}: {error}. "
                "Change these options, or use index: exact."
            ) from None
        return cls(searcher, rows, chosen)

    def widen(self, good_enough: Callable[[ScannIndex], bool]) -> ScannIndex:
        """Searches more partitions until it is good enough, or all of them.

        How many partitions hold the neighbours is a matter of the vectors: on clustered vectors of
        one size and width a recall of 0.95 took between 3% and 20% of them. The parameter belongs
        to the search, so nothing is built again.

        Args:
            good_enough: Judges a searcher, for example by its recall on a sample.

        Returns:
            The same searcher with the smallest of a few numbers of partitions that passed.
        """
        to_search = math.ceil(self.options.leaves / 30)
        while True:
            options = replace(self.options, leaves_to_search=min(to_search, self.options.leaves))
            index = ScannIndex(self._searcher, self.rows, options)
            if to_search >= self.options.leaves or good_enough(index):
                return index
            to_search = math.ceil(1.5 * to_search)

    def search(self, queries: np.ndarray, count: int) -> np.ndarray:
        """Returns the rows with the largest inner products, as far as ScaNN finds them.

        Args:
            queries: [queries, width] float32, checked by ``check_vectors``.
            count: Neighbours wanted.

        Returns:
            [queries, count] int64, most similar first; -1 where ScaNN found fewer.
        """
        found, distances = self._searcher.search_batched_parallel(
            queries,
            final_num_neighbors=count,
            pre_reorder_num_neighbors=max(self.options.rescore, count),
            leaves_to_search=self.options.leaves_to_search,
        )
        ids = np.full((len(queries), count), -1, np.int64)
        ids[:, : found.shape[1]] = found  # uint32, and at most as many columns as there are rows
        # Where it found fewer, ScaNN returns row 0 with a NaN as its distance.
        ids[:, : found.shape[1]][np.isnan(distances)] = -1
        return ids

    def save(self, folder: str | Path) -> None:
        """Writes the searcher into a folder that can be moved, with a manifest of its files."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        # Absolute paths are ScaNN's default: a folder that was moved would not load.
        self._searcher.serialize(str(folder), relative_path=True)
        np.save(folder / "rows.npy", self.rows, allow_pickle=False)
        (folder / _MANIFEST).unlink(missing_ok=True)
        files = folder_entries(folder)
        manifest = {"schema_version": _SCHEMA_VERSION, "options": asdict(self.options)}
        write_json(folder / _MANIFEST, {**manifest, "files": files})

    @classmethod
    def load(cls, folder: str | Path) -> ScannIndex:
        """Opens what ``save`` wrote; the rows are mapped, not read.

        Raises:
            ConfigError: ScaNN is not there.
            DataError: The folder holds no index, or not the files of its manifest.
        """
        folder = Path(folder)
        scann = require_scann()
        try:
            manifest = json.loads((folder / _MANIFEST).read_bytes())
            files, options = manifest["files"], ScannOptions(**manifest["options"])
            version = manifest["schema_version"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{folder}: no ScaNN index of this version of jaxrecipes ({error!r}). Build it "
                "again."
            ) from None
        if version != _SCHEMA_VERSION:
            raise DataError(
                f"{folder}: schema version {version!r}, expected {_SCHEMA_VERSION}. Build it again."
            )
        # ScaNN unpickles a file of document ids where it finds one; nothing that `save` did not
        # write is let near it.
        strangers = {path.name for path in folder.iterdir()} - {*files, _MANIFEST}
        if strangers:
            raise DataError(
                f"{folder}: {', '.join(sorted(strangers))} is not of this index. Build it again."
            )
        damage = find_damage(folder, files)
        if damage is not None:
            raise DataError(f"{damage}. Build the index again.")
        searcher = scann.load_searcher(str(folder))
        rows = np.load(folder / "rows.npy", mmap_mode="r", allow_pickle=False)
        return cls(searcher, rows, options)


def require_scann() -> Any:
    """Returns the module that builds searchers.

    Raises:
        ConfigError: It is not there; the message says what to do.
    """
    reason = missing_scann()
    if reason:
        raise ConfigError(
            f"index: scann was asked for, but {reason}. Install it with `{INSTALL}`, or use "
            "index: exact (any machine) or index: auto (exact where ScaNN is missing)."
        )
    return _import_scann()


def _import_scann() -> Any:
    # Late: it is large, and an exact search does without it.
    from scann.scann_ops.py import scann_ops_pybind

    return scann_ops_pybind
