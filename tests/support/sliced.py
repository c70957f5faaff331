"""The grid and submission of tests of slices."""

from vocabulary import RIG

from perception.config import Lidar
from perception.grid import BevGrid
from perception.sensors.inputs import InputSpec

SPEC = InputSpec(BevGrid(), Lidar(sweeps=0), camera=None, rig=RIG)


MAP_GRID = SPEC.grid.coarser(4)
