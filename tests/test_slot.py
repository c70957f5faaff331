"""Slots: nothing where they are empty, and modules with weights for the batch, its frames, or the cells."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from perception.modules.computation.adapter import Bottleneck
from perception.modules.computation.batch_norm import BatchNorm
from perception.modules.computation.low_rank import LowRank
from perception.modules.route import Route
from perception.modules.slot import Slot


def slot() -> Slot:
    """A convolution in float64 with low-rank modules `a` and `b` that have learned something."""
    torch.manual_seed(0)
    made = Slot("s", nn.Conv2d(3, 5, 3, padding=1, bias=False, dtype=torch.float64))
    for name in ("a", "b"):
        module = LowRank(made.layer, 2)
        nn.init.normal_(module.b.weight)
        made.computations[name] = module
    return made


def parts(s: Slot, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The layer's output and what each module adds to it, as one dense convolution each."""
    y = s.layer(x)
    deltas = [nn.functional.conv2d(x, s.computations[name].delta(), padding=1) for name in ("a", "b")]
    return y, *deltas


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


X = torch.randn(4, 3, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_without_a_route_the_output_is_the_layers_bit_for_bit():
    s = slot()
    assert torch.equal(s(X), s.layer(X))
    s.route = Route({"elsewhere": 1.0})
    assert torch.equal(s(X), s.layer(X))


def test_numbers_weigh_the_whole_batch():
    s = slot()
    y, a, b = parts(s, X)
    s.route = Route({"a": 0.5, "b": -2})
    close(s(X), y + 0.5 * a - 2 * b)


def test_a_slot_may_have_weights_of_its_own():
    s = slot()
    y, _, b = parts(s, X)
    s.route = Route({"a": 1.0}, by_slot={"s": {"b": 3.0}, "t": {"a": 7.0}})
    close(s(X), y + 3 * b)
    s.route = Route({"a": 1.0}, by_slot={"s": {}})
    assert torch.equal(s(X), s.layer(X))


@pytest.mark.parametrize("trained", [False, True])
def test_each_frame_has_its_weight(trained):
    s = slot()
    y, a, _ = parts(s, X)
    weights = torch.tensor([1.0, 0.0, -0.5, 2.0], requires_grad=trained)
    s.route = Route({"a": weights})
    out = s(X)
    for i, weight in enumerate(weights.tolist()):
        close(out[i], y[i] + weight * a[i])
    assert trained or torch.equal(out[1], y[1])


def test_rows_of_one_frame_share_its_weight():
    s = slot()
    y, a, _ = parts(s, X)
    s.route = Route({"a": torch.tensor([0.0, 3.0])})  # of two frames with two pictures each
    out = s(X)
    close(out, y + torch.tensor([0.0, 0.0, 3.0, 3.0])[:, None, None, None] * a)


def test_each_cell_has_its_weight_stretched_over_the_slots_grid():
    s = slot()
    y, a, _ = parts(s, X)
    weights = torch.randn(4, 1, 3, 5)
    s.route = Route({"a": weights})
    out = s(X)
    for row in range(6):
        for column in range(5):
            there = weights[:, :, row // 2, column].double()
            close(out[:, :, row, column], y[:, :, row, column] + there * a[:, :, row, column])


def test_the_gradient_of_a_frames_weight_is_the_sum_of_what_its_module_adds():
    s = slot()
    _, a, _ = parts(s, X)
    weights = torch.zeros(4, requires_grad=True, dtype=torch.float64)
    s.route = Route({"a": weights})
    s(X).sum().backward()
    close(weights.grad, a.sum(dim=(1, 2, 3)))


def test_a_frame_that_does_not_run_a_module_does_not_enter_its_statistics():
    s = Slot("s", nn.BatchNorm2d(3, dtype=torch.float64).eval())
    s.computations["a"] = BatchNorm(s.layer)
    s.route = Route({"a": torch.tensor([0.0, 1.0, 1.0, 0.0])})
    s(X)
    close(s.computations["a"].norm.running_mean, 0.1 * X[1:3].mean(dim=(0, 2, 3)))
    assert torch.equal(s.layer.running_mean, torch.zeros(3))


def test_folding_leaves_only_the_layer():
    s = slot()
    s.route = Route({"a": 1.0, "b": -0.5})
    expected = s(X)
    s.fold()
    assert not s.computations
    close(s(X), expected)
    close(s.layer(X), expected)


def test_a_slot_with_a_module_that_does_not_fold_keeps_what_is_routed():
    s = slot()
    s.computations["c"] = Bottleneck(s.layer, 2)
    nn.init.normal_(s.computations["c"].up.weight)
    s.route = Route({"b": 1.0, "c": 1.0})
    expected, weight = s(X), s.layer.weight.clone()
    s.fold()
    assert set(s.computations) == {"b", "c"}
    assert torch.equal(s.layer.weight, weight)
    assert torch.equal(s(X), expected)
