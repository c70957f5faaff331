"""Scores of parts and of corrupted sensors are those of their frames alone, by the devkit or a count; batches."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import one_line_error
from detectors import detector
from maps import map_iou
from networks import model
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.detection.data_classes import DetectionBox
from nuscenes.eval.detection.evaluate import DetectionEval
from rich.console import Console
from tiny import write_tiny
from vocabulary import CAMERAS, CLASSES, MAP_CLASSES, NUSCENES, RIG

from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.datasets.nuscenes.map_expansion import MapExpansion
from perception.errors import InputError
from perception.evaluation.evaluate import Breakdown, evaluate
from perception.evaluation.robustness import CORRUPTIONS, apply_corruption, choose_corruptions, levels_of, robustness
from perception.frame import Boxes, Frame, Prediction
from perception.grid import BevGrid
from perception.predict import TorchPredictor
from perception.sensors.camera.config import CameraBranch
from perception.sensors.inputs import InputSpec
from perception.sensors.lidar.config import Lidar
from perception.tasks.detection.columns import BoxColumns, read_submission
from perception.tasks.detection.devkit import boxes_to_compare, open_devkit, score_submission

LIDAR = InputSpec(BevGrid(), {"lidar": Lidar(sweeps=0)}, RIG, truth=("boxes", "bicycle_racks", "map"))
BOTH = replace(LIDAR, configs={**LIDAR.configs, "camera": CameraBranch()})
RINGS = {"0-20 m": (0, 20), "20-30 m": (20, 30), "30-50 m": (30, 50)}


def console() -> Console:
    return Console(file=io.StringIO(), width=120)


def published(path: Path, tokens: list[str]) -> Callable[[Frame], Prediction]:
    """A predictor that repeats a submission."""
    every = BoxColumns.joined(read_submission(path, {token: i for i, token in enumerate(tokens)}, NUSCENES))

    def predict(frame: Frame) -> Prediction:
        own = every.select(every.frames == tokens.index(frame.token))
        what = (own.labels, own.attributes, own.scores)
        boxes = Boxes.from_yaws(own.centers, own.sizes, own.yaws, own.velocities, *what)
        return Prediction({"detection": boxes.transformed(np.linalg.inv(frame.global_from_reference))})

    return predict


def test_parts_score_as_the_devkit_scores_them_alone(nuscenes_root: Path, tmp_path: Path) -> None:
    tables = NuScenesTables(nuscenes_root, "v1.0-mini")
    submission = nuscenes_root / "results" / "pointpillars_mini_val" / "results_nusc.json"
    predictor = published(submission, tables.samples("mini_val"))
    shown, by = console(), Breakdown(["condition", "city", "scene", "range"])
    metrics = evaluate(predictor, tables, "mini_val", [], tmp_path, LIDAR, shown, by)
    assert metrics == json.loads((tmp_path / "metrics.json").read_text())
    slices = metrics["slices"]
    assert list(slices["scene"]) == ["scene-0103", "scene-0916"]
    assert list(slices["city"]) == ["boston", "singapore"]
    nusc = open_devkit(nuscenes_root, "v1.0-mini")
    for scene, city in zip(slices["scene"], slices["city"], strict=True):
        own = score_submission(tmp_path / "results_nusc.json", nusc, tables.samples("mini_val", [scene]))
        assert_equal(slices["scene"][scene], own)
        assert slices["city"][city] == slices["scene"][scene]
    # Both drives are known to be by day, and of none is known that it rains.
    assert_equal(slices["condition"]["day"], metrics)
    assert slices["condition"].keys() <= {"clear", "day", "boston", "singapore"}
    for name, bounds in RINGS.items():
        assert_equal(slices["range"][name], devkit_in_range(tmp_path / "results_nusc.json", nusc, tables, bounds))
        assert slices["range"][name]["samples"] == metrics["samples"]
        assert name in shown.file.getvalue()


def assert_equal(part: dict, devkits: dict) -> None:
    for ours in ("mAP", "NDS", "mAP_present"):
        assert part[ours] == pytest.approx(devkits[ours], abs=1e-9)
    assert part["boxes"] == sum(devkits["ground_truth"].values())
    for name, count in devkits["ground_truth"].items():
        expected = pytest.approx(devkits["mean_dist_aps"][name], abs=1e-9) if count else None
        assert part["AP"][name] == expected


def devkit_in_range(path: Path, nusc: Any, tables: NuScenesTables, bounds: tuple[float, float]) -> dict:
    """The devkit's scores of what it says is so far from the vehicle."""

    def near(boxes: EvalBoxes) -> EvalBoxes:
        kept = EvalBoxes()
        for token in boxes.sample_tokens:
            kept.add_boxes(token, [box for box in boxes[token] if bounds[0] <= box.ego_dist < bounds[1]])
        return kept

    evaluation = object.__new__(DetectionEval)
    evaluation.cfg, evaluation.verbose = config_factory("detection_cvpr_2019"), False
    boxes = boxes_to_compare(path, nusc, tables.samples("mini_val"), evaluation.cfg, DetectionBox)
    evaluation.pred_boxes, evaluation.gt_boxes = map(near, boxes)
    summary = evaluation.evaluate()[0].serialize()
    names = [box.detection_name for box in evaluation.gt_boxes.all]
    return {
        "mAP": summary["mean_ap"],
        "NDS": summary["nd_score"],
        "mAP_present": np.mean([ap for name, ap in summary["mean_dist_aps"].items() if name in names]),
        "ground_truth": {name: names.count(name) for name in CLASSES},
        "mean_dist_aps": summary["mean_dist_aps"],
    }


