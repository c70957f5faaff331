"""Compiling for a target: here, by NVIDIA's own compiler, or by build.sh on the device, with a stand-in for trtexec."""

import importlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from commands import one_line_error, perception, succeeds
from devices import Device, require_refusal
from exported import QUIET, apart, bundle, copy_bundle, plan_record
from hypothesis import given
from hypothesis import strategies as st
from lowered import onnx_model
from onnx import TensorProto, helper
from refits import no_gpu

from deploy.build import build
from deploy.build_package import BuildPackage
from deploy.bundle import Bundle
from deploy.engine import EngineState
from deploy.engines import cuda, open_engine, tensorrt
from deploy.engines.cuda import compute_capability
from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.engines.tensorrt import build_engine, compiles_here, place_on_dla
from deploy.integrity import Content
from deploy.runtime import Runtime
from deploy.targets import TARGETS, Versions, find_target, is_same_compiler
from deploy.verify import verify
from perception.errors import InputError

PILLARS = "pillar_points:1x12000x8x5,pillar_counts:1x12000,pillar_cells:1x12000"
ON_DEVICE = ["orin", "thor", "drive-orin", "drive-thor"]


def packaged(folder: Path, target: str, dla: bool = False, refittable: bool = False) -> BuildPackage:
    return build(bundle().path, target, QUIET, dla, folder / "package", refittable=refittable)


