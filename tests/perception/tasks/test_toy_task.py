"""A task goes the whole way without a line of the product changed."""

import base64
import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from browser import needs_chromium, visit
from mcap.reader import make_reader
from mcap_protobuf.decoder import DecoderFactory
from networks import config as small_config
from pages import page_data
from pydantic import ValidationError
from safetensors.torch import load_file
from toy_command import command
from toy_task import BANDS, COLOURS, Toy, occupied, voxels_of
from vocabulary import NUSCENES

from deploy.bundle import Bundle
from deploy.golden import differences
from deploy.replay.gates import Gates
from deploy.replay.verdict import judge
from deploy.runtime import Runtime
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.frame import Frame
from perception.grid import BevGrid
from perception.predict import TorchPredictor
from perception.scene.scene import SceneFrame
from perception.tasks import TASKS
from perception.training.checkpoint import load_model


@pytest.fixture(scope="module", autouse=True)
def _toy() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TASKS, "toy", Toy)
        yield


def content(**tasks: object) -> dict[str, object]:
    modules = [{"name": "rain", "kind": "low_rank", "slots": ["trunk.*", "heads.*"], "rank": 2, "when": ["rain"]}]
    given = small_config().model_dump(mode="json")
    given["train"] |= {"steps": 40, "batch": 1, "learning_rate": 0.02}
    given["data"] |= {"augment": None}
    return given | {"name": "toy", "modules": modules, "tasks": given["tasks"] | tasks}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, sim_root: Path) -> Path:
    """Trained together with detection and map."""
    folder = tmp_path_factory.mktemp("toy")
    (folder / "toy.yaml").write_text(yaml.safe_dump(content(toy={})))
    command("train", folder / "toy.yaml", "--data", sim_root, "--split", "all", "--out", folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def bundles(run: Path, sim_root: Path) -> dict[str, Path]:
    """At every precision; in FP32 with the module on board."""
    found = {precision: run.parent / precision for precision in ("fp32", "fp16", "int8")}
    command("export", run, "--out", found["fp32"], "--routes", "base,rain")
    command("export", run, "--out", found["fp16"], "--precision", "fp16")
    command("export", run, "--out", found["int8"], "--precision", "int8", "--calibrate", sim_root)
    return found


def test_it_learns_and_is_scored_as_a_whole_and_in_parts(run: Path, sim_root: Path, tmp_path: Path) -> None:
    command("evaluate", run, "--data", sim_root, "--split", "all", "--by", "condition", "--out", tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    tables, predictor = NuScenesTables(sim_root, "v1.0-sim"), TorchPredictor.load(run)
    frames = [tables.frame(token, "ego", predictor.spec.sweeps) for token in tables.samples()]
    nothing = np.mean([Toy(None, predictor.model.config.head_grid, NUSCENES).labels(f)["cells"].mean() for f in frames])
    assert metrics["toy_accuracy"] > 1 - nothing  # better than to say that there is nothing
    parts = metrics["slices"]["condition"]
    assert {"toy_accuracy", "mAP", "mIoU"} <= parts["rain"].keys()
    weights = [parts[name]["samples"] * parts[name]["toy_accuracy"] for name in ("clear", "rain")]
    assert sum(weights) / metrics["samples"] == pytest.approx(metrics["toy_accuracy"], abs=1e-12)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_changed_value_of_its_output_is_found_and_the_right_engine_passes(
    bundles: dict[str, Path], precision: str
) -> None:
    command("verify", bundles[precision])
    bundle = Bundle.load(bundles[precision])
    allowed = bundle.manifest.tolerances
    assert tuple(allowed.dense["toy/cells"]) == BANDS
    for frame in bundle.golden_frames():
        assert not differences(frame.outputs, frame.outputs, allowed, frame.compared)
        for channel in range(len(BANDS)):
            wrong = frame.outputs["toy/cells"].copy()
            cell = np.unravel_index(np.abs(wrong[0, channel] - 0.5).argmax(), wrong.shape[2:])
            wrong[0, channel][cell] = 1 - wrong[0, channel][cell]
            found = differences(frame.outputs, {**frame.outputs, "toy/cells": wrong}, allowed, frame.compared)
            assert len(found) == 1
            assert "toy/cells" in found[0]
            assert BANDS[channel] in found[0]


@pytest.fixture(scope="module")
def replayed(bundles: dict[str, Path], sim_root: Path) -> Path:
    out, viewers = bundles["fp32"].parent / "replay", "foxglove,rerun" if find_spec("rerun") else "foxglove"
    command("replay", sim_root, "--bundle", bundles["fp32"], "--out", out, "--viewer", viewers)
    return out


@pytest.fixture(scope="module")
def frames(bundles: dict[str, Path], sim_root: Path) -> list[Frame]:
    tables, spec = NuScenesTables(sim_root, "v1.0-sim"), Bundle.load(bundles["fp32"]).spec
    return [tables.frame(token, "ego", spec.sweeps) for token in tables.samples()]


@pytest.fixture(scope="module")
def steps(bundles: dict[str, Path], frames: list[Frame]) -> list[SceneFrame]:
    runtime = Runtime(bundles["fp32"])
    return [runtime.step(frame) for frame in frames]


def test_it_is_remembered_and_journalled(steps: list[SceneFrame], bundles: dict[str, Path]) -> None:
    before, seen = (step.prediction.results["toy"] for step in steps[:2])
    assert seen.shape == (len(BANDS), *Bundle.load(bundles["fp32"]).manifest.head_grid.build().shape)
    np.testing.assert_array_equal(steps[1].states["toy"], np.maximum(before, seen))
    np.testing.assert_array_equal(TASKS["toy"].unpack(TASKS["toy"].pack(seen)), seen)


def test_its_layer_is_in_the_report_and_in_the_viewers_files(replayed: Path, steps: list[SceneFrame]) -> None:
    data = page_data(replayed / "report.html")
    assert [layer["name"] for layer in data["layers"]] == [
        "detections", "tracks", "annotations", "map", "occupied", "heights", "blocks"
    ]  # fmt: skip
    for layer in data["layers"][-3:]:
        assert layer["classes"] == [{"name": n, "colour": c} for n, c in zip(BANDS, COLOURS, strict=True)]
    with (replayed / "results.mcap").open("rb") as file:
        reader = make_reader(file, decoder_factories=[DecoderFactory()])
        grids = [each.decoded_message for each in reader.iter_decoded_messages(topics=["/occupied"])]
    assert len(grids) == len(data["frames"]) == len(steps)
    for step, frame, grid in zip(steps, data["frames"], grids, strict=True):
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


def test_its_points_and_voxels_are_clouds_for_foxglove(
    replayed: Path, bundles: dict[str, Path], frames: list[Frame], steps: list[SceneFrame]
) -> None:
    grid, compared = Bundle.load(bundles["fp32"]).manifest.head_grid.build(), 0
    with (replayed / "results.mcap").open("rb") as file:
        reader = make_reader(file, decoder_factories=[DecoderFactory()])
        found = {
            (channel.topic[1:], message.log_time // 1000): cloud
            for _, channel, message, cloud in reader.iter_decoded_messages(topics=["/heights", "/blocks"])
        }
    for frame, step in zip(frames, steps, strict=True):
        for name, (places, colours) in points_and_voxels(frame, step, grid).items():
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
def test_its_points_and_voxels_are_on_the_page(replayed: Path, tmp_path: Path) -> None:
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
    opened = visit((replayed / "report.html").read_text(), tmp_path, probe)
    assert opened.console == []
    cameras = len(page_data(replayed / "report.html")["frames"][0]["cameras"])
    assert opened.found["all"] == [1, 1, 2, cameras]
    assert opened.found["without"] == [0, 1, 2, 0]
    assert opened.found["none"] == [0, 0, 2, 0]
    assert opened.found["order"] == ["raster", "raster", "voxels", "points", "points"]  # the first points are by height


def test_its_layers_are_in_reruns_file(
    replayed: Path, bundles: dict[str, Path], frames: list[Frame], steps: list[SceneFrame]
) -> None:
    from rerun_tables import column, tables_of  # skips where rerun-sdk is not installed

    recording, grid = replayed / "results.rrd", Bundle.load(bundles["fp32"]).manifest.head_grid.build()
    assert sum(table.num_rows for table in tables_of(recording, "occupied")) == len(steps)
    read = {
        "heights": [column(recording, "world/vehicle/heights", part) for part in ("positions", "point colours")],
        "blocks": [column(recording, "world/vehicle/blocks", part) for part in ("centers", "box colours")],
    }
    halves = column(recording, "world/vehicle/blocks", "half sizes")
    for i, (frame, step) in enumerate(zip(frames, steps, strict=True)):
        expected = points_and_voxels(frame, step, grid)
        for name, (places, colours) in expected.items():
            shown, packed = (np.array(part[i]) for part in read[name])  # a colour is one number, red first
            np.testing.assert_array_equal(shown.reshape(-1, 3).astype(np.float32), places.astype(np.float32))
            np.testing.assert_array_equal(packed[:, None] >> [24, 16, 8] & 255, colours)
        sizes = 2 * np.array(halves[i]).reshape(-1, 3)
        np.testing.assert_allclose(sizes, np.full((len(expected["blocks"][0]), 3), grid.cell), rtol=1e-6)


def test_a_gate_on_its_score_passes_and_fails(
    bundles: dict[str, Path], replayed: Path, frames: list[Frame], steps: list[SceneFrame]
) -> None:
    grid = Bundle.load(bundles["fp32"]).manifest.head_grid.build()
    seen = [step.prediction.results["toy"] for step in steps]
    accuracy = float(np.mean([((p > 0.5) == occupied(f, grid)).mean() for p, f in zip(seen, frames, strict=True)]))
    gates = Gates.model_validate(
        {"gates": [{"metric": "toy", "at_least": accuracy - 1e-6}, {"metric": "toy", "at_least": accuracy + 1e-6}]}
    )
    cases = judge(replayed, None, gates).cases
    assert [(case.name, case.outcome) for case in cases] == [("toy", "pass"), ("toy", "fail")]
    assert cases[0].value == pytest.approx(accuracy, abs=1e-12)
    other = shutil.copytree(replayed, replayed.with_name("baseline"))
    lines = [json.loads(line) for line in (other / "statistics.jsonl").read_text().splitlines()]
    for line in lines:
        line["tasks"]["toy"]["accuracy"] += 0.1
    (other / "statistics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    difference = Gates.model_validate({"gates": [{"metric": "difference", "of": "toy", "at_most": 0.01}]})
    (case,) = judge(replayed, other, difference).cases
    assert case.value == pytest.approx(-0.1, abs=1e-12)
    assert case.outcome == "inconclusive"  # two scenes give no interval
    for part, message in (({"class": "car"}, "toy has no class 'car'"), ({"range": [0, 10]}, "toy has no ranges")):
        with pytest.raises(ValidationError, match=message):
            Gates.model_validate({"gates": [{"metric": "toy", "at_least": 0} | part]})


def test_it_is_added_to_a_base_that_keeps_every_bit(sim_root: Path, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(content() | {"name": "base"}))
    train = ("--data", sim_root, "--split", "all", "--steps", "2")
    command("train", tmp_path / "base.yaml", *train, "--out", tmp_path / "base")
    own = {"name": "wet", "kind": "low_rank", "slots": ["heads.toy.*"], "rank": 1, "when": ["rain"]}
    (tmp_path / "task.yaml").write_text(yaml.safe_dump({"tasks": {"toy": {}}, "modules": [own]}))
    given = ("--task", "toy", "--config", tmp_path / "task.yaml")
    command("adapt", tmp_path / "base", *given, *train, "--out", tmp_path / "run")
    old, new = (load_file(next((tmp_path / name).glob("checkpoints/*/model.safetensors"))) for name in ("base", "run"))
    assert all(torch.equal(new[name], tensor) for name, tensor in old.items())
    added = {name for name in new if name not in old}
    assert any(name.startswith("added.toy.") for name in added)
    assert any(".computations.wet." in name for name in added)
    (before, _), (after, config) = load_model(tmp_path / "base"), load_model(tmp_path / "run")
    assert before.bank.base_hash() == after.bank.base_hash()
    assert config.modules[-1].when == ("rain", "toy")
    tables = NuScenesTables(sim_root, "v1.0-sim")
    for token in tables.samples()[::3]:
        frame = tables.frame(token, "ego", config.model.lidar.sweeps)
        with torch.no_grad():
            first, second = (TorchPredictor(model)(frame).results for model in (before, after))
        for field in ("centers", "scores", "labels"):
            np.testing.assert_array_equal(getattr(first["detection"], field), getattr(second["detection"], field))
        np.testing.assert_array_equal(first["map"], second["map"])
        assert set(second) - set(first) == {"toy"}
