"""The contract that every task keeps, what tasks share, and the words that they need."""

import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import one_line_error
from exported import bundle
from heights import Heights
from made_up import keyframe
from networks import anchored_config as anchored
from networks import anchored_objects as objects
from networks import assert_same, frame_inputs, little, module
from occupied import CLASSES, FREE, SMALL, Occupied, random_occupancy
from perfect import SURE, Dense, perfect_detection
from torch import Tensor
from toy_task import Toy
from unchanged import EVERY, RAIN, assert_kept
from vocabulary import CONDITION_VALUES, CONDITIONS, NUSCENES, RIG, SENSORS

from deploy.bundle import require_vocabulary
from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.engines.tensorrt import build_engine
from deploy.golden import differing, synthetic_frame
from deploy.onnx_export import to_onnx
from deploy.precision.measure import LEAST
from deploy.route import BankedModule
from deploy.targets import find_target
from perception.checkpoint import load_model, save_model
from perception.datasets.keyframes import Reads
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.frame import Boxes, Conditions, Frame, Prediction
from perception.grid import OTHERS, BevGrid, VoxelGrid
from perception.model import PerceptionModel
from perception.modules.routing.fixed import SteeredRouter
from perception.modules.spec import require_facts
from perception.scene.scene import Scene
from perception.sensors import sensor_facts
from perception.sensors.inputs import prepare
from perception.tasks import TASKS, parse_tasks
from perception.tasks.detection.task import DetectionTask
from perception.tasks.network import PointFeatures
from perception.tasks.occupancy.labels import UNKNOWN
from perception.tasks.occupancy.result import OccupancyResult
from perception.tasks.outputs import Output, decode
from perception.tasks.points.task import ClassifiedPoints
from perception.tasks.task import Task
from perception.training.adapt import adapt, add_task
from perception.training.loader import batch_labels

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
    found = []
    for token, count in ((tokens[0], 30), (tokens[-1], 80)):
        points = np.pad(rng.normal(0, 20, (count, 3)), ((0, 0), (0, 2))).astype(np.float32)
        classes = rng.integers(-1, len(POINT_CLASSES), count).astype(np.int16)
        own = keyframe(points) | {"class_of_point": classes}
        found.append(replace(tables.frame(token, Reads(lidar=False, cameras=False, truth=("occupancy", "map"))), **own))
    return found


# ---- the contract; a new task adds to PERFECT and EXPECTED what its head should say of a frame


def sure(classes: Tensor, count: int) -> Tensor:
    """Logits (..., count) of these classes."""
    return 2 * SURE * torch.nn.functional.one_hot(classes.long(), count).float() - SURE


def perfect_occupancy(labels: Dense) -> Dense:
    truth = torch.where(labels["classes"] == UNKNOWN, FREE, labels["classes"])
    return {"logits": sure(truth, len(CLASSES)).movedim(-1, 2).flatten(1, 2)}


