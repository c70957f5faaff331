"""What LiDAR points and voxels are of: the categories of nuScenes-lidarseg, by their numbers in its files."""

from __future__ import annotations

import numpy as np

from perception.simulate.snapshot import Ground

CATEGORIES = (
    "noise", "animal", "human.pedestrian.adult", "human.pedestrian.child", "human.pedestrian.construction_worker",
    "human.pedestrian.personal_mobility", "human.pedestrian.police_officer", "human.pedestrian.stroller",
    "human.pedestrian.wheelchair", "movable_object.barrier", "movable_object.debris",
    "movable_object.pushable_pullable", "movable_object.trafficcone", "static_object.bicycle_rack", "vehicle.bicycle",
    "vehicle.bus.bendy", "vehicle.bus.rigid", "vehicle.car", "vehicle.construction", "vehicle.emergency.ambulance",
    "vehicle.emergency.police", "vehicle.motorcycle", "vehicle.trailer", "vehicle.truck", "flat.driveable_surface",
    "flat.other", "flat.sidewalk", "flat.terrain", "static.manmade", "static.other", "static.vegetation", "vehicle.ego",
)  # fmt: skip
NOISE = 0  # returns from the air
MANMADE, VEGETATION = CATEGORIES.index("static.manmade"), CATEGORIES.index("static.vegetation")
_FLAT = {Ground.GRASS: "flat.terrain", Ground.WALKWAY: "flat.sidewalk"}  # the others can be driven on
# (7,) uint8 category by `Ground`.
GROUND_CATEGORIES = np.array([CATEGORIES.index(_FLAT.get(kind, "flat.driveable_surface")) for kind in Ground], np.uint8)
