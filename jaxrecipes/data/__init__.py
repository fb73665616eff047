"""From any text source to fixed-length training rows, read back in a reproducible order.

The path is ``sources`` (documents) -> ``split`` (held-out part) -> ``tokenize`` -> ``pack`` (rows)
-> ``store`` (ArrayRecord shards and a manifest) -> ``pipeline`` (batches). ``preview`` shows each
step. Nothing here imports JAX, except that grain does when ``pipeline`` is used.
"""