PERFECT: dict[str, Callable[[Dense], Dense]] = {
    "detection": perfect_detection,
    "map": lambda labels: {"logits": torch.where(labels["cells"] > 0, SURE, -SURE)},
    "conditions": lambda labels: {
        **{kind: sure(labels[kind], len(values)) for kind, values in CONDITIONS.items()},
        "distance": torch.zeros(len(labels["weather"]), len(CONDITIONS)),
    },
    "points": lambda labels: {
        "logits": sure(labels["classes"].clamp(min=0), len(POINT_CLASSES)),
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
    cells = tables.recording(frame.token).annotated("map").rasterize(frame, grid)
    assert cells[0].any()
    np.testing.assert_array_equal(found > 0.5, cells > 0)


def assert_recognised(found: Any, frame: Frame, _: NuScenesTables, __: BevGrid) -> None:
    likeliest = {kind: CONDITIONS[kind][int(np.argmax(p))] for kind, p in found.items()}
    assert Conditions(**likeliest) == frame.conditions
    assert all(sum(p) == pytest.approx(1) for p in found.values())


def assert_classified(found: ClassifiedPoints, frame: Frame, _: NuScenesTables, __: BevGrid) -> None:
    classes: Any = frame.keyframe_classes
    known = classes >= 0
    assert known.sum() > 20
    np.testing.assert_array_equal(found.classes[: len(classes)][known], classes[known])


def assert_occupied(found: OccupancyResult, frame: Frame, tables: NuScenesTables, _: BevGrid) -> None:
    truth = tables.recording(frame.token).annotated("occupancy")
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
    if task.reads == "inputs":
        return {"images": torch.randint(0, 256, (2, 2, 32, 64, 3), dtype=torch.uint8)}
    features = torch.randn(2, 8, *task.grid.shape)
    if task.reads != "points":
        return features
    places = task.config.point_places
    cells = torch.randint(task.grid.cells + 1, (2, places))
    return PointFeatures(features, torch.randn(2, places, 5), cells)


def labels_of(task: Task[Any], frames: list[Frame]) -> Dense:
    """As the loader makes and joins them."""
    return batch_labels([{task.name: task.labels(frame)} for frame in frames])[task.name]


@pytest.mark.parametrize("name", TASKS)
def test_perfect_outputs_decode_to_the_labels_and_lose_nothing(name, frames, tables):
    task = default(name, FINE)
    assert task.name == name
    network, labels = task.network(8), labels_of(task, frames)
    dense = PERFECT[name](labels)
    assert dense.keys() == network(features_for(task)).keys()
    outputs = network.decode(dense)
    for i, frame in enumerate(frames):
        own = {key: values[i].numpy() for key, values in outputs.items()}
        assert decode(task.outputs, own)[1] == {}
        EXPECTED[name](task.result(own), frame, tables, FINE)
    torch.manual_seed(0)
    other = network.losses({key: values + torch.randn(values.shape) for key, values in dense.items()}, labels)
    for term, loss in network.losses(dense, labels).items():
        assert 0 <= loss.mean().item() < 1e-5, term  # no term can be below 0
        assert other[term].counts.sum() > 0, term
    worse = network.losses({key: torch.randn(values.shape) for key, values in dense.items()}, labels)
    assert all(loss.mean().item() > 0.01 for loss in worse.values())


def test_outputs_beside_detections_are_decoded_by_their_own_kinds() -> None:
    task = default("detection", FINE)
    found = {"boxes": np.ones((3, 10), np.float32), "scores": np.ones(3, np.float32)}
    found |= dict.fromkeys(("labels", "attributes"), np.zeros(3, np.int64))
    beside = Output(name="slope", kind="value", unit="degrees", names=("along", "across"))
    for slope, expected, count in (([1, 2], [1, 2], {}), ([1, np.nan], [], {"slope": 1})):
        results, counts = decode((*task.outputs, beside), {**found, "slope": np.array(slope, np.float32)})
        assert (results["slope"].tolist(), counts) == (expected, count)
        assert len(task.from_arrays({name: results[name] for name in found})) == 3


def anchors() -> DetectionTask:
    config = anchored("joined")
    return DetectionTask(config.tasks["detection"], config.head_grid, NUSCENES)


def with_boxes(boxes: Boxes | None) -> Frame:
    return Frame("", 0, "ego", np.eye(4), np.eye(4), None, {}, truth={"boxes": boxes})


@pytest.mark.parametrize("lost", [{"points": None, "cameras": {}}, {"global_from_ego": None}], ids=["data", "pose"])
@pytest.mark.parametrize("name", TASKS)
def test_from_a_frame_without_data_or_pose_nothing_is_remembered(name, lost, frames, tables):
    """Whatever the network makes of it, the state is the same; and after a frame with both it is another one."""
    task, first = default(name, FINE), frames[0]
    outputs = task.network(8).decode(PERFECT[name](labels_of(task, frames)))
    results = [task.result({key: values[i].numpy() for key, values in outputs.items()}) for i in range(len(frames))]
    seen, later = [], replace(first, token="later", timestamp=first.timestamp + 500_000)
    for result, more in product(results, ({}, lost)):
        scene = Scene(SENSORS, {name: task}, CONDITIONS)
        for frame, own in ((first, results[0]), (replace(later, **more), result)):
            frame = scene.admit(frame, "ego")
            scene.observe(frame)
            after = scene.update(frame, Prediction({name: own}))
        seen.append(pickle.dumps(after.states))
    assert (seen[0] == seen[2]) == (task.memory() is None)
    assert seen[1] == seen[3]


@pytest.mark.parametrize("name", TASKS)
def test_decoding_gives_the_declared_outputs_in_order(name: str) -> None:
    """Of the trained and of the deployed network."""
    task = default(name, COARSE)
    network, features = task.network(8).eval(), features_for(task)
    for each in (network, task.deployed(network)):
        outputs = each.decode(each(features))
        assert [*outputs] == [output.name for output in task.outputs]
        for output, values in zip(task.outputs, outputs.values(), strict=True):
            assert len(values) == 2
            if output.kind in ("raster", "value"):
                assert values.shape[1] == len(output.names)
                assert (values.ndim > 2) == (output.kind == "raster")


@pytest.mark.parametrize("name", [*TASKS, "anchors"])
def test_each_frame_loses_in_a_batch_what_it_loses_alone(name, frames, tables):
    """Values and gradients, which are those of finite differences; so padding counts for nothing either."""
    task = default(name, COARSE) if name in TASKS else anchors()
    if name not in TASKS:
        frames = [with_boxes(objects(3, 8)), with_boxes(objects(5, 4))]
    network = task.network(8)
    torch.manual_seed(0)
    shapes = {key: values.shape for key, values in network(features_for(task)).items()}
    dense = {key: torch.randn(shape, dtype=torch.float64).requires_grad_() for key, shape in shapes.items()}
    labels = labels_of(task, frames)
    assert "real" not in labels or len(set(labels["real"].sum(dim=1).tolist())) == 2  # one frame is padded
    together = network.losses(dense, labels)
    for i, frame in enumerate(frames):
        alone = {key: values[i : i + 1].detach().requires_grad_() for key, values in dense.items()}
        losses = network.losses(alone, labels_of(task, [frame]))
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
def test_a_frame_without_labels_teaches_nothing_false(name: str) -> None:
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


# ---- what tasks share


PARTS = ("lidar", "fuse", "trunk")


def counted(model: PerceptionModel, inputs: Dense, tags: list[Conditions]) -> tuple[Dense, list[int]]:
    """What the model predicts, and how often that ran each of the `PARTS`."""
    ran = list[str]()
    hooks = [getattr(model, name).register_forward_hook(lambda *_, name=name: ran.append(name)) for name in PARTS]
    with torch.no_grad():
        outputs = model.predict(inputs, tags)
    for hook in hooks:
        hook.remove()
    return outputs, [ran.count(name) for name in PARTS]


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
def test_tasks_share_each_part_of_the_network_before_their_modules_differ(modules, calls, monkeypatch):
    """In a batch with one rainy frame; and each output is bit for bit what it is where nothing is shared."""
    model = little(modules)
    inputs, tags = frame_inputs(model, 1, 2), [Conditions(weather="rain"), Conditions(weather="clear")]
    outputs, found = counted(model, inputs, tags)
    assert found == calls
    monkeypatch.setattr(model, "is_same_in", lambda *_: False)
    alone, found = counted(model, inputs, tags)
    assert found == ([1, 1, 1] if len(modules) == 1 else [2, 2, 2])
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
        route = torch.full((1, len(deployed.router.steered)), float(tag.get("weather") == "rain"))
        outputs, calls = counted(deployed, {**inputs, "route": route}, [])
        assert calls == [encoders, encoders, 2]
        with torch.no_grad():
            expected = model.predict(inputs, [tag])
        torch.testing.assert_close(outputs["map/probabilities"], expected["map/probabilities"], rtol=1e-4, atol=1e-5)


def test_none_omits_a_task() -> None:
    assert [*parse_tasks({"detection": {}, "map": None})] == ["detection"]


# ---- added to a finished model, one after the other


ADDED: dict[str, dict[str, Any]] = {
    "points": {"max_points": 2500, "channels": 8},
    "occupancy": {"x": (-12.8, 12.8), "y": (-12.8, 12.8), "z": (-1.0, 5.4), "cell": 1.6, "channels": 8},
    "toy": {},
}


@pytest.fixture(scope="module")
def source(tables: Occupied) -> Any:
    """Keyframes with classes of points and with voxels of the size of the head's."""
    voxels = VoxelGrid(**{name: ADDED["occupancy"][name] for name in ("x", "y", "z", "cell")})
    return Heights(Occupied(tables, lambda token: random_occupancy(token, voxels)))


@pytest.fixture(scope="module")
def runs(source: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """A model with a module for rain; and with each of `ADDED` and those before it, and a module for each."""
    folder = tmp_path_factory.mktemp("added")
    last = folder / "base"
    model = little([module("rain", "rain")])
    save_model(last, model.config, model)
    made = {"base": last}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TASKS, "toy", Toy)
        for name, head in ADDED.items():
            own = {**module(f"own-{name}", slots=("trunk.*", f"heads.{name}.*")), "when": []}
            content = {"tasks": {name: head}, "modules": [own]}
            add_task(last, name, content, source, "all", (), folder / name, steps=3, batch=1)
            made[name] = last = folder / name
        yield made


@torch.no_grad()
@pytest.mark.parametrize(("earlier", "name"), pairwise(["base", *ADDED]))
def test_an_added_task_leaves_every_tensor_and_every_output(runs: dict[str, Path], earlier: str, name: str) -> None:
    before, after = load_model(runs[earlier])[0], load_model(runs[name])[0]
    assert assert_kept(before, after) == {f"{name}/{output.name}" for output in after.tasks[name].outputs}
    # Its own module has learned, and runs for it alone.
    assert after.bank.modules[f"own-{name}"].when == (name,)
    slots = after.bank.at(f"own-{name}")
    assert {slot.partition(".")[0] for slot in slots} == {"trunk", "heads"}
    assert all(computation.b.weight.any() for computation in slots.values())


@pytest.mark.parametrize("name", ADDED)
def test_a_module_for_a_task_in_rain_changes_nothing_else(name, runs, source, tmp_path, monkeypatch):
    """And is trained without computing the other tasks."""
    trained, losses = set[str](), PerceptionModel.losses

    def noted(model: PerceptionModel, dense: Any, labels: Any) -> Any:
        trained.update(key.split("/")[0] for key in dense)
        return losses(model, dense, labels)

    monkeypatch.setattr(PerceptionModel, "losses", noted)
    wet = module("wet", "rain", name, slots=("trunk.*",))
    adapt(runs[name], wet, source, "all", (), tmp_path / "run", steps=3, batch=1)
    assert trained == {name}
    before, after = load_model(runs[name])[0], load_model(tmp_path / "run")[0]
    assert all(computation.b.weight.any() for computation in after.bank.at("wet").values())
    inputs = frame_inputs(after, 1, 2)
    with torch.no_grad():
        for conditions in EVERY:
            old, new = (model(inputs, [conditions] * 2) for model in (before, after))
            same = {key for key in old if torch.equal(old[key], new[key])}
            assert same == old.keys() - ({f"{name}/logits"} if conditions is RAIN else set())


@pytest.mark.slow("exports a network with all heads, and compiles it")
@torch.no_grad()
def test_the_graph_of_all_has_the_same_outputs_and_compiles(runs: dict[str, Path]) -> None:
    """Without a plugin; ONNX Runtime finds what torch finds, for any number of pillars, with and without points."""
    model = load_model(runs["toy"])[0].deployed()
    spec = model.config.spec
    frames = [synthetic_frame("ego", RIG, seed) for seed in (0, 3, 4)]
    arrays, *others = (prepare(frame, spec) for frame in (*frames[:2], replace(frames[2], points=None)))
    names = [*model.predict({name: torch.from_numpy(array) for name, array in arrays.items()})]
    graph = to_onnx(model, arrays, names)
    assert not {node.op_type for node in graph.graph.node} & {"ScatterElements", "NonZero", "Loop", "If"}
    engine = OnnxRuntimeEngine(graph.SerializeToString())
    for inputs in others:
        found = engine.run(inputs)
        expected = model.predict({name: torch.from_numpy(array) for name, array in inputs.items()})
        assert [*found] == names
        assert found["points/classes"].dtype == found["occupancy/classes"].dtype == np.uint8
        assert (found["occupancy/classes"] == expected["occupancy/classes"].numpy()).mean() > 0.999
        assert (found["occupancy/free"] == expected["occupancy/free"].numpy()).mean() > 0.98
        for name in ("points/confidence", "occupancy/occupied", "occupancy/others", "toy/cells"):
            torch.testing.assert_close(torch.from_numpy(found[name]), expected[name], atol=1e-5, rtol=1e-5)
        assert differing(found["points/classes"], expected["points/classes"].numpy()) <= LEAST.labels
    pytest.importorskip("tensorrt_rtx")
    shapes = {name: array.shape for name, array in arrays.items()}
    assert build_engine(graph.SerializeToString(), find_target("rtx-ampere"), inputs=shapes).layers > 10


# ---- words that are not this software's: what the network calls 3 must be what the tracker calls 3


def test_a_bundle_with_other_words_is_refused() -> None:
    """Its module would never run, the network of its route never be chosen."""
    for change, words in (
        ({"taxonomy": NUSCENES.model_copy(update={"map_layers": ()})}, "tasks.map: the taxonomy nuscenes has no map"),
        ({"routes": ("base", "boston+snow")}, "routes: 'snow' is none of clear, rain, fog"),
        ({"apart": ("snow",)}, "apart: 'snow' is none of clear, rain, fog"),
        ({"banked": (BankedModule(name="ski", asks=("no-lidar", "snow")),)}, "banked.ski.asks: 'snow' is none of"),
    ):
        with one_line_error(at=f"manifest.json: {words}"):
            require_vocabulary(Path("manifest.json"), bundle().manifest.model_copy(update=change))


def test_facts_that_a_module_can_ask_for() -> None:
    """A task is not asked of a frame; facts that exclude each other would never let their module run."""
    for fact in (*CONDITION_VALUES, *sensor_facts(), *TASKS):
        require_facts([fact, fact], CONDITION_VALUES, TASKS, sensor_facts(), "here")
    never = r"\S+ and \S+ never hold together; add a module for each$"
    for facts, words in (
        (["snow"], "'snow' is none of clear, rain, fog"),
        (["rain", "points", "occupancy"], never),
        (["rain", "no-cameras", "cameras"], never),
    ):
        with one_line_error(f"^here: {words}"):
            require_facts(facts, CONDITION_VALUES, TASKS, sensor_facts(), "here")
