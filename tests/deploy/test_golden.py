"""Golden frames find whatever computes another network, at every precision, and pass the one that is right.

One changed weight is found in every layer, where all hashes hold, and so is a wrong quantity of any output.
"""

import math
import shutil
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from operator import iadd, imul
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from commands import one_line_error
from damage import Change
from exported import bundles_of, checkpoint_of, keys, reseal, settled, trusting
from hypothesis import given
from hypothesis import strategies as st
from lowered import switched
from networks import tasks, uniform_tolerances
from once import once
from tiny import write_tiny
from vocabulary import ATTRIBUTES, CLASSES, NUSCENES, RIG

from deploy.bundle import Bundle
from deploy.engines import open_engine
from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.golden import (
    GoldenFrame,
    WrongEngine,
    clear_detections,
    dense_spreads,
    differences,
    match_detections,
    require_golden,
    score_spread,
    synthetic_frame,
)
from deploy.precision.calibrate import Drives
from deploy.precision.measure import BOUNDS, require_bounded
from deploy.runtime import CHECK_EVERY, Runtime
from deploy.tolerances import Precision, Tolerances
from deploy.verify import verify
from perception.config import Config, find_config, load_config
from perception.errors import InputError
from perception.frame import Arrays, Boxes
from perception.grid import BevGrid
from perception.sensors.camera.config import Image
from perception.sensors.camera.picture import _taps, fit_width, warp
from perception.sensors.lidar.pillars import group
from perception.tasks import TASKS, parse_tasks, tasks_of
from perception.tasks.detection.task import DetectionTask

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
# The conditions are fitted, and have tests of their own (tests/perception/tasks/test_conditions.py).
TRAINED = tasks_of(parse_tasks({name: {} for name in TASKS if name != "conditions"}), BevGrid(), NUSCENES)


def small_config() -> Config:
    """The layers of `tiny` for all tasks but the fitted one, with a view of 51 m and pictures of 192 x 64 pixels.

    Without subcells: a weight of one subcell of a class shows only in detections at such subcells.
    """
    tiny = load_config(find_config("tiny"))
    lidar = tiny.model.lidar.model_copy(update={"max_pillars": 3000})
    camera = tiny.model.camera.model_copy(update={"image": Image(height=64, width=192)})
    grid = tiny.grid.model_copy(update={"x": (-25.6, 25.6), "y": (-25.6, 25.6), "z": (-5.0, 3.0)})
    model = tiny.model.model_copy(update={"lidar": lidar, "camera": camera})
    own = {**tiny.tasks, "detection": tiny.tasks["detection"].model_copy(update={"subcells": 1})}
    voxels = {"x": (-25.6, 25.6), "y": (-25.6, 25.6), "z": (-1.0, 2.2), "cell": 0.8}
    others: dict[str, Any] = {"occupancy": voxels, "points": {}}
    tasks = parse_tasks({**own, **others})
    return tiny.model_copy(update={"name": "small", "grid": grid, "model": model, "tasks": tasks})


@cache
def small(precision: Precision) -> Bundle:
    def make(out: Path) -> None:
        write_tiny(out / "drives")
        run = checkpoint_of(small_config(), seed=3)  # its means in INT8 are less than two thirds of their bounds
        bundles_of(run, out, PRECISIONS, Drives(out / "drives", "v1.0-tiny"))

    return Bundle.load(once("golden", make) / precision)


@cache
def weights(precision: Precision) -> dict[str, np.ndarray]:
    """Of the convolutions, by name; in INT8 the whole numbers that are dequantised to them."""
    graph = onnx.load(small(precision).onnx).graph
    made = {node.output[0]: node for node in graph.node}
    found = {node.input[1] for node in graph.node if node.op_type in ("Conv", "ConvTranspose")}
    found = {made[name].input[0] if name in made else name for name in found}
    return {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer if t.name in found}


