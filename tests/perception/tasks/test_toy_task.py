"""A task goes the whole way without a line of the product changed."""

import base64
import copy
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import yaml
from commands import command
from lowered import bundles_of
from mcap.reader import make_reader
from mcap_protobuf.decoder import DecoderFactory
from networks import LITTLE
from pages import needs_chromium, page_data, visit
from pydantic import ValidationError
from toy_task import BANDS, COLOURS, Toy, find_occupied, voxels_of
from vocabulary import NUSCENES

from deploy.bundle import Bundle
from deploy.golden import differences
from deploy.precision.calibrate import Drives
from deploy.replay.gates import Gates
from deploy.replay.verdict import judge
from deploy.runtime import Runtime
from deploy.tolerances import Precision
from perception.datasets.keyframes import Reads
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.frame import Frame
from perception.grid import BevGrid
from perception.scene.scene import SceneFrame
from perception.tasks import TASKS

pytestmark = pytest.mark.slow("trains a network, exports it at two precisions and replays it")


class Way(NamedTuple):
    """What the task leaves behind on its way."""

    run: Path
    bundles: dict[Precision, Bundle]
    replayed: Path
    grid: BevGrid
    frames: list[Frame]
    steps: list[SceneFrame]


@pytest.fixture(scope="module", autouse=True)
def _toy() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TASKS, "toy", Toy)
        yield


@pytest.fixture(scope="module")
def way(_toy: object, tmp_path_factory: pytest.TempPathFactory, sim_root: Path) -> Way:
    """Trained together with detection and map, exported in FP32 and in INT8 with the module on board, and replayed."""
    folder, given = tmp_path_factory.mktemp("toy"), copy.deepcopy(LITTLE)
    run = folder / "run"
    given["tasks"]["toy"] = {}
    modules = [{"name": "rain", "kind": "low_rank", "slots": ["trunk.*", "heads.*"], "rank": 2, "when": ["rain"]}]
    train = {"steps": 40, "batch": 1, "learning_rate": 0.02}
    (folder / "toy.yaml").write_text(yaml.safe_dump(given | {"name": "toy", "modules": modules, "train": train}))
    command("train", folder / "toy.yaml", "--data", sim_root, "--split", "all", "--out", run)
    bundles = bundles_of(run, folder, ("fp32", "int8"), Drives(sim_root, "v1.0-sim"), [[], ["rain"]])
    (folder / "replay.yaml").write_text("viewer: true\n")
    given = ("--bundle", bundles["fp32"].path, "--config", folder / "replay.yaml")
    command("replay", sim_root, *given, "--out", folder / "replay")
    tables, bundle = NuScenesTables(sim_root, "v1.0-sim"), bundles["fp32"]
    runtime = Runtime(bundle.path)
    frames = [tables.frame(token, Reads("ego", bundle.spec.sweeps)) for token in tables.samples()]
    steps = [runtime.step(frame) for frame in frames]
    return Way(run, bundles, folder / "replay", bundle.manifest.head_grid.build(), frames, steps)


@pytest.mark.slow("simulates and trains for all tests of the file")
def test_it_learns_and_is_scored_as_a_whole_and_in_parts(way: Way, sim_root: Path, tmp_path: Path) -> None:
    command("evaluate", way.run, "--data", sim_root, "--split", "all", "--by", "condition", "--out", tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    nothing = np.mean([Toy(None, way.grid, NUSCENES).labels(frame)["cells"].mean() for frame in way.frames])
    assert metrics["toy_accuracy"] > 1 - nothing  # better than to say that there is nothing
    parts = metrics["slices"]["condition"]
    assert {"toy_accuracy", "mAP", "mIoU"} <= parts["rain"].keys()
    weights = [parts[name]["samples"] * parts[name]["toy_accuracy"] for name in ("clear", "rain")]
    assert sum(weights) / metrics["samples"] == pytest.approx(metrics["toy_accuracy"], abs=1e-12)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_changed_value_of_its_output_is_found_and_the_right_engine_passes(way: Way, precision: Precision) -> None:
    bundle = way.bundles[precision]
    command("verify", bundle.path)
    allowed = bundle.manifest.tolerances
    assert tuple(allowed.dense["toy/cells"]) == BANDS
    for frame in bundle.golden_frames():
        assert not differences(frame.outputs, frame.outputs, allowed, frame.compared)
        for channel, band in enumerate(BANDS):
            wrong = frame.outputs["toy/cells"].copy()
            cell = np.unravel_index(np.abs(wrong[0, channel] - 0.5).argmax(), wrong.shape[2:])
            wrong[0, channel][cell] = 1 - wrong[0, channel][cell]
            (found,) = differences(frame.outputs, {**frame.outputs, "toy/cells": wrong}, allowed, frame.compared)
            assert "toy/cells" in found
            assert band in found


def test_it_is_remembered_and_stored(way: Way) -> None:
    before, seen = (step.prediction.results["toy"] for step in way.steps[:2])
    assert seen.shape == (len(BANDS), *way.grid.shape)
    np.testing.assert_array_equal(way.steps[1].states["toy"], np.maximum(before, seen))


def test_its_layer_is_in_the_report_and_in_the_viewers_file(way: Way) -> None:
    data = page_data(way.replayed / "report.html")
    assert [layer["name"] for layer in data["layers"]] == [
        "detections", "tracks", "annotations", "map", "occupied", "heights", "blocks"
    ]  # fmt: skip
    for layer in data["layers"][-3:]:
        assert layer["classes"] == [{"name": n, "colour": c} for n, c in zip(BANDS, COLOURS, strict=True)]
    with (way.replayed / "results.mcap").open("rb") as file:
        reader = make_reader(file, decoder_factories=[DecoderFactory()])
        grids = [each.decoded_message for each in reader.iter_decoded_messages(topics=["/occupied"])]
    for step, frame, grid in zip(way.steps, data["frames"], grids, strict=True):
        top = step.prediction.results["toy"][2] >= 0.75  # opaque, and over the other bands
        cells = np.frombuffer(grid.data, np.uint8).reshape(*top.shape, 4)
        assert (cells[top] == [0, 0, 255, 255]).all()
        content = np.frombuffer(base64.b64decode(frame["layers"]["occupied"]["above"].split(",", 1)[1]), np.uint8)
        picture = cv2.imdecode(content, cv2.IMREAD_UNCHANGED)[..., [2, 1, 0, 3]]
        # On the screen x points up and y to the left.
        np.testing.assert_array_equal(picture.transpose(1, 0, 2)[::-1, ::-1], cells)
        assert (step.prediction.results["toy"].max(axis=0) > 0.5).any()


PALETTE = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)  # COLOURS


