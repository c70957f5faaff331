"""The sensors of nuScenes' car, which infos and pipelines of mmdet3d name."""

from __future__ import annotations

from perception.rig import load_rig

_SENSORS = load_rig("nuscenes").sensors
CAMERAS, LIDAR = _SENSORS.cameras, _SENSORS.lidars[0]