def test_the_map_of_parts_is_counted_in_their_cells(sim_root: Path, tmp_path: Path) -> None:
    tables, grid = NuScenesTables(sim_root, "v1.0-sim"), LIDAR.grid.coarser(4)
    seen: list[tuple[Frame, np.ndarray, np.ndarray]] = []

    def predict(frame: Frame) -> Prediction:
        """The map with every fifth cell wrong, and no boxes."""
        truth = MapExpansion.load(sim_root, frame.location, NUSCENES.map_layers).rasterize(frame, grid)
        wrong = np.random.default_rng(len(seen)).random(truth.shape) < 0.2
        probabilities = (truth.astype(bool) ^ wrong).astype(np.float32)
        seen.append((frame, probabilities, truth))
        return Prediction({"detection": Boxes.none(), "map": probabilities})

    by = Breakdown(["condition", "city", "range"])
    slices = evaluate(predict, tables, "all", [], tmp_path, LIDAR, console(), by)["slices"]
    assert list(slices["condition"]) == ["clear", "rain", "day", "night", *slices["city"]]
    for axis in ("condition", "city"):
        for name, part in slices[axis].items():
            own = [each for each in seen if name in each[0].conditions.known()]
            assert part["samples"] == len(own) == 3
            assert part["mAP"] == 0  # there are boxes, and none was found
            expected = map_iou([(probabilities, truth) for _, probabilities, truth in own])["iou_0.5"]
            assert part["mIoU"] == pytest.approx(expected.pop("mean"), abs=1e-12)
            assert part["IoU"] == expected
    distance = np.linalg.norm(grid.centers(), axis=2)
    for name, (near, far) in RINGS.items():
        ring = (distance >= near) & (distance < far)
        for i, map_class in enumerate(MAP_CLASSES):
            both = sum(int((p[i].astype(bool) & t[i].astype(bool))[ring].sum()) for _, p, t in seen)
            either = sum(int((p[i].astype(bool) | t[i].astype(bool))[ring].sum()) for _, p, t in seen)
            there = any(t[i][ring].any() for _, _, t in seen)
            assert slices["range"][name]["IoU"][map_class] == (pytest.approx(both / either) if there else None)


