"""Bundles in FP16 and INT8: written by the command, sealed, and run in the layout that fits the engine."""

import shutil
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from commands import refuses, succeeds
from exported import checkpoint_of, folder
from lowered import MODULES
from networks import config
from onnx import numpy_helper
from tiny import write_tiny
from vocabulary import RIG

from deploy.build import build
from deploy.bundle import Bundle
from deploy.engines import open_engine
from deploy.golden import differences, synthetic_frame
from deploy.manifest import Calibration
from deploy.precision import frames
from deploy.precision.sensitivity import LARGEST_ERROR
from deploy.runtime import Runtime
from deploy.tolerances import BOUNDS
from deploy.verify import verify
from perception.config import parse_config
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.errors import InputError
from perception.sensors.inputs import InputSpec


@cache
def checkpoint() -> Path:
    return checkpoint_of(
        parse_config(config().model_dump(mode="json") | {"name": "small", "modules": MODULES}, "small")
    )


@cache
def drives() -> Path:
    """Three keyframes with all sensors."""
    write_tiny(folder() / "tiny-drives")
    return folder() / "tiny-drives"


@cache
def exported(precision: str) -> Path:
    """BankedModule, by the command."""
    out = folder() / f"small-{precision}"
    calibration = ["--calibrate", drives()] if precision == "int8" else []
    routes = ("--routes", "base,rain,night")
    succeeds("export", checkpoint(), "--out", out, *routes, "--precision", precision, *calibration)
    return out


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_the_manifest_says_how_exact_and_the_runtime_holds_it_to_that(precision: str) -> None:
    manifest = Bundle.load(exported(precision)).manifest
    assert manifest.precision == precision
    found, bounds = manifest.tolerances, BOUNDS[manifest.precision]
    spreads = [(each, bounds.cells) for each in found.dense["map/probabilities"].values()]
    spreads += [(each, getattr(bounds.ranked, name)) for name, each in found.ranked["detection"].spreads()]
    assert all(0 <= each.each <= bound.each and 0 <= each.mean <= bound.mean for each, bound in spreads)
    assert found.ranked["detection"].lost == bounds.ranked.lost
    assert found.ranked["detection"].score.each > BOUNDS["fp32"].ranked.score.each  # it is lowered
    assert [module.name for module in manifest.banked] == ["rain", "night"]
    runtime = Runtime(exported(precision))  # it runs the golden frame
    scores = runtime(synthetic_frame("ego", RIG, 3)).results["detection"].scores
    assert len(scores) > 0
    assert (scores > config().tasks["detection"].suppression.threshold).all()
    assert build(exported(precision), "cpu").layers == sum(manifest.operators.values())


def test_what_is_known_of_the_blocks_is_in_the_manifest() -> None:
    manifest = Bundle.load(exported("int8")).manifest
    blocks = {block.name: block for block in manifest.blocks}
    assert {"camera.backbone", "fuse.mix", "trunk.stages.2", "heads.detection"} <= {*blocks}
    for block in blocks.values():
        assert block.precision == ("int8" if block.error <= LARGEST_ERROR else "fp32")
    assert sum(block.precision == "int8" for block in blocks.values()) > len(blocks) / 2
    assert manifest.operators["QuantizeLinear"] > 10
    assert Bundle.load(exported("fp16")).manifest.blocks == ()


def test_each_engine_gets_its_layout() -> None:
    bundle = Bundle.load(exported("int8"))
    graphs = {name for name in bundle.manifest.files if name.endswith(".onnx")}
    assert graphs == {"model.onnx", "model.cpu.onnx"}
    types = {}
    for path in (bundle.onnx, bundle.cpu_onnx):
        graph = onnx.load(path).graph
        zeros = {n.input[2] for n in graph.node if n.op_type == "QuantizeLinear"}
        types[path.name] = {t.data_type for t in graph.initializer if t.name in zeros}
    assert types == {"model.onnx": {onnx.TensorProto.INT8}, "model.cpu.onnx": {onnx.TensorProto.UINT8}}
    assert Bundle.load(exported("fp16")).cpu_onnx.name == "model.onnx"
    engine, allowed = open_engine(bundle), bundle.manifest.tolerances
    for frame in bundle.golden_frames("model.cpu.onnx"):
        assert differences(frame.outputs, engine.run(frame.inputs), allowed, frame.compared) == []


def test_the_bundle_tells_what_it_was_calibrated_on(tmp_path: Path) -> None:
    """The scales in the graph are those of the ranges, and the keyframes those of the drives."""
    calibration = Calibration.model_validate_json((exported("int8") / "calibration.json").read_bytes())
    assert calibration.data == "v1.0-tiny"
    assert list(calibration.frames) == NuScenesTables(drives(), "v1.0-tiny").samples()
    graph = onnx.load(exported("int8") / "model.onnx").graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    rounded = {n.input[0]: constants[n.input[1]] for n in graph.node if n.op_type == "QuantizeLinear"}
    assert len(rounded) > 20
    for name, scale in rounded.items():
        np.testing.assert_allclose(scale, max(map(abs, calibration.ranges[name])) / 127, rtol=1e-6)
    assert verify(exported("int8"))["calibration"] == f"{len(calibration.ranges)} ranges on 3 keyframes of v1.0-tiny"


def test_the_plan_is_compiled_from_the_layout_of_tensorrt() -> None:
    pytest.importorskip("tensorrt_rtx")
    record = build(exported("int8"), "rtx-ada")
    assert record.onnx_sha256 == Bundle.load(exported("int8")).manifest.files["model.onnx"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--precision", "int8"], "int8: needs --calibrate"),
        (["--precision", "fp16", "--calibrate", "DRIVES"], "fp16: does not use --calibrate"),
        (["--scenes", "scene-0001"], "name their dataroot with --calibrate"),
        (["--precision", "int8", "--calibrate", "nowhere"], "nowhere"),
        (["--precision", "int8", "--calibrate", "DRIVES", "--scenes", "scene-9"], "scene-9"),
    ],
)
def test_wrong_arguments_are_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    given = [drives() if each == "DRIVES" else each for each in arguments]
    assert message in refuses("export", checkpoint(), "--out", tmp_path / "bundle", *given)
    assert not (tmp_path / "bundle").exists()


def test_a_drive_without_cameras_calibrates_nothing(tmp_path: Path) -> None:
    write_tiny(tmp_path / "drives")
    shutil.rmtree(tmp_path / "drives" / "samples" / "CAM_FRONT")
    spec = InputSpec.of(config())
    assert len(frames.Drives(tmp_path / "drives", "v1.0-tiny").inputs(spec)) == 3  # five are enough
    for camera in (tmp_path / "drives" / "samples").glob("CAM_*"):
        shutil.rmtree(camera)
    with pytest.raises(InputError, match="no keyframe of these scenes has all sensors"):
        frames.Drives(tmp_path / "drives", "v1.0-tiny").inputs(spec)


def test_frames_are_spread_over_the_drives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "MOST", 2)
    spec = InputSpec.of(config())
    every = frames.Drives(drives(), "v1.0-tiny", ["scene-0001:0-3"]).inputs(spec)
    first = frames.Drives(drives(), "v1.0-tiny", ["scene-0001:0-1"]).inputs(spec)
    last = frames.Drives(drives(), "v1.0-tiny", ["scene-0001:2-3"]).inputs(spec)
    assert list(every) == [*first, *last]
    for actual, expected in zip(every.values(), (first | last).values(), strict=True):
        np.testing.assert_array_equal(actual["pillar_points"], expected["pillar_points"])
