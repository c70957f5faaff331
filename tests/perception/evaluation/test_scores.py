"""Scores are the devkit's: published results, random boxes, drawn scenes, racks; the map; unusable submissions."""

import io
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import one_line_error
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import random_boxes
from maps import MapWriter, map_iou
from nuscenes import NuScenes
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.detection.algo import accumulate
from nuscenes.eval.detection.data_classes import DetectionMetrics
from nuscenes.eval.detection.evaluate import DetectionEval
from nuscenes.utils.data_classes import Box
from nuscenes.utils.geometry_utils import points_in_box
from pyquaternion import Quaternion
from rich.console import Console
from vocabulary import ATTRIBUTES, CLASSES, MAP_CLASSES, NUSCENES, RIG

from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.errors import InputError
from perception.evaluation.evaluate import evaluate
from perception.frame import Boxes, Frame, Prediction
from perception.grid import BevGrid
from perception.sensors.inputs import InputSpec
from perception.sensors.lidar.config import Lidar
from perception.tasks.detection.columns import BoxColumns, read_submission
from perception.tasks.detection.devkit import DEVKITS, Devkit, compare, open_devkit, require_official, score_submission
from perception.tasks.detection.scores import ERRORS, THRESHOLDS, DetectionScores, Scores
from perception.tasks.map.task import THRESHOLDS as LEVELS
from perception.taxonomy import Taxonomy, load_taxonomy

CONFIG = config_factory("detection_cvpr_2019")
SPLITS = {"boston": ["scene-0103"]}
EAST = 610.0  # m; scene-0103 starts ten metres west of it
SPEC = InputSpec(BevGrid(), {"lidar": Lidar(sweeps=0)}, RIG, truth=("boxes", "bicycle_racks", "map"))
CLOSE = {"rtol": 0, "atol": 1e-9}
BOX = {  # as a nuScenes submission has it
    "sample_token": "", "translation": [0, 0, 0], "size": [1, 1, 1], "rotation": [1, 0, 0, 0], "velocity": [0, 0],
    "detection_name": "car", "detection_score": 0.5, "attribute_name": "",
}  # fmt: skip


