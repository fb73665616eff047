"""Eight devices compute what one computes: on every mesh, every kind of model and of freezing."""

import pytest

from tests.devices import run_on_devices


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "count"),
    [("few_gradients", 2 * 2), pytest.param("gradients", 7 * 6, marks=pytest.mark.long)],
)
def test_losses_and_gradients_do_not_depend_on_the_mesh(function, count):
    found = run_on_devices("tests.sharding.parity", function, timeout=3600)
    assert len(found) == count
    for model, mesh, loss, gradient in found:
        assert loss < 1e-6 and gradient < 2e-5, (model, mesh, loss, gradient)


@pytest.mark.slow
@pytest.mark.long
def test_training_does_not_depend_on_the_mesh():
    found = run_on_devices("tests.sharding.parity", "training")
    assert len(found) == 3 * 2
    for rules, mesh, loss, weights, frozen_same in found:
        assert loss < 1e-5 and weights < 1e-3 and frozen_same, (rules, mesh, loss, weights)