def test_an_axis_that_there_is_not(tables: NuScenesTables, tmp_path: Path) -> None:
    says = "--by season: cannot slice by it; one or more of condition,scene,range,weather,light,city"
    with pytest.raises(InputError, match=says):
        evaluate(lambda _: Prediction({}), tables, "all", [], tmp_path, LIDAR, breakdown=Breakdown(["season"]))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow("evaluates each level of three corruptions twice")
def test_every_level_scores_as_its_frames_do(tables: NuScenesTables, tmp_path: Path) -> None:
    shown, names = console(), ["lidar_noise", "lidar_missing", "camera_noise"]
    predictor, scenes, every = detector(tables), ["scene-0001:0-2"], Breakdown(corruptions=names)
    metrics = evaluate(predictor, tables, "all", scenes, tmp_path, BOTH, shown, every)
    assert metrics == json.loads((tmp_path / "metrics.json").read_text())
    found = metrics["robustness"]["corruptions"]
    assert list(found) == names
    for name in names:
        assert [level["level"] for level in found[name]["levels"]] == list(CORRUPTIONS[name].levels)
        for level in found[name]["levels"]:

            def beforehand(frame, name=name, level=level["level"]):
                return predictor(apply_corruption(frame, name, level, CAMERAS))

            alone = evaluate(beforehand, tables, "all", scenes, tmp_path / "b", BOTH, console())
            assert level["NDS"] == pytest.approx(alone["NDS"], abs=1e-9)
            assert level["mAP"] == pytest.approx(alone["mAP"], abs=1e-9)
            assert "mIoU" not in level  # no map was predicted
        mean = np.mean([level["NDS"] for level in found[name]["levels"]])
        assert found[name]["resilience"] == pytest.approx(mean / metrics["NDS"], abs=1e-12)
        assert name in shown.file.getvalue()
    assert metrics["robustness"]["mRA"] == pytest.approx(np.mean([each["resilience"] for each in found.values()]))
    assert found["lidar_missing"]["levels"][0]["mAP"] < 0.5 * metrics["mAP"]


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_touches_its_sensor_alone_and_more_at_each_level(tables: NuScenesTables, name: str) -> None:
    frame, corruption, change = tables.frame(tables.samples()[0]), CORRUPTIONS[name], []
    for level in corruption.levels:
        made = [corruption.apply(frame, level, np.random.default_rng(0), CAMERAS) for _ in range(2)]
        change.append(difference(frame, made[0], corruption.sensor))
        assert difference(made[0], made[1], "lidar") == difference(made[0], made[1], "camera") == 0
        assert difference(frame, made[0], "camera" if corruption.sensor == "lidar" else "lidar") == 0
    assert change[0] > 0
    assert change == sorted(set(change))


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
    seen: list[list[bytes]] = []

    def predict(frame: Frame) -> Prediction:
        seen[-1].append(frame.points.tobytes())  # type: ignore[union-attr]
        return Prediction({"detection": Boxes.none()})

    both = Breakdown(corruptions=["lidar_noise", "lidar_miscalibrated"])
    for scenes in ([], ["scene-0001"]):
        seen.append([])
        metrics = evaluate(predict, tables, "all", scenes, tmp_path, LIDAR, console(), both)
        assert metrics["robustness"]["mRA"] is None  # nothing is left of nothing
    assert set(seen[1]) <= set(seen[0])
    assert len(set(seen[0])) == len(seen[0]) == 6 * 7


def test_a_displaced_camera_is_displaced_alike_beside_a_missing_one(tables: NuScenesTables) -> None:
    whole, apply = tables.frame(tables.samples()[0]), CORRUPTIONS["camera_miscalibrated"].apply
    fewer = replace(whole, cameras={name: camera for name, camera in whole.cameras.items() if name != "CAM_FRONT"})
    every, others = (apply(each, 1.0, np.random.default_rng(5), CAMERAS).cameras for each in (whole, fewer))
    assert len(others) == 5
    for name, camera in others.items():
        np.testing.assert_array_equal(camera.ego_from_camera, every[name].ego_from_camera)


