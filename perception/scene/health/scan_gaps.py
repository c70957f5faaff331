"""Whether a spinning LiDAR's scan of the ground has gaps, from one sweep alone, whichever sensor it is.

A beam that turns meets flat ground in a ring, at steps of one azimuth; the rings are farther apart than the points on
them. So the two nearest of a point are those before and behind it on its ring, both one step away. Where returns are
lost at random and the share p is left, both are there with a probability of p^2.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.spatial import cKDTree

from perception.frame import Frame
from perception.scene.health.features import in_vehicle, latest_sweep
from perception.scene.health.limits import LidarLimits

ASKED = 1500  # points on the ground, whose neighbours are looked for


def unbroken(frame: Frame, limits: LidarLimits) -> float:
    """Share of the points on the ground that have a neighbour one step away on both sides; NaN where it is too few.

    The ground must be where the calibration says, and all points be of one LiDAR that spins: of others that scan no
    rings it means nothing. It takes 5 ms.
    """
    x, y, z = in_vehicle(frame, latest_sweep(frame, limits)).T.astype(np.float64)
    away = np.hypot(x, y)
    with np.errstate(invalid="ignore"):
        ground = np.flatnonzero((away > limits.ring[0]) & (away < limits.ring[1]) & (np.abs(z) < limits.flat))
    if len(ground) < limits.enough:
        return math.nan
    asked = ground[:: -(-len(ground) // ASKED)]
    places = np.stack([x, y], axis=1)
    distances, _ = cKDTree(places[ground]).query(places[asked], 3)  # of which the first is the point itself
    nearest, next_nearest = (distances[:, 1:] / away[asked, None]).T  # as angles
    step = np.quantile(nearest, limits.narrowest)
    return float(np.mean(next_nearest < limits.apart * step)) if step > 0 else math.nan
