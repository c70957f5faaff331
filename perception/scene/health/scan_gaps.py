"""Gaps in a spinning LiDAR's scan of the ground, from a single sweep and without knowing the sensor.

A rotating beam meets flat ground in a ring of points at constant azimuth steps, and rings are farther apart than the
points on them. So the two nearest neighbours of a point are on its ring, one step away on either side. If a share p of
the returns remains at random, both are there with probability p^2.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.spatial import cKDTree

from perception.frame import Frame
from perception.rig import LidarLimits
from perception.scene.health.features import in_vehicle_frame, latest_sweep

MAX_QUERIES = 1500  # ground points whose neighbours are searched


def ring_continuity(frame: Frame, limits: LidarLimits) -> float:
    """Share of ground points with both neighbours on their ring, one step away; NaN with too few ground points.

    Valid for a single spinning LiDAR whose calibration puts the ground in the right place.
    """
    x, y, z = in_vehicle_frame(frame, latest_sweep(frame)).T.astype(np.float64)
    away = np.hypot(x, y)
    with np.errstate(invalid="ignore"):
        ground = np.flatnonzero((away > limits.ring[0]) & (away < limits.ring[1]) & (np.abs(z) < limits.flat))
    if len(ground) < limits.min_ground_points:
        return math.nan
    queried = ground[:: -(-len(ground) // MAX_QUERIES)]
    places = np.stack([x, y], axis=1)
    distances, _ = cKDTree(places[ground]).query(places[queried], 3)  # the first is the point itself
    nearest, next_nearest = (distances[:, 1:] / away[queried, None]).T  # as angles
    step = np.quantile(nearest, limits.step_quantile)
    return float(np.mean(next_nearest < limits.max_step * step)) if step > 0 else math.nan
