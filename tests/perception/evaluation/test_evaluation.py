"""Scores: the devkit's published numbers, subsets, perfect and absent predictions, the map, and unusable files."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nuscenes import NuScenes
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.detection.evaluate import DetectionEval
from refusals import one_line_error
from rich.console import Console
from submissions import BOX
from vocabulary import CLASSES, MAP_CLASSES, RIG

from perception.config import Lidar
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.errors import InputError
from perception.evaluation.evaluate import evaluate
from perception.frame import Boxes, Frame, Prediction
from perception.grid import BevGrid
from perception.sensors.inputs import InputSpec
from perception.tasks.detection.devkit import open_devkit, score_submission
from perception.tasks.detection.official import compare, require_official
from perception.tasks.map.iou import THRESHOLDS, MapIou

CUSTOM = "v1.0-custom"
SPLITS = {"boston": ["scene-0103"], "singapore": ["scene-0916"]}
EAST = 610.0  # m; scene-0103 starts ten metres west of it
SPEC = InputSpec(BevGrid(), Lidar(sweeps=0), camera=None, rig=RIG)


def map_east_of(x: float) -> dict:
    corners = [(x, 0), (x + 2000, 0), (x + 2000, 3000), (x, 3000)]
    layers: dict[str, list] = {name: [] for name in (*MAP_CLASSES[1:-1], "road_divider", "lane_divider", "line")}
    return layers | {
        "node": [{"token": str(i), "x": x, "y": y} for i, (x, y) in enumerate(corners)],
        "polygon": [{"token": "p", "exterior_node_tokens": ["0", "1", "2", "3"], "holes": []}],
        "drivable_area": [{"token": "d", "polygon_tokens": ["p"]}],
    }


@pytest.fixture(scope="module")
def dataroot(nuscenes_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real dataroot with custom splits under the official version and another, and a map of one city.

    The map is a single drivable area: Boston east of EAST.
    """
    root = tmp_path_factory.mktemp("nuscenes")
    for folder in ("samples", "sweeps"):
        (root / folder).symlink_to(nuscenes_root / folder)
    (root / "maps" / "expansion").mkdir(parents=True)
    for picture in (nuscenes_root / "maps").glob("*.png"):
        (root / "maps" / picture.name).symlink_to(picture)
    (root / "maps" / "expansion" / "boston-seaport.json").write_text(json.dumps(map_east_of(EAST)))
    for version in ("v1.0-mini", CUSTOM):
        (root / version).mkdir()
        for table in (nuscenes_root / "v1.0-mini").glob("*.json"):
            (root / version / table.name).symlink_to(table)
        (root / version / "splits.json").write_text(json.dumps(SPLITS))
    return root


@pytest.fixture(scope="module")
def tables(dataroot: Path) -> NuScenesTables:
    return NuScenesTables(dataroot, "v1.0-mini")


@pytest.fixture(scope="module")
def nusc(dataroot: Path) -> NuScenes:
    return open_devkit(dataroot, "v1.0-mini")


@pytest.fixture(scope="module")
def published(nuscenes_root: Path) -> Path:
    return nuscenes_root / "results" / "pointpillars_mini_val" / "results_nusc.json"


def perfect(tables: NuScenesTables, keep: Callable[[Boxes], np.ndarray]) -> Callable[[Frame], Prediction]:
    """A predictor that knows the annotations, and predicts those that `keep` selects."""

    def predict(frame: Frame) -> Prediction:
        assert frame.boxes is None  # an evaluated model must not see them
        boxes = tables.boxes(frame.token)
        boxes = boxes.select((boxes.num_points > 0) & keep(boxes))  # the devkit drops annotations without points
        return Prediction({"detection": boxes.transformed(np.linalg.inv(frame.global_from_reference))})

    return predict


def assert_equals_devkit(scores: dict, summary: dict) -> None:
    """Every number of our scores equals the devkit's metrics_summary; None stands for NaN."""

    def compare(ours: object, theirs: object) -> None:
        if isinstance(theirs, dict):
            assert set(ours) == {str(key) for key in theirs}
            for key, value in theirs.items():
                compare(ours[str(key)], value)
        else:
            assert np.isclose(np.nan if ours is None else ours, theirs, rtol=0, atol=1e-9, equal_nan=True)

    compare(scores["mAP"], summary["mean_ap"])
    compare(scores["NDS"], summary["nd_score"])
    for key in ("label_aps", "mean_dist_aps", "label_tp_errors", "tp_errors", "tp_scores"):
        compare(scores[key], summary[key])


