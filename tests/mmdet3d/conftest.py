"""Where mmdet3d is installed (`make test-mmdet3d`); without it these tests fail, they are not skipped."""

import json
import shutil
from pathlib import Path

import pytest

from perception.mmdet3d.foreign import import_mmdet3d

import_mmdet3d()

VALIDATION = ("scene-0103", "scene-0916")  # mini_val in the devkit


@pytest.fixture(scope="session")
def mini_root(sim_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The simulated drives as version v1.0-mini, whose splits mmdet3d's metric knows; all of them are mini_val."""
    root = tmp_path_factory.mktemp("mini")
    shutil.copytree(sim_root / "v1.0-sim", root / "v1.0-mini")
    for folder in ("samples", "sweeps", "maps"):
        (root / folder).symlink_to(sim_root / folder)
    (root / "lidarseg").mkdir()
    for version in ("v1.0-sim", "v1.0-mini"):  # where the table has them, and where the devkit counts them
        (root / "lidarseg" / version).symlink_to(sim_root / "lidarseg" / "v1.0-sim")
    table = root / "v1.0-mini" / "scene.json"
    scenes = json.loads(table.read_text())
    for scene, name in zip(scenes, VALIDATION, strict=True):
        scene["name"] = name
    table.write_text(json.dumps(scenes))
    return root
