"""The pages of an evaluation and of a comparison in a browser: what a reader sees, without a network."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectors import detector
from maps import map_iou
from nuscenes.utils.data_classes import Box
from pages import Visit, needs_chromium, page_data, visit
from pyquaternion import Quaternion
from rich.console import Console
from vocabulary import NUSCENES, RIG

from perception.datasets.keyframes import Reads
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.datasets.nuscenes.map_expansion import MapExpansion
from perception.evaluation.comparison import compare, write_comparison
from perception.evaluation.evaluate import Breakdown, evaluate
from perception.evaluation.report import REPORT
from perception.frame import Boxes, Frame, Prediction
from perception.grid import BevGrid
from perception.sensors.inputs import InputSpec
from perception.sensors.lidar.config import Lidar
from perception.tasks.detection.scores import RECALLS, THRESHOLDS

HOSTILE = "</script><img src=x onerror=\"window.broken='yes'\">'&lt;"
BY = ("condition", "scene", "range")
CORRUPTIONS = ("lidar_noise", "lidar_missing")
SPEC = InputSpec(BevGrid(), {"lidar": Lidar(sweeps=0)}, RIG, truth=("boxes", "bicycle_racks", "map"))
BARE = Reads(annotations=False, lidar=False, cameras=False)
SEEN = """
  const texts = (root, what) => [...root.querySelectorAll(what)].map(each => each.textContent);
  const drawn = id => [...document.querySelectorAll(`#${id} .diagrams > div`)].map(each => ({
    title: each.querySelector("h3").textContent,
    lines: [...each.querySelectorAll("polyline")].map(line => line.getAttribute("points").split(" ")),
    inside: [...each.querySelectorAll("polyline")].every(line => {
      const box = line.getBBox();
      return box.x >= 0 && box.y >= 0 && box.x + box.width <= 320 && box.y + box.height <= 214;
    }),
  }));
  report({
    loaded: performance.getEntriesByType("resource").length,
    broken: window.broken || null,
    images: document.images.length,
    title: document.title,
    about: document.getElementById("about").textContent,
    tiles: texts(document, "#tiles .tile b"),
    head: texts(document, "#slices th"),
    rows: [...document.querySelectorAll("#slices tr")].map(row => texts(row, "td")).filter(row => row.length > 1),
    coloured: [...document.querySelectorAll("#slices tr")].map(row => [...row.querySelectorAll("td.cell")].map(cell =>
      cell.classList.contains("better") ? 1 : cell.classList.contains("worse") ? -1 : 0)).filter(row => row.length),
    curves: drawn("curves"),
    corruptions: drawn("corruptions"),
    samples: [...document.querySelectorAll(".sample")].map(each => ({
      scene: each.querySelector("b").textContent, token: each.querySelector("code").textContent,
      missed: each.querySelectorAll("polygon.missed").length, extra: each.querySelectorAll("polygon.extra").length,
      text: each.innerText,
    })),
    comparison: document.getElementById("comparison") === null ? null : {
      outcomes: [...document.querySelectorAll(".change")].map(cell => [cell.className, ...texts(cell, "b, span")]),
      rows: [...document.querySelectorAll("#comparison tr")].map(row => texts(row, "td")).filter(row => row.length > 1)
        .map(row => row[0]),
    },
    ground: getComputedStyle(document.body).backgroundColor, ink: getComputedStyle(document.body).color,
  });
"""


def evaluated(drives: NuScenesTables, predict: Any, out: Path, *scenes: str, **wanted: Any) -> dict[str, Any]:
    breakdown = Breakdown(**wanted, report=True)
    return evaluate(predict, drives, "all", scenes, out, SPEC, Console(file=io.StringIO()), breakdown)


@pytest.fixture(scope="module")
def drives(sim_root: Path, tmp_path_factory: pytest.TempPathFactory) -> NuScenesTables:
    """The simulated drives, one of them with a name that breaks out of HTML that does not escape it."""
    root, version = tmp_path_factory.mktemp("hostile"), "v1.0-sim"
    shutil.copytree(sim_root / version, root / version)
    for path in sim_root.iterdir():
        if path.name != version:
            (root / path.name).symlink_to(path)
    scenes = json.loads((root / version / "scene.json").read_text())
    scenes[0]["name"] = HOSTILE
    (root / version / "scene.json").write_text(json.dumps(scenes))
    return NuScenesTables(root, version)


def truth_of(drives: NuScenesTables, frame: Frame) -> np.ndarray:
    grid = SPEC.grid.coarser(4)
    return MapExpansion.load(drives.dataroot, frame.location, NUSCENES.map_layers).rasterize(frame, grid)


def with_wrong_cells(truth: np.ndarray) -> np.ndarray:
    wrong = np.random.default_rng(0).random(truth.shape) < 0.2
    return (truth.astype(bool) ^ wrong).astype(np.float32)


@pytest.fixture(scope="module")
def run(drives: NuScenesTables, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an evaluation of boxes and maps, with wrong cells."""
    detect, out = detector(drives), tmp_path_factory.mktemp("run")

    def predict(frame: Frame) -> Prediction:
        return Prediction({**detect(frame).results, "map": with_wrong_cells(truth_of(drives, frame))})

    evaluated(drives, predict, out, by=BY, corruptions=CORRUPTIONS, left_out=True)
    return out