@cache
def engine(precision: Precision) -> OnnxRuntimeEngine:
    """The small network, with an input for the weights of every convolution; without it they are as exported."""
    model = onnx.load(small(precision).onnx)
    for name, weight in weights(precision).items():
        kind = onnx.helper.np_dtype_to_tensor_dtype(weight.dtype)
        model.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, weight.shape))
    return OnnxRuntimeEngine(model.SerializeToString())


def flipped(weight: np.ndarray, precision: Precision) -> np.ndarray:
    """With the sign of the weight of the largest magnitude turned over; in a graph in INT8 of all.

    One of thousands of weights moves the outputs of INT8 no further than two engines are apart.
    """
    if precision == "int8":
        return -weight
    changed = weight.copy()
    changed.reshape(-1)[np.abs(weight).argmax()] *= -1
    return changed


@pytest.mark.slow("four tasks at three precisions, of one trace that other tests use too")
@pytest.mark.parametrize("precision", PRECISIONS)
def test_one_weight_is_caught_in_every_convolution(precision: Precision) -> None:
    """And as exported it passes, by the golden frames with the tolerances that the exporter wrote."""
    exported, run = small(precision), engine(precision).run
    allowed, operators = exported.manifest.tolerances, exported.manifest.operators
    require_golden(exported.golden_frames(), OnnxRuntimeEngine(exported.onnx).run, "the graph", allowed)
    assert len(weights(precision)) == operators["Conv"] + operators["ConvTranspose"]
    assert {name.split(".")[1] for name in weights(precision)} == {"camera", "fuse", "trunk", "heads"}
    # The kernels of this engine round in other places than those of the graph.
    frames = [(frame, run(frame.inputs)) for frame in exported.golden_frames()]
    missed = {*weights(precision)}
    for name, weight in weights(precision).items():
        changed = {name: flipped(weight, precision)}
        for frame, right in frames:
            if differences(right, run({**frame.inputs, **changed}), allowed, frame.compared):
                missed.discard(name)
                break
    assert missed == set()


BOXES, LABELS = "detection/boxes", "detection/labels"
Fault = Callable[[Arrays, GoldenFrame], dict[str, np.ndarray]]


def replaced(name: str, change: Callable[[np.ndarray], object]) -> Fault:
    """Change a copy of one output in place."""

    def fault(outputs: Arrays, frame: GoldenFrame) -> dict[str, np.ndarray]:
        values = outputs[name].copy()
        change(values)
        return {**outputs, name: values}

    return fault


def moved(column: int, by: float) -> Fault:
    """Add to one number of all boxes."""
    return replaced(BOXES, lambda boxes: iadd(boxes[..., column], by))


def turned(degrees: float) -> Fault:
    """Rotate all headings."""
    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]], np.float32)  # of (sin, cos)
    return replaced(BOXES, lambda boxes: np.copyto(boxes[..., 6:8], boxes[..., 6:8] @ turn))


def with_another_label(outputs: Arrays, frame: GoldenFrame) -> dict[str, np.ndarray]:
    """Of the best compared detection."""
    labels = outputs[LABELS].copy()
    if (compared := np.argwhere(frame.compared["detection"])).size:
        best = tuple(max(compared, key=lambda at: frame.outputs["detection/scores"][tuple(at)]))
        box = frame.outputs[BOXES][best][:3]
        here = np.argwhere(labels == frame.outputs[LABELS][best])
        nearest = tuple(min(here, key=lambda at: float(np.linalg.norm(outputs[BOXES][tuple(at)][:3] - box))))
        labels[nearest] = (labels[nearest] + 1) % len(CLASSES)
    return {**outputs, LABELS: labels}