def test_the_published_numbers_are_reproduced(tables: NuScenesTables, nusc: NuScenes, published: Path) -> None:
    scores = score_submission(published, nusc, tables.samples("mini_val"))
    assert_equals_devkit(scores, json.loads((published.parent / "metrics_summary.json").read_text()))
    assert scores == json.loads(json.dumps(scores, allow_nan=False))


@pytest.mark.parametrize("split", SPLITS)
def test_a_subset_scores_as_a_custom_split_of_the_devkit(
    tables: NuScenesTables, nusc: NuScenes, published: Path, tmp_path: Path, split: str
) -> None:
    scores = score_submission(published, nusc, tables.samples("mini_val", SPLITS[split]))
    config = config_factory("detection_cvpr_2019")
    official = DetectionEval(nusc, config, str(published), split, str(tmp_path), verbose=False)
    summary = official.evaluate()[0].serialize()
    assert_equals_devkit(scores, summary)
    names = [box.detection_name for box in official.gt_boxes.all]
    assert scores["ground_truth"] == {name: names.count(name) for name in config.class_names}
    present = [summary["mean_dist_aps"][name] for name in set(names)]
    assert len(present) < len(CLASSES)
    assert scores["mAP_present"] == pytest.approx(np.mean(present), abs=1e-12)


@pytest.mark.parametrize("reference", ["ego", "lidar"])
def test_perfect_predictions_score_perfectly(dataroot: Path, tmp_path: Path, reference: str) -> None:
    # A custom split without any sensor file for one reference, official keyframes with LiDAR for the other.
    version, split, selectors, samples, seen = (
        (CUSTOM, "singapore", [], 41, 0) if reference == "ego" else ("v1.0-mini", None, ["scene-0103:2-12"], 10, 5)
    )
    tables = NuScenesTables(dataroot, version)
    predictor, with_points = perfect(tables, keep=lambda boxes: np.ones(len(boxes), bool)), []

    def watched(frame: Frame) -> Prediction:
        with_points.append(frame.points is not None)
        assert frame.reference == reference
        assert not frame.cameras  # a model without cameras does not have them read
        return predictor(frame)

    spec = InputSpec(BevGrid(reference=reference), Lidar(sweeps=0), camera=None, rig=RIG)
    metrics = evaluate(watched, tables, split, selectors, tmp_path, spec, Console(file=io.StringIO()))
    assert metrics["split"] == (split or "all")
    assert [metrics["samples"], len(with_points), sum(with_points)] == [samples, samples, seen]
    present = {name for name, count in metrics["ground_truth"].items() if count}
    assert {"car", "pedestrian"} < present
    assert metrics["mAP_present"] == pytest.approx(1, abs=1e-12)
    for name in CLASSES:
        assert metrics["mean_dist_aps"][name] == pytest.approx(float(name in present), abs=1e-12)
        if name in present:
            errors = metrics["label_tp_errors"][name]
            assert {e: v for e, v in errors.items() if v is not None and abs(v) > 1e-6} == {}


def test_evaluate_writes_and_shows_what_it_returns(tables: NuScenesTables, dataroot: Path, tmp_path: Path) -> None:
    shown, out = io.StringIO(), tmp_path / "new" / "folder"
    cars = perfect(tables, keep=lambda boxes: boxes.labels == CLASSES.index("car"))
    metrics = evaluate(cars, tables, "mini_val", ["scene-0103:0-4"], out, SPEC, Console(file=shown, width=120))
    assert metrics == json.loads((out / "metrics.json").read_text())
    results = json.loads((out / "results_nusc.json").read_text())
    assert results["meta"]["use_lidar"]
    assert not results["meta"]["use_camera"]
    assert list(results["results"]) == tables.samples("mini_val", ["scene-0103:0-4"])
    # The four keyframes hold cars, pedestrians and traffic cones in range; cars alone were predicted.
    present = [name for name, count in metrics["ground_truth"].items() if count]
    assert metrics["mAP"] == pytest.approx(1 / 10)
    assert metrics["mAP_present"] == pytest.approx(1 / len(present))
    assert "map" not in metrics  # no map was predicted
    text = shown.getvalue()
    for expected in ("mAP 0.100", f"NDS {metrics['NDS']:.3f}", f"mAP_present {metrics['mAP_present']:.3f}", *CLASSES):
        assert expected in text


