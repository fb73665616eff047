import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrecipes.train.spikes import accepts, remember
from jaxrecipes.train.state import SpikeState


def fresh(window=8):
    zeros = jnp.zeros((window,), jnp.float32)
    return SpikeState(zeros, zeros, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


@settings(deadline=None, max_examples=20)
@given(st.lists(st.floats(0.1, 10) | st.sampled_from([np.inf, np.nan, 1e6]), max_size=30))
def test_the_guard_is_the_plain_rule_over_the_latest_accepted_steps(losses):
    spikes, history, skipped = fresh(), [], 0
    for loss in losses:
        loss = np.float32(loss)
        recent = np.array(history[-8:], np.float64)
        limit = recent.mean() + 6 * recent.std() if len(recent) >= 4 else np.inf
        expected = bool(np.isfinite(loss) and loss <= limit + 1e-4 * abs(limit))
        clear = not np.isfinite(loss) or abs(loss - limit) > 1e-3 * abs(limit)
        accepted = accepts(spikes, jnp.float32(loss), jnp.float32(1.0), 6.0)
        if clear:
            assert bool(accepted) == expected
        spikes = remember(spikes, jnp.float32(loss), jnp.float32(1.0), accepted)
        if bool(accepted):
            history.append(loss)
        else:
            skipped += 1
        assert int(spikes.accepted) == len(history) and int(spikes.skipped) == skipped


def test_a_gradient_norm_can_be_the_spike_too():
    spikes = fresh()
    for value in (1.0, 1.1, 0.9, 1.0, 1.05):
        spikes = remember(spikes, jnp.float32(2.0), jnp.float32(value), jnp.array(True))
    assert bool(accepts(spikes, jnp.float32(2.0), jnp.float32(1.2), 6.0))
    assert not bool(accepts(spikes, jnp.float32(2.0), jnp.float32(50.0), 6.0))
