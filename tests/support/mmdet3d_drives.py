"""What tests against mmdet3d share: its pipeline's first steps, its dataset converters, and keyframes."""

import importlib.util
from pathlib import Path
from types import ModuleType

import mmdet3d
from vocabulary import CAMERAS

from perception.datasets.keyframes import Reads
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.frame import Frame

FOLDERS = {"pts": "samples/LIDAR_TOP", "sweeps": "sweeps/LIDAR_TOP", **{name: f"samples/{name}" for name in CAMERAS}}
LOADING = [
    {"type": "LoadPointsFromFile", "coord_type": "LIDAR", "load_dim": 5, "use_dim": 5},
    {
        "type": "LoadPointsFromMultiSweeps",
        "sweeps_num": 5,
        "use_dim": [0, 1, 2, 3, 4],
        "remove_close": True,
        "test_mode": True,
    },
    {"type": "LoadMultiViewImageFromFiles", "num_views": 6},
]


def converter(name: str) -> ModuleType:
    """One of mmdet3d's dataset converters, which come with its wheel, but are in no package."""
    path = Path(mmdet3d.__file__).parent / ".mim" / "tools" / "dataset_converters" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def lidar_frames(nuscenes_root: Path, sim_root: Path, keyframes: str, sweeps: int) -> dict[str, Frame]:
    """Keyframes in the LiDAR's frame: two real ones of scene-0103, and a simulated one with its two sweeps."""
    real, simulated = NuScenesTables(nuscenes_root, "v1.0-mini"), NuScenesTables(sim_root, "v1.0-sim")
    first, second = real.samples(selectors=[f"scene-0103:{keyframes}"])
    chosen = {"real": (real, first), "another": (real, second), "simulated": (simulated, simulated.samples()[0])}
    return {
        name: tables.frame(token, Reads("lidar", sweeps, cameras=False)) for name, (tables, token) in chosen.items()
    }