# Which no manifest may tolerate. INT8 may lose a tenth of the boxes.
WRONG: dict[str, Fault] = {
    "boxes +0.25 m": moved(0, 0.25),
    "every 8th box +20 m": replaced(BOXES, lambda boxes: iadd(boxes.reshape(-1, boxes.shape[-1])[::8, 0], 20)),
    "sizes x 1.3": replaced(BOXES, lambda boxes: imul(boxes[..., 3:6], 1.3)),
    "headings +15 deg": turned(15),
    "velocities +0.3 m/s": moved(8, 0.3),
    "scores x 0.8": replaced("detection/scores", lambda scores: imul(scores, 0.8)),
    "one label": with_another_label,
}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_wrong_quantity_is_found_and_the_right_engine_passes(precision: Precision) -> None:
    """With the widest tolerances of the precision, in any of the golden frames."""
    widest, found = BOUNDS[precision].all(small(precision).manifest.heads), set[str]()
    for frame, outputs in computed(precision):
        assert differences(frame.outputs, outputs, widest, frame.compared) == []
        for name, fault in WRONG.items():
            if name not in found and differences(frame.outputs, fault(outputs, frame), widest, frame.compared):
                found.add(name)
    assert found == {*WRONG}
    verify(small(precision).path)  # the graphs of both layouts too


Changes = dict[str, np.ndarray]


@cache
def computed(precision: Precision) -> list[tuple[GoldenFrame, Arrays]]:
    """The golden frames, with what this machine's engine gives for them."""
    exported = small(precision)
    run = open_engine(exported).run
    return [(frame, run(frame.inputs)) for frame in exported.golden_frames(exported.cpu_onnx.name)]


def changed_detections(values: np.ndarray, name: str) -> list[np.ndarray]:
    """(N, ...) of an output of detection, wrong in one quantity after the other."""
    if name == "scores":
        return [0.5 * values]
    if name == "labels":
        return [(values + 1) % len(CLASSES)]
    if name == "attributes":
        return [(values + 2) % (len(ATTRIBUTES) + 1) - 1]  # none is -1
    assert name == "boxes"
    place, factor = np.eye(10)[[0, 1, 2, 8, 9]], np.ones((4, 10))
    factor[[0, 1, 2], [3, 4, 5]], factor[3, 6:8] = 2, -1  # sizes, and turned by half a turn
    return [*(values + 10 * place[:, None]), *(values * factor[:, None])]


def wrong(precision: Precision, task: str, output: str, frame: GoldenFrame, values: np.ndarray) -> Changes:
    """Copies of an output, each with something changed, by its name.

    One number is, but of detections in FP16 and INT8 all that are compared, since rounding may lose some.
    """
    changes: Changes = {"": values.copy()}
    if small(precision).manifest.heads[task].ranked:
        ranks = np.flatnonzero(frame.compared[task][0])[: 1 if precision == "fp32" else None]
        for i, changed in enumerate(changed_detections(values[0, ranks], output)):
            changes[str(i)] = values.copy()
            changes[str(i)][0, ranks] = changed
        return changes
    tolerances = small(precision).manifest.tolerances
    if (share := tolerances.labels.get(f"{task}/{output}")) is not None:
        assert share < 0.5
        changes["share"] = values.copy()
        expected = frame.outputs[f"{task}/{output}"].ravel()
        count = int(np.flatnonzero(np.arange(expected.size + 1) / expected.size > share)[0])
        changes["share"].reshape(-1)[:count] = np.where(expected[:count] == 1, 0, 1)
        return changes
    expected = frame.outputs[f"{task}/{output}"]
    for i, (channel, allowed) in enumerate(tolerances.dense[f"{task}/{output}"].items()):
        assert allowed.each < 0.5, channel  # so that no probability hides behind it
        for sign in (-1, 1):
            changes[f"{channel} {sign}"] = values.copy()
            place = (0, i, *(-1,) * (values.ndim - 2))
            changes[f"{channel} {sign}"][place] = expected[place] + sign * (1.01 * allowed.each + 1e-6)
    return changes


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("task", "output"), [(name, each.name) for name, task in TRAINED.items() for each in task.outputs]
)
def test_a_changed_value_of_any_output_is_found(precision: Precision, task: str, output: str) -> None:
    """With the tolerances that the exporter wrote, on what this machine's engine computes; what is right passes."""
    name, allowed = f"{task}/{output}", small(precision).manifest.tolerances
    for frame, outputs in computed(precision):
        for each, values in wrong(precision, task, output, frame, outputs[name]).items():
            found = differences(frame.outputs, {**outputs, name: values}, allowed, frame.compared)
            assert bool(found) == (each != ""), (frame.name, each)


