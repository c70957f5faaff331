"""The rig of nuScenes' car, with which most tests work."""

from perception.rig import Sensors, load_rig

RIG = load_rig("nuscenes")
SENSORS = RIG.sensors
CAMERAS, (LIDAR,) = SENSORS.cameras, SENSORS.lidars


def sensors(*names: str) -> Sensors:
    """The sensors of a network with only these."""
    return Sensors(
        tuple(name for name in SENSORS.lidars if name in names), tuple(name for name in CAMERAS if name in names)
    )
