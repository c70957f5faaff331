"""mmdet3d's dataset converters, and where they find a data set's files."""

import importlib.util
from pathlib import Path
from types import ModuleType

import mmdet3d
from vocabulary import CAMERAS

FOLDERS = {"pts": "samples/LIDAR_TOP", "sweeps": "sweeps/LIDAR_TOP", **{name: f"samples/{name}" for name in CAMERAS}}


def converter(name: str) -> ModuleType:
    """One of mmdet3d's dataset converters, which come with its wheel, but are in no package."""
    path = Path(mmdet3d.__file__).parent / ".mim" / "tools" / "dataset_converters" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
