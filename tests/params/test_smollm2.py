import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrecipes.checkpoint import import_checkpoint
from jaxrecipes.models import decoder
from jaxrecipes.params import expand_blocks, label, plan_layout, to_runtime
from jaxrecipes.params.surgery import layers_pattern

TEXT = "A block whose two output projections are zero adds nothing to the residual stream. " * 4


@pytest.mark.long
def test_every_even_expansion_of_smollm2_is_the_identity(smollm2_folder):
    from jaxrecipes.checkpoint import load_tokenizer

    base = import_checkpoint(smollm2_folder, dtype=jnp.float32)
    token_ids = np.asarray([load_tokenizer(smollm2_folder)(TEXT)["input_ids"]], np.int32)
    ones, positions = np.ones_like(token_ids), np.arange(token_ids.shape[1])[None]

    def states(config, params, rules):
        layout = plan_layout(config, label(params, rules))
        function = jax.jit(
            lambda tree: decoder.hidden_states(
                config, tree, token_ids, ones, positions, layout=layout
            )
        )
        return np.asarray(function(to_runtime(layout, params)))

    expected = states(base.config, base.params, [(".*", True)])
    for new_blocks in (1, 2, 3, 5, 6, 10, 15, 30):
        expanded = expand_blocks(base.config, base.params, new_blocks=new_blocks)
        rules = [(layers_pattern(expanded.positions), True), (".*", False)]
        found = states(expanded.config, expanded.params, rules)
        assert np.array_equal(found, expected), new_blocks
