"""The names of nuScenes' classes and sensors, which mmdet3d's data and checkpoints for it use."""

from __future__ import annotations

from perception.rig import load_rig
from perception.taxonomy import load_taxonomy

NUSCENES, _SENSORS = load_taxonomy("nuscenes"), load_rig("nuscenes").sensors
CLASSES, ATTRIBUTES = NUSCENES.class_names, NUSCENES.attributes
CAMERAS, LIDAR = _SENSORS.cameras, _SENSORS.lidars[0]
