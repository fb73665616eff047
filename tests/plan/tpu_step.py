"""Compiles a training step for v5e:2x2 in a process of its own and writes its HLO to a file.

    python -m tests.plan.tpu_step FILE

Sizes are chosen so that every weight, and every stack of the parts that a chip holds, has a shape
that no activation has.
"""

from __future__ import annotations

import sys
from pathlib import Path

LAYERS, HIDDEN, INTERMEDIATE, QUERY, KEY_VALUE, VOCABULARY = 3, 512, 1280, 384, 128, 2048
LENGTH, ROWS, CHIPS = 256, 4, 4


def main() -> None:
    from jaxrecipes.checkpoint.model_config import parse_model_config
    from jaxrecipes.config import Config
    from jaxrecipes.plan.buffers import compile_with_buffers
    from jaxrecipes.plan.step import lower_planned
    from jaxrecipes.plan.target import find_target
    from tests.experiment.small import small_config

    values = {
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": QUERY // 128,
        "num_key_value_heads": 1,
        "head_dim": 128,
        "max_position_embeddings": LENGTH,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    }
    data = small_config(Path("nowhere")) | {"recipe": "full"}
    del data["block_expansion"]
    data["model"]["compute_dtype"] = "bfloat16"
    data["data"]["length"] = LENGTH
    data["train"] |= {"batch_size": ROWS, "remat": "full"}
    target = find_target("v5e:2x2")
    config = Config.model_validate(data)
    traced = lower_planned(config, parse_model_config(values, where="test"), 3, target)
    Path(sys.argv[1]).write_text(compile_with_buffers(traced.lowered).hlo_text, encoding="utf-8")


if __name__ == "__main__":
    main()
