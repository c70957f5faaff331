"""The names and the rig of nuScenes, which most tests use."""

from collections.abc import Mapping

from perception.rig import Sensors, load_rig
from perception.taxonomy import ObjectClass, Taxonomy, load_taxonomy

NUSCENES = load_taxonomy("nuscenes")
CLASSES, ATTRIBUTES, MAP_CLASSES = NUSCENES.class_names, NUSCENES.attributes, NUSCENES.map_names
CONDITIONS, CONDITION_VALUES = NUSCENES.conditions, NUSCENES.condition_values
PRIOR = [layer.share for layer in NUSCENES.map_layers]
Z = len(CONDITION_VALUES)  # length of a condition vector
RIG = load_rig("nuscenes")
SENSORS = RIG.sensors
CAMERAS, (LIDAR,) = SENSORS.cameras, SENSORS.lidars


def sensors(*names: str) -> Sensors:
    """The sensors of a network with only these."""
    return Sensors(
        tuple(name for name in SENSORS.lidars if name in names), tuple(name for name in CAMERAS if name in names)
    )


def taxonomy_of(labels: Mapping[str, int]) -> Taxonomy:
    """Classes with these labels of a data set, by index."""
    names = [[name for name, i in labels.items() if i == index] for index in range(max(labels.values(), default=0) + 1)]
    classes = tuple(
        ObjectClass(name=f"class {i}", categories=tuple(each) or (f"none {i}",)) for i, each in enumerate(names)
    )
    return Taxonomy(name="test", classes=classes)
