"""Two evaluations of the same keyframes are compared by what the devkit says of them without each scene in turn."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import perception
from rich.console import Console
from split_drives import VERSION, write_split
from vocabulary import CLASSES, RIG

from perception.config import Lidar
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.errors import InputError
from perception.evaluation.comparison import compare, comparison_table
from perception.evaluation.evaluate import Breakdown, evaluate
from perception.evaluation.interval import jackknife_interval
from perception.evaluation.left_out import LEFT_OUT, LeftOutScores
from perception.evaluation.report import REPORT
from perception.frame import Boxes, Frame, Prediction
from perception.grid import BevGrid
from perception.sensors.inputs import InputSpec
from perception.tasks.detection.devkit import open_devkit, score_submission
from perception.tasks.detection.metric import DetectionMetric
from perception.tasks.metric import Metric
from perception.tasks.occupancy.metric import OccupancyMetric

SPEC = InputSpec(BevGrid(), Lidar(sweeps=0), camera=None, rig=RIG)
BY = ("condition", "scene", "range")
Network = Callable[[Frame], Prediction]


def network(tables: NuScenesTables, found: float, metres: float, without: str = "") -> Network:
    """A predictor that finds a share of the annotated objects, displaced by so much, and as many that are not there."""

    def predict(frame: Frame) -> Prediction:
        rng = np.random.default_rng([int(frame.token[:8], 16)])
        boxes = tables.boxes(frame.token)
        number = len(boxes)
        chosen, away = rng.random(number), rng.normal(0, 1, (2, number, 3))
        boxes = replace(boxes, scores=np.round(rng.uniform(0.05, 1, number), 6))
        good = replace(boxes, centers=boxes.centers + metres * away[0]).select(chosen < found)
        bad = replace(boxes, centers=boxes.centers + 30 + away[1]).select(chosen < 0.2)
        both = Boxes(**{name: np.concatenate([getattr(good, name), getattr(bad, name)]) for name in good.__dict__})
        both = both.select(np.array([CLASSES[label] != without for label in both.labels], bool))
        return Prediction({"detection": both.transformed(np.linalg.inv(frame.global_from_reference))})

    return predict


def evaluated(predictor: Network, tables: NuScenesTables, out: Path, *selectors: str, by: tuple[str, ...] = BY) -> Path:
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
    good, worse = network(drives, 0.8, 0.4), network(drives, 0.6, 0.7)
    return evaluated(good, drives, folder / "good"), evaluated(worse, drives, folder / "worse")


def test_differences_are_those_of_the_devkit_without_each_scene(drives: NuScenesTables, tmp_path: Path) -> None:
    scenes = [f"scene-{i:04}:0-2" for i in (0, 2, 4, 6, 8)]
    networks = network(drives, 0.8, 0.4), network(drives, 0.6, 0.7)
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
    """The base class scores what is left again and again; detection's own sums must give the same."""
    predictor, metric = network(drives, 0.8, 0.4), DetectionMetric(drives, SPEC.grid)
    tokens = drives.samples("all")
    frames = [drives.frame(token, annotations=False, lidar=False, cameras=False) for token in tokens]
    for frame in frames:
        metric.add(frame, predictor(frame).results["detection"])
    names, scenes = np.unique([frame.scene for frame in frames], return_inverse=True)
    rain = np.array(["rain" in frame.conditions.known() for frame in frames])
    stored = LeftOutScores.load(runs[0])
    for axis, name, chosen, bounds in [
        ("condition", "rain", rain, None), ("range", "30-50 m", np.ones(len(frames), bool), (30.0, 50.0))
    ]:  # fmt: skip
        slow = Metric.left_out(metric, chosen, scenes, bounds)
        own = stored.slices[axis][name]
        assert own.scenes == names[np.unique(scenes[chosen])].tolist()
        assert own.scores.keys() == slow.scores.keys() == {"mAP", "NDS", "mAP_present"}
        for score, values in slow.scores.items():
            np.testing.assert_allclose(own.scores[score].values, values, rtol=0, atol=1e-12)


