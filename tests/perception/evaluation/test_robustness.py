"""Corrupted sensors: each score equals the devkit's on frames that were corrupted beforehand."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from detectors import detector
from rich.console import Console
from vocabulary import CAMERAS, RIG

from perception.config import CameraBranch, Lidar
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.errors import InputError
from perception.evaluation.evaluate import Breakdown, evaluate
from perception.evaluation.robustness import CORRUPTIONS, chosen_corruptions
from perception.frame import Boxes, Frame, Prediction
from perception.grid import BevGrid
from perception.sensors.inputs import InputSpec

SPEC = InputSpec(BevGrid(), Lidar(sweeps=0), CameraBranch(), RIG)


def test_every_level_scores_as_its_frames_do(
    tables: NuScenesTables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    console, shown = Console(file=io.StringIO()), io.StringIO()
    names = ["lidar_noise", "lidar_missing", "camera_missing", "camera_noise"]
    predictor, applied = detector(tables), []
    for name in names:  # remember what each corruption made, to score it again below
        whole = CORRUPTIONS[name]

        def remember(frame, level, rng, cameras, name=name, apply=whole.apply):
            made = apply(frame, level, rng, cameras)
            applied.append((name, level, made))
            return made

        monkeypatch.setitem(CORRUPTIONS, name, replace(whole, apply=remember))
    every = Breakdown(corruptions=names)
    metrics = evaluate(predictor, tables, "all", [], tmp_path, SPEC, Console(file=shown, width=120), every)
    assert metrics == json.loads((tmp_path / "metrics.json").read_text())
    found = metrics["robustness"]["corruptions"]
    assert list(found) == names
    for name in names:
        for level in found[name]["levels"]:
            made = {frame.token: frame for kind, at, frame in applied if (kind, at) == (name, level["level"])}
            alone = evaluate(
                lambda f, made=made: predictor(made[f.token]), tables, "all", [], tmp_path / "b", SPEC, console
            )
            assert level["NDS"] == pytest.approx(alone["NDS"], abs=1e-9)
            assert level["mAP"] == pytest.approx(alone["mAP"], abs=1e-9)
            assert "mIoU" not in level  # no map was predicted
        mean = np.mean([level["NDS"] for level in found[name]["levels"]])
        assert found[name]["resilience"] == pytest.approx(mean / metrics["NDS"], abs=1e-12)
        assert name in shown.getvalue()
    assert metrics["robustness"]["mRA"] == pytest.approx(np.mean([each["resilience"] for each in found.values()]))
    assert found["lidar_missing"]["levels"][0]["mAP"] < 0.5 * metrics["mAP"]


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_touches_its_sensor_alone_and_more_at_each_level(tables: NuScenesTables, name: str) -> None:
    frame = tables.frame(tables.samples()[0])
    change = []
    for level in CORRUPTIONS[name].levels:
        made = [CORRUPTIONS[name].apply(frame, level, np.random.default_rng(0), CAMERAS) for _ in range(2)]
        change.append(difference(frame, made[0], CORRUPTIONS[name].sensor))
        assert difference(made[0], made[1], "lidar") == difference(made[0], made[1], "camera") == 0
        other = "camera" if CORRUPTIONS[name].sensor == "lidar" else "lidar"
        assert difference(frame, made[0], other) == 0
    assert change[0] > 0
    assert change == sorted(change)
    assert len(set(change)) == len(change)


def difference(a: Frame, b: Frame, sensor: str) -> float:
    """How far the data of a sensor are from each other; what is missing counts most."""
    if sensor == "lidar":
        if a.points is None or b.points is None:
            return 0.0 if a.points is b.points else np.inf
        gone = abs(len(a.points) - len(b.points))
        return float(gone) if gone else float(np.abs(a.points[:, :3] - b.points[:, :3]).sum())
    gone = len(a.cameras.keys() ^ b.cameras.keys())
    both = a.cameras.keys() & b.cameras.keys()
    pictures = sum(np.abs(a.cameras[n].image.astype(int) - b.cameras[n].image.astype(int)).mean() for n in both)
    mounting = sum(np.abs(a.cameras[n].ego_from_camera - b.cameras[n].ego_from_camera).sum() for n in both)
    return 1e6 * gone + float(pictures) + float(mounting)


def test_every_model_meets_the_same_frames(tables: NuScenesTables, tmp_path: Path) -> None:
    def watching(seen: list) -> Callable[[Frame], Prediction]:
        def predict(frame: Frame) -> Prediction:
            seen.append(frame.points.tobytes())
            return Prediction({"detection": Boxes.none()})

        return predict

    seen: tuple[list, list] = ([], [])
    for each, scenes in zip(seen, ([], ["scene-0001"]), strict=True):
        lidar = InputSpec(BevGrid(), Lidar(sweeps=0), camera=None, rig=RIG)
        both = Breakdown(corruptions=["lidar_noise", "lidar_miscalibrated"])
        console = Console(file=io.StringIO())
        metrics = evaluate(watching(each), tables, "all", scenes, tmp_path, lidar, console, both)
        assert metrics["robustness"]["mRA"] is None  # nothing is left of nothing
    assert set(seen[1]) <= set(seen[0])
    assert len(set(seen[0])) == len(seen[0]) == 6 * 7


def test_a_displaced_camera_is_displaced_alike_beside_a_missing_one(tables: NuScenesTables) -> None:
    whole = tables.frame(tables.samples()[0])
    partial = replace(whole, cameras={name: camera for name, camera in whole.cameras.items() if name != "CAM_FRONT"})
    displaced = [
        CORRUPTIONS["camera_miscalibrated"].apply(frame, 1.0, np.random.default_rng(5), CAMERAS)
        for frame in (whole, partial)
    ]
    assert len(displaced[1].cameras) == 5
    for name, camera in displaced[1].cameras.items():
        np.testing.assert_array_equal(camera.ego_from_camera, displaced[0].cameras[name].ego_from_camera)


def test_which_corruptions() -> None:
    assert chosen_corruptions([], ["lidar"]) == []
    assert chosen_corruptions(["all"], ["lidar", "camera"]) == list(CORRUPTIONS)
    assert {CORRUPTIONS[name].sensor for name in chosen_corruptions(["all"], ["camera"])} == {"camera"}
    with pytest.raises(InputError, match="--corruptions rust: no such corruption; all, or of lidar_noise,"):
        chosen_corruptions(["lidar_noise", "rust"], ["lidar", "camera"])
    with pytest.raises(InputError, match="--corruptions camera_blur: the model does not see that sensor; all, or of"):
        chosen_corruptions(["camera_blur"], ["lidar"])
    assert int(CORRUPTIONS["camera_missing"].levels[-1]) == len(CAMERAS)
