"""IoU of points against the official devkit, and panoptic quality against its definition and the devkit."""

import base64
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from heights import Heights, heights
from nuscenes import NuScenes
from nuscenes.eval.lidarseg import utils
from nuscenes.eval.lidarseg.evaluate import LidarSegEval
from nuscenes.eval.panoptic.panoptic_seg_evaluator import PanopticEval
from nuscenes.utils.color_map import get_colormap
from nuscenes.utils.data_classes import Box
from nuscenes.utils.geometry_utils import points_in_box
from pyquaternion import Quaternion
from tiny import token as token_of
from vocabulary import NUSCENES

from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.frame import Boxes, Frame
from perception.grid import BevGrid
from perception.tasks.judging import ReplayedFrames, Subject, Unmeasured
from perception.tasks.points.config import PointsHead
from perception.tasks.points.iou import NONE, ious
from perception.tasks.points.metric import PointsMetric
from perception.tasks.points.panoptic import PanopticCounts, objects_of_points, panoptic_counts
from perception.tasks.points.task import PointsTask
from perception.tasks.points.truth import classes_at

NAMES = NUSCENES.point_names
FINE = tuple(get_colormap())  # the categories of nuScenes-lidarseg, in their order
CLASS_OF = np.array([NUSCENES.point_labels_of_categories().get(name, -1) for name in FINE], np.int16)


def frame_of(points: np.ndarray, classes: np.ndarray | None) -> Frame:
    return Frame("t", 0, "ego", np.eye(4), np.eye(4), points, {}, class_of_point=classes)


def cloud(rng: np.random.Generator, count: int) -> np.ndarray:
    """Points up to 250 m away, some of them of an earlier sweep."""
    xyz = rng.normal(0, 60, (count, 3))
    return np.column_stack([xyz, rng.uniform(0, 255, count), rng.choice([0, 0, 0.05], count)]).astype(np.float32)


def mostly_right(rng: np.random.Generator, truth: np.ndarray) -> np.ndarray:
    """Classes of which 60 % are those of the truth; only the first 12 occur."""
    right, others = (rng.random(len(truth)) < 0.6) & (truth >= 0), rng.integers(0, 12, len(truth))
    return np.where(right, truth, others).astype(np.uint8)


def nothing_but_frames() -> PointsMetric:
    """Of a source without annotations, for frames that have theirs."""
    source: Any = SimpleNamespace(taxonomy=NUSCENES, has_point_classes=lambda token: False)
    return PointsMetric(source, BevGrid())