def test_nothing_is_relative_to_a_level_without_a_score() -> None:
    parts: list[dict[str, Any]] = [{"samples": 1, "points": points} for points in (50.0, 50.0, 50.0, 50.0, None)]
    levels = levels_of(["lidar_noise", "lidar_missing"], CAMERAS)
    found = robustness("points", parts[0], dict(zip(levels, parts[1:], strict=True)))
    assert [each["resilience"] for each in found["corruptions"].values()] == [1.0, None]
    given_levels = [[level["level"] for level in each["levels"]] for each in found["corruptions"].values()]
    assert given_levels == [[0.05, 0.1, 0.2], [1]]
    assert found["mRA"] == 1.0


def test_which_corruptions() -> None:
    assert choose_corruptions([], ["lidar"]) == []
    assert choose_corruptions(["all"], ["lidar", "camera"]) == list(CORRUPTIONS)
    assert {CORRUPTIONS[name].sensor for name in choose_corruptions(["all"], ["camera"])} == {"camera"}
    with pytest.raises(InputError, match="--corruptions rust: no such corruption; all, or of lidar_noise,"):
        choose_corruptions(["lidar_noise", "rust"], ["lidar", "camera"])
    with pytest.raises(InputError, match="--corruptions camera_blur: the model does not see that sensor; all, or of"):
        choose_corruptions(["camera_blur"], ["lidar"])
    assert int(CORRUPTIONS["camera_missing"].levels[-1]) == len(CAMERAS)


def predictor(batch: int, workers: int = 0) -> TorchPredictor:
    network = model()
    data = network.config.data.model_copy(update={"workers": workers})
    network.config = network.config.model_copy(update={"data": data})
    return TorchPredictor(network, batch)


def values(prediction: Prediction) -> np.ndarray:
    """(n,) all numbers of the boxes, ordered by place because rounding orders equal scores, and those of the map."""
    boxes = prediction.results["detection"]
    boxes = boxes.select(np.lexsort((boxes.labels, boxes.centers[:, 1], boxes.centers[:, 0])))
    parts = (boxes.centers, boxes.sizes, boxes.rotations, boxes.velocities, boxes.scores, prediction.results["map"])
    return np.concatenate([part.ravel() for part in parts])


def test_batches_have_the_results_of_single_frames(recorded_root: Path) -> None:
    tables, found = NuScenesTables(recorded_root, "v1.0-tiny"), []
    for change in (None, partial(apply_corruption, name="lidar_missing", level=1, cameras=CAMERAS)):
        each: dict[int, list[tuple[Frame, Prediction]]] = {}
        for batch, workers in ((1, 0), (2, 1)):
            predict = predictor(batch, workers)
            reads = predict.spec.reads._replace(change=change)
            each[batch] = list(predict.predictions(tables, reads, tables.samples()))
        assert [frame.token for frame, _ in each[2]] == tables.samples()
        assert all((frame.points is None) == (change is not None) for frame, _ in each[2])  # as the model saw them
        for (_, single), (_, batched) in zip(each[1], each[2], strict=True):
            np.testing.assert_allclose(values(batched), values(single), rtol=1e-3, atol=1e-3)
            found.append(values(batched)[-100:])
    assert len({one.round(3).tobytes() for one in found}) == 6  # each frame and change has its own


def test_a_damaged_file_in_a_worker_is_one_line(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    file = next((tmp_path / "samples" / "CAM_FRONT").iterdir())
    file.write_bytes(b"damaged")
    each = predictor(2, workers=1)
    with one_line_error(at=file):
        evaluate(each, NuScenesTables(tmp_path, "v1.0-tiny"), "all", (), tmp_path / "out", each.spec, console())
