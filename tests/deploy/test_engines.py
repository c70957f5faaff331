"""Compiling for a target: NVIDIA's own compiler takes the whole graph, and what it refuses is said."""

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from exported import QUIET, bundle, copied
from graphs import onnx_model
from onnx import TensorProto, helper
from refusals import one_line_error

from deploy.build import build
from deploy.bundle import Bundle
from deploy.engines import open_engine
from deploy.engines.cuda import compute_capability
from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.engines.tensorrt import build_engine, compiles_here, place_on_dla
from deploy.runtime import Runtime
from deploy.targets import TARGETS, Versions, find_target
from perception.errors import InputError


def scatter(reduction: str) -> bytes:
    """A graph whose third node scatters with this reduction."""
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], name="relu"),
        helper.make_node("ScatterElements", ["r", "i", "u"], ["s"], name="plain", axis=0),
        helper.make_node("ScatterElements", ["s", "i", "u"], ["y"], name="canvas", axis=0, reduction=reduction),
    ]
    model = onnx_model(nodes, {"x": [9, 4], "i": (TensorProto.INT32, [3, 4]), "u": [3, 4]}, {"y": [9, 4]})
    onnx.checker.check_model(model)
    return model.SerializeToString()


@pytest.mark.parametrize("target", [name for name, target in TARGETS.items() if target.compiler == "tensorrt_rtx"])
def test_whole_graph_compiles_without_a_gpu(tmp_path: Path, target: str) -> None:
    pytest.importorskip("tensorrt_rtx")
    path = copied(tmp_path / "bundle")
    record = build(path, target, QUIET)
    loaded = Bundle.load(path)  # the engine is no part of what the manifest seals
    assert len(loaded.plan(target).data) == record.plan_bytes > 4 * loaded.manifest.parameters
    assert record.layers >= loaded.manifest.operators["Conv"]


def test_refusal_names_node_operator_and_reason() -> None:
    pytest.importorskip("tensorrt_rtx")
    assert build_engine(scatter("none"), find_target("rtx-ampere")).layers > 0
    with pytest.raises(InputError, match=r"refuses node canvas \[ScatterElements\]: Unsupported reduction type"):
        build_engine(scatter("add"), find_target("rtx-ampere"))


def test_refusal_of_pictures_that_are_not_cast() -> None:
    pytest.importorskip("tensorrt_rtx")
    nodes = [helper.make_node("Transpose", ["x"], ["t"], name="turn"), helper.make_node("Cast", ["t"], ["y"], to=1)]
    model = onnx_model(nodes, {"x": (TensorProto.UINT8, [4, 3])}, {"y": [3, 4]})
    with one_line_error(r"refuses node turn \[Transpose\]: .*UInt8"):
        build_engine(model.SerializeToString(), find_target("rtx-ampere"))


def test_refusal_of_a_file_that_is_no_graph() -> None:
    pytest.importorskip("tensorrt_rtx")
    with pytest.raises(InputError, match=r"refuses the file: .*Failed to parse the ONNX model"):
        build_engine(bundle().onnx.read_bytes()[:5000], find_target("rtx-ada"))


def test_plan_needs_the_compiler_of_its_device() -> None:
    with pytest.raises(InputError, match=r"orin: needs tensorrt on the Jetson Orin itself, .* JetPack 6"):
        build_engine(bundle().onnx.read_bytes(), find_target("orin"))
    with pytest.raises(InputError, match="toaster: unknown target; choose one of cpu, rtx-ampere"):
        build(bundle().path, "toaster", QUIET)


