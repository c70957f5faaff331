"""Gates: turn logits over N options into weights.

Options are dimension 1: (B, N) or (B, N, ...), with an independent choice at each position of the rest. An option
whose logit is -inf is never chosen. All are deterministic but `gumbel` and `sample`, which are for training.
"""

from __future__ import annotations

import torch
from torch import Tensor

from perception.distributed import drawn

NEVER = float("-inf")


def soft(logits: Tensor) -> Tensor:
    """softmax(l), over all options."""
    return logits.softmax(dim=1)


def top_k(logits: Tensor, k: int) -> Tensor:
    """softmax over the k largest logits (Shazeer et al., 2017, eq. 3-5, without noise); the others get weight zero.

    No gradient reaches the others, so a router can collapse; see `load_balance.py`.
    """
    return logits.masked_fill(ranks(logits) >= k, NEVER).softmax(dim=1)


def hard(logits: Tensor) -> Tensor:
    """One for the best option, zero for the others."""
    return (ranks(logits) == 0).to(logits.dtype)


def gumbel(logits: Tensor, temperature: float, noise: Tensor | None = None) -> Tensor:
    """A sampled option as one-hot weights, with the gradient of softmax((l + g) / t).

    Straight-through Gumbel-softmax (Jang et al., 2017).

    Args:
        noise: g, shaped like the logits; None draws it.
    """
    perturbed = logits + (gumbel_noise(logits) if noise is None else noise)
    relaxed = (perturbed / temperature).softmax(dim=1)
    return hard(perturbed) + (relaxed - relaxed.detach())  # the bracket is exactly zero


def sample(logits: Tensor) -> Tensor:
    """An option drawn with probabilities softmax(l), as one-hot weights without gradient (the Gumbel-max trick)."""
    return hard((logits + gumbel_noise(logits)).detach())


def log_probability(logits: Tensor, chosen: Tensor) -> Tensor:
    """(B,): log pi of the options that the one-hot `chosen` names, summed over the places of a frame."""
    logs = logits.log_softmax(dim=1).masked_fill(chosen == 0, 0.0)
    return logs.flatten(1).sum(dim=1)


def reinforce(log_probabilities: Tensor, costs: Tensor, baseline: Tensor | float) -> Tensor:
    """The loss whose gradient estimates that of the expected cost (REINFORCE, Williams, 1992): mean (c - b) log pi.

    Args:
        log_probabilities: (B,) of what was sampled.
        costs: (B,) that it led to, the reward's negative.
        baseline: b, which must not depend on the samples.
    """
    return ((costs - baseline).detach() * log_probabilities).mean()


def ranks(logits: Tensor) -> Tensor:
    """How many options are better than each, shaped like the logits; of equal ones the first is better.

    By comparing all pairs, since topk leaves the order of equals open, and engines differ in it.
    """
    own, rival = logits.unsqueeze(2), logits.unsqueeze(1)
    index = torch.arange(logits.shape[1], device=logits.device)
    earlier = (index < index[:, None]).reshape(len(index), -1, *(1,) * (logits.ndim - 2))  # [own, rival]
    return ((rival > own) | ((rival == own) & earlier)).sum(dim=2)


def gumbel_noise(like: Tensor) -> Tensor:
    """Standard Gumbel numbers, finite: -log of exponential ones, of which torch draws a zero now and then."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    numbers = drawn(lambda frames: like.new_empty((frames, *like.shape[1:]), dtype=dtype).exponential_(), len(like))
    return -numbers.clamp(min=torch.finfo(dtype).tiny).log()
