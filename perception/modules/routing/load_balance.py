"""Load balance of a learned router: losses, and numbers to report.

Weights and probabilities are (B, N, P, ...): options, then places with their own choice (slots), then cells, whose
choices count like those of further frames. `possible` (N, P) says which options a place has at all.
"""

from __future__ import annotations

from torch import Tensor

from perception import distributed
from perception.modules.routing.gates import hard, soft


def importance(probabilities: Tensor) -> Tensor:
    """(N, P): sum of an option's weights over the batch (Shazeer et al., 2017, eq. 6)."""
    return probabilities.transpose(0, 1).transpose(1, 2).flatten(2).sum(dim=2)


def load(weights: Tensor) -> Tensor:
    """(N, P): how often an option is used. A count, without gradient, since no noise smooths it (ibid., eq. 10)."""
    return importance((weights != 0).to(weights.dtype))


def squared_variation(amounts: Tensor, possible: Tensor) -> Tensor:
    """cv^2 = variance / mean^2 of (N, P) over the possible options, averaged over places (ibid., eq. 7).

    0 if all options have the same amount, N - 1 if one has all.
    """
    n = possible.sum(dim=0)
    mean = (amounts * possible).sum(dim=0) / n
    variance = (((amounts - mean) ** 2) * possible).sum(dim=0) / n
    return (variance / mean**2).mean()


def gshard(probabilities: Tensor, chosen: Tensor, possible: Tensor) -> Tensor:
    """N sum_i f_i P_i, averaged over places (GShard, Lepikhin et al., 2020; Switch, Fedus et al., 2021, eq. 4).

    1.0 where the router is uniform, N where it has collapsed to one option.

    Args:
        probabilities: softmax of the logits, whose mean is P_i.
        chosen: one-hot, the best option, whose mean over all processes is f_i.
    """
    choices = chosen[:, :1].numel() / chosen.shape[2]  # at one place
    f, p = distributed.mean(importance(chosen)) / choices, importance(probabilities) / choices
    return (possible.sum(dim=0) * (f * p).sum(dim=0)).mean()


def report(logits: Tensor, weights: Tensor) -> dict[str, float]:
    """The balance of the choices in a batch of all processes; `logits` are -inf where an option is not possible."""
    possible = possible_options(logits)
    return {
        "importance_cv2": float(squared_variation(distributed.total(importance(weights)), possible)),
        "load_cv2": float(squared_variation(distributed.total(load(weights)), possible)),
        "gshard": float(distributed.mean(gshard(soft(logits), hard(logits), possible))),
    }


def possible_options(logits: Tensor) -> Tensor:
    """(N, P) bool: the options that are possible on some frame of any process."""
    return distributed.total(load((logits > float("-inf")).to(logits.dtype))) > 0
