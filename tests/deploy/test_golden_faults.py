"""Golden frames find an engine that is wrong in any quantity, at every precision, and pass the one that is right."""

import math
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from exported import bundle, rewritten
from golden_networks import PRECISIONS, engine, flipped, small, weights
from golden_table import count_found
from hypothesis import given
from hypothesis import strategies as st
from networks import tasks, uniform_tolerances
from vocabulary import ATTRIBUTES, CLASSES, MAP_CLASSES, NUSCENES, RIG

from deploy.bundle import Bundle
from deploy.engines import open_engine
from deploy.golden import Arrays, GoldenFrame, WrongEngine, differences, synthetic_frame
from deploy.golden_detections import clear_detections, match_detections, score_spread
from deploy.runtime import CHECK_EVERY, Runtime
from deploy.tolerances import BOUNDS, Precision, Spread, Tolerances, require_bounded
from deploy.verify import verify
from perception.errors import InputError
from perception.grid import BevGrid
from perception.tasks import TASKS, configured, tasks_of

WRONG = (
    "boxes +0.3 m", "boxes +1 m", "boxes +10 m", "sizes x 1.3", "headings +20 deg", "velocities +1 m/s",
    "scores x 0.8", "one label", "all labels", "all attributes", "no drivable_area", "no ped_crossing", "no walkway",
    "no stop_line", "no carpark_area", "no divider", "conditions inverted",
)  # fmt: skip
EVERY = tasks_of(configured({name: {} for name in TASKS}), BevGrid(), NUSCENES)


def widest(precision: Precision) -> Tolerances:
    """Of detection and map."""
    bounds = BOUNDS[precision]
    return Tolerances(
        ranked={"detection": bounds.ranked}, dense={"map/probabilities": dict.fromkeys(MAP_CLASSES, bounds.cells)}
    )


def losing(tolerances: Tolerances, share: float) -> Tolerances:
    """With another share of the detections that may be lost."""
    ranked = {task: each.model_copy(update={"lost": share}) for task, each in tolerances.ranked.items()}
    return tolerances.model_copy(update={"ranked": ranked})


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_wrong_quantity_is_found_and_the_right_engine_passes(precision: Precision) -> None:
    """With the tolerances that the exporter wrote, on what this machine's engine computes."""
    judgement = count_found(small(precision))
    assert [name for name in WRONG if not judgement[name]] == []
    assert not judgement["none"]
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
        count = int(share * expected.size) + 1
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


@pytest.mark.parametrize(
    ("task", "output"), [(name, each.name) for name, task in EVERY.items() for each in task.outputs]
)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_changed_value_of_any_output_is_found(precision: Precision, task: str, output: str) -> None:
    """With the tolerances that the exporter wrote, on what this machine's engine computes; what is right passes."""
    name, allowed = f"{task}/{output}", small(precision).manifest.tolerances
    for frame, outputs in computed(precision):
        changes = wrong(precision, task, output, frame, outputs[name])
        found = {
            each: bool(differences(frame.outputs, {**outputs, name: values}, allowed, frame.compared))
            for each, values in changes.items()
        }
        assert found == {each: each != "" for each in changes}, frame.name


def test_there_is_a_street_and_one_with_sensors_missing() -> None:
    first, street, partial = small().golden_frames()
    assert [frame.name for frame in (first, street, partial)] == ["first", "street", "street-partial"]
    pillars = [int((frame.inputs["pillar_counts"] > 0).sum()) for frame in (first, street, partial)]
    assert 0 < pillars[2] < pillars[1]
    assert [bool(frame.inputs["images"].any()) for frame in (first, street, partial)] == [True, True, False]


def test_pillars_are_stored_without_their_padding() -> None:
    file = small().path / "golden.safetensors"
    frames = small().golden_frames()
    padded = sum(array.nbytes for frame in frames for array in frame.inputs.values())
    used = sum(int((frame.inputs["pillar_counts"] > 0).sum()) for frame in frames)
    spec = small().spec.lidar
    saved = (len(frames) * spec.max_pillars - used) * spec.points_per_pillar * 5 * 4
    outputs = sum(array.nbytes for frame in frames for array in frame.outputs.values())
    assert file.stat().st_size < padded + outputs - 0.9 * saved


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    "quantity",
    [
        *(f"detection.{name}" for name in ("score", "center", "size", "heading", "velocity")),
        *(f"map/probabilities.{name}" for name in MAP_CLASSES),
    ],
)
def test_tolerances_beyond_the_precision_are_refused(tmp_path: Path, precision: Precision, quantity: str) -> None:
    path = shutil.copytree(bundle().path, tmp_path / "bundle")
    (part, name), largest = quantity.rsplit(".", 1), dict(widest(precision).numbers())[f"{quantity}.each"]
    for number in (1.01 * largest, 1e9):
        tolerances = widest(precision).model_dump()
        spreads = tolerances["dense" if "/" in part else "ranked"][part]
        spreads[name] = Spread(each=number, mean=0)
        with pytest.raises(
            InputError, match=rf"manifest\.json: tolerance {quantity}\.each is .*, in {precision} at most"
        ):
            rewritten(path, tolerances=Tolerances.model_validate(tolerances), precision=precision)


