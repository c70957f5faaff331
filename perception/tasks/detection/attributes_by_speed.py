"""Default attributes in a network that predicts none."""

from __future__ import annotations

from torch import Tensor

from perception.frame import ATTRIBUTES, CLASSES
from perception.tasks.detection.attributes import BY_SPEED, MOVING_SPEED


def by_speed(labels: Tensor, velocities: Tensor) -> Tensor:
    """(...) default attributes, indices into ATTRIBUTES, -1 where the class has none.

    Args:
        labels: (...) index into CLASSES.
        velocities: (..., 2) m/s.
    """
    rows = [
        [ATTRIBUTES.index(BY_SPEED[name][moving]) if name in BY_SPEED else -1 for name in CLASSES]
        for moving in (False, True)
    ]
    at_rest, in_motion = labels.new_tensor(rows)[:, labels]
    return in_motion.where(velocities.square().sum(dim=-1) > MOVING_SPEED**2, at_rest)
