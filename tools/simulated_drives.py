"""The simulated drives that benchmarks replay and score: 12 s each, in all conditions."""

from __future__ import annotations

from pathlib import Path

from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.datasets.nuscenes.tables import only_version
from perception.simulate.simulate import simulate

DATA = Path("runs/drives")
DRIVES, KEYFRAMES = 25, 24


def drives(data: Path) -> NuScenesTables:
    """The tables of a dataroot; DATA is simulated unless it is there, which takes some minutes."""
    if data == DATA and not data.exists():
        simulate(data, DRIVES, KEYFRAMES, 0, ["all"])
    return NuScenesTables(data, only_version(data))
