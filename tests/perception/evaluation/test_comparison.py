"""Two evaluations are compared by what is left without each scene; the interval covers what it says with few scenes."""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from commands import perception
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats
from vocabulary import CLASSES, MAP_CLASSES, RIG

from perception.datasets.keyframes import NO_SENSORS
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.errors import InputError
from perception.evaluation.comparison import LEFT_OUT, LeftOutScores, compare, comparison_table
from perception.evaluation.evaluate import Breakdown, evaluate
from perception.evaluation.interval import LEAST_EFFECTIVE, effective_number, jackknife_interval
from perception.evaluation.report import REPORT
from perception.frame import Boxes, Frame, Prediction
from perception.grid import BevGrid
from perception.sensors.inputs import InputSpec
from perception.sensors.lidar.config import Lidar
from perception.tasks.detection.devkit import open_devkit, score_submission
from perception.tasks.detection.metric import DetectionMetric
from perception.tasks.map.task import ious
from perception.tasks.metric import CountedFrames, leave_one_out
from perception.tasks.occupancy.metric import OccupancyMetric

VERSION = "v1.0-mini"
PIECES = 5  # of a drive
SPEC = InputSpec(BevGrid(), {"lidar": Lidar(sweeps=0)}, RIG, truth=("boxes", "bicycle_racks", "map"))
BY = ("condition", "scene", "range")


def write_split(nuscenes_root: Path, root: Path) -> None:
    """A dataroot with the annotations of the real keyframes, in five scenes of each city; every other one in rain."""
    source, folder = nuscenes_root / VERSION, root / VERSION
    folder.mkdir(parents=True)
    for name in ("maps", "samples", "sweeps"):
        (root / name).symlink_to(nuscenes_root / name)
    for table in source.glob("*.json"):
        (folder / table.name).symlink_to(table)
    samples = sorted(json.loads((source / "sample.json").read_text()), key=lambda row: row["timestamp"])
    scenes, kept = [], []
    for drive in json.loads((source / "scene.json").read_text()):
        own = [row for row in samples if row["scene_token"] == drive["token"]]
        for index in np.array_split(np.arange(len(own)), PIECES):
            tokens = ["", *(own[i]["token"] for i in index), ""]
            name = {"token": f"{drive['name']}-{index[0]}", "name": f"scene-{len(scenes):04}"}
            ends = {"first_sample_token": tokens[1], "last_sample_token": tokens[-2], "nbr_samples": len(index)}
            scenes.append(drive | name | ends | {"description": ("Rain", "Clear")[len(scenes) % 2]})
            for i, before, after in zip(index, tokens, tokens[2:], strict=False):
                kept.append(own[i] | {"scene_token": name["token"], "prev": before, "next": after})
    for table, rows in (("scene.json", scenes), ("sample.json", kept)):
        (folder / table).unlink()
        (folder / table).write_text(json.dumps(rows))


def network(tables: NuScenesTables, found: float = 0.8, metres: float = 0.4) -> Callable[[Frame], Prediction]:
    """A predictor that finds a share of the annotated objects, displaced by so much, and as many that are not there."""

    def predict(frame: Frame) -> Prediction:
        rng = np.random.default_rng([int(frame.token[:8], 16)])
        boxes = tables.recording(frame.token).annotated("boxes")
        number = len(boxes)
        chosen, away = rng.random(number), rng.normal(0, 1, (2, number, 3))
        boxes = replace(boxes, scores=np.round(rng.uniform(0.05, 1, number), 6))
        good = replace(boxes, centers=boxes.centers + metres * away[0]).select(chosen < found)
        bad = replace(boxes, centers=boxes.centers + 30 + away[1]).select(chosen < 0.2)
        both = Boxes.joined(good, bad).transformed(np.linalg.inv(frame.global_from_reference))
        return Prediction({"detection": both})

    return predict


def evaluated(predictor: Callable, tables: NuScenesTables, out: Path, *selectors: str, by: Sequence[str] = BY) -> Path:
    breakdown = Breakdown(by, left_out=True)
    evaluate(predictor, tables, "all", selectors, out, SPEC, Console(file=io.StringIO()), breakdown)
    return out


@pytest.fixture(scope="module")
def drives(nuscenes_root: Path, tmp_path_factory: pytest.TempPathFactory) -> NuScenesTables:
    root = tmp_path_factory.mktemp("split")
    write_split(nuscenes_root, root)
    return NuScenesTables(root, VERSION)