@pytest.mark.parametrize(
    ("target", "version", "capability", "dla", "options"),
    [
        ("orin", 100300, "8.7", False, ["--refit", "--stronglyTyped"]),
        ("thor", 110401, "11.0", False, ["--refit"]),
        ("drive-orin", 100700, "8.7", True, ["--useDLACore=0", "--allowGPUFallback", "--stronglyTyped"]),
        ("thor", 101303, "11.0", False, ["--stronglyTyped"]),
        ("thor", 110401, "11.0", False, []),
        ("drive-thor", 101010, "10.1", False, ["--stronglyTyped"]),
        ("drive-thor", 110001, "11.0", False, []),
    ],
)
def test_script_compiles_and_leaves_an_engine_that_the_bundle_accepts(
    tmp_path: Path, target: str, version: int, capability: str, dla: bool, options: list[str]
) -> None:
    refittable, folder = "--refit" in options, tmp_path / "package"
    package, device = packaged(tmp_path, target, dla, refittable), Device(tmp_path, version, capability)
    done = device.builds(package)
    assert (done.returncode, done.stderr) == (0, "")
    assert device.arguments == [
        "--onnx=bundle/model.onnx", f"--saveEngine=bundle/engines/{target}.plan.new", "--noTF32", "--skipInference",
        *(f"--{bound}Shapes={PILLARS}" for bound in ("min", "opt", "max")), *options
    ]  # fmt: skip
    announced, readme = package.commands[str(version // 10000)], (folder / "README.md").read_text()
    assert shlex.split(announced)[1:] == device.arguments
    assert announced in readme
    assert ("--refit\n" in readme) is refittable
    assert Bundle.load(folder / "bundle").plan(target).data == b"compiled\n"
    record = json.loads((folder / "bundle" / "engines" / f"{target}.json").read_text())
    readable = f"{version // 10000}.{version // 100 % 100}.{version % 100}"
    assert record["refittable"] is refittable
    assert record["compiler"] == f"tensorrt {readable}{' with DLA 0' if dla else ''}"
    assert sorted(path.suffix for path in (folder / "bundle" / "engines").iterdir()) == [".json", ".plan"]
    # Once more, over the engine that is there, and the signature of its record, which is not that of the new one.
    signature = folder / "bundle" / "engines" / f"{target}.sig"
    signature.write_text("of the record before")
    assert device.builds(package).returncode == 0
    assert not signature.exists()


def test_script_refuses_the_wrong_machine(tmp_path: Path) -> None:
    """The last has a version in the range of a Thor, whose GPU it has not."""
    for i, (target, dla, version, reason) in enumerate((
        ("orin", False, 100001, "orin needs TensorRT >=10.3,<11, but "),  # JetPack 6.0
        ("orin", False, 110000, "orin needs TensorRT >=10.3,<11, but "),
        ("orin", True, 100800, "orin needs TensorRT >=10.3,<10.8, but "),
        ("thor", False, 120000, "thor needs TensorRT >=10.13,<12, but "),
        ("thor", False, 101303, "this GPU has compute capability 8.7, a Jetson Thor has 11.0"),
    )):  # fmt: skip
        device = Device(tmp_path / str(i), version)
        require_refusal(device.builds(packaged(tmp_path / str(i), target, dla)), reason)
        assert device.recorded.exists() is ("GPU" in reason)
        assert not list((tmp_path / str(i) / "package" / "bundle").glob("engines/*"))


def test_script_refuses_another_device_changes_and_arguments(tmp_path: Path) -> None:
    package, device = packaged(tmp_path, "orin"), Device(tmp_path, 100300)
    require_refusal(Device(tmp_path / "empty", None).builds(package), "no trtexec on the PATH")
    require_refusal(
        device.builds(package, "--fast", "--faster"), "takes the public key that must have signed this package"
    )
    require_refusal(device.builds(package, "--fast"), "--fast: no such key")
    graph = tmp_path / "package" / "bundle" / "model.onnx"
    content = graph.read_bytes()
    graph.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    require_refusal(device.builds(package), "build.sh: bundle/model.onnx: is missing or was changed")
    graph.unlink()
    require_refusal(device.builds(package), "build.sh: bundle/model.onnx: is missing or was changed")
    graph.write_bytes(content)
    (tmp_path / "package" / "SHA256SUMS").unlink()
    require_refusal(device.builds(package), "build.sh: SHA256SUMS: is missing or was changed")
    assert not device.recorded.exists()


def test_script_ends_with_1_and_keeps_the_old_engine(tmp_path: Path) -> None:
    package = packaged(tmp_path, "orin")
    assert Device(tmp_path / "good", 100300).builds(package).returncode == 0
    for name, end, reason in (
        ("refuses", "echo '[E] Error[4]: unsupported'; exit 1", "[E] Error[4]: unsupported"),
        ("silent", "exit 0", "wrote no engine"),
    ):
        done = Device(tmp_path / name, 100300, end=end).builds(package)
        assert done.returncode == 1
        assert reason in done.stderr
        assert Bundle.load(tmp_path / "package" / "bundle").plan("orin").data == b"compiled\n"


def test_script_passes_shellcheck(tmp_path: Path) -> None:
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    script = Path(packaged(tmp_path, "drive-thor").package) / "build.sh"
    done = subprocess.run([shellcheck, script], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_package_is_whole_and_stale_engines_stay_behind(tmp_path: Path) -> None:
    path = copy_bundle(tmp_path / "bundle")
    build(path, "orin", QUIET)
    (path / "engines").mkdir()
    (path / "engines" / "rtx-ada.plan").write_bytes(b"of another GPU")
    build(path, "orin", QUIET)  # replaces the first
    package = tmp_path / "bundle-orin"
    assert {str(file.relative_to(package)) for file in package.rglob("*") if file.is_file()} == {
        "README.md", "SHA256SUMS", "build.sh", "bundle/SHA256SUMS", "bundle/golden.safetensors",
        "bundle/manifest.json", "bundle/ml_package.param.yaml", "bundle/model.onnx",
    }  # fmt: skip
    assert os.access(package / "build.sh", os.X_OK)
    assert {file.name for file in tmp_path.iterdir()} == {"bundle", "bundle-orin"}
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "precious").write_text("a week of work")
    with pytest.raises(InputError, match="results: exists and is not a build package"):
        build(path, "orin", QUIET, out=tmp_path / "results")
    assert (tmp_path / "results" / "precious").read_text() == "a week of work"
    with pytest.raises(InputError, match="other: exists and is not a build package"):
        build(path, "orin", QUIET, out=copy_bundle(tmp_path / "other"))


def test_command_writes_a_package(tmp_path: Path) -> None:
    done = perception("build", bundle().path, "--target", "orin", "--dla", "--out", "package", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "--useDLACore=0 --allowGPUFallback" in json.loads(done.stdout)["commands"]["10"]
    assert "all layers of this fp32 bundle will stay on the GPU" in " ".join(done.stderr.split())
    assert (tmp_path / "package" / "build.sh").exists()


def test_every_network_of_a_bundle_is_compiled(tmp_path: Path) -> None:
    package = build(apart()[0].path, "orin", QUIET, out=tmp_path / "package")
    device = Device(tmp_path, 100300)
    done = device.builds(package)
    assert done.returncode == 0, done.stderr
    announced = package.commands["10"].splitlines()
    assert [line.split()[1] for line in announced] == [
        f"--onnx=bundle/{route}model.onnx" for route in ("", "routes/rain/", "routes/rain+night/")
    ]
    found = Bundle.load(Path(package.package) / "bundle")
    for part in (found, *found.routes.values()):
        assert part.plan("orin", "tensorrt 10.3.0").data == b"compiled\n"
    assert device.arguments == announced[2].split()[1:]  # of the last run


def test_the_table_shows_every_target() -> None:
    targets = json.loads(succeeds("build", "--list", "--json"))["targets"]
    by_name = {target["target"]: target for target in targets}
    assert {name for name, target in by_name.items() if target["dla_cores"]} == {"orin", "drive-orin"}
    assert [name for name, target in by_name.items() if target["compiles_on"] == "the device"] == ON_DEVICE
    assert by_name["drive-thor"]["compute_capabilities"] == [10.1, 11.0]
    shown = succeeds("build", "--list")
    assert all(target.name in shown and str(target.versions) in shown for target in TARGETS.values())


RELEASE, BUILD = st.tuples(*[st.integers(0, 20)] * 3), st.lists(st.integers(0, 200), max_size=2)


@given(RELEASE, RELEASE, BUILD, BUILD)
def test_one_release_of_a_compiler_is_one_however_many_numbers_it_tells(
    release: tuple[int, ...], other: tuple[int, ...], more: list[int], others: list[int]
) -> None:
    """trtexec says 10.3.0, Python's module 10.3.0.30. Another patch is another compiler."""
    one, again, another = (".".join(map(str, each)) for each in ((*release, *more), (*release, *others), other))
    assert is_same_compiler(f"tensorrt {one}", f"tensorrt {again}")
    assert not is_same_compiler(f"tensorrt {one}", f"tensorrt_rtx {again}")
    assert is_same_compiler(f"tensorrt {one}", f"tensorrt {another}") == (release == other)
    assert is_same_compiler("tensorrt of mine", "tensorrt of mine")
    assert not is_same_compiler("tensorrt of mine", f"tensorrt {one}")


def test_a_target_refuses_what_it_does_not_take(tmp_path: Path) -> None:
    orin, out = find_target("orin"), tmp_path / "package"
    with pytest.raises(InputError, match="orin: takes ONNX opsets 9 to 20, but the bundle has 21"):
        orin.require_opset(21)
    with pytest.raises(InputError, match=r"orin: needs tensorrt on the Jetson Orin itself, .* JetPack 6"):
        build_engine(bundle().onnx.read_bytes(), orin)
    with pytest.raises(InputError, match="toaster: unknown target; choose one of cpu, rtx-ampere"):
        build(bundle().path, "toaster", QUIET)
    with pytest.raises(InputError, match="cpu: compiles here, into the bundle; --out is for"):
        build(bundle().path, "cpu", QUIET, out=out)
    for target in (name for name in TARGETS if "orin" not in name):
        has_none = rf"^{target}: has no DLA; leave out --dla \(orin and drive-orin have one\)$"
        with pytest.raises(InputError, match=has_none):
            build(bundle().path, target, QUIET, dla=True, out=out)
    assert not out.exists()


def test_tensorrt_compiles_only_beside_the_gpu_of_the_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(compiles_here(target) == (target.compiler != "tensorrt") for target in TARGETS.values())
    (tmp_path / "tensorrt.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    for capability, expected in ((87, {"orin", "drive-orin"}), (110, {"thor", "drive-thor"}), (101, {"drive-thor"})):
        monkeypatch.setattr("deploy.engines.cuda.compute_capability", lambda here=capability: here)
        assert {name for name, t in TARGETS.items() if t.compiler == "tensorrt" and compiles_here(t)} == expected


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


def test_refusal_names_node_operator_and_reason() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    ampere = find_target("rtx-ampere")
    assert build_engine(scatter("none"), ampere).layers > 0
    turned = [helper.make_node("Transpose", ["x"], ["t"], name="turn"), helper.make_node("Cast", ["t"], ["y"], to=1)]
    not_cast = onnx_model(turned, {"x": (TensorProto.UINT8, [4, 3])}, {"y": [3, 4]}).SerializeToString()
    older = replace(ampere, versions=Versions((0, 9), (1, 1)))
    for graph, target, message in (
        (scatter("add"), ampere, r"refuses node canvas \[ScatterElements\]: Unsupported reduction type"),
        (not_cast, ampere, r"refuses node turn \[Transpose\]: .*UInt8"),
        (bundle().onnx.read_bytes()[:5000], find_target("rtx-ada"), r"refuses the file: .*Failed to parse the ONNX"),
        (bundle().onnx.read_bytes(), older, rf"needs tensorrt_rtx >=0.9,<1.1, but {trt.__version__} is here"),
    ):
        with one_line_error(message):
            build_engine(graph, target)


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


@pytest.mark.parametrize(("compiler", "core"), [("tensorrt 10.3.0", -1), ("tensorrt 10.3.0 with DLA 0", 0)])
def test_a_plan_is_deserialised_for_the_dla_of_its_record(
    compiler: str, core: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cores = []

    class DlaRuntime:
        DLA_core = -1

        def __init__(self, log: object) -> None:
            pass

        def deserialize_cuda_engine(self, plan: bytes) -> None:
            cores.append(self.DLA_core)

    trt = SimpleNamespace(__name__="tensorrt", __version__="10.3.0", ILogger=object, Runtime=DlaRuntime)
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setattr(cuda, "Stream", object)
    path = copy_bundle(tmp_path / "bundle")
    Bundle.load(path).add_plan(b"plan", plan_record(path, b"plan", compiler=compiler))
    with pytest.raises(InputError, match="refuses it"):
        open_engine(Bundle.load(path), "orin")
    assert cores == [core]


def test_plan_is_checked_before_it_runs(tmp_path: Path) -> None:
    tensorrt_rtx = pytest.importorskip("tensorrt_rtx")
    path = copy_bundle(tmp_path / "bundle")
    with pytest.raises(InputError, match="no engine for rtx-blackwell; run `perception build"):
        Runtime(path, "rtx-blackwell")
    made = build(path, "rtx-blackwell", QUIET)
    plan, file = (path / "engines" / f"rtx-blackwell.{kind}" for kind in ("plan", "json"))
    record, manifest = Bundle.load(path).plan("rtx-blackwell").record, bundle().manifest
    assert (plan.stat().st_size, record.layers) == (record.plan_bytes, made.layers)
    assert record.plan_bytes > 4 * manifest.parameters
    assert record.layers >= manifest.operators["Conv"]
    here = f"tensorrt_rtx {tensorrt_rtx.__version__}"
    for change, message in (
        ({"onnx_sha256": "0" * 64}, f"{plan}: compiled from another network"),
        ({"target": "rtx-ampere"}, f"{file}: is of an engine for rtx-ampere"),
        ({"compiler": "tensorrt_rtx 1.0.0"}, f"{plan}: compiled by tensorrt_rtx 1.0.0, but here is {here}"),
        ({"plan_sha256": "0" * 64}, f"{plan}: was changed (its sha256 differs from the record)"),
    ):
        file.write_bytes(record.model_copy(update=change).content())
        with one_line_error(exactly=f"{message}; run `perception build {path} --target rtx-blackwell`"):
            Runtime(path, "rtx-blackwell")
    file.write_text("{}")
    with pytest.raises(InputError, match=r"rtx-blackwell.json: not an engine record of this version; run `perception"):
        Runtime(path, "rtx-blackwell")
    file.write_bytes(record.content())
    try:
        compute_capability()
    except InputError as error:
        with one_line_error("GPU", exactly=str(error)):
            open_engine(Bundle.load(path), "rtx-blackwell")


def test_cpu_build_runs_the_golden_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = copy_bundle(tmp_path / "bundle")
    assert build(path, "cpu", QUIET).layers == sum(bundle().manifest.operators.values())
    _, another = bundle("rain").golden()
    monkeypatch.setattr(OnnxRuntimeEngine, "run", lambda self, inputs: another)
    with pytest.raises(InputError, match=r"ONNX Runtime, golden frame \w+: does not compute the exported network"):
        build(path, "cpu", QUIET)


Arrays = Mapping[str, np.ndarray]


def with_plan(folder: Path) -> Path:
    """A copy of the bundle that has a plan for an Orin."""
    path = copy_bundle(folder / "bundle")
    Bundle.load(path).add_plan(b"plan", plan_record(path, b"plan"))
    return path


@no_gpu
def test_verify_says_on_which_targets_it_did_not_run(tmp_path: Path) -> None:
    told = verify(with_plan(tmp_path))
    assert told["engines"].startswith("orin by tensorrt 10.3.0, not signed, NOT RUN (orin: needs tensorrt")


@pytest.mark.parametrize(
    ("capability", "version", "said"),
    [
        (87, "10.3.0", "gives the golden frames"),
        (87, "10.14.1", "compiled by tensorrt 10.3.0"),
        (89, "10.3.0", "NOT RUN (the GPU here has compute capability 8.9)"),
    ],
)
def test_verify_runs_a_plan_on_a_gpu_of_the_target(
    capability: int, version: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = with_plan(tmp_path)
    stand_in(monkeypatch, path, capability, version)
    assert said in verify(path)["engines"]


def test_verify_refuses_a_wrong_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = with_plan(tmp_path)
    stand_in(monkeypatch, path, 87, "10.3.0", off=0.1)
    with one_line_error(r"orin\.plan: tensorrt 10\.3\.0, golden frame .* does not compute the exported network"):
        verify(path)


def test_build_stores_no_plan_that_does_not_give_the_golden_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = copy_bundle(tmp_path / "bundle")
    stand_in(monkeypatch, path, 87, "10.3.0", off=0.1)
    with one_line_error(r"tensorrt 10\.3\.0, golden frame .* does not compute the exported network"):
        build(path, "orin", QUIET)
    assert not (path / "engines").exists()
    stand_in(monkeypatch, path, 87, "10.3.0")
    build(path, "orin", QUIET)
    assert Bundle.load(path).plan("orin").data == b"compiled"


def stand_in(monkeypatch: pytest.MonkeyPatch, path: Path, capability: int, version: str, off: float = 0.0) -> None:
    """A stand-in for the GPU and its compiler, as neither is here; tests/deploy/test_gpu.py has the real ones.

    Args:
        path: the bundle whose network its plans compute.
        off: what they add to each output.
    """

    class Engine(OnnxRuntimeEngine):
        def __init__(self, plan: Content, *_: object, **__: object) -> None:
            super().__init__((path / "model.onnx").read_bytes(), plan.path)

        def run(self, inputs: Arrays, state: EngineState | None = None) -> dict[str, np.ndarray]:
            return {name: output + np.float32(off) for name, output in super().run(inputs, state).items()}

    def compiled(content: bytes, *_: object) -> tensorrt.CompiledPlan:
        return tensorrt.CompiledPlan(b"compiled", 1, f"tensorrt {version}")

    module = SimpleNamespace(__name__="tensorrt", __version__=version)
    for where in (tensorrt, importlib.import_module("deploy.build")):
        monkeypatch.setattr(where, "build_engine", compiled)
        monkeypatch.setattr(where, "TensorRtEngine", Engine)
    monkeypatch.setattr("deploy.build.compiles_here", lambda target: True)
    monkeypatch.setattr(cuda, "compute_capability", lambda: capability)
    monkeypatch.setattr(tensorrt, "import_compiler", lambda target: module)