def test_the_map_is_scored_where_there_is_one(tables: NuScenesTables, tmp_path: Path) -> None:
    def unsure(frame: Frame) -> Prediction:
        """Right about the drivable area, with a probability of 0.4; useless where there is no map."""
        probabilities = np.zeros((len(MAP_CLASSES), 32, 32), np.float32)  # the head's cells are 4 pillars wide
        middles = SPEC.grid.coarser(4).centers()
        east = middles @ frame.global_from_reference[0, :2] + frame.global_from_reference[0, 3]
        if frame.location == "boston-seaport":
            assert 0.1 < (east > EAST).mean() < 0.9
            probabilities[0] = 0.4 * (east > EAST)
        else:
            probabilities[0] = 1
        return Prediction({"detection": Boxes.none(), "map": probabilities})

    console = Console(file=io.StringIO())
    scenes = ["scene-0103:0-2", "scene-0916:0-2"]
    ious = evaluate(unsure, tables, "mini_val", scenes, tmp_path, SPEC, console)["map"]
    absent = dict.fromkeys(MAP_CLASSES[1:])
    assert ious == {
        "iou_max": absent | {"drivable_area": 1.0, "mean": 1.0},
        "iou_0.5": absent | {"drivable_area": 0.0, "mean": 0.0},
    }
    assert "IoU max" in console.file.getvalue()
    assert evaluate(unsure, tables, "mini_val", scenes[1:], tmp_path, SPEC, console)["map"] is None


def test_a_model_that_finds_nothing_scores_zero(tables: NuScenesTables, nusc: NuScenes, tmp_path: Path) -> None:
    samples = tables.samples("mini_val", ["scene-0103"])
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"meta": {}, "results": {token: [] for token in samples}}))
    scores = score_submission(path, nusc, samples)
    assert scores["mAP"] == scores["NDS"] == scores["mAP_present"] == 0
    assert set(scores["tp_errors"].values()) == {1.0}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read the submission"),
        ("{", "not a nuScenes submission"),
        ("[]", "not a nuScenes submission"),
        ('{"results": []}', "not a nuScenes submission"),
        ('{"results": {}}', "no prediction for 2 of 2 samples, such as"),
        ({"results": [BOX] * 501}, "has 501 boxes; 500 are allowed"),
        ({"results": [{"translation": [0, 0, 0]}]}, "a box is malformed: KeyError"),
        ({"results": [BOX | {"detection_name": "tank"}]}, "a box is malformed: .*Unknown detection_name tank"),
        ({"results": [3]}, "a box is malformed"),
        ({"results": 3}, "not a nuScenes submission"),
    ],
)
def test_an_unusable_submission_is_named(
    tables: NuScenesTables, nusc: NuScenes, tmp_path: Path, content: str | dict | None, message: str
) -> None:
    samples = tables.samples("mini_val", ["scene-0103:0-2"])
    path = tmp_path / "r.json"
    if isinstance(content, dict):
        content = json.dumps({"results": dict.fromkeys(samples, content["results"])})
    if content is not None:
        path.write_text(content)
    with one_line_error(message, at=path):
        score_submission(path, nusc, samples)


def test_a_dataroot_that_the_devkit_refuses(nuscenes_root: Path, tmp_path: Path) -> None:
    (tmp_path / "v1.0-mini").symlink_to(nuscenes_root / "v1.0-mini")  # without the map files
    with pytest.raises(InputError, match=r"nuscenes-devkit cannot load v1\.0-mini: .*map"):
        open_devkit(tmp_path, "v1.0-mini")


