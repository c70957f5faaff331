"""Points of the keyframe as inputs of a network, and the task that classifies them, added to a finished model."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from heights import Heights, heights
from routed import LITTLE, assert_same
from torch import Tensor
from vocabulary import NUSCENES, RIG

from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.engines.tensorrt import build_engine
from deploy.golden import GoldenFrame, differences, differing
from deploy.onnx_export import to_onnx
from deploy.precision.measure import measure_tolerances
from deploy.targets import find_target
from deploy.tolerances import BOUNDS, LEAST, Tolerances
from perception.config import Config, Lidar, parse_config
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.errors import InputError
from perception.frame import Conditions, Frame
from perception.grid import BevGrid
from perception.model import PerceptionModel
from perception.modules.base_weights import base_hash
from perception.sensors.inputs import InputSpec, no_sensors, prepare
from perception.tasks.network import PointFeatures
from perception.tasks.points.config import PointsHead
from perception.tasks.points.iou import NONE
from perception.tasks.points.network import PointSegmentationHead
from perception.tasks.points.task import PointsTask
from perception.training.adapt import adapt, add_task
from perception.training.checkpoint import load_model, save_model

PLACES = 2500
GRID = BevGrid((-12.8, 12.8), (-12.8, 12.8))


def street(seed: int = 0) -> Frame:
    """Points on and off the grid, a third of them of the keyframe."""
    rng = np.random.default_rng(seed)
    xyz = rng.normal([0, 0, 0], [10, 10, 2], (6000, 3))
    points = np.column_stack([xyz, rng.uniform(0, 255, 6000), rng.choice([0.0, 0.05, 0.1], 6000)])
    return Frame("street", 0, "ego", np.eye(4), np.eye(4), points.astype(np.float32), {})


def inputs_of(model: PerceptionModel, *seeds: int) -> dict[str, Tensor]:
    frames = [prepare(street(seed), InputSpec.of(model.config)) for seed in seeds]
    return {name: torch.from_numpy(np.concatenate([each[name] for each in frames])) for name in frames[0]}


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
    frame = street()
    order = rng.permutation(len(frame.points))
    frame = replace(frame, points=frame.points[order], class_of_point=heights(frame.points[order]))
    for places in (40, 10_000):
        task = PointsTask(PointsHead(max_points=places), GRID, NUSCENES)
        classes = task.labels(frame)["classes"]
        count = min(places, len(frame.keyframe_points))
        seen = prepare(frame, spec_of(places))["points"][0, :count]
        np.testing.assert_array_equal(classes[:count], heights(seen))
        assert (classes[count:] == -1).all()
        assert len(classes) == places
        assert (task.labels(replace(frame, class_of_point=None))["classes"] == -1).all()


def config(stride: int = 1, **tasks: Any) -> Config:
    content: dict[str, Any] = copy.deepcopy(LITTLE)
    content["model"]["trunk"] |= {"stride": stride, "strides": [1, 2] if stride == 1 else [2, 1]}
    content["tasks"] |= tasks
    content["data"] = {"class_balanced": False, "augment": {"shuffle": True}}
    return parse_config(content, "little")


HEAD = {"max_points": PLACES, "channels": 8}


def test_each_point_sees_the_features_around_it_at_the_trunks_stride() -> None:
    """Against a computation point by point in float64, in a batch of two; padding and points outside see nothing."""
    torch.manual_seed(0)
    model = PerceptionModel(config(2, points=HEAD)).eval()
    head: Any = model.heads["points"]
    torch.nn.init.normal_(head.cell.layer.weight, std=1000)  # so that the cells differ
    seen: list[PointFeatures] = []
    head.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    with torch.no_grad():
        dense = model(inputs_of(model, 1, 2))
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


# ---- added to a finished model


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tables: NuScenesTables) -> tuple[Path, Path]:
    """A model with a module for rain, and the same with the head of points and a module of its own."""
    folder = tmp_path_factory.mktemp("points")
    rain = {"name": "rain", "kind": "low_rank", "slots": ["trunk.*", "heads.*"], "rank": 2, "when": ["rain"]}
    given = parse_config(config().model_dump(mode="json") | {"modules": [rain]}, "little")
    torch.manual_seed(0)
    model = PerceptionModel(given).eval()
    for name, parameter in model.named_parameters():
        if ".computations." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    save_model(folder / "before", given, model)
    content = {"tasks": {"points": HEAD}, "modules": [{**rain, "name": "own", "slots": ["trunk.*"], "when": []}]}
    source: Any = Heights(tables)
    add_task(folder / "before", "points", content, source, "all", (), folder / "after", steps=3)
    return folder / "before", folder / "after"


EVERY = (Conditions(), Conditions(weather="rain", city="boston"), Conditions(city="boston"))


@torch.no_grad()
def test_adding_points_leaves_every_tensor_and_every_output(runs: tuple[Path, Path]) -> None:
    before, after = (load_model(run)[0] for run in runs)
    state = after.state_dict()
    assert [name for name, value in before.state_dict().items() if not torch.equal(value, state[name])] == []
    assert base_hash(before) == base_hash(after)
    inputs = inputs_of(after, 1, 2)
    assert inputs.keys() - inputs_of(before, 1).keys() == {"points", "point_cells"}
    for conditions in EVERY:
        old, new = before.predict(inputs, [conditions] * 2), after.predict(inputs, [conditions] * 2)
        assert new.keys() - old.keys() == {"points/classes", "points/confidence"}
        assert_same(old, {name: new[name] for name in old})
    # Its own module has learned, and runs for it alone.
    assert after.bank.modules["own"].when == ("points",)
    assert all(computation.b.weight.any() for computation in after.bank.at("own").values())
    # Mirror images keep the order of the points.
    dense = after(inputs)
    mirrored = after.unflipped(dense, "x")
    assert torch.equal(mirrored["points/logits"], dense["points/logits"])


def test_a_module_for_rain_changes_the_points_in_rain_and_nothing_else(
    runs: tuple[Path, Path], tables: NuScenesTables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is trained without computing the other tasks."""
    trained, losses = set[str](), PerceptionModel.losses

    def noted(model: PerceptionModel, dense: Any, labels: Any) -> Any:
        trained.update(name.split("/")[0] for name in dense)
        return losses(model, dense, labels)

    monkeypatch.setattr(PerceptionModel, "losses", noted)
    wet = {"name": "wet", "kind": "low_rank", "slots": ["trunk.*"], "rank": 2, "when": ["rain", "points"]}
    source: Any = Heights(tables)
    adapt(runs[1], wet, source, "all", (), tmp_path / "run", steps=3)
    assert trained == {"points"}
    before, after = load_model(runs[1])[0], load_model(tmp_path / "run")[0]
    assert all(computation.b.weight.any() for computation in after.bank.at("wet").values())
    inputs = inputs_of(after, 1, 2)
    with torch.no_grad():
        for conditions in EVERY:
            old, new = (model(inputs, [conditions] * 2) for model in (before, after))
            same = {name for name in old if torch.equal(old[name], new[name])}
            assert same == old.keys() - ({"points/logits"} if conditions.get("weather") == "rain" else set())


