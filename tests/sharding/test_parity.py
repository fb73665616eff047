"""Several devices compute what one computes: on every mesh, every kind of model and of freezing."""

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
    for rules, mesh, loss, weights, frozen_same, _ in found:
        assert loss < 1e-5 and weights < 1e-3 and frozen_same, (rules, mesh, loss, weights)


@pytest.mark.long
@pytest.mark.parametrize(
    "case",
    [
        "lora",
        *(
            pytest.param(case, marks=pytest.mark.long)
            for case in ("dora", "rest", "tokens", "int8", "nf4")
        ),
    ],
)
def test_adapters_train_on_a_mesh_as_on_one_device_and_are_cut_by_the_rules(case):
    found = run_on_devices("tests.sharding.parity", "adapters", case, devices=4)
    assert len(found) == 2
    for _, mesh, loss, weights, frozen_same, cut in found:
        assert loss < 1e-5 and weights < 1e-3 and frozen_same, (case, mesh, loss, weights)
        # A is cut over its inputs by fsdp, B over its outputs by tensor.
        tensor = "tensor=1" not in mesh
        ends = {path.split("/", 3)[-1] for path in cut}
        assert "attention/query/lora_a" in ends, (case, mesh, ends)
        assert ("attention/query/lora_b" in ends) == tensor, (case, mesh, ends)
        if case in ("dora", "rest"):
            assert ("attention/query/lora_magnitude" in ends) == tensor, (case, mesh, ends)
        if case == "rest":
            assert {"embedding/lora_a", "head/kernel"} <= set(cut), (mesh, cut)


@pytest.mark.long
def test_penalties_and_their_information_do_not_depend_on_the_mesh():
    found = run_on_devices("tests.sharding.parity", "penalties", devices=4)
    assert len(found) == 2
    for kind, mesh, information, loss, penalty, weights in found:
        assert information < 1e-3, (kind, mesh, information)
        assert loss < 1e-4 and penalty < 1e-4 and weights < 1e-3, (kind, mesh, loss, penalty)
