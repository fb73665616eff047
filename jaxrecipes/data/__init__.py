"""From any text source to fixed-length training rows, read back in a reproducible order.

The path is ``sources`` (documents) -> ``split`` (held-out part) -> ``tokenize`` -> ``pack`` (rows)
-> ``store`` (ArrayRecord shards and a manifest) -> ``pipeline`` (batches). ``preview`` shows each
step. Nothing here imports JAX, except that grain does when ``pipeline`` is used.
"""

from jaxrecipes.data.pack import pack
from jaxrecipes.data.pipeline import batches
from jaxrecipes.data.prepare import prepare
from jaxrecipes.data.sources import SourceSpec, read_documents
from jaxrecipes.data.split import Split
from jaxrecipes.data.store import PreparedSet, open_prepared

__all__ = [
    "PreparedSet",
    "SourceSpec",
    "Split",
    "batches",
    "open_prepared",
    "pack",
    "prepare",
    "read_documents",
]