@pytest.fixture(scope="module")
def dataroot(nuscenes_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real dataroot with custom splits, and a map of one city: a drivable area, Boston east of EAST."""
    root = tmp_path_factory.mktemp("nuscenes")
    for folder in ("samples", "sweeps"):
        (root / folder).symlink_to(nuscenes_root / folder)
    for folder in ("maps", "v1.0-mini"):
        (root / folder).mkdir()
    for file in (*(nuscenes_root / "maps").glob("*.png"), *(nuscenes_root / "v1.0-mini").glob("*.json")):
        (root / file.relative_to(nuscenes_root)).symlink_to(file)
    (root / "v1.0-mini" / "splits.json").write_text(json.dumps(SPLITS))
    boston, corners = MapWriter(), [(EAST, 0), (EAST + 2000, 0), (EAST + 2000, 3000), (EAST, 3000)]
    boston.area("drivable_area", boston.polygon(corners))
    boston.write(root)
    return root


@pytest.fixture(scope="module")
def tables(dataroot: Path) -> NuScenesTables:
    return NuScenesTables(dataroot, "v1.0-mini")


@pytest.fixture(scope="module")
def nusc(dataroot: Path) -> NuScenes:
    return open_devkit(dataroot, "v1.0-mini")


def perfect(tables: NuScenesTables, keep: Callable[[Boxes], np.ndarray]) -> Callable[[Frame], Prediction]:
    """A predictor that knows the annotations, and predicts those that `keep` selects."""

    def predict(frame: Frame) -> Prediction:
        assert not frame.cameras  # a model without cameras does not have them read
        boxes = tables.recording(frame.token).annotated("boxes")
        boxes = boxes.select((boxes.num_points > 0) & keep(boxes))  # the devkit drops annotations without points
        return Prediction({"detection": boxes.transformed(np.linalg.inv(frame.global_from_reference))})

    return predict


def flat(scores: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], float]:
    """Every number of nested dicts; NaN for None."""
    if not isinstance(scores, dict):
        return {path: np.nan if scores is None else scores}
    return {at: number for key, each in scores.items() for at, number in flat(each, (*path, str(key))).items()}


@pytest.mark.parametrize("split", ["mini_val", "boston"])
def test_the_published_numbers_are_reproduced_and_those_of_custom_splits(tables, nusc, nuscenes_root, tmp_path, split):
    published = nuscenes_root / "results" / "pointpillars_mini_val" / "results_nusc.json"
    scores = score_submission(published, nusc, tables.samples("mini_val", SPLITS.get(split, [])))
    assert scores == json.loads(json.dumps(scores, allow_nan=False))
    official = DetectionEval(nusc, CONFIG, str(published), split, str(tmp_path), verbose=False)
    summary = official.evaluate()[0].serialize()
    if split == "mini_val":
        summary = json.loads((published.parent / "metrics_summary.json").read_text())
    theirs = {"mAP": summary["mean_ap"], "NDS": summary["nd_score"]}
    theirs |= {key: summary[key] for key in ("label_aps", "mean_dist_aps", "label_tp_errors", "tp_errors", "tp_scores")}
    assert flat({key: scores[key] for key in theirs}) == pytest.approx(flat(theirs), rel=0, abs=1e-9, nan_ok=True)
    names = [box.detection_name for box in official.gt_boxes.all]
    assert scores["ground_truth"] == {name: names.count(name) for name in CONFIG.class_names}
    present = [summary["mean_dist_aps"][name] for name in set(names)]
    assert len(present) < len(CLASSES)
    assert scores["mAP_present"] == pytest.approx(np.mean(present), abs=1e-12)


@pytest.mark.parametrize("reference", ["ego", "lidar"])
def test_evaluate_writes_and_shows_what_it_returns(tables, tmp_path, reference):
    """The devkit judges the same submission; a score that was changed shows as a difference of just that size."""
    out, console = tmp_path / "new" / "folder", Console(file=io.StringIO(), width=120)
    cars = perfect(tables, keep=lambda boxes: boxes.labels == CLASSES.index("car"))

    def watched(frame: Frame) -> Prediction:
        assert frame.reference == reference
        return cars(frame)

    spec = replace(SPEC, grid=BevGrid(reference=reference))
    metrics = evaluate(watched, tables, "mini_val", ["scene-0103:0-4"], out, spec, console)
    assert metrics == json.loads((out / "metrics.json").read_text())
    assert (metrics["split"], metrics["samples"]) == ("mini_val", 4)
    results = json.loads((out / "results_nusc.json").read_text())
    assert results["meta"]["use_lidar"]
    assert not results["meta"]["use_camera"]
    assert list(results["results"]) == tables.samples("mini_val", ["scene-0103:0-4"])
    # The four keyframes hold cars, pedestrians and traffic cones in range; cars alone were predicted.
    present = [name for name, count in metrics["ground_truth"].items() if count]
    assert metrics["mAP"] == pytest.approx(1 / 10)
    assert metrics["mAP_present"] == pytest.approx(1 / len(present))
    assert {error: value for error, value in metrics["label_tp_errors"]["car"].items() if abs(value) > 1e-6} == {}
    assert "map" not in metrics  # no map was predicted
    recalls = {name: {*each.values()} for name, each in metrics["label_recalls"].items()}
    assert recalls == {name: {float(name == "car") if name in present else None} for name in CLASSES}
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for expected in ("mAP 0.100", f"NDS {metrics['NDS']:.3f}", f"mAP_present {metrics['mAP_present']:.3f}", *CLASSES):
        assert expected in shown
    compared = compare(out, tables, metrics, console)
    assert compared["official"]["largest_difference"] <= 1e-9
    assert compared["official"]["mAP"] == pytest.approx(1 / 10)
    assert json.loads((out / "metrics.json").read_text()) == compared
    wrong = compare(out, tables, metrics | {"NDS": metrics["NDS"] - 0.25}, console)
    assert wrong["official"]["largest_difference"] == pytest.approx(0.25)
    undefined = compare(out, tables, metrics | {"mAP": None}, console)
    assert undefined["official"]["largest_difference"] is None


def test_recalls_count_the_boxes_that_are_matched_at_each_distance() -> None:
    def cars(*places: float) -> BoxColumns:
        rows = np.zeros((len(places), 14))
        rows[:, 2], rows[:, 5:8], rows[:, 12] = places, 1.0, np.linspace(1, 0.1, len(places))
        return BoxColumns(rows)

    found = DetectionScores(cars(0, 10, 20, 30, 40), cars(0.2, 0.3, 10.7, 21.5, 33.0), np.zeros(1, np.int64), NUSCENES)
    car, *others = found.recalls()
    assert car.tolist() == [0.2, 0.4, 0.6, 0.8]
    assert np.isnan(others).all()


def test_the_map_is_scored_where_there_is_one(tables: NuScenesTables, tmp_path: Path) -> None:
    def unsure(frame: Frame) -> Prediction:
        """Right about the drivable area, with a probability of 0.4; useless where there is no map."""
        probabilities = np.zeros((len(MAP_CLASSES), 32, 32), np.float32)  # the head's cells are 4 pillars wide
        middles = SPEC.grid.coarser(4).centers()
        east = middles @ frame.global_from_reference[0, :2] + frame.global_from_reference[0, 3]
        if frame.location == "boston-seaport":
            assert 0.1 < (east > EAST).mean() < 0.9
            probabilities[0] = 0.4 * (east > EAST)
        else:
            probabilities[0] = 1
        return Prediction({"detection": Boxes.none(), "map": probabilities})

    console = Console(file=io.StringIO())
    scenes = ["scene-0103:0-2", "scene-0916:0-2"]
    ious = evaluate(unsure, tables, "mini_val", scenes, tmp_path, SPEC, console)["map"]
    absent = dict.fromkeys(MAP_CLASSES[1:])
    assert ious == {
        "iou_max": absent | {"drivable_area": 1.0, "mean": 1.0},
        "iou_0.5": absent | {"drivable_area": 0.0, "mean": 0.0},
    }
    assert "IoU max" in console.file.getvalue()
    elsewhere = evaluate(unsure, tables, None, scenes[1:], tmp_path, SPEC, console)
    assert (elsewhere["split"], elsewhere["map"]) == ("all", None)


@given(seed=st.integers(0, 2**32 - 1), frames=st.integers(1, 3), density=st.floats(0, 1))
def test_map_iou_is_the_brute_force_count(seed: int, frames: int, density: float) -> None:
    rng = np.random.default_rng(seed)
    shape, pairs = (len(MAP_CLASSES), 3, 4), []
    assert map_iou([]) is None
    for _ in range(frames):
        # Probabilities on the thresholds themselves are the cases that rounding gets wrong.
        values = np.where(rng.random(shape) < 0.5, rng.choice(LEVELS, shape), rng.random(shape)).astype(np.float32)
        pairs.append((values, (rng.random(shape) < density).astype(np.uint8)))
    found, best, half = map_iou(pairs), {}, {}
    for c, name in enumerate(MAP_CLASSES):
        if not any(truth[c].any() for _, truth in pairs):
            assert found["iou_max"][name] is found["iou_0.5"][name] is None
            continue
        at = {}
        for threshold in LEVELS:
            cells = [each for p, t in pairs for each in zip(p[c].flat, t[c].flat, strict=True)]
            inter = sum(bool(p >= threshold and t) for p, t in cells)
            at[threshold] = inter / sum(bool(p >= threshold or t) for p, t in cells)
        best[name], half[name] = max(at.values()), at[np.float32(0.5)]
        assert found["iou_max"][name] == pytest.approx(best[name])
        assert found["iou_0.5"][name] == pytest.approx(half[name])
    for key, expected in (("iou_max", best), ("iou_0.5", half)):
        mean = pytest.approx(np.mean(list(expected.values()))) if expected else None
        assert found[key]["mean"] == mean


def test_without_the_devkit_scores_are_ours(tables, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] in ("nuscenes", "motmetrics", "pyquaternion")]:
        monkeypatch.setitem(sys.modules, name, None)
    every, scenes = perfect(tables, lambda b: b.labels >= 0), ["scene-0103:0-2"]
    metrics = evaluate(every, tables, "mini_val", scenes, tmp_path, SPEC, Console(quiet=True))
    assert metrics["samples"] == 2
    assert metrics["mAP_present"] == pytest.approx(1)
    with pytest.raises(InputError, match=r"not installed; .*`pip install --no-deps .*nuscenes-devkit motmetrics`"):
        require_official(tables)


def devkit_boxes(
    boxes: BoxColumns, tokens: Sequence[str], taxonomy: Taxonomy = NUSCENES, devkit: Devkit = DEVKITS["nuscenes"]
) -> EvalBoxes:
    made = devkit.module("common.data_classes").EvalBoxes()
    box_type = devkit.module("detection.data_classes").DetectionBox
    for token in tokens:
        made.add_boxes(token, [])
    for i in range(len(boxes)):
        token, attribute = tokens[boxes.frames[i]], boxes.attributes[i]
        own = box_type(
            sample_token=token, translation=tuple(boxes.centers[i]), size=tuple(boxes.sizes[i]),
            rotation=tuple(Quaternion(axis=[0, 0, 1], radians=boxes.yaws[i])), velocity=tuple(boxes.velocities[i]),
            num_pts=int(boxes.num_points[i]), detection_name=taxonomy.class_names[boxes.labels[i]],
            detection_score=float(boxes.scores[i]),
            attribute_name=taxonomy.attributes[attribute] if attribute >= 0 else "",
        )  # fmt: skip
        made.add_boxes(token, [own])
    return made


def devkit_scores(
    truth: BoxColumns, detections: BoxColumns, frames: int, name: str = "nuscenes", taxonomy: Taxonomy = NUSCENES
) -> DetectionMetrics:
    """DetectionEval.evaluate on boxes that are filtered already."""
    tokens, devkit = [f"s{i}" for i in range(frames)], DEVKITS[name]
    evaluation = object.__new__(devkit.module("detection.evaluate").DetectionEval)
    evaluation.cfg, evaluation.verbose = devkit.module("common.config").config_factory(devkit.protocol), False
    evaluation.gt_boxes = devkit_boxes(truth, tokens, taxonomy, devkit)
    evaluation.pred_boxes = devkit_boxes(detections, tokens, taxonomy, devkit)
    evaluation.gt_boxes_masks = evaluation.pred_boxes_masks = {}
    metrics, _ = evaluation.evaluate()
    return metrics["all"] if devkit.package == "truckscenes" else metrics


def assert_devkits(scores: Scores, draw: int, theirs: DetectionMetrics, taxonomy: Taxonomy = NUSCENES) -> None:
    for label, name in enumerate(taxonomy.class_names):
        aps = [theirs.get_label_ap(name, threshold) for threshold in THRESHOLDS]
        np.testing.assert_allclose(scores.aps[draw, label], aps, **CLOSE, err_msg=name)
        errors = [theirs.get_label_tp(name, error) for error in ERRORS]
        np.testing.assert_allclose(scores.errors[draw, label], errors, **CLOSE, err_msg=name)
    np.testing.assert_allclose(scores.mean_ap[draw], theirs.mean_ap, **CLOSE)
    np.testing.assert_allclose(scores.nds[draw], theirs.nd_score, **CLOSE)


def in_order(boxes: BoxColumns) -> BoxColumns:
    """Frame by frame, as in a file."""
    return boxes.select(np.argsort(boxes.frames, kind="stable"))


@pytest.mark.parametrize(("seed", "boxes"), [(0, 60), (1, 60), (2, 5), (3, 1)])
def test_precision_recall_curves_are_the_devkits(seed: int, boxes: int) -> None:
    truth, detections = map(in_order, random_boxes(np.random.default_rng(seed), 3, ties=seed == 1, boxes=boxes))
    tokens = [f"s{i}" for i in range(3)]
    theirs = [devkit_boxes(each, tokens) for each in (truth, detections)]
    ours = DetectionScores(truth, detections, np.array([0, 1, 1]), NUSCENES).precisions()
    for label, name in enumerate(CLASSES):
        for level, threshold in enumerate(THRESHOLDS):
            curve = accumulate(*theirs, name, CONFIG.dist_fcn_callable, threshold)
            np.testing.assert_allclose(ours[label, level], curve.precision, rtol=0, atol=1e-12, err_msg=name)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), frames=st.integers(1, 4), ties=st.booleans(), boxes=st.integers(1, 60))
@pytest.mark.parametrize(("name", "classes"), [("nuscenes", (0, 5, 8, 9)), ("truckscenes", (0, 8, 9, 10, 11))])
def test_random_boxes_score_as_with_the_devkit(name, classes, seed, frames, ties, boxes):
    """Classes with and without heading, velocity and attributes."""
    taxonomy = load_taxonomy(name)
    truth, detections = random_boxes(np.random.default_rng(seed), frames, ties, classes, boxes)
    detections = in_order(detections)
    scenes = np.arange(frames) % 2 * (frames > 1)
    theirs = devkit_scores(truth, detections, frames, name, taxonomy)
    assert_devkits(DetectionScores(truth, detections, scenes, taxonomy).score(), 0, theirs, taxonomy)


def copied(boxes: BoxColumns, frames: Sequence[int]) -> BoxColumns:
    """The boxes of these frames, each copy of a frame under a number of its own."""
    return BoxColumns.joined((k, boxes.select(boxes.frames == frame)) for k, frame in enumerate(frames))


def test_drawn_scenes_score_as_a_data_set_of_their_copies() -> None:
    """Each draw against the devkit on the frames of the drawn scenes; no scene at all is a draw as well."""
    truth, detections = random_boxes(np.random.default_rng(3), frames=9, boxes=80)
    scenes = np.arange(9) // 3
    scored = DetectionScores(truth, detections, scenes, NUSCENES)
    draws = np.array([[1, 1, 1], [0, 2, 1], [3, 0, 0], [0, 0, 1], [1, 4, 2], [0, 0, 0]])
    scores = scored.score(draws)
    for i, draw in enumerate(draws):
        frames = [frame for frame in range(9) for _ in range(draw[scenes[frame]])]
        assert_devkits(scores, i, devkit_scores(copied(truth, frames), copied(detections, frames), len(frames)))
    np.testing.assert_array_equal(scores.aps[0], scored.score().aps[0])
    # Nothing found, and nothing there.
    for gt, found in ((copied(truth, []), detections), (truth, copied(detections, []))):
        scores = DetectionScores(gt, found, scenes, NUSCENES).score()
        assert scores.mean_ap[0] == scores.nds[0] == 0
        assert_devkits(scores, 0, devkit_scores(gt, found, 9))


@given(seed=st.integers(0, 2**32 - 1))
def test_what_stands_in_a_rack_does_not_count(seed: int) -> None:
    rng = np.random.default_rng(seed)
    boxes, _ = random_boxes(rng, 2, classes=[CLASSES.index(n) for n in ("bicycle", "motorcycle", "car")])
    racks = np.column_stack(
        [rng.integers(0, 2, 3), rng.uniform(-8, 8, (3, 3)), rng.uniform(1, 12, (3, 3)), rng.normal(0, 1, (3, 4))]
    )
    kept = {tuple(center) for center in boxes.counted(np.zeros((2, 2)), racks, NUSCENES).centers}
    for i in range(len(boxes)):
        inside = any(
            points_in_box(Box(rack[1:4], rack[4:7], Quaternion(rack[7:11]).normalised), boxes.centers[i][:, None])[0]
            for rack in racks[racks[:, 0] == boxes.frames[i]]
        )
        assert (tuple(boxes.centers[i]) in kept) == (CLASSES[boxes.labels[i]] == "car" or not inside)


def test_a_submission_reads_in_any_order_and_layout(tmp_path: Path) -> None:
    boxes = [BOX | {"rotation": [0, 0, 0, 1], "attribute_name": "vehicle.parked"}, BOX | {"detection_score": 0.25}]
    content = {"results": {"b": boxes, "x": [BOX], "a": []}, "meta": {"use_lidar": True, "why": ["[{,"]}}
    for indent in (None, 2):
        (tmp_path / "r.json").write_text(" " + json.dumps(content, indent=indent) + "\n")
        read = BoxColumns.joined(read_submission(tmp_path / "r.json", {"a": 0, "b": 1}, NUSCENES))
        assert read.frames.tolist() == [1, 1]
        assert read.scores.tolist() == [0.5, 0.25]
        assert np.abs(read.yaws).tolist() == [np.pi, 0]
        assert read.attributes.tolist() == [ATTRIBUTES.index("vehicle.parked"), -1]
        assert read.num_points.tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read the submission"),
        ("{", "not a nuScenes submission"),
        ("[]", "not a nuScenes submission"),
        ({"b": []}, "no prediction for 1 of 1 samples, such as a"),
        ({"a": [BOX] * 501}, "sample a has 501 boxes; 500 are allowed"),
        ({"a": [{"translation": [0, 0, 0]}]}, "sample a: a box is malformed: KeyError"),
        ({"a": [BOX | {"size": [1, 0, 1]}]}, "a box is malformed: .*not positive"),
        ({"a": [BOX | {"translation": [0] * n} for n in (2, 4)]}, "malformed: .*translation has not 3 numbers"),
    ],
)
def test_an_unusable_submission_is_named(tmp_path: Path, content: str | dict | None, message: str) -> None:
    path = tmp_path / "r.json"
    if content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps({"results": content}))
    with one_line_error(message, at=path):
        list(read_submission(path, {"a": 0}, NUSCENES))


def test_what_the_devkit_cannot_judge(tables, nusc, nuscenes_root, tmp_path):
    (sample,), path = tables.samples("mini_val", ["scene-0103:0-1"]), tmp_path / "r.json"
    for results, message in (
        ({sample: [{"translation": [0, 0, 0]}]}, "a box is malformed: KeyError"),
        ({sample: [BOX | {"detection_name": "tank"}]}, "a box is malformed: .*Unknown detection_name tank"),
        ({}, "no prediction for 1 of 1 samples, such as"),
    ):
        path.write_text(json.dumps({"results": results}))
        with one_line_error(message, at=path):
            score_submission(path, nusc, [sample])
    path.write_text(json.dumps({"results": {sample: []}}))
    scores = score_submission(path, nusc, [sample])
    assert scores["mAP"] == scores["NDS"] == scores["mAP_present"] == 0
    with pytest.raises(InputError, match=r"r\.json: cannot make the folder"):
        evaluate(perfect(tables, lambda b: b.labels < 0), tables, None, [], path, SPEC)
    (tmp_path / "v1.0-mini").symlink_to(nuscenes_root / "v1.0-mini")  # without the map files
    with pytest.raises(InputError, match=r"nuscenes-devkit cannot load v1\.0-mini: .*map"):
        open_devkit(tmp_path, "v1.0-mini")
