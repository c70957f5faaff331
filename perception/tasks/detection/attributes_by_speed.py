"""Default attributes in a network that predicts none."""

from __future__ import annotations

from torch import Tensor

from perception.tasks.detection.attributes import MOVING_SPEED
from perception.taxonomy import Taxonomy


def by_speed(labels: Tensor, velocities: Tensor, taxonomy: Taxonomy) -> Tensor:
    """(...) indices of the default attributes, -1 where the class has none.

    Args:
        labels: (...) index of the class.
        velocities: (..., 2) m/s.
    """
    at_rest, in_motion = labels.new_tensor(taxonomy.default_attributes()).T[:, labels]
    return in_motion.where(velocities.square().sum(dim=-1) > MOVING_SPEED**2, at_rest)
