"""Verdicts: the devkit's numbers, the right reason for each outcome, and what a CI system reads."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from judged import gates, instead, only, record
from junitparser import Error, Failure, JUnitXml
from scipy import stats
from vocabulary import CLASSES, MAP_CLASSES, NUSCENES

from deploy.replay.outcome import Case
from deploy.replay.results import Finished
from deploy.replay.statistics import StatisticsWriter
from deploy.replay.verdict import judge
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.datasets.nuscenes.map_expansion import MapExpansion
from perception.errors import InputError
from perception.frame import Boxes, Frame, Prediction
from perception.grid import BevGrid
from perception.tasks import configured, tasks_of
from perception.tasks.detection.devkit import open_devkit, score_submission
from perception.tasks.detection.judge import DetectionJudge
from perception.tasks.detection.submission import SubmissionWriter
from perception.tasks.judging import Subject
from perception.tasks.map.iou import THRESHOLDS, MapIou, count_rings, ious
from perception.tasks.map.judge import MapJudge, pack, unpack

LATENCY = {"mode": "vehicle", "frames": 1, "stages": {"total": {"p50": 20.0, "p95": 30.0, "p99": 40.0, "max": 50.0}}}
GRID = BevGrid().coarser(2)  # of the map
TASKS = tasks_of(configured({"detection": {}, "map": {}}), GRID, NUSCENES)
Change = Callable[[Frame, Prediction], Prediction]


def detections(folder: Path) -> DetectionJudge:
    return DetectionJudge(Finished.load(folder).of_task("detection"))


@pytest.fixture(scope="module")
def drives(sim_root: Path) -> NuScenesTables:
    """Two drives of three keyframes, by day and by night in rain."""
    return NuScenesTables(sim_root, "v1.0-sim")


@pytest.fixture(scope="module")
def frames(drives: NuScenesTables) -> list[Frame]:
    return [drives.frame(token, lidar=False, cameras=False) for token in drives.samples()]


@cache
def expansion(dataroot: Path, location: str) -> MapExpansion | None:
    return MapExpansion.load(dataroot, location, NUSCENES.map_layers)


def seen(tables: NuScenesTables, frame: Frame) -> Prediction:
    """What a fair network would see: most annotations, not quite in place, and some that are not there."""
    rng = np.random.default_rng(frame.timestamp % 2**32)
    assert frame.boxes is not None
    boxes = frame.boxes.select(rng.permutation(np.repeat(np.arange(len(frame.boxes)), 2)))
    boxes = replace(
        boxes,
        centers=boxes.centers + rng.normal(0, 0.8, boxes.centers.shape),
        scores=rng.uniform(0.05, 1, len(boxes)),
        velocities=np.nan_to_num(boxes.velocities) + rng.normal(0, 0.3, boxes.velocities.shape),
        num_points=np.full(len(boxes), -1),
    )
    found = expansion(tables.dataroot, frame.location)
    assert found is not None
    truth = found.rasterize(frame, GRID)
    probabilities = np.clip(truth + rng.normal(0, 0.4, truth.shape), 0, 1).astype(np.float32)
    return Prediction({"detection": boxes, "map": probabilities})


def finish(
    out: Path,
    tables: NuScenesTables,
    frames: list[Frame],
    change: Change = lambda frame, prediction: prediction,
    truth: bool = True,
) -> Path:
    """The folder of a replay of a network that sees as `seen`, changed."""
    out.mkdir()
    with (
        SubmissionWriter.open(out / "results.json", ["lidar"], NUSCENES) as results,
        (out / "statistics.jsonl").open("wb") as file,
    ):
        statistics = StatisticsWriter(file, ["lidar"], TASKS, tables if truth else None)
        for frame in frames:
            prediction = change(frame, seen(tables, frame))
            results.add(frame, prediction.results["detection"])
            statistics.add(frame, prediction)
    (out / "latency.json").write_text(json.dumps(LATENCY))
    return record(out)


@pytest.fixture(scope="module")
def fair(drives: NuScenesTables, frames: list[Frame], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finish(tmp_path_factory.mktemp("fair") / "out", drives, frames)


@pytest.fixture(scope="module")
def again(fair: Path) -> Path:
    """Another replay with the same results."""
    return Path(shutil.copytree(fair, fair.with_name("again")))


@pytest.fixture(scope="module")
def six(frames: list[Frame]) -> list[Frame]:
    """Each frame as a scene of its own."""
    return [replace(frame, scene=f"scene-{i:04d}") for i, frame in enumerate(frames)]


@pytest.fixture(scope="module")
def fair_six(drives: NuScenesTables, six: list[Frame], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finish(tmp_path_factory.mktemp("six") / "out", drives, six)


def shaken(metres: float, away: float = 0.0) -> Change:
    """Boxes that are not quite where they were."""

    def change(frame: Frame, p: Prediction) -> Prediction:
        rng = np.random.default_rng(frame.timestamp % 2**32 + 1)
        boxes = p.results["detection"]
        moved = boxes.centers + rng.normal(away, metres, boxes.centers.shape)
        return instead(p, detection=replace(boxes, centers=moved))

    return change


def lost(name: str) -> Change:
    def change(frame: Frame, p: Prediction) -> Prediction:
        boxes = p.results["detection"]
        return instead(p, detection=boxes.select(boxes.labels != CLASSES.index(name)))

    return change


def test_scores_are_the_devkits_of_all_and_of_some_conditions(drives: NuScenesTables, fair: Path) -> None:
    nusc = open_devkit(drives.dataroot, drives.version)
    measures = detections(fair)
    for condition in (None, "rain", "clear+day"):
        samples = [
            token
            for token in drives.samples()
            if condition is None or set(condition.split("+")) <= set(drives.conditions(token).known())
        ]
        assert len(samples) == (6 if condition is None else 3)
        official = score_submission(fair / "results.json", nusc, samples)
        for metric in ("mAP", "NDS"):
            ours = measures.score(Subject(metric, None, condition, None))[0]
            assert ours == pytest.approx(official[metric], abs=1e-9)
            assert ours > 0.03
        present = [name for name, count in official["ground_truth"].items() if count]
        assert set(measures.annotated_classes(Subject("AP", condition=condition))) == set(present)
        for name in present:
            ours = measures.score(Subject("AP", name, condition, None))[0]
            assert ours == pytest.approx(official["mean_dist_aps"][name], abs=1e-9)


def test_iou_is_that_of_the_evaluation_and_of_a_ring_by_hand(
    drives: NuScenesTables, frames: list[Frame], fair: Path
) -> None:
    measures, iou = MapJudge(Finished.load(fair).of_task("map")), MapIou(MAP_CLASSES)
    middles = np.linalg.norm(GRID.centers().astype(float), axis=2)
    ring, inter, union = (middles >= 10) & (middles < 30), 0, 0
    for frame in frames:
        found = expansion(drives.dataroot, frame.location)
        assert found is not None
        truth, predicted = found.rasterize(frame, GRID), seen(drives, frame).results["map"]
        iou.add(predicted, truth)
        for p, t in zip(predicted[0][ring] >= 0.5, truth[0][ring] > 0, strict=True):
            inter, union = inter + (p and t), union + (p or t)
    expected = iou.result()
    assert expected is not None
    for name in (None, *(n for n in MAP_CLASSES if expected["iou_0.5"][n] is not None)):
        assert measures.score(Subject("IoU", name, None, None))[0] == pytest.approx(expected["iou_0.5"][name or "mean"])
    assert measures.score(Subject("IoU", MAP_CLASSES[0], None, (10, 30)))[0] == pytest.approx(inter / union)


def test_a_range_counts_only_what_is_in_it(drives: NuScenesTables, frames: list[Frame], tmp_path: Path) -> None:
    """A network that sees all up to 20 m and nothing beyond."""

    def near(frame: Frame, prediction: Prediction) -> Prediction:
        assert frame.boxes is not None
        distance = np.linalg.norm(
            frame.boxes.transformed(frame.global_from_reference).centers[:, :2] - frame.global_from_ego[:2, 3], axis=1
        )
        boxes = frame.boxes.select((distance < 20) & (frame.boxes.num_points > 0))
        return instead(prediction, detection=boxes)

    measures = detections(finish(tmp_path / "near", drives, frames, near))
    for name in measures.annotated_classes(Subject("AP", range=(0, 20))):
        assert measures.score(Subject("AP", name, None, (0, 20)))[0] == pytest.approx(1)
    far = [
        measures.score(Subject("AP", name, None, (20, 50)))[0]
        for name in measures.annotated_classes(Subject("AP", range=(20, 50)))
    ]
    assert far
    assert not any(far)


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


def test_a_replay_passes_against_one_with_the_same_results(fair: Path, again: Path) -> None:
    """Even where one scene or two could show nothing else."""
    verdict = judge(again, fair, EVERY)
    assert verdict.passed
    differences = [case for case in verdict.cases if case.metric == "difference"]
    assert len(differences) > 6
    assert all((case.value, case.interval, case.excludes) == (0, None, 0) for case in differences)
    assert all("both replays have the same results" in case.reason for case in differences)
    usual = judge(again, fair)
    assert usual.passed
    assert [case.name for case in usual.cases[:4]] == [
        f"{of}{part} against the baseline" for part in ("", " in boston") for of in ("mAP", "NDS")
    ]
    written = json.loads((again / "verdict.json").read_text())
    assert written == json.loads(json.dumps(usual.as_dict()))
    assert (written["outcome"], written["passed"], written["frames"], written["scenes"]) == ("pass", True, 6, 2)


def test_a_network_that_lost_a_class_fails_for_this_class_alone(
    drives: NuScenesTables, six: list[Frame], fair_six: Path, tmp_path: Path
) -> None:
    blind = finish(tmp_path / "blind", drives, six, lost("car"))
    verdict = judge(blind, fair_six, gates({"metric": "difference", "of": "AP", "at_most": 0.05}))
    assert verdict.outcome == "fail"
    failed = [case for case in verdict.cases if not case.passed]
    assert [(case.name, case.outcome) for case in failed] == [("AP car against the baseline", "fail")]
    before = detections(fair_six).score(Subject("AP", "car", None, None))[0]
    assert failed[0].value == pytest.approx(-before)
    assert f"{before:.4f} became 0.0000 ({-before:+.4f}, 95% interval" in failed[0].reason
    assert failed[0].reason.endswith("of 6 scenes); it may fall by 0.05, and fell further")
    back = judge(fair_six, blind, gates({"metric": "difference", "of": "AP", "at_most": 0.05}))
    assert back.passed  # better than the baseline is no fault


@pytest.mark.parametrize("of", ["NDS", "mAP", "IoU"])
def test_the_interval_is_the_jackknife_by_a_loop(
    of: str, drives: NuScenesTables, six: list[Frame], fair_six: Path, tmp_path: Path
) -> None:
    """Each scene left out by replays that never saw it."""

    def worse(frame: Frame, p: Prediction) -> Prediction:
        rng = np.random.default_rng(frame.timestamp % 2**32 + 2)
        noise = rng.normal(0, 0.2, p.results["map"].shape).astype(np.float32)
        return instead(shaken(0.5)(frame, p), map=np.clip(p.results["map"] + noise, 0, 1))

    folder = finish(tmp_path / "worse", drives, six, worse)
    case = only(judge(folder, fair_six, gates({"metric": "difference", "of": of, "at_most": 1})))
    run, baseline = Finished.load(folder), Finished.load(fair_six)
    subject, judges = Subject(of), {"map": MapJudge, "detection": DetectionJudge}
    task = "map" if of == "IoU" else "detection"
    judged_by = judges[task]

    def changed(tokens: list[str]) -> float:
        sides = [judged_by(side.only(tokens).of_task(task)) for side in (run, baseline)]
        return float(sides[0].score(subject)[0] - sides[1].score(subject)[0])

    whole = changed(run.tokens)
    deviations = np.array([changed([t for t in run.tokens if t != left]) for left in run.tokens]) - whole
    error = np.sqrt(5 / 6 * np.square(deviations).sum())
    if of == "IoU":
        counts = MapJudge(run.of_task("map")).counts
        assert counts is not None
        there = counts[:, 2].sum(axis=-1).astype(float)
    else:
        truth = detections(folder).truth
        assert truth is not None
        there = np.array([[(truth.labels[truth.frames == i] == c).sum() for c in range(10)] for i in range(6)], float)
    there = there[:, there.sum(axis=0) > 0]
    sizes = (there / there.sum(axis=0)).mean(axis=1)
    number = sizes.sum() ** 2 / (sizes**2).sum()
    t = stats.t.ppf(0.975, number - 1)
    tail = stats.skew(-deviations) * (1 + 2 * t**2) / (6 * np.sqrt(number))
    low, high = (t + max(0, sign * tail) for sign in (-1, 1))
    assert case.interval == pytest.approx((whole - low * error, whole + high * error), abs=1e-9)
    assert case.value == pytest.approx(whole)
    assert error > 1e-4


def test_a_fall_that_is_not_ruled_out_is_inconclusive_and_says_what_is(
    drives: NuScenesTables, six: list[Frame], fair_six: Path, tmp_path: Path
) -> None:
    """Worse in one scene of six: the mean is within the bound, the lower end of the interval is not."""

    def change(frame: Frame, p: Prediction) -> Prediction:
        return lost("car")(frame, p) if frame.scene == six[0].scene else p

    part = finish(tmp_path / "part", drives, six, change)

    def judged(at_most: float) -> Case:
        return only(judge(part, fair_six, gates({"metric": "difference", "of": "NDS", "at_most": at_most})))

    fell = judged(0).value
    assert fell is not None
    case = judged(round(-fell + 0.001, 3))
    assert (case.outcome, case.passed) == ("inconclusive", False)
    assert case.interval is not None
    assert case.excludes == -case.interval[0] > -fell
    excluded = float(re.search(r"these 6 scenes can only exclude a loss of (0\.\d{4}) or more$", case.reason)[1])
    assert 0 <= excluded - case.excludes < 1e-4
    assert judged(excluded).passed  # what they exclude is the margin from which they pass
    assert judged(excluded - 2e-4).outcome == "inconclusive"


@pytest.mark.parametrize(("count", "scenes"), [(3, "this scene"), (6, "these 2 scenes")])
def test_too_few_scenes_decide_nothing(
    count: int, scenes: str, drives: NuScenesTables, frames: list[Frame], tmp_path: Path
) -> None:
    """Whether the difference itself is within the margin or far over it."""
    results = {"fair": lambda f, p: p, "blind": lost("car"), "moved": shaken(0.01)}
    folders = {name: finish(tmp_path / name, drives, frames[:count], each) for name, each in results.items()}
    gate = gates({"metric": "difference", "of": "AP", "class": "car", "at_most": 0.1})
    for name, within in (("moved", True), ("blind", False)):
        verdict = judge(folders[name], folders["fair"], gate)
        case = only(verdict)
        assert case.value is not None
        assert (case.value >= -0.1) == within
        assert not case.passed
        assert (case.outcome, verdict.outcome) == ("inconclusive", "inconclusive")
        assert case.interval is case.excludes is None
        assert f"but {scenes} cannot exclude any loss: that takes at least 3 scenes" in case.reason
        assert verdict.table().title.startswith("INCONCLUSIVE: ")


def test_one_scene_that_holds_most_counts_as_hardly_more_than_one(
    drives: NuScenesTables, frames: list[Frame], fair_six: Path, tmp_path: Path
) -> None:
    """Four frames are a scene, the two with the fewest cars are a scene each."""
    cars = detections(fair_six).sizes(Subject("AP", "car", None, None))
    place = np.argsort(np.argsort(-cars))
    uneven = [replace(frame, scene=f"scene-{max(0, place[i] - 3)}") for i, frame in enumerate(frames)]
    fair = finish(tmp_path / "fair", drives, uneven)
    case = only(
        judge(
            finish(tmp_path / "worse", drives, uneven, shaken(0.3)),
            fair,
            gates({"metric": "difference", "of": "AP", "class": "car", "at_most": 0.5}),
        )
    )
    sizes = detections(fair).sizes(Subject("AP", "car", None, None))
    effective = sizes.sum() ** 2 / (sizes**2).sum()
    assert effective < 2
    assert case.outcome == "inconclusive"
    assert f"most of what is scored is in one of them, so that they count as {effective:.1f}" in case.reason


def test_without_annotations_agreement_decides(drives: NuScenesTables, frames: list[Frame], tmp_path: Path) -> None:
    fair = finish(tmp_path / "fair", drives, frames, truth=False)
    blind = finish(tmp_path / "blind", drives, frames, lost("car"), truth=False)
    usual = judge(Path(shutil.copytree(fair, tmp_path / "again")), fair)
    assert usual.passed
    parts = ["", *(f" in {condition}" for condition in ("boston", "clear", "day", "night", "rain", "singapore"))]
    assert [case.name for case in usual.cases] == [f"agreement of detections{part} with the baseline" for part in parts]
    case = judge(blind, fair).cases[0]
    assert not case.passed
    counts = [detections(path).detections for path in (blind, fair)]
    here, there = ((boxes.scores >= 0.2).sum() for boxes in counts)
    assert case.value == pytest.approx(2 * here / (here + there))  # what is left has its partner
    assert f"of {here} detections and the baseline's {there}; at least 0.9" in case.reason
    unmeasured = only(judge(fair, None, gates({"metric": "mAP", "at_least": 0})))
    assert unmeasured.value is None
    assert unmeasured.reason == "not measured: the drive has no annotations"
    assert not unmeasured.passed


def test_map_agreement_is_the_mean_iou_of_both(drives: NuScenesTables, frames: list[Frame], tmp_path: Path) -> None:
    def half(frame: Frame, p: Prediction) -> Prediction:
        cells = p.results["map"].copy()
        cells[:, ::2] = 0
        return instead(p, map=cells)

    fair = finish(tmp_path / "fair", drives, frames, truth=False)
    worse = finish(tmp_path / "half", drives, frames, half, truth=False)
    case = only(judge(worse, fair, gates({"metric": "agreement", "of": "map", "at_least": 0.9})))
    both, either = np.zeros(6), np.zeros(6)
    for frame in frames:
        cells = seen(drives, frame).results["map"]
        either += (cells >= 0.5).sum(axis=(1, 2))
        both += (cells[:, 1::2] >= 0.5).sum(axis=(1, 2))
    assert case.value == pytest.approx((both / either).mean())
    assert not case.passed


def test_frames_that_lack_and_blind_ones_are_dropped(
    drives: NuScenesTables, frames: list[Frame], tmp_path: Path
) -> None:
    times = [0, 1, 2, 5, 6, 7.2]  # between 2 and 5 lack two
    few = [
        replace(frames[0], token=frames[i].token, timestamp=int(5e5 * time), points=np.zeros((1, 5), np.float32))
        for i, time in enumerate(times)
    ]
    few[1] = replace(few[1], points=None)
    out = finish(tmp_path / "few", drives, few, lambda f, p: p)
    assert Finished.load(out).dropped == (2, 1)
    case = only(judge(out, None, gates({"metric": "dropped", "at_most": 2})))
    assert not case.passed
    assert case.reason == "2 keyframes are missing and 1 have no sensor data; at most 2"
    assert judge(out, None, gates({"metric": "dropped", "at_most": 3})).passed


def test_junit_is_what_a_reader_of_junit_reads(drives: NuScenesTables, fair: Path) -> None:
    verdict = judge(
        fair,
        None,
        gates(
            {"metric": "mAP", "at_least": 0.99},
            {"metric": "NDS", "at_least": 0},
            {"metric": "AMOTA", "at_least": 0.5},
            {"metric": "latency", "at_most": 39.9},
            {"metric": "NDS", "condition": "fog", "at_least": 0},
        ),
    )
    suites = JUnitXml.fromfile(str(fair / "junit.xml"))
    assert (suites.tests, suites.failures, suites.errors) == (5, 2, 2)
    cases = [case for suite in suites for case in suite]
    assert [case.name for case in cases] == [case.name for case in verdict.cases]
    kinds = [type(case.result[0]) if case.result else None for case in cases]
    assert kinds == [Failure, None, Error, Failure, Error]
    assert cases[0].result[0].message == f"{verdict.cases[0].value:.4f}; at least 0.99"
    assert cases[2].result[0].message == (
        "not measured: AMOTA needs annotations, every keyframe, nuscenes-devkit with motmetrics, and a replay with "
        "this gate"
    )
    assert cases[3].result[0].message == "40.0 ms; at most 39.9 ms"
    assert cases[4].result[0].message == "not measured: no frame is known to be in fog"


def test_amota_is_what_the_tracks_were_scored(fair: Path) -> None:
    (fair / "tracking_metrics.json").write_text('{"amota": 0.625}')
    case = only(judge(fair, None, gates({"metric": "AMOTA", "at_least": 0.6})))
    (fair / "tracking_metrics.json").unlink()
    assert case.passed
    assert case.value == 0.625


@given(st.integers(0, 2**32 - 1))
def test_packed_cells_come_back(seed: int) -> None:
    cells = np.random.default_rng(seed).random((6, 5, 7)) < 0.3
    np.testing.assert_array_equal(unpack(json.loads(json.dumps(pack(cells)))), cells)


@given(st.integers(0, 2**32 - 1))
def test_rings_sum_to_the_whole_map(seed: int) -> None:
    rng = np.random.default_rng(seed)
    grid = BevGrid(x=(-16, 24), y=(-20, 12), cell=2.0)
    probabilities, truth = rng.random((6, *grid.shape)).astype(np.float32), rng.integers(0, 2, (6, *grid.shape))
    counts = count_rings(probabilities >= 0.5, truth, grid)
    iou = MapIou(MAP_CLASSES)
    iou.add(probabilities, truth)
    np.testing.assert_array_equal(counts.sum(axis=2), iou.counts[list(THRESHOLDS).index(0.5)])
    intersection, union, _ = counts.sum(axis=2)
    np.testing.assert_allclose(ious(counts.sum(axis=2)), intersection / union)


def test_what_cannot_be_judged_is_one_line(
    drives: NuScenesTables, frames: list[Frame], fair: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="holds no finished replay"):
        judge(tmp_path, None, gates({"metric": "NDS", "at_least": 0}))
    with pytest.raises(InputError, match="nothing to judge by; give --gates, --baseline or both"):
        judge(fair)
    with pytest.raises(InputError, match="'difference' needs another replay; give its folder with --baseline"):
        judge(fair, None, EVERY)
    parts = [finish(tmp_path / name, drives, part) for name, part in (("a", frames[:3]), ("b", frames[3:]))]
    with pytest.raises(InputError, match="has no frame of this replay"):
        judge(parts[0], parts[1])


def test_no_boxes_at_all_is_a_verdict(drives: NuScenesTables, frames: list[Frame], tmp_path: Path) -> None:
    empty = finish(tmp_path / "empty", drives, frames, lambda f, p: instead(p, detection=Boxes.none()))
    case = only(judge(empty, None, gates({"metric": "mAP", "at_least": 0.1})))
    assert case.value == 0
    assert not case.passed
    case = only(
        judge(
            empty,
            Path(shutil.copytree(empty, tmp_path / "again")),
            gates({"metric": "agreement", "of": "detections", "at_least": 0.9}),
        )
    )
    assert case.reason == "not measured: neither replay detects anything with a score of 0.2"
