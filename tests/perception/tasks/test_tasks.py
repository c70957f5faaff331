"""The contract that every task keeps, and the feature map that tasks share."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from anchor_objects import objects
from anchored_model import config as anchored
from hypothesis import given
from hypothesis import strategies as st
from occupied import CLASSES, FREE, SMALL, Occupied
from perfect import SURE, Dense, perfect_detection
from routed import assert_same, frame_inputs, little, module
from torch import Tensor
from training_runs import small
from vocabulary import CONDITIONS, NUSCENES

from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.frame import Boxes, Conditions, Frame
from perception.grid import BevGrid
from perception.model import PerceptionModel
from perception.modules.routing.input_weighted import SteeredRouter
from perception.tasks import TASKS, tasks_of
from perception.tasks.detection.task import DetectionTask
from perception.tasks.network import PointFeatures
from perception.tasks.occupancy.labels import UNKNOWN
from perception.tasks.occupancy.result import OccupancyResult
from perception.tasks.task import Task, joined_labels
from perception.training.loader import batch_labels
from perception.voxels import OTHERS

FINE = BevGrid(cell=0.8)  # no two objects of the simulated frames share a cell
POINT_CLASSES = NUSCENES.point_names
COARSE = BevGrid(cell=12.8)  # 8 x 8 cells, of which objects share some


@pytest.fixture(scope="module")
def tables(tables: NuScenesTables) -> Occupied:
    """Simulated drives, with voxels."""
    return Occupied(tables)


@pytest.fixture(scope="module")
def frames(tables: NuScenesTables) -> list[Frame]:
    """One of each drive, in other weather, light and city, with a few points instead of what the sensors saw."""
    tokens, rng = tables.samples("all"), np.random.default_rng(0)
    points = [np.pad(rng.normal(0, 20, (count, 3)), ((0, 0), (0, 2))).astype(np.float32) for count in (30, 80)]
    return [
        replace(
            tables.frame(token, lidar=False, cameras=False),
            points=own,
            class_of_point=rng.integers(-1, len(POINT_CLASSES), len(own)).astype(np.int16),
        )
        for token, own in zip((tokens[0], tokens[-1]), points, strict=True)
    ]


# ---- the contract; a new task adds to PERFECT and EXPECTED what its head should say of a frame


def perfect_occupancy(labels: Dense) -> Dense:
    truth = torch.where(labels["classes"] == UNKNOWN, FREE, labels["classes"]).long()
    one_hot = torch.nn.functional.one_hot(truth, len(CLASSES)).movedim(-1, 2)
    return {"logits": (2 * SURE * one_hot - SURE).flatten(1, 2)}


PERFECT: dict[str, Callable[[Dense], Dense]] = {
    "detection": perfect_detection,
    "map": lambda labels: {"logits": torch.where(labels["cells"] > 0, SURE, -SURE)},
    "conditions": lambda labels: {
        kind: 2 * SURE * torch.nn.functional.one_hot(labels[kind], len(values)) - SURE
        for kind, values in CONDITIONS.items()
    },
    "points": lambda labels: {
        "logits": 2
        * SURE
        * torch.nn.functional.one_hot(labels["classes"].long().clamp(min=0), len(POINT_CLASSES)).float(),
        "real": (labels["classes"] >= 0).float(),
    },
    "occupancy": perfect_occupancy,
}


def assert_detected(found: Boxes, frame: Frame, _: NuScenesTables, grid: BevGrid) -> None:
    place = grid.continuous(frame.boxes.centers)
    there = ((place >= 0) & (place < grid.shape[::-1])).all(axis=1) & (frame.boxes.num_points != 0)
    wanted, found = frame.boxes.select(there), found.select(found.scores > 0.5)
    assert len(found) == len(wanted) > 3
    order, own = (np.lexsort((*boxes.centers.round(2).T, boxes.labels)) for boxes in (wanted, found))
    wanted, found = wanted.select(order), found.select(own)
    np.testing.assert_array_equal(found.labels, wanted.labels)
    np.testing.assert_allclose(found.centers, wanted.centers, atol=1e-4)
    np.testing.assert_allclose(found.sizes, wanted.sizes, rtol=1e-5)
    np.testing.assert_allclose(found.rotations[:, :2, 0], wanted.rotations[:, :2, 0], atol=1e-4)
    known = np.isfinite(wanted.velocities[:, 0])
    np.testing.assert_allclose(found.velocities[known, :2], wanted.velocities[known, :2], atol=1e-5)
    said = wanted.attributes >= 0
    assert said.any()
    np.testing.assert_array_equal(found.attributes[said], wanted.attributes[said])


def assert_mapped(found: np.ndarray, frame: Frame, tables: NuScenesTables, grid: BevGrid) -> None:
    area = tables.map(frame.location)
    cells = area.rasterize(frame, grid)
    assert cells[0].any()
    np.testing.assert_array_equal(found > 0.5, cells > 0)


def assert_recognised(found: Any, frame: Frame, _: NuScenesTables, __: BevGrid) -> None:
    likeliest = {kind: CONDITIONS[kind][int(np.argmax(p))] for kind, p in found.items()}
    assert Conditions(**likeliest) == frame.conditions
    assert all(sum(p) == pytest.approx(1) for p in found.values())


def assert_classified(found: np.ndarray, frame: Frame, _: NuScenesTables, __: BevGrid) -> None:
    classes = frame.keyframe_classes
    assert classes is not None
    known = classes >= 0
    assert known.sum() > 20
    np.testing.assert_array_equal(found[: len(classes)][known], classes[known])


def assert_occupied(found: OccupancyResult, frame: Frame, tables: NuScenesTables, _: BevGrid) -> None:
    truth = tables.occupancy(frame.token)
    seen = truth.seen_by_lidar | truth.seen_by_cameras
    assert found.grid == truth.grid == SMALL
    assert not seen.all()
    assert set(truth.classes[seen]) == set(range(len(CLASSES)))
    np.testing.assert_array_equal(found.classes[seen], truth.classes[seen])
    np.testing.assert_array_equal(found.occupied[seen], truth.classes[seen] != FREE)
    np.testing.assert_array_equal(found.others[seen], truth.classes[seen] == OTHERS)


EXPECTED: dict[str, Callable[[Any, Frame, NuScenesTables, BevGrid], None]] = {
    "detection": assert_detected,
    "map": assert_mapped,
    "conditions": assert_recognised,
    "points": assert_classified,
    "occupancy": assert_occupied,
}
# Of heads whose default does not fit the frames and grids here.
OPTIONS: dict[str, dict[str, Any]] = {
    "points": {"max_points": 100},
    "occupancy": {"x": SMALL.x, "y": SMALL.y, "z": SMALL.z, "cell": SMALL.cell},
}


def default(name: str, grid: BevGrid) -> Task[Any]:
    return TASKS[name](TASKS[name].Config(**OPTIONS.get(name, {})), grid, NUSCENES)


def features_for(task: Task[Any]) -> Any:
    """Random ones of two frames, as the head gets them."""
    features = torch.randn(2, 8, *task.grid.shape)
    if task.reads != "points":
        return features
    places = task.config.point_places
    cells = torch.randint(task.grid.cells + 1, (2, places))
    return PointFeatures(features, torch.randn(2, places, 5), cells)


def labels_of(task: Task[Any], frames: list[Frame], tables: NuScenesTables) -> Dense:
    """As the loader makes and joins them."""
    return batch_labels([{task.name: task.labels(frame, tables)} for frame in frames])[task.name]


def test_every_task_is_in_this_contract() -> None:
    assert PERFECT.keys() == EXPECTED.keys() == TASKS.keys()
    assert [task.name for task in TASKS.values()] == [*TASKS]


@pytest.mark.parametrize("name", TASKS)
def test_perfect_outputs_decode_to_the_labels_and_lose_nothing(
    name: str, frames: list[Frame], tables: NuScenesTables
) -> None:
    task = default(name, FINE)
    network, labels = task.network(8), labels_of(task, frames, tables)
    dense = PERFECT[name](labels)
    outputs = network.decode(dense)
    for i, frame in enumerate(frames):
        own = {key: values[i].numpy() for key, values in outputs.items()}
        kept, counts = task.finite(own)
        assert counts == {}
        assert all(kept[key] is own[key] for key in own)
        EXPECTED[name](task.result(kept), frame, tables, FINE)
    torch.manual_seed(0)
    other = network.losses({key: values + torch.randn(values.shape) for key, values in dense.items()}, labels)
    for term, loss in network.losses(dense, labels).items():
        assert 0 <= loss.mean().item() < 1e-5, term  # no term can be below 0
        assert other[term].counts.sum() > 0, term
    worse = network.losses({key: torch.randn(values.shape) for key, values in dense.items()}, labels)
    assert all(loss.mean().item() > 0.01 for loss in worse.values())


@pytest.mark.parametrize("name", TASKS)
def test_decoding_gives_the_declared_outputs_in_order(name: str, tables: NuScenesTables, frames: list[Frame]) -> None:
    task = default(name, COARSE)
    network = task.network(8).eval()
    features = features_for(task)
    dense = network(features)
    for each in (network, task.deployed(network)):
        outputs = each.decode(each(features))  # type: ignore[operator]
        assert [*outputs] == [output.name for output in task.outputs]
        for output in task.outputs:
            values = outputs[output.name]
            assert len(values) == 2
            if output.channels:
                assert values.shape[1] == len(output.channels)
                assert (values.ndim > 2) == output.cells
    assert dense.keys() == PERFECT[name](labels_of(task, frames, tables)).keys()


def anchors() -> DetectionTask:
    config = anchored("joined")
    return DetectionTask(config.tasks["detection"], config.head_grid, NUSCENES)


def with_boxes(boxes: Boxes | None) -> Frame:
    return Frame("", 0, "ego", np.eye(4), np.eye(4), None, {}, boxes=boxes)


@pytest.mark.parametrize("name", [*TASKS, "anchors"])
def test_each_frame_loses_in_a_batch_what_it_loses_alone(
    name: str, frames: list[Frame], tables: NuScenesTables
) -> None:
    """Values and gradients, which are those of finite differences; so padding counts for nothing either."""
    task = default(name, COARSE) if name in TASKS else anchors()
    if name not in TASKS:
        frames = [with_boxes(objects(3, 8)), with_boxes(objects(5, 4))]
    network = task.network(8)
    torch.manual_seed(0)
    shapes = {key: values.shape for key, values in network(features_for(task)).items()}
    dense = {key: torch.randn(shape, dtype=torch.float64).requires_grad_() for key, shape in shapes.items()}
    labels = labels_of(task, frames, tables)
    assert "real" not in labels or len(set(labels["real"].sum(dim=1).tolist())) == 2  # one frame is padded
    together = network.losses(dense, labels)
    for i, frame in enumerate(frames):
        alone = {key: values[i : i + 1].detach().requires_grad_() for key, values in dense.items()}
        losses = network.losses(alone, labels_of(task, [frame], tables))
        assert losses.keys() == together.keys()
        for term, loss in losses.items():
            assert loss.mean().item() > 0, term
            torch.testing.assert_close(together[term].each()[i], loss.mean())
            gradients = torch.autograd.grad(together[term].each()[i], [*dense.values()], retain_graph=True, **UNUSED)
            own = torch.autograd.grad(loss.mean(), [*alone.values()], retain_graph=True, **UNUSED)
            assert any(gradient.any() for gradient in own), term
            for gradient, expected in zip(gradients, own, strict=True):
                torch.testing.assert_close(gradient[i], expected[0])
                assert not gradient[1 - i].any()
    totals = {term: loss.sums.sum() / loss.counts.sum() for term, loss in together.items()}
    torch.testing.assert_close({term: loss.mean() for term, loss in together.items()}, totals)

    def each(*values: Tensor) -> tuple[Tensor, ...]:
        terms = network.losses(dict(zip(dense, values, strict=True)), labels)
        return tuple(term.each() for term in terms.values())

    assert torch.autograd.gradcheck(each, [*dense.values()], fast_mode=True)


UNUSED: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}


@pytest.mark.parametrize("name", [*TASKS, "anchors"])
def test_a_frame_without_labels_teaches_nothing_false(name: str, frames: list[Frame]) -> None:
    """Without annotations, a map or tags: finite losses, and only what says that nothing is there has a gradient."""
    task = default(name, COARSE) if name in TASKS else anchors()
    empty = with_boxes(None)
    network = task.network(8)
    dense = network(features_for(task))
    dense = {key: values.detach().requires_grad_() for key, values in dense.items()}
    labels = batch_labels([{task.name: task.labels(frame)} for frame in (empty, empty)])[task.name]
    losses = network.losses(dense, labels)
    torch.stack([loss.mean() for loss in losses.values()]).sum().backward()
    learned = {key for key, values in dense.items() if values.grad is not None and values.grad.any()}
    assert learned == {"detection": {"heatmap"}, "anchors": {"classes.0"}}.get(name, set())
    assert all(torch.isfinite(loss.each()).all() for loss in losses.values())


def test_conditions_lose_by_the_frames_whose_tags_say_something(tables: NuScenesTables) -> None:
    """The cross-entropy of each kind, over the frames where it is known."""
    tags = [Conditions(weather="rain"), Conditions(weather="fog", light="night"), Conditions()]
    task = default("conditions", COARSE)
    frames = [Frame("", 0, "ego", np.eye(4), np.eye(4), None, {}, conditions=known) for known in tags]
    labels = labels_of(task, frames, tables)
    torch.manual_seed(0)
    logits = {kind: torch.randn(3, len(values), dtype=torch.float64) for kind, values in CONDITIONS.items()}
    p = {kind: np.exp(x.numpy()) / np.exp(x.numpy()).sum(axis=1, keepdims=True) for kind, x in logits.items()}
    losses = task.network(8).losses(logits, labels)
    weather = -(np.log(p["weather"][0, 1]) + np.log(p["weather"][1, 2])) / 2
    assert losses["weather"].mean().item() == pytest.approx(weather, rel=1e-12)
    assert losses["light"].mean().item() == pytest.approx(-np.log(p["light"][1, 1]), rel=1e-12)
    assert losses["city"].mean().item() == 0
    token = tables.samples("all")[0]
    assert task.labelled(tables, token)


arrays = st.lists(
    st.tuples(st.integers(0, 4), st.integers(-9, 9)), min_size=1, max_size=4
)  # rows of each frame, and a number to fill them with


@given(arrays)
def test_labels_are_joined_frame_by_frame_and_padded_with_zeros(frames: list[tuple[int, int]]) -> None:
    each = [
        {"rows": np.full((n, 2), value, np.int16), "alone": np.array(value > 0), "mask": np.ones(n, bool)}
        for n, value in frames
    ]
    joined = joined_labels(each)
    most = max(n for n, _ in frames)
    assert [joined[name].shape for name in ("rows", "alone", "mask")] == [
        (len(frames), most, 2), (len(frames),), (len(frames), most),
    ]  # fmt: skip
    for name, values in joined.items():
        assert values.dtype == each[0][name].dtype
        for i, frame in enumerate(each):
            own = frame[name]
            np.testing.assert_array_equal(values[i][: len(own)] if own.ndim else values[i], own)
            assert not own.ndim or not values[i][len(own) :].any()


# ---- what tasks share


PARTS = ("lidar", "fuse", "trunk")


def counted(model: PerceptionModel, inputs: Dense, tags: list[Conditions]) -> tuple[Dense, list[int]]:
    """What the model predicts, and how often that ran each of the `PARTS`."""
    calls = dict.fromkeys(PARTS, 0)

    def count(name: str) -> Callable[..., None]:
        def called(*_: object) -> None:
            calls[name] += 1

        return called

    hooks = [getattr(model, name).register_forward_hook(count(name)) for name in calls]
    with torch.no_grad():
        outputs = model.predict(inputs, tags)
    for hook in hooks:
        hook.remove()
    return outputs, [*calls.values()]


HEADS, LATE, FUSION, EARLY = ("heads.*",), ("trunk.*", "heads.*"), ("fuse*", "trunk.*"), ("lidar.*", "trunk.*")


@pytest.mark.parametrize(
    ("modules", "calls"),
    [
        ([module("rain", "rain", slots=EARLY)], [1, 1, 1]),
        ([module("find", "detection", slots=HEADS), module("draw", "map", slots=HEADS)], [1, 1, 1]),
        ([module("find", "detection", slots=LATE), module("draw", "map", slots=LATE)], [1, 1, 2]),
        ([module("find", "detection", slots=LATE), module("rain", "rain", slots=EARLY)], [1, 1, 2]),
        ([module("find", "detection", slots=FUSION), module("draw", "map", slots=LATE)], [1, 2, 2]),
        ([module("find", "detection", slots=EARLY), module("draw", "map", slots=LATE)], [2, 2, 2]),
        ([module("find", "detection", "rain", slots=EARLY), module("draw", "map", slots=LATE)], [2, 2, 2]),
        ([module("find", "detection", "fog", slots=EARLY), module("draw", "map", slots=LATE)], [1, 1, 2]),
    ],
    ids=["no task's", "heads", "trunk", "shared before it", "fusion", "encoder", "in rain", "in fog, which is not"],
)
def test_tasks_share_each_part_of_the_network_before_their_modules_differ(
    modules: list[dict[str, Any]], calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a batch with one rainy frame; and each output is bit for bit what it is where nothing is shared."""
    model = little(modules, recognising=True)
    inputs, tags = frame_inputs(model, 1, 2), [Conditions(weather="rain"), Conditions(weather="clear")]
    outputs, found = counted(model, inputs, tags)
    assert found == calls
    monkeypatch.setattr(model, "_same", lambda *_: False)
    alone, found = counted(model, inputs, tags)
    assert found == [1 if len(modules) == 1 else 2] * len(PARTS)
    assert_same(outputs, alone)