def test_tensorrt_compiles_only_beside_the_gpu_of_the_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(compiles_here(target) == (target.compiler != "tensorrt") for target in TARGETS.values())
    (tmp_path / "tensorrt.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    for capability, expected in ((87, {"orin", "drive-orin"}), (110, {"thor", "drive-thor"}), (101, {"drive-thor"})):
        monkeypatch.setattr("deploy.engines.cuda.compute_capability", lambda here=capability: here)
        assert {name for name, t in TARGETS.items() if t.compiler == "tensorrt" and compiles_here(t)} == expected


def test_another_version_of_the_compiler_is_refused() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    older = replace(find_target("rtx-ampere"), versions=Versions((0, 9), (1, 1)))
    with pytest.raises(InputError, match=rf"needs tensorrt_rtx >=0.9,<1.1, but {trt.__version__} is here"):
        build_engine(bundle().onnx.read_bytes(), older)


def test_dla_is_configured_and_found_absent() -> None:
    """NVIDIA's configuration object takes the placement; no machine that these tests run on has a DLA."""
    trt = pytest.importorskip("tensorrt_rtx")
    config = trt.Builder(trt.Logger()).create_builder_config()
    place_on_dla(trt, config)
    assert config.default_device_type == trt.DeviceType.DLA
    assert config.get_flag(trt.BuilderFlag.GPU_FALLBACK)
    smallest_orin = replace(find_target("orin"), compiler="tensorrt_rtx", compute_capabilities=(86,))
    smallest_orin = replace(smallest_orin, dla_versions=find_target("rtx-ampere").versions)
    with pytest.raises(InputError, match="orin: this module has no DLA; build without --dla"):
        build_engine(bundle().onnx.read_bytes(), smallest_orin, dla=True, inputs=bundle().manifest.input_shapes)


def test_plan_is_checked_before_it_runs(tmp_path: Path) -> None:
    tensorrt_rtx = pytest.importorskip("tensorrt_rtx")
    path = copied(tmp_path / "bundle")
    with pytest.raises(InputError, match="no engine for rtx-ada; run `perception build"):
        Runtime(path, "rtx-ada")
    build(path, "rtx-ada", QUIET)
    plan = path / "engines" / "rtx-ada.plan"
    content = plan.read_bytes()
    plan.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(InputError, match=r"rtx-ada.plan: was changed"):
        Bundle.load(path).plan("rtx-ada")
    plan.write_bytes(content)
    record = Bundle.load(path).plan("rtx-ada").record
    remedy = f"; run `perception build {path} --target rtx-ada`"
    file = path / "engines" / "rtx-ada.json"
    here = f"tensorrt_rtx {tensorrt_rtx.__version__}"
    for change, message in (
        ({"onnx_sha256": "0" * 64}, f"{plan}: compiled from another network"),
        ({"target": "rtx-ampere"}, f"{file}: is of an engine for rtx-ampere"),
        ({"compiler": "tensorrt_rtx 1.0.0"}, f"{plan}: compiled by tensorrt_rtx 1.0.0, but here is {here}"),
        ({"compiler": "tensorrt 10.3.0"}, f"{plan}: compiled by tensorrt 10.3.0, but here is {here}"),
        ({"plan_sha256": "0" * 64}, f"{plan}: was changed (its sha256 differs from the record)"),
    ):
        file.write_bytes(record.model_copy(update=change).hashed_json())
        with one_line_error(exactly=message + remedy):
            Runtime(path, "rtx-ada")
    file.write_text("{}")
    with pytest.raises(InputError, match=r"rtx-ada.json: not an engine record of this version; run `perception build"):
        Runtime(path, "rtx-ada")


def test_plan_without_a_gpu_is_one_clear_line(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    path = copied(tmp_path / "bundle")
    build(path, "rtx-ampere", QUIET)
    try:
        compute_capability()
    except InputError as error:
        with one_line_error("GPU", exactly=str(error)):
            open_engine(Bundle.load(path), "rtx-ampere")
    else:
        Runtime(path, "rtx-ampere")  # there is one: it must compute the network


def test_cpu_build_runs_the_golden_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = copied(tmp_path / "bundle")
    assert build(path, "cpu", QUIET).layers == sum(bundle().manifest.operators.values())
    _, another = bundle("rain").golden()
    monkeypatch.setattr(OnnxRuntimeEngine, "run", lambda self, inputs: another)
    with pytest.raises(InputError, match=r"ONNX Runtime, golden frame \w+: does not compute the exported network"):
        build(path, "cpu", QUIET)


def test_onnxruntime_refuses_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a graph")
    with one_line_error(r"model\.onnx: ONNX Runtime refuses it"):
        OnnxRuntimeEngine(tmp_path / "model.onnx")