@pytest.fixture(scope="module")
def opened(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Visit:
    return visit((run / REPORT).read_text(), tmp_path_factory.mktemp("opened"), SEEN)


def shown(value: float | None) -> str:
    return "-" if value is None else str(value) if isinstance(value, int) else f"{value:.3f}"


@pytest.mark.slow("evaluates corrupted frames and opens a browser")
@needs_chromium
def test_the_page_shows_the_numbers_of_the_evaluation_and_curves_of_all_points(run: Path, opened: Visit) -> None:
    found, scores = opened.found, json.loads((run / "metrics.json").read_text())
    assert opened.console == []
    assert (found["loaded"], found["broken"], found["images"]) == (0, None, 0)
    assert (found["title"], found["about"]) == ("Evaluation", "v1.0-sim, all: 6 keyframes of 2 scenes")
    assert HOSTILE in scores["slices"]["scene"]

    assert found["head"] == ["", "samples", "boxes", "mAP", "NDS", "mAP present", "mIoU"]
    columns = [name.replace(" ", "_") for name in found["head"][1:]]
    parts = {name: part for axis in BY for name, part in scores["slices"][axis].items()}
    rows = {row[0]: row[1:] for row in found["rows"]}
    assert rows.pop("all") == found["tiles"]
    boxes, iou = sum(scores["ground_truth"].values()), scores["map"]["iou_0.5"]["mean"]
    assert found["tiles"] == [*map(shown, (6, boxes, scores["mAP"], scores["NDS"], scores["mAP_present"], iou))]
    assert rows == {name: [shown(part[column]) for column in columns] for name, part in parts.items()}
    for row, colours in zip(found["rows"][1:], found["coloured"][1:], strict=True):
        signs = {name: np.sign(parts[row[0]][name] - scores[name]) for name in ("mAP", "NDS")}
        assert {name: colours[columns.index(name)] for name in signs} == signs
        assert colours[:2] == [0, 0]  # amounts

    classes = [name for name, boxes in scores["ground_truth"].items() if boxes]
    assert [each["title"] for each in found["curves"]] == [f"precision by recall: {name}" for name in classes]
    for diagram in found["curves"]:
        assert [len(line) for line in diagram["lines"]] == [len(RECALLS)] * len(THRESHOLDS)
        assert diagram["inside"]
    corruptions = scores["robustness"]["corruptions"]
    assert [each["title"] for each in found["corruptions"]] == [name.replace("_", " ") for name in corruptions]
    for diagram, corruption in zip(found["corruptions"], corruptions.values(), strict=True):
        nds, iou = diagram["lines"]
        assert len(nds) == len(iou) == 1 + len(corruption["levels"])
        values = [scores["NDS"], *(level["NDS"] for level in corruption["levels"])]
        # One straight scale from scores to the picture, upwards.
        heights = [float(point.split(",")[1]) for point in nds]
        np.testing.assert_allclose(heights, 180 - 172 * np.array(values), atol=0.06)


@needs_chromium
def test_scores_of_zero_are_not_shown_as_amounts(drives: NuScenesTables, tmp_path: Path) -> None:
    scores = evaluated(drives, lambda _: Prediction({"detection": Boxes.none()}), tmp_path, "scene-0002:0-1")
    seen = visit((tmp_path / REPORT).read_text(), tmp_path, SEEN)
    assert seen.console == []
    boxes = sum(scores["ground_truth"].values())
    assert seen.found["tiles"] == ["1", str(boxes), "0.000", "0.000", "0.000"]
    assert (seen.found["rows"], seen.found["corruptions"]) == ([], [])
    assert f"missed {boxes}, extra 0, found 0, F1 0.000" in seen.found["samples"][0]["text"]


@needs_chromium
def test_in_the_dark_less_of_what_should_be_less_is_green(run: Path, opened: Visit, tmp_path: Path) -> None:
    """Of the usual page, in a light scheme, the colours of scores, ink and ground are the opposite."""
    page = (run / REPORT).read_text()
    assert '"lowerIsBetter":[]' in page
    page = page.replace('"lowerIsBetter":[]', '"lowerIsBetter":["NDS"]')
    pages = [opened.found, visit(page, tmp_path, SEEN, "--force-dark-mode").found]
    nds = opened.found["head"].index("NDS") - 1
    usual, inverted = (np.array(found["coloured"])[:, nds] for found in pages)
    assert usual.any()
    np.testing.assert_array_equal(inverted, -usual)
    for found, sign in zip(pages, (1, -1), strict=True):
        ground, ink = (np.mean([float(n) for n in found[name][4:-1].split(",")]) for name in ("ground", "ink"))
        assert sign * (ground - ink) > 150


@needs_chromium
def test_worst_samples_are_counted_and_drawn(run: Path, opened: Visit, drives: NuScenesTables) -> None:
    samples = page_data(run / REPORT)["worst"][0]["samples"]
    submission = json.loads((run / "results_nusc.json").read_text())["results"]
    mistakes = [each["values"]["mistakes"] for each in samples]
    assert mistakes == sorted(mistakes, reverse=True)
    assert HOSTILE in {sample["scene"] for sample in opened.found["samples"]}
    for sample, seen in zip(samples, opened.found["samples"], strict=False):  # those of the map come behind
        counted = brute_force(drives, sample["token"], submission[sample["token"]])
        assert tuple(sample["values"][name] for name in ("missed", "extra")) == counted
        assert tuple(seen[name] for name in ("missed", "extra", "scene", "token")) == (
            *counted, sample["scene"], sample["token"]
        )  # fmt: skip
        assert "mistakes {}, missed {}, extra {}".format(sum(counted), *counted) in seen["text"]


def test_worst_maps_are_those_with_the_lowest_iou(run: Path, drives: NuScenesTables) -> None:
    expected = {}
    for token in drives.samples():
        truth = truth_of(drives, drives.frame(token, BARE))
        expected[token] = map_iou([(with_wrong_cells(truth), truth)])["iou_0.5"]["mean"]
    (listed,) = [each["samples"] for each in page_data(run / REPORT)["worst"] if each["task"] == "map"]
    assert [each["token"] for each in listed] == sorted(expected, key=expected.__getitem__)
    assert [each["values"]["mIoU"] for each in listed] == pytest.approx(sorted(expected.values()))


def test_footprints_are_the_devkits_in_the_vehicles_frame(run: Path, drives: NuScenesTables) -> None:
    sample = page_data(run / REPORT)["worst"][0]["samples"][0]
    boxes, expected = drives.recording(sample["token"]).annotated("boxes"), []
    ego_from_global = np.linalg.inv(drives.frame(sample["token"], BARE).global_from_ego)
    for center, size, rotation in zip(boxes.centers, boxes.sizes, boxes.rotations, strict=True):
        corners = Box(center, size, Quaternion(matrix=rotation)).bottom_corners()  # the front ones first
        flat = (ego_from_global @ np.vstack([corners, np.ones(4)]))[:2].T
        expected.append((flat[:2], flat[2:]))
    drawn = [np.array(each["corners"]) for each in sample["outlines"] if each["kind"] in ("found", "missed")]
    assert len(drawn) > 5

    def alike(ours: np.ndarray, theirs: np.ndarray) -> bool:
        return bool(np.abs(ours[:, None] - theirs).sum(axis=2).min(axis=1).max() < 0.02)

    for corners in drawn:
        assert any(alike(corners[:2], front) and alike(corners[2:], back) for front, back in expected)


def brute_force(drives: NuScenesTables, token: str, boxes: list[dict[str, Any]]) -> tuple[int, int]:
    """Missed annotations and extra detections of a keyframe, by a loop over the submission, best score first."""
    ego = drives.frame(token, BARE).global_from_ego[:2, 3]
    reach, truth = {each.name: each.range for each in NUSCENES.classes}, drives.recording(token).annotated("boxes")
    names, centers = [NUSCENES.class_names[label] for label in truth.labels], truth.centers[:, :2]
    free = [
        (name, center) for name, center, points in zip(names, centers, truth.num_points, strict=True)
        if points and np.linalg.norm(center - ego) < reach[name]
    ]  # fmt: skip
    extra = 0
    for box in sorted(boxes, key=lambda each: -each["detection_score"]):
        name, center = box["detection_name"], np.array(box["translation"][:2])
        if box["detection_score"] < 0.3 or np.linalg.norm(center - ego) >= reach[name]:
            continue
        near = [(np.linalg.norm(other - center), i) for i, (kind, other) in enumerate(free) if kind == name]
        if near and min(near)[0] < 2:
            del free[min(near)[1]]
        else:
            extra += 1
    return len(free), extra


@needs_chromium
def test_the_comparison_has_a_row_for_each_slice(run: Path, tmp_path: Path) -> None:
    found = compare(run, run)
    found["slices"]["range"]["0-20 m"]["NDS"] |= {"difference": -0.25, "interval": [-0.3, -0.125], "outcome": "worse"}
    found["after"] = HOSTILE
    write_comparison(tmp_path, found)
    opened = visit((tmp_path / "comparison.html").read_text(), tmp_path, SEEN)
    seen = opened.found
    assert opened.console == []
    assert (seen["loaded"], seen["broken"], seen["images"]) == (0, None, 0)
    assert seen["about"] == f"{HOSTILE} against {run}: 6 keyframes of 2 scenes"
    assert seen["comparison"]["rows"] == [name for parts in found["slices"].values() for name in parts]
    assert ["change worse", "-0.250", "-0.300 to -0.125"] in seen["comparison"]["outcomes"]
    assert ["change undecided", "+0.000", "no interval"] in seen["comparison"]["outcomes"]
