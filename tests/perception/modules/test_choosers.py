"""Choosers and load balance against closed forms, finite differences and enumeration."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from slotted import softmax
from torch import Tensor, nn

from perception.modules.routing import gates, load_balance

EXACT: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}


@st.composite
def random_logits(draw: st.DrawFn) -> Tensor:
    """(B, N, 2, 3) in float64, often with ties."""
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 5)), 2, 3)
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    return torch.from_numpy(
        rng.integers(-2, 3, shape).astype(float) if draw(st.booleans()) else rng.normal(0, 3, shape)
    )


@settings(deadline=None, max_examples=50)
@given(random_logits(), st.integers(1, 6))
def test_top_k_is_the_softmax_over_the_k_first_of_a_stable_sort(logits: Tensor, k: int) -> None:
    expected = np.zeros(logits.shape)
    for b, i, j in itertools.product(range(len(logits)), range(2), range(3)):
        values = logits[b, :, i, j].numpy()
        best = np.argsort(-values, kind="stable")[:k]
        expected[b, best, i, j] = softmax(values[best])
    actual = gates.top_k(logits, k)
    torch.testing.assert_close(actual, torch.from_numpy(expected), **EXACT)
    assert ((actual != 0).sum(dim=1) == min(k, logits.shape[1])).all()


@settings(deadline=None, max_examples=30)
@given(random_logits())
def test_top_k_of_all_is_soft_and_of_one_is_hard(logits: Tensor) -> None:
    assert torch.equal(gates.top_k(logits, logits.shape[1]), gates.soft(logits))
    assert torch.equal(gates.top_k(logits, 1), gates.hard(logits))
    assert torch.equal(gates.hard(logits).argmax(dim=1), torch.from_numpy(logits.numpy().argmax(axis=1)))


@pytest.mark.parametrize("chooser", [gates.soft, lambda logits: gates.top_k(logits, 2)])
def test_gradients_of_soft_and_top_k_are_those_of_finite_differences(chooser: Any) -> None:
    torch.manual_seed(0)
    assert torch.autograd.gradcheck(chooser, torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_gumbel_is_one_hot_forward_and_has_the_gradient_of_the_relaxation(temperature: float) -> None:
    torch.manual_seed(0)
    logits, g, v = (torch.randn(2, 4, 3, dtype=torch.float64) for _ in range(3))
    own = logits.clone().requires_grad_()
    weights = gates.gumbel(own, temperature, g)
    assert torch.equal(weights, nn.functional.one_hot((logits + g).argmax(dim=1), 4).transpose(1, 2).double())
    (weights * v).sum().backward()
    numeric = torch.zeros_like(logits)
    for index in np.ndindex(*logits.shape):
        step = torch.zeros_like(logits)
        step[index] = 1e-5
        up, down = (((logits + sign * step + g) / temperature).softmax(dim=1) for sign in (1, -1))
        numeric[index] = ((up - down) * v).sum() / 2e-5
    torch.testing.assert_close(own.grad, numeric, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("draw", [gates.sample, lambda logits: gates.gumbel(logits, 0.7)])
def test_frequencies_are_the_softmax(draw: Any) -> None:
    torch.manual_seed(0)
    n, p = 40_000, torch.tensor([0.5, 0.3, 0.15, 0.05, 0.0], dtype=torch.float64)
    counts = draw(p.log().expand(n, -1)).sum(dim=0)
    assert counts.sum() == n
    assert ((counts - n * p).abs() <= 4 * (n * p * (1 - p)).sqrt()).all()


@pytest.mark.parametrize("baseline", [0.0, 2.5, -7.0])
def test_reinforce_enumerated_over_all_joint_choices_is_the_gradient_of_the_expected_cost(baseline: float) -> None:
    """One frame, three options at each of two places: nine joint choices, each with a cost of its own."""
    torch.manual_seed(1)
    logits = torch.randn(1, 3, 2, dtype=torch.float64, requires_grad=True)
    costs = torch.randn(3, 3, dtype=torch.float64)
    p = logits[0].softmax(dim=0)  # N P
    (expected,) = torch.autograd.grad(torch.einsum("i,j,ij->", p[:, 0], p[:, 1], costs), logits)
    estimate = torch.zeros_like(logits)
    for i, j in itertools.product(range(3), range(3)):
        chosen = nn.functional.one_hot(torch.tensor([[i, j]]), 3).transpose(1, 2)
        loss = gates.reinforce(gates.log_probability(logits, chosen), costs[i, j][None], baseline)
        estimate += (p[i, 0] * p[j, 1]).detach() * torch.autograd.grad(loss, logits)[0]
    torch.testing.assert_close(estimate, expected, **EXACT)


# ---- balance


def test_balance_of_uniform_and_collapsed_routers_in_closed_form() -> None:
    n = 4
    uniform = torch.full((8, n, 1), 1 / n)
    spread = torch.eye(n).repeat(2, 1)[..., None]  # each option is the choice of two frames
    collapsed = torch.zeros(8, n, 1)
    collapsed[:, 2] = 1
    possible = torch.ones(n, 1, dtype=torch.bool)
    assert load_balance.gshard(uniform, spread, possible) == 1
    assert load_balance.gshard(collapsed, collapsed, possible) == n
    assert load_balance.squared_variation(load_balance.importance(uniform), possible) == 0
    assert load_balance.squared_variation(load_balance.importance(collapsed), possible) == n - 1
    assert load_balance.squared_variation(load_balance.load(spread), possible) == 0
    assert load_balance.squared_variation(load_balance.load(collapsed), possible) == n - 1


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(2, 4), st.integers(1, 3), st.booleans())
def test_balance_counts_frames_and_cells_by_place(seed: int, b: int, n: int, places: int, by_cell: bool) -> None:
    """Against loops over places; the first option of the last place is impossible."""
    torch.manual_seed(seed)
    logits = torch.randn(b, n, places, *((2, 3) if by_cell else ()), dtype=torch.float64)
    logits[:, 0, -1] = -math.inf
    report = load_balance.report(logits, gates.top_k(logits, 1))
    expected: dict[str, list[float]] = {"importance_cv2": [], "load_cv2": [], "gshard": []}
    for place in range(places):
        there = list(range(1 if place == places - 1 else 0, n))
        cells = np.ndindex(logits.shape[3:])
        tokens = [logits[(i, slice(None), place, *at)].numpy()[there] for at in cells for i in range(b)]
        used = np.array([np.eye(len(there))[t.argmax()] for t in tokens])
        probabilities = np.array([softmax(t) for t in tokens])
        variation = used.sum(axis=0).var() / used.sum(axis=0).mean() ** 2
        expected["importance_cv2"].append(variation)
        expected["load_cv2"].append(variation)
        expected["gshard"].append(len(there) * (used.mean(axis=0) * probabilities.mean(axis=0)).sum())
    for name, values in expected.items():
        assert report[name] == pytest.approx(np.mean(values), rel=1e-12, abs=1e-12)