def test_as_large_as_the_precision_may_need_is_accepted() -> None:
    for precision in PRECISIONS:
        require_bounded(widest(precision), precision, tasks(), "here")


def test_a_golden_file_that_compares_nothing_is_refused(tmp_path: Path) -> None:
    path = shutil.copytree(bundle().path, tmp_path / "bundle")
    blind = [
        replace(frame, compared={name: np.zeros_like(each) for name, each in frame.compared.items()})
        for frame in bundle().golden_frames()
    ]
    forged = Bundle.load(rewritten(path, golden=blind))
    with pytest.raises(InputError, match=r"compares 0 of \d+ detections, \d+ are needed; export the bundle again"):
        forged.golden_frames()


def test_an_engine_that_goes_wrong_while_driving_is_found_within_the_interval() -> None:
    """It begins to run with other weights in one layer, as after a flipped bit; until then it is right."""
    runtime, frame = Runtime(small().path), synthetic_frame("ego", RIG, 3)
    network = runtime._networks[0]
    right, wrong = network.engine, engine("fp32")
    name = "model.trunk.stages.1.1.conv.layer.weight"
    changed = {name: flipped(weights("fp32")[name])}

    class Failing:
        runs = 0

        def run(self, inputs):  # type: ignore[no-untyped-def]
            Failing.runs += 1
            return right.run(inputs) if Failing.runs <= 3 else wrong.run({**inputs, **changed})

    runtime._networks = [replace(network, engine=Failing())]
    runtime._checks = iter([(runtime._networks[0], golden) for golden in network.golden])
    runtime._steps = CHECK_EVERY - 5
    for _ in range(4):
        runtime.step(frame)
    with pytest.raises(WrongEngine, match=r"does not compute the exported network"):
        runtime.step(frame)


def test_a_check_changes_nothing_of_the_drive() -> None:
    frames = [synthetic_frame("ego", RIG, seed) for seed in range(4)]
    plain, checked = Runtime(small().path), Runtime(small().path)
    for i, frame in enumerate(frames):
        frame = replace(frame, timestamp=500_000 * i)
        expected = plain.step(frame)
        checked.check()
        actual = checked.step(frame)
        assert actual.seconds.keys() == expected.seconds.keys()
        assert actual.conditions == expected.conditions
        np.testing.assert_array_equal(
            actual.states["detection"].boxes.centers, expected.states["detection"].boxes.centers
        )
        np.testing.assert_array_equal(actual.states["map"], expected.states["map"])


@given(st.integers(0, 10**6), st.integers(1, 60))
def test_lost_is_counted_among_those_that_are_compared(seed: int, gone: int) -> None:
    """However many there are besides: 60 are compared of 200, and a tenth of them may be lost."""
    rng = np.random.default_rng(seed)
    scores = np.sort(rng.uniform(0.1, 0.9, (1, 200)))[:, ::-1].astype(np.float32)
    expected = {
        "detection/boxes": rng.uniform(-50, 50, (1, 200, 10)).astype(np.float32) + 5,
        "detection/scores": scores,
        "detection/labels": rng.integers(0, 10, (1, 200)),
        "detection/attributes": rng.integers(-1, 8, (1, 200)),
    }
    compared = {"detection": np.arange(200)[None] < 60}
    allowed = losing(uniform_tolerances(1e-3, {"detection": tasks()["detection"]}), 0.1)
    actual = {name: array.copy() for name, array in expected.items()}
    actual["detection/boxes"][0, rng.choice(60, gone, replace=False), 0] += 500
    assert bool(differences(expected, actual, allowed, compared)) == (gone > 6)


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


def test_a_label_that_changes_is_no_lost_detection() -> None:
    """Though a tenth may be lost: rounding moves peaks, and never makes a car of a truck."""
    frame: GoldenFrame = small().golden_frames()[1]
    actual = {name: array.copy() for name, array in frame.outputs.items()}
    rank = int(np.flatnonzero(frame.compared["detection"][0])[0])
    labels = actual["detection/labels"]
    labels[0, rank] = (labels[0, rank] + 1) % 10
    allowed = losing(small().manifest.tolerances, 0.1)
    assert [text for text in differences(frame.outputs, actual, allowed, frame.compared) if "label" in text]


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
