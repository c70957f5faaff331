"""The courses of simulated drives under nuScenes' conditions, which many tests use."""

from vocabulary import NUSCENES

from perception.simulate.conditions import Course, parse
from perception.simulate.world_files import Worlds

WORLDS = Worlds()  # that come with the package


def courses(*names: str) -> list[Course]:
    """Of drives such as clear-day-boston; all: of every combination."""
    return parse(names, NUSCENES, WORLDS)