def test_there_is_a_street_and_one_with_sensors_missing() -> None:
    first, street, partial = small("fp32").golden_frames()
    assert [frame.name for frame in (first, street, partial)] == ["first", "street", "street-partial"]
    pillars = [int((frame.inputs["pillar_counts"] > 0).sum()) for frame in (first, street, partial)]
    assert 0 < pillars[2] < pillars[1]
    assert [bool(frame.inputs["images"].any()) for frame in (first, street, partial)] == [True, True, False]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_tolerances_beyond_the_precision_are_refused(precision: Precision) -> None:
    """At the export; and as large as the precision may need they are accepted."""
    widest = BOUNDS[precision].all(tasks())
    require_bounded(widest, precision, tasks())
    for quantity, largest in widest.numbers():
        content = widest.model_dump()
        *keys, last = quantity.split(".")
        part = content["dense" if "/" in quantity else "ranked"]
        for key in keys:
            part = part[key]
        part[last] = 1.01 * largest + 1e-6
        beyond = Tolerances.model_validate(content)
        with pytest.raises(InputError, match=rf"in {precision} .*: tolerance {quantity} is .*, at most"):
            require_bounded(beyond, precision, tasks())


def test_an_engine_that_goes_wrong_while_driving_is_found_within_the_interval() -> None:
    """It begins to run with other weights in one layer, as after a flipped bit; until then it is right."""
    runtime, frame = Runtime(small("fp32").path), synthetic_frame("ego", RIG, 3)
    network, name, runs = runtime._networks[0], "model.trunk.stages.1.1.conv.layer.weight", []
    changed = {name: flipped(weights("fp32")[name], "fp32")}

    def run(inputs: Arrays) -> Arrays:
        runs.append(inputs)
        return network.engine.run(inputs) if len(runs) <= 3 else engine("fp32").run({**inputs, **changed})

    runtime._networks = [replace(network, engine=SimpleNamespace(run=run, new_state=network.engine.new_state))]
    runtime._checks = iter([(runtime._networks[0], golden) for golden in network.golden])
    runtime._steps = CHECK_EVERY - 5
    for _ in range(4):
        runtime.step(frame)
    with pytest.raises(WrongEngine, match=r"does not compute the exported network"):
        runtime.step(frame)


def test_a_check_is_in_its_frames_latency_and_changes_nothing_of_the_drive() -> None:
    plain, checked = Runtime(small("fp32").path), Runtime(small("fp32").path)
    network, slow = checked._networks[0], 0.05  # s

    def run(inputs: Arrays) -> Arrays:
        time.sleep(slow)
        return network.engine.run(inputs)

    checked._checks = iter(
        [
            (replace(network, engine=SimpleNamespace(run=run, new_state=network.engine.new_state)), each)
            for each in network.golden
        ]
    )
    for i in range(3):
        frame = replace(synthetic_frame("ego", RIG, i), timestamp=500_000 * i)
        checked._steps = CHECK_EVERY - 1
        expected, actual = plain.step(frame), checked.step(frame)
        assert actual.seconds.keys() == expected.seconds.keys()
        assert expected.seconds["check"] < slow <= actual.seconds["check"]
        assert actual.conditions == expected.conditions
        boxes, others = (step.states["detection"].boxes for step in (actual, expected))
        np.testing.assert_array_equal(boxes.centers, others.centers)
        np.testing.assert_array_equal(actual.states["map"], expected.states["map"])


CAMERA, LIDAR, PICTURE = (f"perception.sensors.{name}" for name in ("camera.sensor", "lidar.sensor", "camera.picture"))
DECODING = "perception.tasks.detection.task.DetectionTask.from_arrays"