@pytest.mark.parametrize(("slots", "encoders"), [(LATE, 1), (EARLY, 2)])
def test_a_deployed_network_shares_it_as_well(slots: tuple[str, ...], encoders: int) -> None:
    """Where modules are switched by an input."""
    modules = [module("find", "detection", "rain", slots=slots), module("draw", "map", slots=LATE)]
    model = little([*modules, module("wet", "rain", slots=EARLY)])
    deployed = model.deployed(Conditions(), Conditions(weather="rain"))
    assert isinstance(deployed.router, SteeredRouter)
    inputs = frame_inputs(model, 1)
    for tag in (Conditions(), Conditions(weather="rain")):
        deployed.router.steer(torch.full((1, len(deployed.router.steered)), float(tag.get("weather") == "rain")))
        outputs, calls = counted(deployed, inputs, [])
        assert calls == [encoders, encoders, 2]
        with torch.no_grad():
            expected = model.predict(inputs, [tag])
        torch.testing.assert_close(outputs["map/probabilities"], expected["map/probabilities"], rtol=1e-4, atol=1e-5)


def test_tasks_of_a_model_are_those_of_its_configuration() -> None:
    config = small()
    tasks = tasks_of(config.tasks, config.head_grid, NUSCENES)
    model = PerceptionModel(config)
    assert [*tasks] == [*model.tasks] == ["detection", "map"]
    assert all(task.grid == config.head_grid == config.grid.build().coarser(1) for task in tasks.values())
    dropped = config.model_validate(config.model_dump(mode="json") | {"tasks": {"detection": {}, "map": None}})
    assert [*dropped.tasks] == ["detection"]