@pytest.fixture(scope="module")
def runs(drives: NuScenesTables, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of a good network's evaluation and of a worse one's."""
    folder = tmp_path_factory.mktemp("runs")
    good, worse = network(drives), network(drives, 0.6, 0.7)
    return evaluated(good, drives, folder / "good"), evaluated(worse, drives, folder / "worse")


@pytest.mark.slow("the devkit's scores without each scene")
def test_differences_are_those_of_the_devkit_without_each_scene(drives: NuScenesTables, tmp_path: Path) -> None:
    scenes = [f"scene-{i:04}:0-2" for i in (0, 2, 4, 6, 8)]
    networks = network(drives), network(drives, 0.6, 0.7)
    runs = [evaluated(each, drives, tmp_path / str(i), *scenes) for i, each in enumerate(networks)]
    nusc = open_devkit(drives.dataroot, VERSION)
    kept = [drives.samples("all", each) for each in (scenes, *([s for s in scenes if s != left] for left in scenes))]
    theirs = [[score_submission(run / "results_nusc.json", nusc, samples) for samples in kept] for run in runs]
    counts = np.array([[each["ground_truth"][name] for name in CLASSES] for each in theirs[0]])
    sizes = np.mean([(count[0] - count[1:]) / count[0] for count in counts.T if count[0]], axis=0)
    found = compare(*runs)
    assert (found["keyframes"], found["scenes"]) == (10, 5)
    for score in ("mAP", "NDS", "mAP_present"):
        before, after = (np.array([each[score] for each in run]) for run in theirs)
        change = found["slices"]["all"]["all"][score]
        close = {"rtol": 0, "atol": 1e-9}
        np.testing.assert_allclose([change["before"], change["after"]], [before[0], after[0]], **close)
        np.testing.assert_allclose(change["difference"], after[0] - before[0], **close)
        np.testing.assert_allclose(change["interval"], jackknife_interval(after - before, sizes, 0.95), **close)


def test_slices_are_left_out_one_by_one_as_well(drives: NuScenesTables, runs: tuple[Path, Path]) -> None:
    """The sums of each scene must give the scores of what is left, scored again and again."""
    predictor, metric = network(drives), CountedFrames(DetectionMetric(drives.taxonomy, SPEC.grid))
    tokens = drives.samples("all")
    frames = [drives.frame(token, NO_SENSORS._replace(truth=SPEC.truth)) for token in tokens]
    for frame in frames:
        metric.add(frame, predictor(frame).results["detection"])
    names, scenes = np.unique([frame.scene for frame in frames], return_inverse=True)
    rain = np.array(["rain" in frame.conditions.known() for frame in frames])
    stored = LeftOutScores.load(runs[0])
    for axis, name, chosen, bounds in [
        ("condition", "rain", rain, None), ("range", "30-50 m", np.ones(len(frames), bool), (30.0, 50.0))
    ]:  # fmt: skip
        kept = [chosen & (scenes != left) for left in (-1, *np.unique(scenes[chosen]))]
        slow = [metric.part(each, bounds) for each in kept]
        own = stored.slices[axis][name]
        assert own.scenes == names[np.unique(scenes[chosen])].tolist()
        assert own.scores.keys() == {"mAP", "NDS", "mAP_present"}
        for score in own.scores:
            values = [each[score] for each in slow]
            np.testing.assert_allclose(own.scores[score].values, values, rtol=0, atol=1e-12)


def test_the_sign_is_that_of_the_second_run(drives: NuScenesTables, runs: tuple[Path, Path], tmp_path: Path) -> None:
    same, there, back = (compare(*each)["slices"] for each in ((runs[0], runs[0]), runs, runs[::-1]))
    for axis in ("all", "condition", "range"):
        for part in same[axis].values():
            for change in part.values():
                assert (change["difference"], change["interval"], change["outcome"]) == (0, [0, 0], "same")
    for change, other in zip(there["all"]["all"].values(), back["all"]["all"].values(), strict=True):
        assert change["difference"] == -other["difference"] < 0
        assert change["interval"] == pytest.approx([-end for end in reversed(other["interval"])])
        assert (change["outcome"], other["outcome"]) == ("worse", "better")
    changes = {scene: part["mAP"] for scene, part in there["scene"].items()}  # one scene has no interval
    assert {change["outcome"] for change in changes.values()} == {"undecided"}
    assert {change["why"] for change in changes.values()} == {"that takes at least 3 scenes with something to score"}
    # More of what should be less is worse, as false alarms are; the score is the same otherwise.
    for i, run in enumerate(runs):
        content = json.loads((run / LEFT_OUT).read_text())
        content["slices"]["all"]["all"]["scores"]["mAP"]["lower_is_better"] = True
        (tmp_path / str(i)).mkdir()
        (tmp_path / str(i) / LEFT_OUT).write_text(json.dumps(content))
    change = compare(tmp_path / "0", tmp_path / "1")["slices"]["all"]["all"]["mAP"]
    assert change == there["all"]["all"]["mAP"] | {"outcome": "better"}
    assert OccupancyMetric.lower_is_better == ("false_alarms",)


def test_what_cannot_be_compared(drives: NuScenesTables, runs: tuple[Path, Path], tmp_path: Path) -> None:
    good, other, unsized = runs[0], tmp_path / "relabelled", tmp_path / "unsized"
    fewer = evaluated(network(drives), drives, tmp_path / "fewer", "scene-0000", "scene-0001:0-4", by=())
    content = json.loads((good / LEFT_OUT).read_text())
    score = content["slices"]["all"]["all"]["scores"]["mAP"]
    score["sizes"][3] += 0.1
    for folder in (other, unsized):
        folder.mkdir()
        (folder / LEFT_OUT).write_text(json.dumps(content))
        score.pop("sizes", None)
    for each, says in (
        ((good, fewer), r"fewer: has 12 keyframes and .*good has 81, 12 of them the same; evaluate both"),
        ((fewer, fewer, ["range"]), "fewer: was evaluated without --by range; evaluate it again with it"),
        ((good, tmp_path), f"no readable {LEFT_OUT}; give a folder that `perception evaluate` wrote"),
        ((good, other), "relabelled: all has other annotations"),
        ((good, unsized), r"left_out.json: slices.all.all.scores.mAP.sizes: field required"),
    ):
        with pytest.raises(InputError, match=says):
            compare(*each)


def test_files_of_an_earlier_evaluation_do_not_stay(drives: NuScenesTables, tmp_path: Path) -> None:
    """But the report of a replay does, which has the same name."""

    def files(**wanted: bool) -> set[str]:
        console, breakdown = Console(file=io.StringIO()), Breakdown(**wanted)
        evaluate(network(drives, 1, 0), drives, "all", ["scene-0000:0-2"], tmp_path, SPEC, console, breakdown)
        return {path.name for path in tmp_path.iterdir()}

    always = {"metrics.json", "results_nusc.json"}
    assert files(left_out=True, report=True) == always | {LEFT_OUT, REPORT}
    assert files() == always
    (tmp_path / REPORT).write_text("<title>Replay</title>")
    assert files() == always | {REPORT}
    # Of a network without the task that the submission is of.
    other = Prediction({})
    evaluate(lambda frame: other, drives, "all", ["scene-0000:0-2"], tmp_path, SPEC, Console(file=io.StringIO()))
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.json", REPORT}


def test_the_command_prints_and_writes_what_it_found(runs: tuple[Path, Path], tmp_path: Path) -> None:
    done = perception("compare", *runs, "--by", "range", "--out", tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == json.loads((tmp_path / "comparison.json").read_text()) == compare(*runs, ["range"])
    assert list(found["slices"]) == ["all", "range"]
    assert "</html>" in (tmp_path / "comparison.html").read_text()
    shown = io.StringIO()
    Console(file=shown, width=200).print(comparison_table(found))
    change = found["slices"]["range"]["0-20 m"]["NDS"]
    low, high = change["interval"]
    assert f"{change['difference']:+.3f} [{low:+.3f}, {high:+.3f}]" in shown.getvalue()


# ---- how often the interval covers: random scenes with a known true change of the score


@dataclass(frozen=True)
class Drawn:
    """R samples of N scenes each."""

    score: Callable[[np.ndarray], np.ndarray]  # weights (K, N) of the scenes -> changes (R, K) of the score
    sizes: np.ndarray  # (R, N) of the scenes
    truth: float  # the change over infinitely many scenes

    def jackknife(self) -> np.ndarray:
        """The intervals (R, 2) of a verdict; NaN if there is none."""
        scenes = self.sizes.shape[1]
        return jackknife_interval(self.score(leave_one_out(scenes)), self.sizes, 0.95)


Draw = Callable[[np.random.Generator, int, int], Drawn]


def _means(changes: np.ndarray) -> Drawn:
    return Drawn(lambda draws: changes @ draws.T / draws.sum(axis=1), np.ones(changes.shape), -0.01)


def gaussian(rng: np.random.Generator, repeats: int, scenes: int) -> Drawn:
    """The mean of changes that are normal from scene to scene."""
    return _means(rng.normal(-0.01, 0.03, (repeats, scenes)))


def heavy_tails(rng: np.random.Generator, repeats: int, scenes: int) -> Drawn:
    """The mean of changes with Student's t of 3 degrees of freedom."""
    return _means(0.03 * rng.standard_t(3, (repeats, scenes)) - 0.01)


def _map_counts(rng: np.random.Generator, repeats: int, scenes: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts (R, N, 3, 6) like count_rings, of the baseline and of a worse network; the loss varies between scenes."""
    shape = repeats, scenes, len(MAP_CLASSES)
    there = (rng.random(shape) < 0.8) * rng.lognormal(5, 0.6, (repeats, scenes, 1)) * rng.lognormal(0, 0.4, shape)
    truth = np.rint(there).astype(np.int64)
    level = rng.normal(0.8, 0.6, (repeats, scenes, 1)) + rng.normal(0, 0.3, shape)
    sides = []
    for worse in (0.0, rng.normal(0.1, 0.25, (repeats, scenes, 1))):
        recalled = rng.binomial(truth, 1 / (1 + np.exp(worse - level)))
        extra = rng.poisson(truth / (1 + np.exp(level + 1 - worse)))
        sides.append(np.stack([recalled, truth + extra, truth], axis=2))
    return sides[0], sides[1]


def _mean_iou(counts: np.ndarray) -> np.ndarray:
    found = ious(counts)
    present = ~np.isnan(found)
    return np.nan_to_num(found).sum(axis=-1) / np.maximum(1, present.sum(axis=-1))


@cache
def _change_of_iou() -> float:
    many = _map_counts(np.random.default_rng(0), 1, 400_000)
    before, after = (float(_mean_iou(counts[0].sum(axis=0))) for counts in many)
    return after - before


def iou(rng: np.random.Generator, repeats: int, scenes: int) -> Drawn:
    """The mean IoU of six map classes, each absent from some scenes; scene sizes differ by a factor of 5 and more."""
    before, after = _map_counts(rng, repeats, scenes)

    def score(draws: np.ndarray) -> np.ndarray:
        sums = (np.einsum("kn,rncm->rkcm", draws, counts, optimize=True) for counts in (before, after))
        first, second = (_mean_iou(each) for each in sums)
        return second - first

    return Drawn(score, _shares(before[:, :, 2]), _change_of_iou())


def _shares(there: np.ndarray) -> np.ndarray:
    """The share (R, N) of each scene in amounts (R, N, C), averaged over the classes that occur."""
    total = there.sum(axis=1, keepdims=True)
    shares = np.divide(there, total, out=np.zeros(there.shape), where=total > 0)
    return shares.sum(axis=2) / np.maximum(1, (total > 0).sum(axis=2))


COVERED, FALSE_PASSES = 0.93, 0.035  # what must hold, of a nominal 0.95 and 0.025
SCENES = (3, 5, 12, 40)


def misses(intervals: np.ndarray, truth: float) -> tuple[int, int, int]:
    """How many intervals there are, how many lie beside the truth, and how many above: those pass falsely."""
    given = intervals[~np.isnan(intervals[:, 0])]
    above = int((given[:, 0] > truth).sum())
    return len(given), above + int((given[:, 1] < truth).sum()), above


def most(count: int, of: int) -> float:
    """The largest rate that the count leaves possible, with a confidence of 99 % (Clopper and Pearson, 1934)."""
    return float(stats.beta.ppf(0.99, count + 1, of - count))


@pytest.mark.parametrize("scenes", SCENES)
@pytest.mark.parametrize("draw", [gaussian, heavy_tails, iou])
def test_intervals_cover_and_pass_as_often_as_they_say(draw: Draw, scenes: int) -> None:
    drawn = draw(np.random.default_rng(scenes), 20_000 if draw is not iou else 8_000, scenes)
    intervals, missed, passed = misses(drawn.jackknife(), drawn.truth)
    assert intervals > 0.9 * len(drawn.sizes)
    assert most(missed, intervals) <= 1 - COVERED
    assert most(passed, intervals) <= FALSE_PASSES


@given(st.lists(st.floats(0.1, 10) | st.just(0.0), min_size=1, max_size=12), st.integers(0, 2**32 - 1))
def test_the_interval_is_the_formula_with_scipys_numbers(sizes: list[float], seed: int) -> None:
    """Student's of the deviations, with Kish's effective number of scenes; Johnson's term moves the end of the tail.

    Few scenes, and those of which one outweighs the others, have none; scenes without the class do not count.
    """
    scores, n = np.random.default_rng(seed).normal(0, 1, len(sizes) + 1), len(sizes)
    number = sum(sizes) ** 2 / max(sum(size**2 for size in sizes), 1e-9)
    assert effective_number(np.array(sizes)) == pytest.approx(number)
    t, deviations = stats.t.ppf(0.975, max(number, 2) - 1), scores[1:] - scores[0]
    tail = stats.skew(-deviations) * (1 + 2 * t**2) / (6 * np.sqrt(max(number, 2)))
    ends = np.array([-t - max(0, -tail), t + max(0, tail)])
    expected = scores[0] + np.sqrt((n - 1) / n * np.square(deviations).sum()) * ends
    enough = sum(size > 0 for size in sizes) >= 3 and number >= LEAST_EFFECTIVE
    found = jackknife_interval(scores, np.array(sizes), 0.95)
    np.testing.assert_allclose(found, expected if enough else [np.nan, np.nan], rtol=1e-9)
