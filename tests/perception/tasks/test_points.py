"""Points of the keyframe as inputs, the task that classifies them, and its scores against the official devkit."""

import base64
import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from heights import Heights, heights
from made_up import classified
from networks import LITTLE
from nuscenes.eval.lidarseg import utils
from vocabulary import NUSCENES, RIG

from deploy.golden import GoldenFrame, differences
from deploy.precision.measure import BOUNDS, LEAST, measure_tolerances
from deploy.tolerances import Tolerances
from perception.config import parse_config
from perception.datasets.keyframes import AnnotatedPoints, Reads
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.errors import InputError
from perception.frame import Frame
from perception.grid import BevGrid
from perception.io.files import jsonable
from perception.model import PerceptionModel
from perception.sensors.inputs import InputSpec, no_sensors, prepare
from perception.sensors.lidar.config import Lidar
from perception.tasks.metric import CountedFrames, Recorded, ReplayedFrames, Subject, Weights, mean_shares
from perception.tasks.network import PointFeatures
from perception.tasks.points.network import PointSegmentationHead
from perception.tasks.points.task import NONE, ClassifiedPoints, PointsHead, PointsMetric, PointsTask, ious

PLACES = 2500
GRID = BevGrid((-12.8, 12.8), (-12.8, 12.8))


def street(seed: int = 0) -> Frame:
    """Points on and off the grid, a third of them of the keyframe."""
    rng = np.random.default_rng(seed)
    xyz = rng.normal([0, 0, 0], [10, 10, 2], (6000, 3))
    points = np.column_stack([xyz, rng.uniform(0, 255, 6000), rng.uniform(-0.1, 0.1, 6000)]).astype(np.float32)
    sweeps = rng.integers(0, 3, 6000).astype(np.uint8)  # whatever the times are
    return Frame("street", 0, "ego", np.eye(4), np.eye(4), points, {}, sweep_of_point=sweeps)


def spec_of(places: int, **lidar: Any) -> InputSpec:
    return InputSpec(GRID, {"lidar": Lidar(max_pillars=600, points_per_pillar=4, **lidar)}, RIG, places)


@pytest.mark.parametrize("overflow", ["fullest", "first"])
def test_inputs_are_the_keyframes_first_points_and_their_cells(overflow: str) -> None:
    """Also of points in pillars that are dropped, and after a frame with more points; nothing else changes."""
    spec = spec_of(PLACES, overflow=overflow)
    rng, memory = np.random.default_rng(0), no_sensors(spec)
    xyz = rng.uniform([-20, -20, -5], [20, 20, 7], (6000, 3))
    points = np.column_stack([xyz, rng.uniform(0, 255, 6000), rng.choice([0, -0.01, 0.02, 0.05], 6000)])
    sweeps = (rng.random(6000) < 0.2).astype(np.uint8)
    frame = replace(street(), points=points.astype(np.float32), sweep_of_point=sweeps)
    assert (prepare(frame, spec, into=memory)["points"][0] != 0).any(axis=1).all()  # it has more than there are places
    for count in (1000, 0):
        less = frame.select_points(slice(count))
        inputs = prepare(less, spec, into=memory)
        own = less.points[less.sweep_of_point == 0]
        np.testing.assert_array_equal(inputs["points"][0, : len(own)], own)
        assert not inputs["points"][0, len(own) :].any()
        cells = [
            int((y + 12.8) / 0.8) * 32 + int((x + 12.8) / 0.8)
            if -12.8 <= x < 12.8 and -12.8 <= y < 12.8 and -3 <= z < 5
            else 1024
            for x, y, z in own[:, :3].astype(np.float64)
        ]
        assert inputs["point_cells"][0].tolist() == cells + [1024] * (PLACES - len(own))
        assert count == 0 or 0 < cells.count(1024) < len(cells)
        without = prepare(less, replace(spec, points=0))
        assert without.keys() == inputs.keys() - {"points", "point_cells"}
        for name, array in without.items():
            np.testing.assert_array_equal(array, inputs[name])


def test_labels_belong_to_the_points_that_the_network_gets() -> None:
    rng = np.random.default_rng(1)
    frame = street().select_points(rng.permutation(6000))
    frame = replace(frame, class_of_point=heights(frame.points))
    for places in (40, 10_000):
        task = PointsTask(PointsHead(max_points=places), GRID, NUSCENES)
        classes = task.labels(frame)["classes"]
        count = min(places, len(frame.keyframe_points))
        seen = prepare(frame, spec_of(places))["points"][0, :count]
        np.testing.assert_array_equal(classes[:count], heights(seen))
        assert (classes[count:] == -1).all()
        assert len(classes) == places
        assert (task.labels(replace(frame, class_of_point=None))["classes"] == -1).all()