def swapped(*keys: str) -> Change:
    """The first two of a list in the manifest change places."""

    def edit(manifest: Any) -> None:
        found = manifest
        for key in keys:
            found = found[key]
        found[0], found[1] = found[1], found[0]

    return edit


def wider_suppression(manifest: Any) -> None:
    """By a fifth of the distances that the classes have by default."""
    radii = [0.6 * min(each["size"][:2]) for each in manifest["taxonomy"]["classes"]]
    manifest["tasks"]["detection"]["suppression"]["radii"] = radii


def mirrored(task: DetectionTask, arrays: Arrays) -> Boxes:
    found = DETECTED(task, arrays)
    return replace(found, centers=found.centers * [1, -1, 1])


DETECTED = DetectionTask.from_arrays
# In the manifest: an edit, with hashes made anew; in the software: what is instead of a function or a constant.
SEAM: dict[str, tuple[str, str | Change, object]] = {
    "blue for red": ("images", f"{CAMERA}.warp", lambda picture, *to, into: warp(picture[..., ::-1].copy(), *to, into)),
    "other pixels between": ("images", f"{PICTURE}._taps", lambda places, count: _taps(np.rint(places), count)),
    "another reduction": ("images", f"{PICTURE}._reduced", lambda picture, factor: picture[::factor, ::factor]),
    "the sky instead of the road": (
        "images", f"{CAMERA}.fit_width", lambda shape, size: fit_width((shape[1] // 2, shape[1]), size)
    ),
    "points 0.2 m ahead": (
        "pillar_points", f"{LIDAR}.group", lambda points, *given: group(points + np.float32([0.2, 0, 0, 0, 0]), *given)
    ),
    **{
        name: (
            "pillar_points", f"{LIDAR}.group",
            lambda points, *given, factor=factor: group(points * np.float32([1, 1, 1, 1, factor]), *given),
        )
        for name, factor in (("points of one age", 0), ("points of the future", -1))
    },
    "a parked vehicle": (
        "image_from_reference", "perception.frame.Frame.image_from_reference",
        lambda frame, name: frame.cameras[name].intrinsics
        @ (np.linalg.inv(frame.cameras[name].ego_from_camera) @ frame.global_from_reference)[:3],
    ),
    "cameras in another order": ("images", swapped("rig", "cameras"), None),
    "mirrored boxes": ("detection", DECODING, mirrored),
    "suppressed farther": ("detection", wider_suppression, None),
}  # fmt: skip


@pytest.mark.slow("traces a network with modules, which other tests use too")
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("defect", SEAM)
def test_a_defect_before_or_behind_the_engine_is_found(
    defect: str, precision: Precision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a vehicle's software or the manifest has it, in a bundle that is unsigned or whose exporter signed it."""
    said, where, instead = SEAM[defect]
    private, public = keys(tmp_path / "keys")
    for name, key in (("unsigned", None), ("signed", private)):
        path = shutil.copytree(switched(precision).path, tmp_path / name)
        reseal(path, (lambda manifest: None) if isinstance(where, str) else settled(where), key)
        with monkeypatch.context() as patch:
            if isinstance(where, str):
                patch.setattr(where, instead)
            with one_line_error(at=f"{path}/golden", says=said):
                Runtime(path, trust=key and trusting(public))


@given(st.integers(0, 10**6), st.integers(1, 60))
def test_lost_is_counted_among_those_that_are_compared(seed: int, gone: int) -> None:
    """However many there are besides: 60 are compared of 200, and a tenth of them may be lost.

    If they are somewhat off; of those that are nowhere near, though their scores are high, not one may be, and none has
    another label.
    """
    rng = np.random.default_rng(seed)
    scores = np.sort(rng.uniform(0.1, 0.9, (1, 200)))[:, ::-1].astype(np.float32)
    expected = {
        "detection/boxes": rng.uniform(-5000, 5000, (1, 200, 10)).astype(np.float32),
        "detection/scores": scores,
        "detection/labels": rng.integers(0, 10, (1, 200)),
        "detection/attributes": rng.integers(-1, 8, (1, 200)),
    }
    compared = {"detection": np.arange(200)[None] < 60}
    usual = uniform_tolerances(1e-3, {"detection": tasks()["detection"]})
    ranked = {task: each.model_copy(update={"lost": 0.1}) for task, each in usual.ranked.items()}
    allowed = usual.model_copy(update={"ranked": ranked})
    actual = {name: array.copy() for name, array in expected.items()}
    moved = rng.choice(60, gone, replace=False)
    actual["detection/boxes"][0, moved, 0] += 1
    assert bool(differences(expected, actual, allowed, compared)) == (gone > 6)
    actual["detection/boxes"][0, moved[:1], 0] += 500
    assert any("are gone" in problem for problem in differences(expected, actual, allowed, compared))
    relabelled = {**expected, "detection/labels": expected["detection/labels"].copy()}
    relabelled["detection/labels"][0, moved[0]] = (relabelled["detection/labels"][0, moved[0]] + 1) % 10
    assert any("label" in problem for problem in differences(expected, relabelled, allowed, compared))


@given(st.integers(0, 10**6), st.floats(0, 0.03))
def test_scores_below_a_networks_threshold_are_no_further_off_than_rounding(seed: int, rounding: float) -> None:
    """A score that rounding moves across the threshold becomes 0: sorted, it is off by rounding alone."""
    rng = np.random.default_rng(seed)
    score = rng.uniform(0, 0.2, 40)
    moved = score + rng.uniform(-rounding, rounding, 40)
    expected, actual = (np.sort(np.where(each > 0.05, each, 0))[None, ::-1] for each in (score, moved))
    spread = score_spread(expected, actual, 0)
    assert spread.each <= rounding + 1e-6
    assert spread.mean <= (rounding + 1e-6) / max(expected.mean(), 1e-9)
    assert not clear_detections({"scores": expected}, rounding)[expected < 0.05 + 2 * rounding].any()


@given(st.integers(0, 10**6), st.floats(0.02, 0.5), st.booleans())
def test_headings_that_all_turn_are_off_wherever_they_head(seed: int, angle: float, opposite: bool) -> None:
    """Turned by one angle, in the mean by its chord; half of them to the other side, across not at all."""
    rng = np.random.default_rng(seed)
    yaws, turns = rng.uniform(-np.pi, np.pi, 60), np.full(60, angle)
    if opposite:
        turns[::2] *= -1
    places = np.column_stack([10.0 * np.arange(60), np.zeros((60, 2)), np.ones((60, 3))])
    expected, actual = (
        {
            "boxes": np.column_stack([places, np.sin(each), np.cos(each), np.zeros((60, 2))])[None],
            "scores": np.full((1, 60), 0.5), "labels": np.zeros((1, 60), int), "attributes": np.zeros((1, 60), int),
        }
        for each in (yaws, yaws + turns)
    )  # fmt: skip
    allowed = uniform_tolerances(1, tasks()).ranked["detection"]
    spread = match_detections(expected, actual, 0, np.ones(60, bool), allowed).spread("heading")
    assert spread.each == pytest.approx(2 * math.sin(angle / 2))
    assert spread.mean == pytest.approx(1 - math.cos(angle) if opposite else spread.each)


def test_matching_equals_brute_force() -> None:
    """Against a loop over all pairs, on detections that are close to each other."""
    rng = np.random.default_rng(0)
    n, allowed = 80, uniform_tolerances(0.4, tasks()).ranked["detection"]
    sides = []
    for _ in range(2):
        boxes = rng.uniform(0.5, 1, (n, 10)).astype(np.float32)
        boxes[::2, 6:8] *= rng.choice([-0.2, 0.2], (n // 2, 2))  # uncertain headings
        sides.append({"boxes": boxes, "scores": rng.uniform(0.3, 0.9, n).astype(np.float32),
                      "labels": rng.integers(0, 2, n), "attributes": rng.integers(0, 2, n)})  # fmt: skip
    mine, other = sides
    batches = ({name: values[None] for name, values in side.items()} for side in sides)
    usual = np.median([math.hypot(*box[6:8]) for box in mine["boxes"].astype(float)])
    lost = []
    for i in range(n):
        pairs = []
        for j in range(n):
            a, b = mine["boxes"][i].astype(float), other["boxes"][j].astype(float)
            ahead, other_ahead = (box[6:8] / max(math.hypot(*box[6:8]), usual) for box in (a, b))
            pairs.append(
                abs(float(mine["scores"][i]) - float(other["scores"][j])) <= 0.4
                and np.linalg.norm(a[:3] - b[:3]) <= 0.4
                and np.linalg.norm((b[3:6] - a[3:6]) / a[3:6]) <= 0.4
                and np.linalg.norm(a[8:] - b[8:]) <= 0.4
                and math.dist(ahead, other_ahead) <= 0.4
                and mine["labels"][i] == other["labels"][j]
                and mine["attributes"][i] == other["attributes"][j]
            )
        lost += [] if any(pairs) else [i]
    assert 0 < len(lost) < n
    assert match_detections(*batches, 0, np.ones(n, bool), allowed).lost.tolist() == lost


def test_a_dense_output_is_compared_channel_by_channel_and_relative_to_its_size() -> None:
    """Of a class that is nearly nowhere the mean difference is a large share."""
    expected = np.stack([np.full((4, 4), 0.5), np.full((4, 4), 1e-4)])[None].astype(np.float32)
    common, faint = dense_spreads(expected, expected + np.array([0.01, 2e-4]).reshape(1, 2, 1, 1), 1.0)
    assert (common.each, common.mean) == pytest.approx((0.01, 0.01 / 0.501), rel=1e-5)
    assert (faint.each, faint.mean) == pytest.approx((2e-4, 2e-4 / 1.1e-3), rel=1e-5)


def anchors(count: int, seed: int) -> dict[str, np.ndarray]:
    """What a network with anchors gives: for each class as many candidates, which overlap, best first."""
    rng = np.random.default_rng(seed)
    boxes = np.tile(np.column_stack([rng.uniform(-18, 18, (count, 2)), rng.uniform(1, 2, (count, 8))]), (3, 1))
    scores = -np.sort(-rng.uniform(0.05, 0.8, (3, count)), axis=1).reshape(-1)
    labels = np.repeat(np.arange(3), count)
    return {"boxes": boxes.astype(np.float32)[None], "scores": scores.astype(np.float32)[None],
            "labels": labels[None], "attributes": np.zeros((1, 3 * count), np.int64)}  # fmt: skip


@pytest.mark.parametrize("case", ["equal", "one is lost", "all are lost", "all at one place"])
def test_the_comparison_takes_memory_proportional_to_the_outputs(case: str) -> None:
    """Anchors overlap: 9,000 have ten million pairs within 4 m."""
    expected, allowed = anchors(3000, 0), uniform_tolerances(0.01, tasks()).ranked["detection"]
    actual = {name: values.copy() for name, values in expected.items()}
    compared = np.zeros(9000, bool)
    compared[:200] = True
    if case == "one is lost":
        actual["scores"][0, 3] = 0
    elif case == "all are lost":
        actual["boxes"][..., 8:] += 1
    elif case == "all at one place":
        expected["boxes"][..., :2] = actual["boxes"][..., :2] = 0
    tracemalloc.start()
    before = time.thread_time()
    found = match_detections(expected, actual, 0, compared, allowed)
    seconds, (_, peak) = time.thread_time() - before, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 * sum(values.nbytes for values in expected.values())
    assert seconds < 0.5  # 0.02 on a quiet machine; the first two are what a drive takes every 30 s
    assert len(found.lost) == {"one is lost": 1, "all are lost": 200}.get(case, 0)
