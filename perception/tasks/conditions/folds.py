"""Which drives are held out to calibrate on, and which values of a condition can be learned."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FOLDS = 8  # parts of the drives; each is held out once


def folds_of_drives(drives: Sequence[str]) -> Tensor:
    """(n,) fold of each keyframe from its drive: a drive is in one fold, and drives are shuffled, always alike."""
    names = [*dict.fromkeys(drives)]
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(0))
    fold = {names[int(place)]: i % FOLDS for i, place in enumerate(order)}
    return torch.tensor([fold[drive] for drive in drives], dtype=torch.int64)


def learned_values(values: Tensor, drives: Sequence[str], number: int) -> Tensor:
    """(number,) bool: values that two drives show or more, so that one can be held out.

    Args:
        values: (n,) of each keyframe, -1 where unknown.
    """
    shown: list[set[str]] = [set() for _ in range(number)]
    for value, drive in zip(values.tolist(), drives, strict=True):
        if value >= 0:
            shown[value].add(drive)
    return torch.tensor([len(each) >= 2 for each in shown])