def test_each_point_sees_the_features_around_it_at_the_trunks_stride() -> None:
    """Against a computation point by point in float64, in a batch of two; padding and points outside see nothing."""
    torch.manual_seed(0)
    content: dict[str, Any] = copy.deepcopy(LITTLE)
    content["model"]["trunk"] |= {"stride": 2, "strides": [2, 1]}
    content["tasks"]["points"] = {"max_points": PLACES, "channels": 8}
    model = PerceptionModel(parse_config(content, "little")).eval()
    frames = [prepare(street(seed), model.config.spec) for seed in (1, 2)]
    head: Any = model.heads["points"]
    torch.nn.init.normal_(head.cell.layer.weight, std=1000)  # so that the cells differ
    seen: list[PointFeatures] = []
    head.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    with torch.no_grad():
        dense = model({name: torch.from_numpy(np.concatenate([each[name] for each in frames])) for name in frames[0]})
        (features,) = seen
        cells = head.cell(head.shared(features.features)).double().numpy()
    assert (cells.std(axis=(2, 3)) > 0.1).all()
    weights = {name: value.double().numpy() for name, value in head.state_dict().items()}
    for frame, points in enumerate(features.points.double().numpy()):
        assert cells.shape[2:] == (16, 16)
        for i in (*range(0, 700, 13), PLACES - 1):
            x, y, z, intensity, _ = points[i]
            column, row = place = (np.array([x, y]) + 12.8) / 1.6
            inside = 0 <= column < 16 and 0 <= row < 16 and -3 <= z < 5 and points[i].any()
            own = [x / 12.8, y / 12.8, z / 5, intensity / 255, np.hypot(x, y) / 12.8, *(place - np.floor(place) - 0.5)]
            found = weights["own.layer.weight"] @ own + weights["own.layer.bias"]
            found += bilinear(cells[frame], row - 0.5, column - 0.5) if inside else 0
            for layer in ("hidden", "output"):
                found = weights[f"{layer}.layer.weight"] @ found.clip(min=0) + weights[f"{layer}.layer.bias"]
            np.testing.assert_allclose(dense["points/logits"][frame, i].numpy(), found, rtol=1e-4, atol=1e-3)
        real = dense["points/real"][frame].numpy()
        np.testing.assert_array_equal(real, points.any(axis=1))
        assert 0 < real.sum() < PLACES


def bilinear(cells: np.ndarray, row: float, column: float) -> np.ndarray:
    """Cells (C, 16, 16) at a place between their centres; those at the edge go on beyond it."""
    found = np.zeros(len(cells))
    for r in (int(np.floor(row)), int(np.floor(row)) + 1):
        for c in (int(np.floor(column)), int(np.floor(column)) + 1):
            found += cells[:, np.clip(r, 0, 15), np.clip(c, 0, 15)] * (1 - abs(row - r)) * (1 - abs(column - c))
    return found


@pytest.mark.parametrize("weighted", [False, True])
def test_losses_are_weighted_means_over_annotated_points(weighted: bool) -> None:
    rng, count = np.random.default_rng(0), len(NUSCENES.point_classes)
    weights = rng.uniform(0.2, 3, count) if weighted else np.ones(count)
    head = PointSegmentationHead(4, 32, GRID, weights.tolist(), 2.0)
    logits, classes = rng.normal(0, 2, (1, 30, count)), rng.integers(-1, count, (1, 30))
    dense = {"logits": torch.from_numpy(logits), "real": torch.ones(1, 30)}
    losses = head.losses(dense, {"classes": torch.from_numpy(classes.astype(np.int16))})
    known = np.flatnonzero(classes[0] >= 0)
    p = np.exp(logits[0]) / np.exp(logits[0]).sum(axis=1, keepdims=True)
    own = classes[0][known]
    expected = -(weights[own] * np.log(p[known, own])).sum() / weights[own].sum()
    assert losses["entropy"].mean().item() == pytest.approx(2 * expected, rel=1e-6)


