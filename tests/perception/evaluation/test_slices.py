"""Scores of parts of an evaluation equal those of the devkit, or of a count cell by cell, on that part alone."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.detection.data_classes import DetectionBox
from nuscenes.eval.detection.evaluate import DetectionEval
from rich.console import Console
from sliced import MAP_GRID, SPEC
from vocabulary import ATTRIBUTES, CLASSES, MAP_CLASSES, NUSCENES

from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.datasets.nuscenes.map_expansion import MapExpansion
from perception.errors import InputError
from perception.evaluation.evaluate import Breakdown, evaluate
from perception.frame import Boxes, Frame, Prediction
from perception.rotations import rotation_matrices
from perception.tasks.detection.devkit import boxes_to_compare, open_devkit, score_submission
from perception.tasks.map.iou import MapIou


def published(path: Path) -> Any:
    """A predictor that repeats a submission."""
    results = json.loads(path.read_text())["results"]

    def predict(frame: Frame) -> Prediction:
        rows = results[frame.token]
        boxes = Boxes(
            centers=np.array([row["translation"] for row in rows]).reshape(-1, 3),
            sizes=np.array([row["size"] for row in rows]).reshape(-1, 3),
            rotations=rotation_matrices(np.array([row["rotation"] for row in rows]).reshape(-1, 4)),
            velocities=np.array([[*row["velocity"], 0] for row in rows]).reshape(-1, 3),
            labels=np.array([CLASSES.index(row["detection_name"]) for row in rows], np.int64),
            attributes=np.array([[*ATTRIBUTES, ""].index(row["attribute_name"]) for row in rows], np.int64),
            scores=np.array([row["detection_score"] for row in rows]),
            num_points=np.full(len(rows), -1),
            instances=np.full(len(rows), ""),
        )
        return Prediction({"detection": boxes.transformed(np.linalg.inv(frame.global_from_reference))})

    return predict


def test_parts_score_as_the_devkit_scores_them_alone(nuscenes_root: Path, tmp_path: Path) -> None:
    tables = NuScenesTables(nuscenes_root, "v1.0-mini")
    predictor = published(nuscenes_root / "results" / "pointpillars_mini_val" / "results_nusc.json")
    shown = io.StringIO()
    by = Breakdown(["condition", "city", "scene", "range"])
    metrics = evaluate(predictor, tables, "mini_val", [], tmp_path, SPEC, Console(file=shown, width=120), by)
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
    for name, bounds in {"0-20 m": (0, 20), "20-30 m": (20, 30), "30-50 m": (30, 50)}.items():
        assert_equal(slices["range"][name], devkit_in_range(tmp_path / "results_nusc.json", nusc, tables, bounds))
        assert slices["range"][name]["samples"] == metrics["samples"]
        assert name in shown.getvalue()


def assert_equal(part: dict, devkits: dict) -> None:
    for ours in ("mAP", "NDS", "mAP_present"):
        assert part[ours] == pytest.approx(devkits[ours], abs=1e-9)
    assert part["boxes"] == sum(devkits["ground_truth"].values())
    for name, count in devkits["ground_truth"].items():
        expected = pytest.approx(devkits["mean_dist_aps"][name], abs=1e-9) if count else None
        assert part["AP"][name] == expected


def devkit_in_range(path: Path, nusc: Any, tables: NuScenesTables, bounds: tuple[float, float]) -> dict:
    """The devkit's scores of what it says is so far from the vehicle."""

    class InRange(DetectionEval):
        def __init__(self) -> None:
            self.cfg, self.verbose = config_factory("detection_cvpr_2019"), False
            samples = tables.samples("mini_val")
            self.pred_boxes, self.gt_boxes = map(near, boxes_to_compare(path, nusc, samples, self.cfg, DetectionBox))

    def near(boxes: EvalBoxes) -> EvalBoxes:
        kept = EvalBoxes()
        for token in boxes.sample_tokens:
            kept.add_boxes(token, [box for box in boxes[token] if bounds[0] <= box.ego_dist < bounds[1]])
        return kept

    evaluation = InRange()
    summary = evaluation.evaluate()[0].serialize()
    names = [box.detection_name for box in evaluation.gt_boxes.all]
    present = [ap for name, ap in summary["mean_dist_aps"].items() if name in names]
    return {
        "mAP": summary["mean_ap"],
        "NDS": summary["nd_score"],
        "mAP_present": np.mean(present),
        "ground_truth": {name: names.count(name) for name in CLASSES},
        "mean_dist_aps": summary["mean_dist_aps"],
    }


def test_the_map_of_parts_is_counted_in_their_cells(sim_root: Path, tmp_path: Path) -> None:
    tables = NuScenesTables(sim_root, "v1.0-sim")
    seen: list[tuple[Frame, np.ndarray, np.ndarray]] = []

    def predict(frame: Frame) -> Prediction:
        """The map with every fifth cell wrong, and no boxes."""
        expansion = MapExpansion.load(sim_root, frame.location, NUSCENES.map_layers)
        truth = expansion.rasterize(frame, MAP_GRID)
        wrong = np.random.default_rng(len(seen)).random(truth.shape) < 0.2
        probabilities = (truth.astype(bool) ^ wrong).astype(np.float32)
        seen.append((frame, probabilities, truth))
        return Prediction({"detection": Boxes.none(), "map": probabilities})

    console = Console(file=io.StringIO())
    by = Breakdown(["condition", "city", "range"])
    slices = evaluate(predict, tables, "all", [], tmp_path, SPEC, console, by)["slices"]
    assert list(slices["condition"]) == ["clear", "rain", "day", "night", *slices["city"]]
    for axis in ("condition", "city"):
        for name, part in slices[axis].items():
            own = [each for each in seen if name in each[0].conditions.known()]
            assert part["samples"] == len(own) == 3
            assert part["mAP"] == 0  # there are boxes, and none was found
            iou = MapIou(MAP_CLASSES)
            for _, probabilities, truth in own:
                iou.add(probabilities, truth)
            expected = iou.result()["iou_0.5"]
            assert part["mIoU"] == pytest.approx(expected.pop("mean"), abs=1e-12)
            assert part["IoU"] == expected
    distance = np.linalg.norm(MAP_GRID.centers(), axis=2)
    for name, (near, far) in {"0-20 m": (0, 20), "20-30 m": (20, 30), "30-50 m": (30, 50)}.items():
        ring = (distance >= near) & (distance < far)
        for i, map_class in enumerate(MAP_CLASSES):
            both = sum(int((p[i].astype(bool) & t[i].astype(bool))[ring].sum()) for _, p, t in seen)
            either = sum(int((p[i].astype(bool) | t[i].astype(bool))[ring].sum()) for _, p, t in seen)
            there = any(t[i][ring].any() for _, _, t in seen)
            assert slices["range"][name]["IoU"][map_class] == (pytest.approx(both / either) if there else None)


def test_an_axis_that_there_is_not(tables: NuScenesTables, tmp_path: Path) -> None:
    by = Breakdown(["season"])
    with pytest.raises(
        InputError, match="--by season: cannot slice by it; one or more of condition,scene,range,weather,light,city"
    ):
        evaluate(lambda _: Prediction({}), tables, "all", [], tmp_path, SPEC, breakdown=by)
    assert not list(tmp_path.iterdir())
