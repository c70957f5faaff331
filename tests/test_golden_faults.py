"""Golden frames find an engine that is wrong in any quantity, at every precision, and pass the one that is right."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from exported import bundle, rewritten
from hypothesis import given
from hypothesis import strategies as st
from test_golden_sensitivity import PRECISIONS, engine, flipped, small, weights

from deploy.bundle import Bundle
from deploy.golden import GoldenFrame, WrongEngine, differences, distinct, matched, score_spread, synthetic_frame
from deploy.runtime import CHECK_EVERY, Runtime
from deploy.tolerances import BOUNDS, Precision, Spread, require_bounded, uniform
from deploy.verify import verify
from perception.errors import InputError

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
from golden_table import judged

WRONG = (
    "boxes +0.3 m", "boxes +1 m", "boxes +10 m", "sizes x 1.3", "headings +20 deg", "velocities +1 m/s",
    "scores x 0.8", "one label", "all labels", "all attributes", "no drivable_area", "no ped_crossing", "no walkway",
    "no stop_line", "no carpark_area", "no divider",
)  # fmt: skip


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_wrong_quantity_is_found_and_the_right_engine_passes(precision: Precision) -> None:
    """With the tolerances that the exporter wrote, on what this machine's engine computes."""
    found = judged(small(precision))
    assert [name for name in WRONG if not found[name]] == []
    assert not found["none"]
    verify(small(precision).path)  # the graphs of both layouts too


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
    assert spec is not None
    saved = (len(frames) * spec.max_pillars - used) * spec.points_per_pillar * 5 * 4
    outputs = sum(array.nbytes for frame in frames for array in frame.outputs.values())
    assert file.stat().st_size < padded + outputs - 0.9 * saved


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("quantity", ["score", "center", "size", "heading", "velocity", "map"])
def test_tolerances_beyond_the_precision_are_refused(tmp_path: Path, precision: Precision, quantity: str) -> None:
    path = shutil.copytree(bundle().path, tmp_path / "bundle")
    bounds = BOUNDS[precision].model_copy(update={"map": BOUNDS[precision].map * 6})
    largest = (bounds.map[0] if quantity == "map" else getattr(bounds, quantity)).each
    for number in (1.01 * largest, 1e9):
        wide = Spread(each=number, mean=0)
        tolerances = bounds.model_copy(update={quantity: (wide,) * 6 if quantity == "map" else wide})
        with pytest.raises(
            InputError, match=rf"manifest\.json: tolerance {quantity}\.each is .*, in {precision} at most"
        ):
            rewritten(path, tolerances=tolerances, precision=precision)


def test_as_large_as_the_precision_may_need_is_accepted() -> None:
    for precision, bounds in BOUNDS.items():
        require_bounded(bounds, precision, 1, "here")


def test_a_golden_file_that_compares_nothing_is_refused(tmp_path: Path) -> None:
    path = shutil.copytree(bundle().path, tmp_path / "bundle")
    blind = [replace(frame, compared=np.zeros_like(frame.compared)) for frame in bundle().golden_frames()]
    forged = Bundle.load(rewritten(path, golden=blind))
    with pytest.raises(InputError, match=r"compares 0 of \d+ detections, \d+ are needed; export the bundle again"):
        forged.golden_frames()


def test_an_engine_that_goes_wrong_while_driving_is_found_within_the_interval() -> None:
    """It begins to run with other weights in one layer, as after a flipped bit; until then it is right."""
    runtime, frame = Runtime(small().path), synthetic_frame("ego", 3)
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
    frames = [synthetic_frame("ego", seed) for seed in range(4)]
    plain, checked = Runtime(small().path), Runtime(small().path)
    for i, frame in enumerate(frames):
        frame = replace(frame, timestamp=500_000 * i)
        expected = plain.step(frame)
        checked.check()
        actual = checked.step(frame)
        assert actual.seconds.keys() == expected.seconds.keys()
        assert actual.conditions == expected.conditions
        np.testing.assert_array_equal(actual.tracks.boxes.centers, expected.tracks.boxes.centers)
        np.testing.assert_array_equal(actual.map, expected.map)


@given(st.integers(0, 10**6), st.integers(1, 60))
def test_lost_is_counted_among_those_that_are_compared(seed: int, gone: int) -> None:
    """However many there are besides: 60 are compared of 200, and a tenth of them may be lost."""
    rng = np.random.default_rng(seed)
    scores = np.sort(rng.uniform(0.1, 0.9, (1, 200)))[:, ::-1].astype(np.float32)
    expected = {
        "boxes": rng.uniform(-50, 50, (1, 200, 10)).astype(np.float32) + 5,
        "scores": scores,
        "labels": rng.integers(0, 10, (1, 200)),
        "attributes": rng.integers(-1, 8, (1, 200)),
    }
    compared = np.arange(200)[None] < 60
    allowed = uniform(1e-3).model_copy(update={"lost": 0.1})
    actual = {name: array.copy() for name, array in expected.items()}
    actual["boxes"][0, rng.choice(60, gone, replace=False), 0] += 500
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
    assert not distinct({"scores": expected}, rounding)[expected < 0.05 + 2 * rounding].any()


def test_a_label_that_changes_is_no_lost_detection() -> None:
    """Though a tenth may be lost: rounding moves peaks, and never makes a car of a truck."""
    frame: GoldenFrame = small().golden_frames()[1]
    actual = {name: array.copy() for name, array in frame.outputs.items()}
    rank = int(np.flatnonzero(frame.compared[0])[0])
    actual["labels"][0, rank] = (actual["labels"][0, rank] + 1) % 10
    allowed = small().manifest.tolerances.model_copy(update={"lost": 0.1})
    assert [text for text in differences(frame.outputs, actual, allowed, frame.compared) if "label" in text]


def test_matching_equals_brute_force() -> None:
    """Against a loop over all pairs, on detections that are close to each other."""
    rng = np.random.default_rng(0)
    n, allowed = 80, uniform(0.4)
    sides = []
    for _ in range(2):
        boxes = rng.uniform(0.5, 1, (n, 10)).astype(np.float32)
        sides.append({"boxes": boxes, "scores": rng.uniform(0.3, 0.9, n).astype(np.float32),
                      "labels": rng.integers(0, 2, n), "attributes": rng.integers(0, 2, n)})  # fmt: skip
    mine, other = sides
    lost = []
    for i in range(n):
        pairs = []
        for j in range(n):
            a, b = mine["boxes"][i].astype(float), other["boxes"][j].astype(float)
            turn = abs(np.angle(np.exp(1j * (np.arctan2(b[6], b[7]) - np.arctan2(a[6], a[7])))))
            pairs.append(
                abs(float(mine["scores"][i]) - float(other["scores"][j])) <= 0.4
                and np.linalg.norm(a[:3] - b[:3]) <= 0.4
                and np.linalg.norm((b[3:6] - a[3:6]) / a[3:6]) <= 0.4
                and np.linalg.norm(a[8:] - b[8:]) <= 0.4
                and turn <= 0.4
                and mine["labels"][i] == other["labels"][j]
                and mine["attributes"][i] == other["attributes"][j]
            )
        lost += [] if any(pairs) else [i]
    assert 0 < len(lost) < n
    assert matched(mine, other, np.ones(n, bool), allowed).lost.tolist() == lost