def test_results_name_no_class_where_there_is_no_point() -> None:
    head = PointSegmentationHead(4, 32, GRID, [1.0] * 16, 1.0)
    logits = torch.randn(2, 5, 16, generator=torch.manual_seed(0))
    real = torch.tensor([[1.0, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    outputs = head.decode({"logits": logits, "real": real})
    task = PointsTask(PointsHead(), GRID, NUSCENES)
    likeliest = logits.argmax(dim=2).numpy()
    for frame, count in enumerate((3, 5)):
        result = task.result({name: values[frame].numpy() for name, values in outputs.items()})
        assert result.classes.tolist() == [*likeliest[frame, :count], *[NONE] * (5 - count)]
        assert result.classes.dtype == np.uint8
        confidence = logits[frame].softmax(dim=1).amax(dim=1).numpy()
        np.testing.assert_allclose(result.probabilities[:count], confidence[:count], rtol=1e-6)
        assert not result.probabilities[count:].any()


def test_drawn_points_are_those_with_a_class() -> None:
    frame = street()
    task, own = PointsTask(PointsHead(), GRID, NUSCENES), frame.keyframe_points
    result = classified(np.where(np.arange(1900) < 1890, heights(own[:1900]), NONE))
    (layer,) = task.draw(frame, result, None)
    np.testing.assert_array_equal(layer.points, own[:1890, :3])
    np.testing.assert_array_equal(layer.labels, heights(own[:1890]))
    assert [*layer.colours] == [*NUSCENES.point_names]
    (nothing,) = task.draw(replace(frame, points=None), result, None)
    assert len(nothing.points) == len(nothing.labels) == 0


BLIND = {"lidar": None, "camera": {"backbone": "resnet10t"}, "fused_channels": 8}


def test_a_head_that_does_not_fit_is_refused() -> None:
    for points, changes, message in (
        ({"class_weights": {"tree": 2.0}}, {}, "tasks.points: class_weights: tree is no point class"),
        ({}, {"taxonomy": "kitti"}, "tasks.points: the taxonomy kitti has no classes of points"),
        ({"max_points": 0}, {}, "max_points"),
        ({"classes": "pandaset"}, {}, "tasks.points: `classes` are for a head that `perception adapt` adds"),
        ({}, {"model": BLIND}, r"tasks\.points: reads points, the model has no `lidar`"),
    ):
        with pytest.raises(InputError, match=message):
            parse_config(copy.deepcopy(LITTLE) | changes | {"tasks": {"points": points}}, "x")


def test_engines_may_differ_in_a_share_of_the_class_indices() -> None:
    rng, task = np.random.default_rng(0), PointsTask(PointsHead(), GRID, NUSCENES)
    classes = rng.integers(0, 16, (1, 40_000)).astype(np.uint8)
    task.outputs = task.outputs[:1]  # without the confidence
    tasks = {"points": task}

    def changed(count: int) -> dict[str, np.ndarray]:
        other = classes.copy()
        other[0, rng.permutation(40_000)[:count]] += 1
        return {"points/classes": other}

    expected = {"points/classes": classes}
    frame = GoldenFrame("first", {}, expected, {})
    allowed = measure_tolerances([(frame, [changed(60), changed(100)])], "fp16", tasks)
    assert allowed.labels == {"points/classes": pytest.approx(2 * 100 / 40_000)}
    assert measure_tolerances([(frame, [expected])], "fp32", tasks).labels == {"points/classes": LEAST.labels}
    assert differences(expected, changed(200), allowed, {}) == []
    assert dict(Tolerances.model_validate_json(allowed.model_dump_json()).numbers()) == allowed.labels
    (problem,) = differences(expected, changed(205), allowed, {})
    assert problem == "points/classes differs in 0.51% of its elements"
    too_many = int(40_000 * BOUNDS["int8"].labels)
    with pytest.raises(InputError, match=r"tolerance points/classes is 0\.5, at most 0\.25"):
        measure_tolerances([(frame, [changed(too_many)])], "int8", tasks)


# ---- scores, against the official devkit


NAMES = NUSCENES.point_names


def frame_of(points: np.ndarray, classes: np.ndarray | None) -> Frame:
    sweeps = np.where(np.abs(points[:, 4]) < 0.025, np.uint8(0), np.uint8(1))
    found = Frame("t", 0, "ego", np.eye(4), np.eye(4), points, {}, class_of_point=classes, sweep_of_point=sweeps)
    own = found.keyframe_classes
    return found if own is None else replace(found, truth={"points": AnnotatedPoints(found.keyframe_points, own)})


def cloud(rng: np.random.Generator, count: int) -> np.ndarray:
    """Points up to 250 m away, some of them of an earlier sweep."""
    xyz = rng.normal(0, 60, (count, 3))
    return np.column_stack([xyz, rng.uniform(0, 255, count), rng.choice([0, 0, 0.05], count)]).astype(np.float32)


def mostly_right(rng: np.random.Generator, truth: np.ndarray) -> np.ndarray:
    """Classes of which 60 % are those of the truth; only the first 12 occur."""
    right, others = (rng.random(len(truth)) < 0.6) & (truth >= 0), rng.integers(0, 12, len(truth))
    return np.where(right, truth, others).astype(np.uint8)


def nothing_but_frames() -> CountedFrames[ClassifiedPoints]:
    return CountedFrames(PointsMetric(NUSCENES))


def test_unions_beyond_the_integers_of_float32_are_rounded_as_in_the_devkit() -> None:
    matrix = utils.ConfusionMatrix(3, ignore_idx=0)
    matrix.global_cm = np.array([[0, 0, 0], [0, 2**25 + 1, 2], [0, 4, 2**24 + 7]])
    counts = np.array([[2**25 + 1, 2**24 + 7], [2**25 + 5, 2**24 + 9], [2**25 + 3, 2**24 + 11]])
    np.testing.assert_allclose(ious(counts), matrix.get_per_class_iou()[1:], rtol=1e-12, atol=0)


def test_scores_of_all_and_of_parts_are_those_of_the_devkits_matrix() -> None:
    """Over points of the keyframe with a class; parts are some frames, in a range, as if nothing else were there."""
    rng = np.random.default_rng(1)
    metric, (every, part) = nothing_but_frames(), [utils.ConfusionMatrix(len(NAMES) + 1, 0) for _ in range(2)]
    for chosen in (True, False, True):
        points = cloud(rng, 900)
        truth = rng.integers(-1, 14, 900).astype(np.int16)
        truth[truth == 2] = -1
        frame = frame_of(points, truth)
        own = frame.keyframe_classes
        predicted = mostly_right(rng, own)
        metric.add(frame, classified(predicted))
        far = np.linalg.norm(frame.keyframe_points[:, :2].astype(np.float64), axis=1)
        for matrix, inside in ((every, far >= 0), (part, chosen & (far >= 20) & (far < 60))):
            matrix.update(own[inside] + 1, predicted[inside].astype(np.int64) + 1)
    metric.add(frame_of(points, None), classified(predicted))  # not annotated
    scores = metric.report()["points"]
    found = metric.part(np.array([True, False, True, True]), (20, 60))
    assert scores["mean"] == pytest.approx(every.get_mean_iou(), abs=1e-9)
    assert scores["frequency_weighted"] == pytest.approx(every.get_freqweighted_iou(), abs=1e-9)
    assert found["points_mIoU"] == pytest.approx(part.get_mean_iou(), abs=1e-9)
    for classes, matrix in ((scores["classes"], every), (found["points_IoU"], part)):
        with np.errstate(invalid="ignore"):
            expected = matrix.get_per_class_iou()[1:]
        assert tuple(classes) == NAMES
        np.testing.assert_allclose([np.nan if v is None else v for v in classes.values()], expected, atol=1e-9)
    assert scores["classes"][NAMES[2]] == 0  # predicted, but nowhere annotated
    assert scores["classes"][NAMES[15]] is None  # neither
    assert metric.part(np.array([False, False, False, True]))["points_mIoU"] is None
    alone = {i: metric.part(np.arange(4) == i)["points_mIoU"] for i in range(3)}
    ranked = sorted(alone, key=alone.__getitem__)
    worst = metric.metric.find_worst(metric.counts, 4)
    assert [each.frame for each in worst] == ranked
    assert [each.values["points_mIoU"] for each in worst] == pytest.approx([alone[i] for i in ranked])


def test_points_that_the_network_did_not_take_are_missed() -> None:
    """A network with 60 places for 100 points, and one with 120."""
    rng = np.random.default_rng(2)
    points = cloud(rng, 100)
    points[:, 4] = 0
    truth = np.arange(100, dtype=np.int16) % 4
    metric = nothing_but_frames()
    metric.add(frame_of(points, truth), classified(truth[:60]))
    assert metric.report()["points"]["classes"]["barrier"] == pytest.approx(15 / 25)
    metric.add(frame_of(points, truth), classified(np.append(truth, np.full(20, NONE))))
    assert metric.report()["points"]["classes"]["barrier"] == pytest.approx(40 / 50)


def test_annotations_are_those_that_were_read_whatever_became_of_the_frames_points(tables: NuScenesTables) -> None:
    """The class is that of the height; each frame is read with another sweep, and has a fault."""
    reads = Reads(sweeps=1, annotations=False, cameras=False, truth=("points",))
    frame = Heights(tables).frame(tables.samples()[0], reads)
    points = frame.points
    assert len(frame.keyframe_points) < len(points)
    odd = np.arange(len(points)) % 2 == 1
    displaced = replace(frame, points=points + 0.01 * np.outer(odd, [1, 1, 0, 0, 0]).astype(np.float32))
    true, kept = (np.bincount(heights(each[each[:, 4] == 0]), minlength=16) for each in (points, points[::3]))
    for seen, expected in (
        (frame, 1.0),
        (frame.select_points(slice(None, None, -1)), 1.0),
        (displaced.select_points(np.argsort(odd, kind="stable")), 1.0),  # one of two LiDARs is displaced
        (frame.select_points(slice(None, None, 3)), np.mean((kept / true.clip(min=1))[true > 0])),
        (frame.select_points(slice(0)), 0.0),
        (frame.without_points(), 0.0),
    ):
        own = points[:0] if seen.points is None else seen.keyframe_points
        found, metric = np.full(30_000, NONE, np.uint8), CountedFrames(PointsMetric(NUSCENES))
        found[: len(own)] = heights(own)
        metric.add(seen, classified(found))
        assert metric.report()["points"]["mean"] == pytest.approx(expected, abs=1e-12)


def replayed(rng: np.random.Generator, frames: int) -> tuple[list[dict[str, Any]], list[tuple[Frame, np.ndarray]]]:
    """What a replay keeps of frames, and the frames."""
    seen, metric = [], PointsMetric(NUSCENES)
    for _ in range(frames):
        truth, points = rng.integers(-1, 12, 400).astype(np.int16), cloud(rng, 400)
        points[:, 4] = 0
        seen.append((frame_of(points, truth), mostly_right(rng, truth)))
    results = [(frame, classified(result)) for frame, result in seen]
    lines = [jsonable({**metric.outputs(result), **metric.counts(frame, result)}) for frame, result in results]
    return json.loads(json.dumps(lines)), seen


def test_a_replay_has_the_scores_of_an_evaluation_and_draws_count_scenes_several_times() -> None:
    """Two scenes; the first frame is the only one without rain."""
    kept, seen = replayed(np.random.default_rng(4), 3)
    metric, evaluated, scenes = PointsMetric(NUSCENES), nothing_but_frames(), np.arange(3) % 2
    counts = metric.recorded(ReplayedFrames(Path(), "012", np.zeros((3, 2)), np.arange(3)), kept)
    for frame, result in (*seen, seen[1]):
        evaluated.add(frame, classified(result))
    whole, rain = np.array([1, 1, 1, 0], bool), np.array([0, 1, 1, 0], bool)
    weights = Weights.of(whole[:3], scenes)
    scores = metric.scores(counts, weights)
    assert scores["points_mIoU"].values[0] == evaluated.part(whole)["points_mIoU"]
    near = metric.scores(counts, Weights.of(rain[:3], scenes, (0, 50)))["points_IoU"].of_class("car")
    assert near.values[0] == evaluated.part(rain, (0, 50))["points_IoU"]["car"]
    twice = metric.scores(counts, replace(weights, draws=np.array([[1.0, 1], [1, 2]])))["points_mIoU"]
    assert twice.values[1] == pytest.approx(evaluated.part(np.ones(4, bool))["points_mIoU"], abs=1e-12)
    assert np.isnan(scores["points_IoU"].of_class("vegetation").values[0])
    assert mean_shares(scores["points_mIoU"].sizes).sum() == pytest.approx(1)


def test_replays_agree_in_the_share_of_equal_classes() -> None:
    kept, seen = replayed(np.random.default_rng(5), 2)
    metric, changed = PointsMetric(NUSCENES), [{**part} for part in kept]
    other = seen[1][1].copy()
    other[:40] = (other[:40] + 1) % 12
    changed[1] = {**metric.outputs(classified(other)), **metric.counts(seen[1][0], classified(other))}
    every, mine, theirs = Weights.of(np.ones(2, bool)), Recorded(kept, ()), Recorded(changed, ())
    assert metric.agreement(mine, theirs, every, Subject("point_classes"))[0] == pytest.approx(1 - 40 / 800)
    first, second = (np.concatenate([seen[0][1], last]) for last in (seen[1][1], other))
    either = (first == 3) | (second == 3)
    expected = (first == second)[either].mean()
    assert metric.agreement(mine, theirs, every, Subject("point_classes", "car"))[0] == pytest.approx(expected)
    alike = ReplayedFrames(Path(), "01", np.zeros((2, 2)), np.zeros(2, np.int64))
    sides = [metric.recorded(alike, each) for each in (kept, [*kept], changed)]
    assert all(side[1] is None for side in sides)  # added to the first frame, of the same scene and conditions
    score, same, another = (metric.scores(each, every)["points_mIoU"] for each in sides)
    assert score.same(same)
    assert not score.same(another)
    assert len(base64.b64decode(kept[0]["classes"])) < 400  # they are compressed
