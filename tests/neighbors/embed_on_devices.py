"""Run by test_embed.py with several simulated devices: prints the vectors of its documents."""

import json
import tempfile
from pathlib import Path

import jax

from jaxrecipes.neighbors.embed import embed_texts
from tests.encoders import tiny_encoder
from tests.neighbors.test_embed import DOCUMENTS

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        encoder = tiny_encoder(Path(folder))
    vectors = embed_texts([document.text for document in DOCUMENTS], encoder)
    print(json.dumps({"devices": len(jax.local_devices()), "vectors": vectors.tolist()}))