def points_and_voxels(frame: Frame, step: SceneFrame, grid: BevGrid) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Layer -> places (N, 3) and colours (N, 3) that its points or voxels have."""
    points = frame.points[frame.points[:, 4] == 0]
    bands = (points[:, 2] >= 0.5).astype(int) + (points[:, 2] >= 1.5)
    voxels, (band, row, column) = voxels_of(step.prediction.results["toy"], grid)
    return {"heights": (points[:, :3], PALETTE[bands]), "blocks": (voxels[band, row, column], PALETTE[band])}


def test_its_points_and_voxels_are_clouds_for_foxglove(way: Way) -> None:
    compared = 0
    with (way.replayed / "results.mcap").open("rb") as file:
        reader = make_reader(file, decoder_factories=[DecoderFactory()])
        found = {
            (channel.topic[1:], message.log_time // 1000): cloud
            for _, channel, message, cloud in reader.iter_decoded_messages(topics=["/heights", "/blocks"])
        }
    for frame, step in zip(way.frames, way.steps, strict=True):
        for name, (places, colours) in points_and_voxels(frame, step, way.grid).items():
            cloud = found[name, frame.timestamp]
            kinds = {each.name: ("<f4" if each.type == 7 else "u1", each.offset) for each in cloud.fields}  # 7: FLOAT32
            read = np.frombuffer(
                cloud.data,
                {
                    "names": list(kinds), "formats": [kind for kind, _ in kinds.values()],
                    "offsets": [offset for _, offset in kinds.values()], "itemsize": cloud.point_stride,
                },
            )  # fmt: skip
            np.testing.assert_array_equal(np.stack([read[axis] for axis in "xyz"], axis=1), places.astype(np.float32))
            np.testing.assert_array_equal(np.stack([read[c] for c in ("red", "green", "blue")], axis=1), colours)
            assert cloud.frame_id == "base_link"
            assert (read["alpha"] == 255).all()
            compared += len(places)
    assert compared > 1000


@needs_chromium
def test_its_points_and_voxels_are_on_the_page(way: Way, tmp_path: Path) -> None:
    """They are hidden with their checkbox; the points are on every picture too."""
    probe = """
      const visible = image => image.naturalWidth > 0 && image.style.display !== "none";
      const count = name => [...document.querySelectorAll(name)].filter(visible).length;
      const seen = () => ["#above .points", "#above .voxels", "#above .raster", ".camera .projected"].map(count);
      const labels = [...document.querySelectorAll("#viewer label")];
      const toggle = name => labels.find(label => label.textContent === name).click();
      const all = seen();
      toggle("heights");
      const without = seen();
      toggle("blocks");
      const order = [...document.querySelectorAll("#above img")].map(image => image.className || image.id);
      report({all, without, none: seen(), order});"""
    opened = visit((way.replayed / "report.html").read_text(), tmp_path, probe)
    assert opened.console == []
    cameras = len(page_data(way.replayed / "report.html")["frames"][0]["cameras"])
    assert cameras > 0
    assert opened.found == {
        "all": [1, 1, 2, cameras], "without": [0, 1, 2, 0], "none": [0, 0, 2, 0],
        "order": ["raster", "raster", "voxels", "points", "points"],  # the first points are by height
    }  # fmt: skip


def test_a_gate_on_its_score_passes_and_fails(way: Way) -> None:
    seen = zip(way.frames, way.steps, strict=True)
    right = [((step.prediction.results["toy"] > 0.5) == find_occupied(frame, way.grid)).mean() for frame, step in seen]
    accuracy = float(np.mean(right))
    gates = [{"metric": "toy", "at_least": accuracy + off} for off in (-1e-6, 1e-6)]
    cases = judge(way.replayed, None, Gates.model_validate({"gates": gates})).cases
    assert [(case.name, case.outcome) for case in cases] == [("toy", "pass"), ("toy", "fail")]
    assert cases[0].value == pytest.approx(accuracy, abs=1e-12)
    other = shutil.copytree(way.replayed, way.replayed.with_name("baseline"))
    lines = [json.loads(line) for line in (other / "statistics.jsonl").read_text().splitlines()]
    for line in lines:
        line["tasks"]["toy"]["accuracy"] += 0.1
    (other / "statistics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    difference = Gates.model_validate({"gates": [{"metric": "difference", "of": "toy", "at_most": 0.01}]})
    (case,) = judge(way.replayed, other, difference).cases
    assert case.value == pytest.approx(-0.1, abs=1e-12)
    assert case.outcome == "inconclusive"  # two scenes give no interval
    for part, message in (({"class": "car"}, "toy has no class 'car'"), ({"range": [0, 10]}, "toy has no ranges")):
        with pytest.raises(ValidationError, match=message):
            Gates.model_validate({"gates": [{"metric": "toy", "at_least": 0} | part]})
