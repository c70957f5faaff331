"""The Lovasz-softmax loss against the definition of the Lovasz extension."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from perception.tasks.lovasz import lovasz_softmax


def jaccard_loss(wrong: set[int], positive: set[int]) -> float:
    """1 - IoU if exactly these elements are mispredicted."""
    return len(wrong) / len(positive | wrong) if positive | wrong else 0.0


def by_definition(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The Lovasz extension of the Jaccard loss: a sum over nested sets of the largest errors."""
    losses = []
    for each in sorted({*labels.tolist()}):
        positive = {*np.flatnonzero(labels == each).tolist()}
        errors = np.abs((labels == each) - probabilities[:, each])
        order = np.argsort(-errors, kind="stable").tolist()
        losses.append(
            sum(
                errors[i] * (jaccard_loss({*order[: k + 1]}, positive) - jaccard_loss({*order[:k]}, positive))
                for k, i in enumerate(order)
            )
        )
    return float(np.mean(losses))


@pytest.mark.parametrize("seed", range(4))
def test_is_the_extension_of_the_jaccard_loss(seed: int) -> None:
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.ones(4), 30)
    labels = rng.integers(0, 3, 30)  # one class does not occur
    loss = lovasz_softmax(torch.from_numpy(probabilities), torch.from_numpy(labels))
    assert loss.item() == pytest.approx(by_definition(probabilities, labels), abs=1e-12)


def test_of_hard_predictions_is_one_minus_iou() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1])
    predicted = torch.tensor([0, 0, 1, 1, 1])
    loss = lovasz_softmax(torch.nn.functional.one_hot(predicted, 2).double(), labels)
    assert loss.item() == pytest.approx(1 - np.mean([2 / 3, 2 / 3]))


def test_without_elements_is_zero_and_has_a_gradient() -> None:
    probabilities = torch.zeros(0, 3, requires_grad=True)
    loss = lovasz_softmax(probabilities, torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0
