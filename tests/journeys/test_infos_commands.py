"""The commands take an infos file where they take a dataroot."""

import json
from pathlib import Path

import pytest
import yaml
from commands import refuses, succeeds
from infos import new_infos, old_infos, write_infos
from nuscenes import NuScenes
from training_runs import small

from perception.training.checkpoint import provenance


@pytest.fixture(scope="module")
def infos(sim_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both layouts beside links to the files of a simulated dataroot, without its tables."""
    folder = tmp_path_factory.mktemp("infos")
    for name in ("samples", "sweeps"):
        (folder / name).symlink_to(sim_root / name)
    devkit = NuScenes("v1.0-sim", str(sim_root), verbose=False)
    new = new_infos(old_infos(devkit, old_boxes=False))
    return {
        "train": write_infos(folder / "nuscenes_infos_train.pkl", old_infos(devkit)),
        "val": write_infos(folder / "nuscenes_infos_val.pkl", new),
    }


def test_from_training_to_an_int8_bundle(infos: dict[str, Path], tmp_path: Path) -> None:
    config = tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump(small(steps=2, checkpoint_every=2).model_dump(mode="json")))
    base, night = tmp_path / "base", tmp_path / "night"
    succeeds("train", config, "--data", infos["train"], "--out", base)
    assert provenance(base).data == ("nuscenes_infos_train.pkl: 6 keyframes of 2 scenes",)

    succeeds("evaluate", base, "--data", infos["val"], "--scenes", "drive-0002:0-2", "--out", tmp_path / "e")
    metrics = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert metrics["samples"] == 2
    assert metrics["ground_truth"]["car"] > 0
    assert metrics["map"] is None

    adapt = ("adapt", base, "--add", "low_rank:night", "--steps", 1, "--scenes", "drive-0001")
    succeeds(*adapt, "--data", infos["train"], "--out", night)
    assert provenance(night).data[-1] == "nuscenes_infos_train.pkl: 3 keyframes of 1 scenes"
    succeeds("modules", night, "--frame", "drive-0001:1", "--data", infos["val"])

    bundle = tmp_path / "bundle"
    succeeds("export", base, "--out", bundle, "--precision", "int8", "--calibrate", infos["val"])
    calibration = json.loads((bundle / "calibration.json").read_text())
    assert calibration["data"] == "nuscenes_infos_val.pkl"
    assert len(calibration["frames"]) == 6


def test_conditions_are_not_known(infos: dict[str, Path], tmp_path: Path) -> None:
    config = tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump(small(steps=1, checkpoint_every=1).model_dump(mode="json")))
    succeeds("train", config, "--data", infos["train"], "--out", tmp_path / "base")
    adapt = ("adapt", tmp_path / "base", "--add", "low_rank:wet", "--conditions", "rain", "--data", infos["train"])
    assert "no keyframe of the split is known to have rain" in refuses(*adapt, "--out", tmp_path / "wet")