def labelled_root(root: Path, categories: list[np.ndarray]) -> list[str]:
    """The tiny dataroot with classes of the points of its keyframes; returns the tokens of their sweeps."""
    tables, folder = root / "v1.0-tiny", Path("lidarseg") / "v1.0-tiny"
    (root / folder).mkdir(parents=True)

    def rows(table: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads((tables / f"{table}.json").read_text())
        return found

    known = {row["name"]: row for row in rows("category")}
    samples, data = rows("sample"), rows("sample_data")
    sweeps = [row["token"] for row in data if row["is_key_frame"] and "LIDAR_TOP" in row["filename"]]
    files = {token: str(folder / f"{token}_lidarseg.bin") for token in sweeps}
    ends = {"nbr_samples": 3, "first_sample_token": samples[0]["token"], "last_sample_token": samples[-1]["token"]}
    for table, content in {
        "category": [
            {"token": name, "name": name, "description": ""} | known.get(name, {}) | {"index": i}
            for i, name in enumerate(FINE)
        ],
        "visibility": [],
        "map": [{"token": "map", "log_tokens": [token_of("log")], "filename": "map.png", "category": "-"}],
        "scene": [rows("scene")[0] | ends],
        "lidarseg": [{"token": t, "sample_data_token": t, "filename": name} for t, name in files.items()],
    }.items():
        (tables / f"{table}.json").write_text(json.dumps(content))
    (root / "map.png").touch()
    for token, labels in zip(sweeps, categories, strict=True):
        labels.astype(np.uint8).tofile(root / files[token])
    return sweeps


def test_scores_are_those_of_the_devkits_evaluation(
    tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three keyframes, some classes never annotated or never predicted, and points of no class."""
    rng = np.random.default_rng(0)
    categories = [rng.choice([0, 2, 8, 9, 10, 12, 14, 16, 24, 26, 27, 28], 700) for _ in range(3)]
    sweeps = labelled_root(tiny_root, categories)
    metric = nothing_but_frames()
    folder = tmp_path / "lidarseg" / "train"
    folder.mkdir(parents=True)
    for token, fine in zip(sweeps, categories, strict=True):
        truth, points = CLASS_OF[fine], cloud(rng, len(fine))
        points[:, 4] = 0
        predicted = mostly_right(rng, truth)
        metric.add(frame_of(points, truth), predicted)
        (predicted + 1).astype(np.uint8).tofile(folder / f"{token}_lidarseg.bin")
    monkeypatch.setattr(utils, "create_splits_scenes", lambda verbose: {"train": ["scene-0001"]})
    devkit = NuScenes("v1.0-tiny", str(tiny_root), verbose=False)
    expected = LidarSegEval(devkit, str(tmp_path), "train").evaluate()
    found = metric.scores()["points"]
    assert found["mean"] == pytest.approx(expected["miou"], abs=1e-9)
    assert found["frequency_weighted"] == pytest.approx(expected["freq_weighted_iou"], abs=1e-9)
    nothing = 0
    for name in NAMES:
        value = expected["iou_per_class"][name]
        nothing += np.isnan(value)
        assert found["classes"][name] == (None if np.isnan(value) else pytest.approx(value, abs=1e-9))
    assert nothing > 0
    assert 0.0 in found["classes"].values()  # predicted, but nowhere annotated


def test_unions_beyond_the_integers_of_float32_are_rounded_as_in_the_devkit() -> None:
    matrix = utils.ConfusionMatrix(3, ignore_idx=0)
    matrix.global_cm = np.array([[0, 0, 0], [0, 2**25 + 1, 2], [0, 4, 2**24 + 7]])
    counts = np.array([[2**25 + 1, 2**24 + 7], [2**25 + 5, 2**24 + 9], [2**25 + 3, 2**24 + 11]])
    np.testing.assert_allclose(ious(counts), matrix.get_per_class_iou()[1:], rtol=1e-12, atol=0)


def test_parts_are_scored_as_if_nothing_else_were_there() -> None:
    """Some frames, in a range; the devkit's matrix over the same points, those of the keyframe with a class."""
    rng = np.random.default_rng(1)
    metric, matrix = nothing_but_frames(), utils.ConfusionMatrix(len(NAMES) + 1, 0)
    for chosen in (True, False, True):
        points = cloud(rng, 900)
        truth = rng.integers(-1, 14, 900).astype(np.int16)
        frame = frame_of(points, truth)
        own = frame.keyframe_classes
        assert own is not None
        predicted = mostly_right(rng, own)
        metric.add(frame, predicted)
        far = np.linalg.norm(frame.keyframe_points[:, :2].astype(np.float64), axis=1)
        inside = chosen & (far >= 20) & (far < 60)
        matrix.update(own[inside] + 1, predicted[inside].astype(np.int64) + 1)
    metric.add(frame_of(points, None), predicted)  # not annotated
    found = metric.part(np.array([True, False, True, True]), (20, 60))
    assert found["points_mIoU"] == pytest.approx(matrix.get_mean_iou(), abs=1e-9)
    with np.errstate(invalid="ignore"):
        expected = matrix.get_per_class_iou()[1:]
    np.testing.assert_allclose([np.nan if v is None else v for v in found["points_IoU"].values()], expected, atol=1e-9)
    assert metric.part(np.array([False, False, False, True]))["points_mIoU"] is None
    alone = {i: metric.part(np.arange(4) == i)["points_mIoU"] for i in range(3)}
    ranked = sorted(alone, key=alone.__getitem__)
    assert [each.frame for each in metric.worst(4)] == ranked
    assert [each.values["points_mIoU"] for each in metric.worst(4)] == pytest.approx([alone[i] for i in ranked])


def test_points_that_the_network_did_not_take_are_missed_and_unknown_ones_are_not_scored() -> None:
    """A network with 60 places for 100 points; and a corruption after which it is unknown which points it saw."""
    rng = np.random.default_rng(2)
    points = cloud(rng, 100)
    points[:, 4] = 0
    truth = np.arange(100, dtype=np.int16) % 4
    metric = nothing_but_frames()
    metric.add(frame_of(points, truth), truth[:60].astype(np.uint8))
    assert metric.scores()["points"]["classes"]["barrier"] == pytest.approx(15 / 25)
    metric.add(frame_of(points, truth), np.where(np.arange(120) < 70, 1, NONE).astype(np.uint8))
    assert metric.scores()["points"]["classes"]["barrier"] == pytest.approx(15 / 25)
    metric.add(frame_of(points, truth), np.append(truth, np.full(20, NONE)).astype(np.uint8))
    assert metric.scores()["points"]["classes"]["barrier"] == pytest.approx(40 / 50)


def test_classes_are_found_by_the_place_of_a_point() -> None:
    rng = np.random.default_rng(3)
    recorded = cloud(rng, 200)
    classes = rng.integers(0, 16, 200).astype(np.int16)
    order = rng.permutation(200)[:150]
    seen = recorded[order].copy()
    seen[:10, 1] += 1e-3
    np.testing.assert_array_equal(classes_at(seen, recorded, classes), np.append(np.full(10, -1), classes[order][10:]))
    assert classes_at(recorded, recorded, classes) is classes
    assert classes_at(recorded[:3], recorded[:0], classes[:0]).tolist() == [-1, -1, -1]


def test_annotations_come_from_the_source_whatever_the_order_of_the_frames_points(tables: NuScenesTables) -> None:
    """The class is that of the height; frames are read without annotations, with another sweep, and with faults."""
    source, token = Heights(tables), tables.samples()[0]
    metric = PointsMetric(source, BevGrid())
    frame = tables.frame(token, sweeps=1, annotations=False, cameras=False)
    assert len(frame.keyframe_points) < len(frame.points)
    for points in (frame.points, frame.points[::-1], frame.points[::3]):
        seen = replace(frame, points=np.ascontiguousarray(points))
        metric.add(seen, heights(seen.keyframe_points).astype(np.uint8))
        assert metric.scores()["points"]["mean"] == 1
    blind = replace(frame, points=None)
    metric.add(blind, np.full(4, NONE, np.uint8))
    assert len(metric._counts) == 4
    assert metric._counts[3] is None


def statistics(rng: np.random.Generator, frames: int) -> tuple[list[dict[str, Any]], list[tuple[Frame, np.ndarray]]]:
    task = PointsTask(PointsHead(), BevGrid(), NUSCENES)
    made, seen = [], []
    for _ in range(frames):
        truth = rng.integers(-1, 12, 400).astype(np.int16)
        points = cloud(rng, 400)
        points[:, 4] = 0
        frame, result = frame_of(points, truth), mostly_right(rng, truth)
        seen.append((frame, result))
        made.append(json.loads(json.dumps(task.statistics(frame, result, None))))
    return made, seen


def judge(parts: list[dict[str, Any]]) -> Any:
    """Of frames that belong to two scenes in turn; the first is the only one without rain."""
    count = len(parts)
    conditions = [frozenset({"rain"} if i else ()) for i in range(count)]
    tokens, scenes = [str(i) for i in range(count)], np.arange(count) % 2
    assert PointsTask.judge is not None
    return PointsTask.judge(ReplayedFrames(Path(), NUSCENES, tokens, scenes, np.zeros((count, 2)), conditions, parts))


def test_gates_measure_what_the_metric_does_and_draws_count_scenes_several_times() -> None:
    parts, seen = statistics(np.random.default_rng(4), 3)
    judged, metric = judge(parts), nothing_but_frames()
    for frame, result in (*seen, seen[1]):
        metric.add(frame, result)
    whole, rain = np.array([1, 1, 1, 0], bool), np.array([0, 1, 1, 0], bool)
    assert judged.score(Subject("points"))[0] == pytest.approx(metric.part(whole)["points_mIoU"], abs=1e-12)
    near = judged.score(Subject("points", "car", "rain", (0, 50)))[0]
    assert near == pytest.approx(metric.part(rain, (0, 50))["points_IoU"]["car"], abs=1e-12)
    twice = judged.score(Subject("points"), np.array([[1, 1], [1, 2]]))
    assert twice[1] == pytest.approx(metric.part(np.ones(4, bool))["points_mIoU"], abs=1e-12)
    with pytest.raises(Unmeasured, match="no point of vegetation is annotated"):
        judged.score(Subject("points", "vegetation"))
    assert judged.sizes(Subject("points")).sum() == pytest.approx(1)


def test_replays_agree_in_the_share_of_equal_classes() -> None:
    parts, seen = statistics(np.random.default_rng(5), 2)
    changed = [{**part} for part in parts]
    other = seen[1][1].copy()
    other[:40] = (other[:40] + 1) % 12
    changed[1] = PointsTask(PointsHead(), BevGrid(), NUSCENES).statistics(seen[1][0], other, None)
    mine, theirs = judge(parts), judge(changed)
    assert mine.agreement(theirs, Subject("point_classes"), 0, 0)[0] == pytest.approx(1 - 40 / 800)
    first, second = (np.concatenate([seen[0][1], last]) for last in (seen[1][1], other))
    either = (first == 3) | (second == 3)
    expected = (first == second)[either].mean()
    assert mine.agreement(theirs, Subject("point_classes", "car"), 0, 0)[0] == pytest.approx(expected)
    assert mine.same_results(judge(parts), Subject("points"))
    assert not mine.same_results(theirs, Subject("points"))
    assert len(base64.b64decode(parts[0]["classes"])) < 400  # they are compressed


# ---- panoptic quality


def segments(rng: np.random.Generator, count: int) -> tuple[np.ndarray, ...]:
    """Predicted and annotated classes and objects of points, with objects of 3 to 60 points, and some errors."""
    sizes = rng.integers(3, 60, 40)
    true_objects = np.repeat(np.arange(40), sizes)[:count]
    truth = rng.integers(-1, 5, 40)[true_objects]
    objects = np.where(rng.random(len(truth)) < 0.35, rng.integers(0, 30, len(truth)), true_objects)
    predicted = np.where(rng.random(len(truth)) < 0.2, rng.integers(0, 5, len(truth)), truth.clip(min=0))
    return predicted, objects, truth, true_objects


def by_definition(frames: list[tuple[np.ndarray, ...]], label: int) -> float:
    """Panoptic quality of a class, segment by segment, by the sets of their points."""
    total = matched = unmatched = 0.0
    for predicted, objects, truth, true_objects in frames:
        known = np.flatnonzero(truth >= 0)
        mine = [{i for i in known if predicted[i] == label and objects[i] == each} for each in {*objects}]
        theirs = [{i for i in known if truth[i] == label and true_objects[i] == each} for each in {*true_objects}]
        pairs = [(a, b) for a, each in enumerate(mine) for b, other in enumerate(theirs)
                 if each and other and len(each & other) / len(each | other) > 0.5]  # fmt: skip
        total += sum(len(mine[a] & theirs[b]) / len(mine[a] | theirs[b]) for a, b in pairs)
        matched += len(pairs)
        unmatched += sum(len(each) >= 15 for a, each in enumerate(mine) if a not in {p[0] for p in pairs})
        unmatched += sum(len(each) >= 15 for b, each in enumerate(theirs) if b not in {p[1] for p in pairs})
    return total / (matched + unmatched / 2)


def test_panoptic_quality_is_its_definition_and_the_devkits() -> None:
    rng = np.random.default_rng(6)
    frames = [segments(rng, 700) for _ in range(2)]
    first, second = (panoptic_counts(*frame, classes=5) for frame in frames)
    quality, segmentation, recognition = first.plus(second).qualities()
    np.testing.assert_allclose(quality, [by_definition(frames, label) for label in range(5)], rtol=1e-12)
    devkit = PanopticEval(6, ignore=[0], min_points=15)
    for predicted, objects, truth, true_objects in frames:
        devkit.addBatchPanoptic(predicted + 1, objects, truth + 1, true_objects)
    *_, qualities, segmentations, recognitions = devkit.getPQ()
    found, expected = (quality, segmentation, recognition), (qualities, segmentations, recognitions)
    np.testing.assert_allclose(found, np.array(expected)[:, 1:], rtol=1e-12)
    assert first.false.sum() + second.false.sum() > 0
    assert first.missed.sum() > 0


def test_classes_without_segments_have_no_quality() -> None:
    nothing = panoptic_counts(*(np.zeros(0, np.int64) for _ in range(4)), classes=2)
    assert np.isnan(nothing.qualities()).all()
    counts = PanopticCounts(np.array([0.0, 0]), np.array([0, 0]), np.array([2, 0]), np.array([0, 0]))
    np.testing.assert_array_equal(counts.qualities(), [[0, np.nan], [0, np.nan], [0, np.nan]])


def test_points_belong_to_the_box_around_them() -> None:
    """As the devkit's points_in_box; of two boxes that overlap to the nearer one, and only to chosen ones."""
    rng = np.random.default_rng(7)
    centers, sizes, yaws = rng.uniform(-6, 6, (5, 3)), rng.uniform(1, 6, (5, 3)), rng.uniform(-3, 3, 5)
    boxes = Boxes.from_yaws(centers, sizes, yaws, np.zeros((5, 2)), np.arange(5), np.zeros(5), np.ones(5))
    points = rng.uniform(-8, 8, (2000, 3))
    turns = [Quaternion(axis=[0, 0, 1], radians=yaw) for yaw in yaws]
    inside = np.stack([points_in_box(Box(*each), points.T) for each in zip(centers, sizes, turns, strict=True)], axis=1)
    assert (inside.sum(axis=1) > 1).any()
    distance = np.where(inside, np.linalg.norm(points[:, None] - centers, axis=2), np.inf)
    expected = np.where(inside.any(axis=1), distance.argmin(axis=1), -1)
    np.testing.assert_array_equal(objects_of_points(points, boxes, np.array(True)), expected)
    even = objects_of_points(points, boxes, np.arange(5) % 2 == 0)
    assert set(even.tolist()) == {-1, 0, 2, 4}
    assert (inside[even >= 0, even[even >= 0]]).all()
