"""Where mmdet3d is installed (`make test-mmdet3d`); without it these tests fail, they are not skipped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from perception.mmdet3d.install import import_mmdet3d

import_mmdet3d()

TRAINING, VALIDATION = ("scene-0061",), ("scene-0103", "scene-0916")  # names that the devkit's splits know


@pytest.fixture(scope="session")
def mini_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Simulated drives as version v1.0-mini, whose splits mmdet3d's metric knows: a drive to train, two to score."""
    from perception.simulate.simulate import simulate

    root = tmp_path_factory.mktemp("mini")
    simulate(root, 3, 3, seed=0, condition_names=["clear-day-boston", "rain-night-singapore"], sweeps=2)
    folder = root / "v1.0-sim"
    scenes = json.loads((folder / "scene.json").read_text())
    for scene, name in zip(scenes, TRAINING + VALIDATION, strict=True):
        scene["name"] = name
    (folder / "scene.json").write_text(json.dumps(scenes))
    folder.rename(root / "v1.0-mini")
    return root