def test_out_is_a_file(tables: NuScenesTables, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(InputError, match="out: cannot make the folder"):
        evaluate(perfect(tables, lambda b: b.labels < 0), tables, None, [], tmp_path / "out", SPEC)


@given(seed=st.integers(0, 2**32 - 1), frames=st.integers(1, 3), density=st.floats(0, 1))
def test_map_iou_is_the_brute_force_count(seed: int, frames: int, density: float) -> None:
    rng = np.random.default_rng(seed)
    shape = (len(MAP_CLASSES), 3, 4)
    # Probabilities on the thresholds themselves are the cases that rounding gets wrong.
    pairs = [
        (
            np.where(rng.random(shape) < 0.5, rng.choice(THRESHOLDS, shape), rng.random(shape)).astype(np.float32),
            (rng.random(shape) < density).astype(np.uint8),
        )
        for _ in range(frames)
    ]
    iou = MapIou(MAP_CLASSES)
    for probabilities, truth in pairs:
        iou.add(probabilities, truth)
    found = iou.result()
    best, half = {}, {}
    for c, name in enumerate(MAP_CLASSES):
        if not any(truth[c].any() for _, truth in pairs):
            assert found["iou_max"][name] is None
            assert found["iou_0.5"][name] is None
            continue
        at = {}
        for threshold in THRESHOLDS:
            inter = union = 0
            for probabilities, truth in pairs:
                for p, t in zip(probabilities[c].flat, truth[c].flat, strict=True):
                    inter += bool(p >= threshold and t)
                    union += bool(p >= threshold or t)
            at[threshold] = inter / union
        best[name], half[name] = max(at.values()), at[np.float32(0.5)]
        assert found["iou_max"][name] == pytest.approx(best[name])
        assert found["iou_0.5"][name] == pytest.approx(half[name])
    for key, expected in (("iou_max", best), ("iou_0.5", half)):
        mean = pytest.approx(np.mean(list(expected.values()))) if expected else None
        assert found[key]["mean"] == mean


def test_a_probability_on_the_threshold_counts() -> None:
    iou = MapIou(MAP_CLASSES)
    everywhere = np.ones((len(MAP_CLASSES), 2, 2))
    iou.add(np.float32(0.65) * everywhere.astype(np.float32), everywhere)
    assert iou.counts[:, 0].tolist() == [[4] * 6] * 7


def test_map_iou_without_frames_is_none() -> None:
    assert MapIou(MAP_CLASSES).result() is None


def test_official_scores_stand_beside_ours(tables: NuScenesTables, tmp_path: Path) -> None:
    """The devkit judges the same submission; a score that was changed shows as a difference of just that size."""
    console = Console(file=io.StringIO())
    even = perfect(tables, lambda b: b.labels % 2 == 0)
    metrics = evaluate(even, tables, "mini_val", ["scene-0103"], tmp_path, SPEC, console)
    compared = compare(tmp_path, tables, metrics, console)
    assert compared["official"]["largest_difference"] <= 1e-9
    assert compared["official"]["mean_dist_aps"]["car"] == pytest.approx(1)
    assert 0 < compared["official"]["mAP"] < 1  # half of the classes were not predicted
    assert json.loads((tmp_path / "metrics.json").read_text()) == compared
    wrong = compare(tmp_path, tables, metrics | {"NDS": metrics["NDS"] - 0.25}, console)
    assert wrong["official"]["largest_difference"] == pytest.approx(0.25)
    undefined = compare(tmp_path, tables, metrics | {"mAP": None}, console)
    assert undefined["official"]["largest_difference"] is None


def test_without_the_devkit_scores_are_ours_and_official_ones_are_refused(
    tables: NuScenesTables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] in ("nuscenes", "motmetrics", "pyquaternion")]:
        monkeypatch.setitem(sys.modules, name, None)
    every, scenes = perfect(tables, lambda b: b.labels >= 0), ["scene-0103:0-2"]
    metrics = evaluate(every, tables, "mini_val", scenes, tmp_path, SPEC, Console(quiet=True))
    assert metrics["samples"] == 2
    assert metrics["mAP_present"] == pytest.approx(1)
    with pytest.raises(
        InputError, match=r"devkit is not installed; `pip install .*--no-deps .*nuscenes-devkit motmetrics`"
    ):
        require_official(tables)
