"""The learning rate over a training."""

from __future__ import annotations

import math
from bisect import bisect_right
from functools import partial

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from perception.recipe import Schedule


def schedule_of(optimizer: torch.optim.Optimizer, schedule: Schedule, steps: int) -> LRScheduler:
    """The schedule over this number of steps; the peak of each group of parameters is its rate in the optimizer."""
    if schedule.kind != "one_cycle":
        return LambdaLR(optimizer, partial(share_of_peak, schedule, steps))
    total = steps + 1
    return OneCycleLR(
        optimizer,
        [group["lr"] for group in optimizer.param_groups],
        total_steps=total,
        # A rise that ends with the first step, which has its first and its last rate, divides by zero in torch.
        pct_start=0.0 if schedule.warm_up * total == 1 else schedule.warm_up,
        div_factor=schedule.start_divisor,
    )


def share_of_peak(schedule: Schedule, steps: int, done: int) -> float:
    """Rate of the next step relative to the peak, for the kinds cosine and step.

    Args:
        steps: of the whole training.
        done: number of steps done.
    """
    rise = schedule.warm_up * steps
    if done < rise:
        start = 1 / schedule.start_divisor
        return start + (1 - start) * done / rise
    if schedule.kind == "step":
        return float(0.1 ** bisect_right(schedule.milestones, done / steps))
    return (1 + math.cos(math.pi * min(1.0, (done - rise) / max(1.0, steps - rise)))) / 2
