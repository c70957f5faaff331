"""Verdicts: the devkit's numbers, the right reason for each outcome, and what a CI system reads."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from junitparser import Error, Failure, JUnitXml
from made_up import keyframe
from maps import map_iou
from replays import gates, instead, only, record
from scipy import stats
from vocabulary import CLASSES, MAP_CLASSES, NUSCENES

from deploy.replay.gates import Gates
from deploy.replay.outcome import Case
from deploy.replay.results import Measures, ReplayResults
from deploy.replay.verdict import judge
from deploy.replay.writers import StatisticsWriter
from perception.datasets.keyframes import Reads
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.datasets.nuscenes.map_expansion import MapExpansion
from perception.errors import InputError
from perception.frame import Boxes, Frame, Prediction
from perception.grid import BevGrid
from perception.tasks import counted_truth, parse_tasks, tasks_of
from perception.tasks.detection.columns import BoxColumns, read_submission
from perception.tasks.detection.devkit import open_devkit, score_submission
from perception.tasks.detection.submission import SubmissionWriter
from perception.tasks.map.task import pack, unpack
from perception.tasks.metric import Subject, mean_shares

LATENCY = {"frames": 100, "stages": {"total": {"p50": 20.0, "p95": 30.0, "p99": 40.0, "max": 50.0}}}
GRID = BevGrid().coarser(2)  # of the map
TASKS = tasks_of(parse_tasks({"detection": {}, "map": {}}), GRID, NUSCENES)
CAR = {"class": "car"}
Change = Callable[[Frame, Prediction], Prediction]


def measured(folder: Path) -> Measures:
    return Measures(ReplayResults.load(folder))


def value(measures: Measures, *subject: Any) -> float:
    return float(measures.score(Subject(*subject)).values[0])


def shares(measures: Measures, *subject: Any) -> np.ndarray:
    """(S,) how much of what is scored each scene has."""
    sizes = measures.score(Subject(*subject)).sizes
    assert sizes is not None
    return mean_shares(sizes)


def gate(metric: str, **options: Any) -> Gates:
    return gates({"metric": metric, **options})


@pytest.fixture(scope="module")
def frames(tables: NuScenesTables) -> list[Frame]:
    """Three by day and three by night in rain."""
    reads = Reads(lidar=False, cameras=False, truth=counted_truth(TASKS))
    return [tables.frame(token, reads) for token in tables.samples()]


expansion = cache(MapExpansion.load)


def seen(root: Path, frame: Frame) -> Prediction:
    """What a fair network would see: most annotations, not quite in place, and some that are not there."""
    rng = np.random.default_rng(frame.timestamp % 2**32)
    boxes = frame.boxes.select(rng.permutation(np.repeat(np.arange(len(frame.boxes)), 2)))
    boxes = replace(
        boxes,
        centers=boxes.centers + rng.normal(0, 0.8, boxes.centers.shape),
        scores=rng.uniform(0.05, 1, len(boxes)),
        velocities=np.nan_to_num(boxes.velocities) + rng.normal(0, 0.3, boxes.velocities.shape),
        num_points=np.full(len(boxes), -1),
    )
    truth = expansion(root, frame.location, NUSCENES.map_layers).rasterize(frame, GRID)
    probabilities = np.clip(truth + rng.normal(0, 0.4, truth.shape), 0, 1).astype(np.float32)
    return Prediction({"detection": boxes, "map": probabilities})


Finish = Callable[..., Path]


@pytest.fixture(scope="module")
def finish(tables: NuScenesTables, tmp_path_factory: pytest.TempPathFactory) -> Finish:
    """The folder of a replay of frames by a network that sees as `seen`, changed."""

    def finished(frames: list[Frame], change: Change = lambda _, prediction: prediction, truth: bool = True) -> Path:
        out = tmp_path_factory.mktemp("finished")
        with (
            SubmissionWriter.open(out / "results.json", ["lidar"], NUSCENES) as results,
            (out / "statistics.jsonl").open("wb") as file,
        ):
            statistics = StatisticsWriter(file, ["lidar"], TASKS)
            for frame in frames:
                prediction = change(frame, seen(tables.dataroot, frame))
                results.add(frame, prediction.results["detection"])
                statistics.add(frame if truth else replace(frame, truth={}), prediction)
        (out / "latency.json").write_text(json.dumps(LATENCY))
        return record(out)

    return finished


@pytest.fixture(scope="module")
def fair(finish: Finish, frames: list[Frame]) -> Path:
    return finish(frames)


@pytest.fixture(scope="module")
def six(frames: list[Frame]) -> list[Frame]:
    """Each frame as a scene of its own."""
    return [replace(frame, scene=f"scene-{i:04d}") for i, frame in enumerate(frames)]


@pytest.fixture(scope="module")
def fair_six(finish: Finish, six: list[Frame]) -> Path:
    return finish(six)


def again(folder: Path) -> Path:
    """Another replay with the same results."""
    return Path(shutil.copytree(folder, folder.with_name(f"{folder.name}-again"), dirs_exist_ok=True))


def shaken(metres: float) -> Change:
    """Boxes that are not quite where they were, and a map with noise."""

    def change(frame: Frame, p: Prediction) -> Prediction:
        rng = np.random.default_rng(frame.timestamp % 2**32 + 1)
        boxes, cells = p.results["detection"], p.results["map"]
        boxes = replace(boxes, centers=boxes.centers + rng.normal(0, metres, boxes.centers.shape))
        noise = rng.normal(0, 0.2, cells.shape).astype(np.float32)
        return instead(p, detection=boxes, map=np.clip(cells + noise, 0, 1))

    return change


def without_cars(frame: Frame, p: Prediction) -> Prediction:
    boxes = p.results["detection"]
    return instead(p, detection=boxes.select(boxes.labels != CLASSES.index("car")))


def test_scores_are_the_devkits_of_all_and_of_some_conditions(tables: NuScenesTables, fair: Path) -> None:
    nusc, measures = open_devkit(tables.dataroot, tables.version), measured(fair)
    for condition, number in ((None, 6), ("rain", 3), ("clear+day", 3)):
        wanted = set(condition.split("+")) if condition else set()
        samples = [token for token in tables.samples() if wanted <= set(tables.conditions(token).known())]
        assert len(samples) == number
        official = score_submission(fair / "results.json", nusc, samples)
        for metric in ("mAP", "NDS"):
            ours = value(measures, metric, None, condition)
            assert ours == pytest.approx(official[metric], abs=1e-9)
            assert ours > 0.03
        present = [name for name, count in official["ground_truth"].items() if count]
        assert set(measures.annotated_classes(Subject("AP", condition=condition))) == set(present)
        for name in present:
            ours = value(measures, "AP", name, condition)
            assert ours == pytest.approx(official["mean_dist_aps"][name], abs=1e-9)


def test_iou_is_the_evaluations_and_a_ring_by_hand(tables: NuScenesTables, frames: list[Frame], fair: Path) -> None:
    measures, pairs = measured(fair), []
    middles = np.linalg.norm(GRID.centers().astype(float), axis=2)
    ring, inter, union = (middles >= 10) & (middles < 30), 0, 0
    for frame in frames:
        truth = expansion(tables.dataroot, frame.location, NUSCENES.map_layers).rasterize(frame, GRID)
        predicted = seen(tables.dataroot, frame).results["map"]
        pairs.append((predicted, truth))
        for p, t in zip(predicted[0][ring] >= 0.5, truth[0][ring] > 0, strict=True):
            inter, union = inter + (p and t), union + (p or t)
    expected = map_iou(pairs)["iou_0.5"]
    for name in (None, *(n for n in MAP_CLASSES if expected[n] is not None)):
        assert value(measures, "IoU", name) == pytest.approx(expected[name or "mean"])
    assert value(measures, "IoU", MAP_CLASSES[0], None, (10, 30)) == pytest.approx(inter / union)
    odd = np.random.default_rng(0).random((6, 5, 7)) < 0.3  # cells that do not fill whole bytes
    np.testing.assert_array_equal(unpack(json.loads(json.dumps(pack(odd)))), odd)


def test_a_range_counts_only_what_is_in_it(finish: Finish, frames: list[Frame]) -> None:
    """A network that sees all up to 20 m and nothing beyond."""

    def near(frame: Frame, prediction: Prediction) -> Prediction:
        centers = frame.boxes.transformed(frame.global_from_reference).centers[:, :2]
        distance = np.linalg.norm(centers - frame.global_from_ego[:2, 3], axis=1)
        boxes = frame.boxes.select((distance < 20) & (frame.boxes.num_points > 0))
        return instead(prediction, detection=boxes)

    measures = measured(finish(frames, near))
    for part, expected in (((0, 20), 1), ((20, 50), 0)):
        names = measures.annotated_classes(Subject("AP", range=part))
        assert names
        for name in names:
            assert value(measures, "AP", name, None, part) == pytest.approx(expected)


def test_a_score_passes_at_its_limit_and_not_below(fair: Path) -> None:
    score = value(measured(fair), "mAP")
    assert judge(fair, None, gate("mAP", at_least=score)).passed
    assert not judge(fair, None, gate("mAP", at_least=1.01 * score)).passed


EVERY = gates(
    {"metric": "difference", "of": "mAP", "at_most": 0},
    {"metric": "difference", "of": "NDS", "at_most": 0},
    {"metric": "difference", "of": "AP", "at_most": 0},
    {"metric": "difference", "of": "IoU", "at_most": 0},
    {"metric": "difference", "of": "AP", "class": "car", "condition": "rain", "range": [0, 30], "at_most": 0},
    {"metric": "agreement", "of": "detections", "at_least": 1},
    {"metric": "agreement", "of": "map", "at_least": 1},
    {"metric": "dropped", "at_most": 8},
    {"metric": "latency", "at_most": 40},
    {"metric": "latency", "quantile": "p50", "at_most": 20},
    {"metric": "mAP", "at_least": 0.01},
    {"metric": "NDS", "condition": "rain", "at_least": 0.01},
    {"metric": "AP", "at_least": 0.0},
    {"metric": "IoU", "class": "drivable_area", "at_least": 0.1},
)


def test_a_replay_passes_against_one_with_the_same_results(fair: Path) -> None:
    """Even where one scene or two could show nothing else."""
    run = again(fair)
    verdict = judge(run, fair, EVERY)
    assert verdict.passed
    differences = [case for case in verdict.cases if case.metric == "difference"]
    assert len(differences) > 6
    assert all((case.value, case.interval, case.excludes) == (0, None, 0) for case in differences)
    assert all("both replays have the same results" in case.reason for case in differences)
    usual = judge(run, fair)
    assert usual.passed
    assert [case.name for case in usual.cases[:4]] == [
        f"{of}{part} against the baseline" for part in ("", " in boston") for of in ("mAP", "NDS")
    ]
    written = json.loads((run / "verdict.json").read_text())
    assert written == json.loads(json.dumps(usual.as_dict()))
    assert (written["outcome"], written["passed"], written["frames"], written["scenes"]) == ("pass", True, 6, 2)


def test_a_network_that_lost_a_class_fails_for_it_alone(finish: Finish, six: list[Frame], fair_six: Path) -> None:
    blind, margin = finish(six, without_cars), gate("difference", of="AP", at_most=0.05)
    verdict = judge(blind, fair_six, margin)
    assert verdict.outcome == "fail"
    (failed,) = (case for case in verdict.cases if not case.passed)
    assert (failed.name, failed.outcome) == ("AP car against the baseline", "fail")
    before = value(measured(fair_six), "AP", "car")
    assert failed.value == pytest.approx(-before)
    assert f"{before:.4f} became 0.0000 ({-before:+.4f}, 95% interval" in failed.reason
    assert failed.reason.endswith("of 6 scenes); it may fall by 0.05, and fell further")
    assert judge(fair_six, blind, margin).passed  # better than the baseline is no fault


def annotated(line: Any) -> list[int]:
    """Scored annotations of a frame by class: with points, near enough, in no rack."""
    truth, ego = line["tasks"]["detection"]["truth"], np.array([line["ego"]])
    boxes = BoxColumns(np.array([[0, *row] for row in truth["boxes"]], np.float64).reshape(-1, 14))
    racks = np.array([[0, *rack] for rack in truth["bike_racks"]], np.float64).reshape(-1, 11)
    own = boxes.counted(ego, racks, NUSCENES)
    return [int((own.labels == c).sum()) for c in range(10)]


def likely(folder: Path) -> int:
    """Scored detections with a score of 0.2 (none is in a rack)."""
    frames = ReplayResults.load(folder).frames
    numbers = {token: i for i, token in enumerate(frames.tokens)}
    boxes = BoxColumns.joined(read_submission(folder / "results.json", numbers, NUSCENES))
    return int((boxes.counted(frames.egos, np.zeros((0, 11)), NUSCENES).scores >= 0.2).sum())


@pytest.mark.parametrize("of", ["NDS", "mAP", "IoU"])
def test_the_interval_is_the_jackknife_by_a_loop(of: str, finish: Finish, six: list[Frame], fair_six: Path) -> None:
    """Each scene left out by replays that never saw it."""
    folder = finish(six, shaken(0.5))
    case = only(judge(folder, fair_six, gate("difference", of=of, at_most=1)))
    run, baseline = ReplayResults.load(folder), ReplayResults.load(fair_six)

    def changed(tokens: list[str]) -> float:
        sides = [value(Measures(side.only(tokens)), of) for side in (run, baseline)]
        return sides[0] - sides[1]

    whole = changed(run.tokens)
    deviations = np.array([changed([t for t in run.tokens if t != left]) for left in run.tokens]) - whole
    error = np.sqrt(5 / 6 * np.square(deviations).sum())
    if of == "IoU":
        there = np.array([each["counts"][2].sum(axis=-1) for each in Measures(run).counts("map")], float)
    else:
        there = np.array([annotated(each) for each in run.lines], float)
    there = there[:, there.sum(axis=0) > 0]
    sizes = (there / there.sum(axis=0)).mean(axis=1)
    number = sizes.sum() ** 2 / (sizes**2).sum()
    t = stats.t.ppf(0.975, number - 1)
    tail = stats.skew(-deviations) * (1 + 2 * t**2) / (6 * np.sqrt(number))
    low, high = (t + max(0, sign * tail) for sign in (-1, 1))
    assert case.interval == pytest.approx((whole - low * error, whole + high * error), abs=1e-9)
    assert case.value == pytest.approx(whole)
    assert error > 1e-4


def test_a_fall_that_is_not_ruled_out_is_inconclusive(finish: Finish, six: list[Frame], fair_six: Path) -> None:
    """Worse in one scene of six: the mean is within the bound, the lower end of the interval is not."""
    part = finish(six, lambda frame, p: without_cars(frame, p) if frame.scene == six[0].scene else p)

    def judged(at_most: float) -> Case:
        return only(judge(part, fair_six, gate("difference", of="NDS", at_most=at_most)))

    fell = judged(0).value
    case = judged(round(-fell + 0.001, 3))
    assert (case.outcome, case.passed) == ("inconclusive", False)
    assert case.excludes == -case.interval[0] > -fell
    excluded = float(re.search(r"these 6 scenes can only exclude a loss of (0\.\d{4}) or more$", case.reason)[1])
    assert 0 <= excluded - case.excludes < 1e-4
    assert judged(excluded).passed  # what they exclude is the margin from which they pass
    assert judged(excluded - 2e-4).outcome == "inconclusive"


def test_too_few_scenes_decide_nothing(finish: Finish, frames: list[Frame]) -> None:
    """Whether the difference itself is within the margin or far over it."""
    for count, scenes in ((3, "this scene"), (6, "these 2 scenes")):
        fair = finish(frames[:count])
        for change, within in ((shaken(0.01), True), (without_cars, False)):
            verdict = judge(finish(frames[:count], change), fair, gate("difference", of="AP", at_most=0.1, **CAR))
            case = only(verdict)
            assert (case.value >= -0.1) == within
            assert (case.passed, case.outcome, verdict.outcome) == (False, "inconclusive", "inconclusive")
            assert case.interval is case.excludes is None
            assert f"but {scenes} cannot exclude any loss: that takes at least 3 scenes" in case.reason
            assert verdict.table().title.startswith("INCONCLUSIVE: ")


def test_one_scene_that_holds_most_counts_almost_alone(finish: Finish, frames: list[Frame], fair_six: Path) -> None:
    """Four frames are a scene, the two with the fewest cars are a scene each."""
    place = np.argsort(np.argsort(-shares(measured(fair_six), "AP", "car")))
    uneven = [replace(frame, scene=f"scene-{max(0, place[i] - 3)}") for i, frame in enumerate(frames)]
    fair = finish(uneven)
    case = only(judge(finish(uneven, shaken(0.3)), fair, gate("difference", of="AP", at_most=0.5, **CAR)))
    sizes = shares(measured(fair), "AP", "car")
    effective = sizes.sum() ** 2 / (sizes**2).sum()
    assert effective < 2
    assert case.outcome == "inconclusive"
    assert f"most of what is scored is in one of them, so that they count as {effective:.1f}" in case.reason


def test_without_annotations_agreement_decides(tables: NuScenesTables, finish: Finish, frames: list[Frame]) -> None:
    """That of the map is the mean IoU of both."""

    def worse(frame: Frame, p: Prediction) -> Prediction:
        cells = p.results["map"].copy()
        cells[:, ::2] = 0
        return instead(without_cars(frame, p), map=cells)

    fair, blind = finish(frames, truth=False), finish(frames, worse, truth=False)
    usual = judge(again(fair), fair)
    assert usual.passed
    parts = ["", *(f" in {condition}" for condition in ("boston", "clear", "day", "night", "rain", "singapore"))]
    assert [case.name for case in usual.cases] == [f"agreement of detections{part} with the baseline" for part in parts]
    case = judge(blind, fair).cases[0]
    assert not case.passed
    here, there = (likely(path) for path in (blind, fair))
    assert case.value == pytest.approx(2 * here / (here + there))  # what is left has its partner
    assert f"of {here} detections and the baseline's {there}; at least 0.9" in case.reason
    case = only(judge(blind, fair, gate("agreement", of="map", at_least=0.9)))
    cells = np.stack([seen(tables.dataroot, frame).results["map"] for frame in frames]) >= 0.5
    both, either = cells[:, :, 1::2].sum(axis=(0, 2, 3)), cells.sum(axis=(0, 2, 3))
    assert case.value == pytest.approx((both / either).mean())
    assert not case.passed
    case = only(judge(fair, None, gate("mAP", at_least=0)))
    assert (case.value, case.passed, case.reason) == (None, False, "not measured: the drive has no annotations")


def test_frames_that_lack_and_blind_ones_are_dropped(finish: Finish, frames: list[Frame]) -> None:
    there = keyframe(np.zeros((1, 5), np.float32))
    few = [
        replace(frames[0], token=frames[i].token, timestamp=int(5e5 * time), **keyframe(None) if i == 1 else there)
        for i, time in enumerate([0, 1, 2, 5, 6, 7.2])  # between 2 and 5 lack two
    ]
    out = finish(few)
    assert ReplayResults.load(out).dropped == (2, 1)
    case = only(judge(out, None, gate("dropped", at_most=2)))
    assert not case.passed
    assert case.reason == "2 keyframes are missing and 1 have no sensor data; at most 2"
    assert judge(out, None, gate("dropped", at_most=3)).passed


@pytest.mark.parametrize(
    ("times", "missing"),
    [
        ({"a": [0, 5, 10, 20, 25]}, 1),
        ({"a": [0, 5, 10, 20, 25, 26, 27]}, 1),  # further frames make up for none
        ({"a": range(20), "b": [0, 5, 10, 15]}, 0),  # each drive has its own period
        ({"a": [0, 5, 10], "b": [0, 5, 20]}, 0),  # a single gap beside one of another length decides nothing
        ({"a": [0, 5, 5, 10]}, 1),
        ({"a": [0, 5, 3, 8]}, 1),
        ({"a": [0]}, 0),
    ],
)  # fmt: skip
def test_keyframes_are_missing_in_the_gaps_of_their_drive(times: dict[str, Any], missing: int, tmp_path: Path) -> None:
    line = {"token": "", "ego": [0, 0], "conditions": [], "sensors": "", "blind": False, "not_finite": {}, "tasks": {}}
    lines = [line | {"scene": scene, "timestamp": 100_000 * t} for scene, each in times.items() for t in each]
    (tmp_path / "statistics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    assert ReplayResults(tmp_path).dropped == (missing, 0)


def test_a_gate_on_latency_needs_a_hundred_frames(fair: Path) -> None:
    """Of fewer frames the 99th percentile is the slowest one."""
    two = gates({"metric": "latency", "at_most": 40}, {"metric": "latency", "quantile": "max", "at_most": 49})

    def told() -> list[tuple[Any, ...]]:
        return [(case.passed, case.value, case.reason) for case in judge(fair, None, two).cases]

    assert told() == [(True, 40.0, "40.0 ms; at most 40 ms"), (False, 50.0, "50.0 ms; at most 49 ms")]
    (fair / "latency.json").write_text(json.dumps(LATENCY | {"frames": 99}))
    assert told() == [(False, None, "not measured: 99 frames are too few, 100 are needed")] * 2
    (fair / "latency.json").write_text(json.dumps(LATENCY))


def test_junit_is_what_a_reader_of_junit_reads(fair: Path) -> None:
    """AMOTA is what the tracks were scored, if they were."""
    five = gates(
        {"metric": "mAP", "at_least": 0.99},
        {"metric": "NDS", "at_least": 0},
        {"metric": "AMOTA", "at_least": 0.5},
        {"metric": "latency", "at_most": 39.9},
        {"metric": "NDS", "condition": "fog", "at_least": 0},
    )
    verdict = judge(fair, None, five)
    suites = JUnitXml.fromfile(str(fair / "junit.xml"))
    assert (suites.tests, suites.failures, suites.errors) == (5, 2, 2)
    cases = [case for suite in suites for case in suite]
    assert [case.name for case in cases] == [case.name for case in verdict.cases]
    results = [(type(case.result[0]), case.result[0].message) if case.result else None for case in cases]
    needs = "annotations, every keyframe, nuscenes-devkit with motmetrics, and a replay with this gate"
    assert results == [
        (Failure, f"{verdict.cases[0].value:.4f}; at least 0.99"),
        None,
        (Error, f"not measured: AMOTA needs {needs}"),
        (Failure, "40.0 ms; at most 39.9 ms"),
        (Error, "not measured: no frame is known to be in fog"),
    ]
    (fair / "tracking_metrics.json").write_text('{"amota": 0.625}')
    case = judge(fair, None, five).cases[2]
    (fair / "tracking_metrics.json").unlink()
    assert (case.passed, case.value) == (True, 0.625)


def test_what_cannot_be_judged_is_one_line(finish: Finish, frames: list[Frame], fair: Path, tmp_path: Path) -> None:
    """No boxes at all are a verdict."""
    for message, run, baseline, given_gates in (
        ("holds no finished replay", tmp_path, None, gate("NDS", at_least=0)),
        ("nothing to judge by; give --gates, --baseline or both", fair, None, None),
        ("'difference' needs another replay; give its folder with --baseline", fair, None, EVERY),
        ("has no frame of this replay", finish(frames[:3]), finish(frames[3:]), None),
    ):
        with pytest.raises(InputError, match=message):
            judge(run, baseline, given_gates)
    empty = finish(frames, lambda f, p: instead(p, detection=Boxes.none()))
    case = only(judge(empty, None, gate("mAP", at_least=0.1)))
    assert (case.value, case.passed) == (0, False)
    case = only(judge(empty, again(empty), gate("agreement", of="detections", at_least=0.9)))
    assert case.reason == "not measured: neither replay detects anything with a score of 0.2"