def test_the_same_results_have_no_difference_in_any_draw(drives: NuScenesTables, runs: tuple[Path, Path]) -> None:
    slices = compare(runs[0], runs[0])["slices"]
    for axis in ("all", "condition", "range"):
        for part in slices[axis].values():
            for change in part.values():
                assert (change["difference"], change["interval"], change["outcome"]) == (0, [0, 0], "same")


def test_the_sign_is_that_of_the_second_run(runs: tuple[Path, Path]) -> None:
    there, back = compare(*runs)["slices"], compare(*reversed(runs))["slices"]
    for change, other in zip(there["all"]["all"].values(), back["all"]["all"].values(), strict=True):
        assert change["difference"] == -other["difference"] < 0
        assert change["interval"] == pytest.approx([-end for end in reversed(other["interval"])])
        assert (change["outcome"], other["outcome"]) == ("worse", "better")


def test_more_of_what_should_be_less_is_worse(runs: tuple[Path, Path], tmp_path: Path) -> None:
    """As false alarms are; the score is the same otherwise."""
    for i, run in enumerate(runs):
        content = json.loads((run / LEFT_OUT).read_text())
        content["slices"]["all"]["all"]["scores"]["mAP"]["lower_is_better"] = True
        (tmp_path / str(i)).mkdir()
        (tmp_path / str(i) / LEFT_OUT).write_text(json.dumps(content))
    change, usual = (compare(*each)["slices"]["all"]["all"]["mAP"] for each in ((tmp_path / "0", tmp_path / "1"), runs))
    assert change == usual | {"outcome": "better"}
    assert OccupancyMetric.lower_is_better == ("false_alarms",)


def test_a_lost_class_is_a_loss_in_the_slices_that_have_it(drives: NuScenesTables, tmp_path: Path) -> None:
    by = ("city", "scene")
    whole, less = (
        evaluated(network(drives, 1, 0.1, lost), drives, tmp_path / f"without-{lost}", by=by) for lost in ("", "bus")
    )
    slices = compare(whole, less)["slices"]
    scores = json.loads((whole / "metrics.json").read_text())["slices"]
    there = {scene for scene, part in scores["scene"].items() if part["AP"]["bus"] is not None}
    assert 3 <= len(there) < 10
    assert slices["city"]["boston"]["mAP"]["outcome"] == "same"
    assert slices["city"]["singapore"]["mAP"]["outcome"] == slices["all"]["all"]["mAP"]["outcome"] == "worse"
    # One scene has no interval.
    changes = {scene: part["mAP"] for scene, part in slices["scene"].items()}
    assert {scene for scene, change in changes.items() if change["difference"] < 0} == there
    assert {change["outcome"] for change in changes.values()} == {"undecided"}
    assert {change["why"] for change in changes.values()} == {"that takes at least 3 scenes with something to score"}


def test_what_cannot_be_compared(drives: NuScenesTables, runs: tuple[Path, Path], tmp_path: Path) -> None:
    predictor = network(drives, 0.8, 0.4)
    fewer = evaluated(predictor, drives, tmp_path / "fewer", "scene-0000", "scene-0001:0-4", by=())
    with pytest.raises(
        InputError, match=r"fewer: has 12 keyframes and .*good has 81, 12 of them the same; evaluate both"
    ):
        compare(runs[0], fewer)
    with pytest.raises(InputError, match="fewer: was evaluated without --by range; evaluate it again with it"):
        compare(fewer, fewer, ["range"])
    with pytest.raises(InputError, match=f"no readable {LEFT_OUT}; give a folder that `perception evaluate` wrote"):
        compare(runs[0], tmp_path)
    content = json.loads((runs[0] / LEFT_OUT).read_text())
    other = tmp_path / "relabelled"
    other.mkdir()
    content["slices"]["all"]["all"]["scores"]["mAP"]["sizes"][3] += 0.1
    (other / LEFT_OUT).write_text(json.dumps(content))
    with pytest.raises(InputError, match="relabelled: all has other annotations"):
        compare(runs[0], other)
    del content["slices"]["all"]["all"]["scores"]["mAP"]["sizes"]
    (other / LEFT_OUT).write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"left_out.json: slices.all.all.scores.mAP.sizes: field required"):
        compare(runs[0], other)


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
