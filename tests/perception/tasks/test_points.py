"""Points of the keyframe as inputs of a network, and the task that classifies them."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from heights import heights
from networks import LITTLE
from vocabulary import NUSCENES, RIG

from deploy.golden import GoldenFrame, differences
from deploy.precision.measure import measure_tolerances
from deploy.tolerances import BOUNDS, LEAST, Tolerances
from perception.config import Lidar, parse_config
from perception.errors import InputError
from perception.frame import Frame
from perception.grid import BevGrid
from perception.model import PerceptionModel
from perception.sensors.inputs import InputSpec, no_sensors, prepare
from perception.tasks.network import PointFeatures
from perception.tasks.points.config import PointsHead
from perception.tasks.points.iou import NONE
from perception.tasks.points.network import PointSegmentationHead
from perception.tasks.points.task import PointsTask

PLACES = 2500
GRID = BevGrid((-12.8, 12.8), (-12.8, 12.8))


def street(seed: int = 0) -> Frame:
    """Points on and off the grid, a third of them of the keyframe."""
    rng = np.random.default_rng(seed)
    xyz = rng.normal([0, 0, 0], [10, 10, 2], (6000, 3))
    points = np.column_stack([xyz, rng.uniform(0, 255, 6000), rng.choice([0.0, 0.05, 0.1], 6000)])
    return Frame("street", 0, "ego", np.eye(4), np.eye(4), points.astype(np.float32), {})


def spec_of(places: int, **lidar: Any) -> InputSpec:
    return InputSpec(GRID, Lidar(max_pillars=600, points_per_pillar=4, **lidar), None, RIG, places)


@pytest.mark.parametrize("overflow", ["fullest", "first"])
def test_inputs_are_the_keyframes_first_points_and_their_cells(overflow: str) -> None:
    """Also of points in pillars that are dropped, and after a frame with more points; nothing else changes."""
    spec = spec_of(PLACES, overflow=overflow)
    rng, memory = np.random.default_rng(0), no_sensors(spec)
    xyz = rng.uniform([-20, -20, -5], [20, 20, 7], (6000, 3))
    points = np.column_stack([xyz, rng.uniform(0, 255, 6000), rng.choice([0, -0.01, 0.02, 0.05], 6000)])
    frame = replace(street(), points=points.astype(np.float32), cameras={})
    assert (prepare(frame, spec, into=memory)["points"][0] != 0).any(axis=1).all()  # it has more than there are places
    for count in (1000, 0):
        less = replace(frame, points=frame.points[:count])
        inputs = prepare(less, spec, into=memory)
        own = less.points[np.abs(less.points[:, 4]) < 0.025]
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
    points = rng.permutation(street().points)
    frame = replace(street(), points=points, class_of_point=heights(points))
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
    frames = [prepare(street(seed), InputSpec.of(model.config)) for seed in (1, 2)]
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
    # Mirror images keep the order of the points.
    assert torch.equal(model.unflipped(dense, "x")["points/logits"], dense["points/logits"])


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
    head = PointSegmentationHead(PointsHead(weight=2.0), 4, GRID, weights.tolist())
    logits, classes = rng.normal(0, 2, (1, 30, count)), rng.integers(-1, count, (1, 30))
    dense = {"logits": torch.from_numpy(logits), "real": torch.ones(1, 30)}
    losses = head.losses(dense, {"classes": torch.from_numpy(classes.astype(np.int16))})
    known = np.flatnonzero(classes[0] >= 0)
    p = np.exp(logits[0]) / np.exp(logits[0]).sum(axis=1, keepdims=True)
    own = classes[0][known]
    expected = -(weights[own] * np.log(p[known, own])).sum() / weights[own].sum()
    assert losses["entropy"].mean().item() == pytest.approx(2 * expected, rel=1e-6)


def test_results_name_no_class_where_there_is_no_point() -> None:
    head = PointSegmentationHead(PointsHead(), 4, GRID, [1.0] * 16)
    logits = torch.randn(2, 5, 16, generator=torch.manual_seed(0))
    real = torch.tensor([[1.0, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    outputs = head.decode({"logits": logits, "real": real})
    task = PointsTask(PointsHead(), GRID, NUSCENES)
    likeliest = logits.argmax(dim=2).numpy()
    for frame, count in enumerate((3, 5)):
        result = task.result({name: values[frame].numpy() for name, values in outputs.items()})
        assert result.tolist() == [*likeliest[frame, :count], *[NONE] * (5 - count)]
        assert result.dtype == np.uint8
        np.testing.assert_array_equal(task.unpack(task.pack(result)), result)
        confidence = logits[frame].softmax(dim=1).amax(dim=1).numpy()
        np.testing.assert_allclose(outputs["confidence"][frame, 0, :count], confidence[:count], rtol=1e-6)


def test_drawn_points_are_those_with_a_class() -> None:
    frame = street()
    task, own = PointsTask(PointsHead(), GRID, NUSCENES), frame.keyframe_points
    result = np.where(np.arange(1900) < 1890, heights(own[:1900]), NONE).astype(np.uint8)
    (layer,) = task.draw(frame, result, None)
    np.testing.assert_array_equal(layer.points, own[:1890, :3])
    np.testing.assert_array_equal(layer.labels, heights(own[:1890]))
    assert [*layer.colours] == [*NUSCENES.point_names]
    (nothing,) = task.draw(replace(frame, points=None), result, None)
    assert len(nothing.points) == len(nothing.labels) == 0


BLIND = {"lidar": None, "camera": {"backbone": "resnet10t"}, "fused_channels": 8}


@pytest.mark.parametrize(
    ("points", "changes", "message"),
    [
        ({"class_weights": {"tree": 2.0}}, {}, "tasks.points: class_weights: tree is no point class"),
        ({}, {"taxonomy": "kitti"}, "tasks.points: the taxonomy kitti has no classes of points"),
        ({"max_points": 0}, {}, "max_points"),
        ({}, {"model": BLIND}, r"tasks\.points: reads points, the model has no `lidar`"),
    ],
)
def test_a_head_that_does_not_fit_is_refused(points: dict[str, Any], changes: dict[str, Any], message: str) -> None:
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
    (problem,) = differences(expected, changed(205), allowed, {})
    assert problem == "points/classes differs in 0.51% of its elements"
    too_many = int(40_000 * BOUNDS["int8"].labels)
    with pytest.raises(InputError, match=r"tolerance points/classes is 0\.5, in int8 at most 0\.25"):
        measure_tolerances([(frame, [changed(too_many)])], "int8", tasks)


def test_manifests_of_networks_without_class_indices_are_as_before() -> None:
    none = Tolerances(ranked={}, dense={})
    assert none.model_dump_json() == '{"ranked":{},"dense":{}}'
    some = Tolerances(ranked={}, dense={}, labels={"a/b": 0.5})
    assert Tolerances.model_validate_json(some.model_dump_json()) == some
    assert dict(some.numbers()) == {"a/b": 0.5}