@torch.no_grad()
def test_the_graph_of_both_has_the_same_outputs_and_compiles(runs: tuple[Path, Path]) -> None:
    """Without a plugin; ONNX Runtime finds what torch finds, for any number of pillars, on and off the grid."""
    model = load_model(runs[1])[0].deployed()
    spec = InputSpec.of(model.config)
    arrays = prepare(street(), spec)
    names = [*model.predict({name: torch.from_numpy(array) for name, array in arrays.items()})]
    graph = to_onnx(model, arrays, names)
    assert not {node.op_type for node in graph.graph.node} & {"ScatterElements", "NonZero", "Loop", "If"}
    engine = OnnxRuntimeEngine(graph.SerializeToString())
    for frame in (street(3), replace(street(4), points=None)):
        inputs = prepare(frame, spec)
        found = engine.run(inputs)
        expected = model.predict({name: torch.from_numpy(array) for name, array in inputs.items()})
        assert found["points/classes"].dtype == np.uint8
        close = torch.from_numpy(found["points/confidence"])
        torch.testing.assert_close(close, expected["points/confidence"], atol=1e-5, rtol=1e-5)
        assert differing(found["points/classes"], expected["points/classes"].numpy()) <= LEAST.labels
    pytest.importorskip("tensorrt_rtx")
    shapes = {name: array.shape for name, array in arrays.items()}
    assert build_engine(graph.SerializeToString(), find_target("rtx-ampere"), inputs=shapes).layers > 10


def test_a_head_that_does_not_fit_is_refused() -> None:
    content = config().model_dump(mode="json")
    for points, changes, message in (
        ({"class_weights": {"tree": 2.0}}, {}, "tasks.points: class_weights: tree is no point class"),
        ({}, {"taxonomy": "kitti"}, "tasks.points: the taxonomy kitti has no classes of points"),
        ({"max_points": 0}, {}, "max_points"),
    ):
        tasks = {"tasks": {"points": points}}
        with pytest.raises(InputError, match=message):
            parse_config(content | changes | tasks, "x")
    camera = {"model": {"lidar": None, "camera": {"backbone": "resnet10t"}, "fused_channels": 8}}
    with pytest.raises(InputError, match=r"tasks\.points: reads points, the model has no `lidar`"):
        parse_config(content | camera | {"tasks": {"points": {}}}, "x")


# ---- outputs of class indices in golden frames


class Classes(PointsTask):
    """Without the confidence."""

    def __init__(self) -> None:
        super().__init__(PointsHead(), GRID, NUSCENES)
        self.outputs = self.outputs[:1]


def test_engines_may_differ_in_a_share_of_the_class_indices() -> None:
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 16, (1, 40_000)).astype(np.uint8)
    tasks = {"points": Classes()}

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
