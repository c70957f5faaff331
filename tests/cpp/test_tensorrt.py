"""The engine for TensorRT (libtessera_tensorrt.so) without a GPU: on stand-ins, and with NVIDIA's library.

It is compiled with NVIDIA's headers of two releases. A stand-in of CUDA's library puts off all work until the host
waits for it. That of TensorRT's runs the ONNX graph by ONNX Runtime, as fixed a size as a plan.
"""

import json
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ctypes import CDLL, byref
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import onnx.parser
import pytest
import tessera_runtime as native
from both_runtimes import compare, drive, every_task, require_equal
from counting import counting
from exported import apart, bundle, copy_bundle, plan_record, remembering, retrained

from deploy.bundle import Bundle
from deploy.engines.tensorrt import build_engine, compiler_version
from deploy.precision.measure import structure_sha256
from deploy.targets import TARGETS

BUILT = Path(os.environ[native.LIBRARY]).parent
RELEASES = {"10.3": "orin", "11.1": "thor"}  # of the headers, with a target
DEFECT = "TESSERA_STAND_IN"  # environment variable that the stand-ins read
pytestmark = pytest.mark.usefixtures("headers")
BUNDLES: dict[str, Callable[[], Bundle]] = {
    "memory": remembering,
    "apart": lambda: apart()[0],
    "every task": every_task,
    "two states": counting,
}


def plan_of(loaded: Bundle, dla_core: int = -1) -> bytes:
    """What the stand-in takes for a plan: sizes of the inputs and the DLA core, and the graph."""
    sizes = {each.name: each.shape for each in loaded.manifest.inputs}
    return json.dumps(sizes | {"DLA core": dla_core}).encode() + b"\n" + loaded.onnx.read_bytes()


def add_plan(bundle: Bundle, plan: bytes, release: str = "10.3", **record: Any) -> None:
    made_for = {"target": RELEASES[release], "compiler": f"tensorrt {release}.0"} | record
    bundle.add_plan(plan, plan_record(bundle.path, plan, **made_for))


def compiled(source: Path, path: Path, release: str = "10.3") -> Path:
    """A copy of a bundle, with a plan for each of its networks."""
    copytree(source, path)
    for loaded in (Bundle.load(path), *Bundle.load(path).routes.values()):
        add_plan(loaded, plan_of(loaded), release)
    return path


def given(release: str = "10.3") -> dict[str, str]:
    """What opens a plan of the stand-in."""
    return {"target": RELEASES[release], "plugin": str(BUILT / f"libtensorrt_{release}.so")}


def message_of(path: Path, **arguments: str) -> str:
    with pytest.raises(native.Failure) as caught:
        native.Runtime(path, **arguments or given())
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.slow("exports networks")
@pytest.mark.parametrize(
    ("name", "capture", "release"),
    [
        ("memory", "captured", "10.3"),
        ("memory", "no capture", "11.1"),
        ("apart", "captured", "11.1"),
        ("every task", "captured", "10.3"),
        ("two states", "captured", "10.3"),
        ("two states", "no capture", "10.3"),
    ],
)
def test_a_drive_has_the_bytes_of_the_python_runtime(
    name: str, capture: str, release: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DEFECT, capture)
    path = compiled(BUNDLES[name]().path, tmp_path / "bundle", release)
    assert compare(path, drive(Bundle.load(path).spec.grid.reference), **given(release)) > 100


@pytest.mark.slow("exports a network")
@pytest.mark.parametrize("release", RELEASES)
def test_a_refitted_plan_computes_the_bundle_s_network(
    release: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, path = bundle(), copytree(retrained().path, tmp_path / "bundle")
    add_plan(Bundle.load(path), plan_of(old), release, refittable=True, onnx_sha256=old.files["model.onnx"])
    assert structure_sha256(onnx.load(old.onnx)) == structure_sha256(onnx.load(path / "model.onnx"))
    assert compare(path, list(drive())[:6], **given(release)) > 30
    monkeypatch.setenv(DEFECT, "missing weights")
    assert "cannot give it the weights of model.onnx" in message_of(path, **given(release))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda plan: plan.replace(b'"pillar_points": [1, ', b'"pillar_points": [2, '), "pillar_points has another"),
        (lambda _: plan_of(bundle()), "has no input current_from_previous; compile"),
        (lambda plan: plan.split(b"\n")[0] + b"\nno graph", "refuses it: "),
    ],
)
def test_a_plan_that_is_not_of_this_network_is_refused(
    change: Callable[[bytes], bytes], message: str, tmp_path: Path
) -> None:
    path = copytree(remembering().path, tmp_path / "bundle")
    add_plan(Bundle.load(path), change(plan_of(Bundle.load(path))))
    assert message in message_of(path)


@pytest.mark.parametrize("core", [-1, 0])
def test_a_plan_runs_on_the_dla_that_it_was_compiled_for(core: int, tmp_path: Path) -> None:
    path = copy_bundle(tmp_path / "bundle")
    add_plan(loaded := Bundle.load(path), plan_of(loaded, core), compiler="tensorrt 10.3.0 with DLA 0")
    if core == 0:
        native.Runtime(path, **given()).close()
    else:
        assert message_of(path).endswith("is for another DLA core")


def test_every_call_computes_on_the_device_on_which_the_bundle_was_opened(tmp_path: Path) -> None:
    """CUDA's current device is of each thread, and 0 at first."""
    path, cuda = compiled(remembering().path, tmp_path / "bundle"), CDLL(given()["plugin"])

    def opened() -> native.Runtime:
        cuda.cudaSetDevice(1)
        return native.Runtime(path, **given())

    with ThreadPoolExecutor(1) as other, native.Runtime(path) as plain, other.submit(opened).result() as runtime:
        for frame in list(drive())[:3]:
            cuda.cudaSetDevice(0)
            expected = plain.step(frame)
            require_equal(expected, runtime.step(frame), frame.token)
            cuda.cudaSetDevice(0)
            np.testing.assert_array_equal(runtime.get("next_state"), expected["next_state"])
            cuda.cudaSetDevice(0)
            runtime.check()
    cuda.cudaSetDevice(0)


@pytest.mark.parametrize("call", ["open", "step", "check"])
def test_an_error_that_stays_is_a_status_of_its_own(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, frame = compiled(bundle().path, tmp_path / "bundle"), next(iter(drive()))
    with native.Runtime(path, **given()) as runtime:
        runtime.step(frame)
        monkeypatch.setenv(DEFECT, "illegal address")
        calls = {"open": lambda: native.Runtime(path, **given()), "step": lambda: runtime.step(frame)}
        with pytest.raises(native.Lost, match=r"restart this process$"):
            calls.get(call, runtime.check)()


def test_of_many_errors_the_latest_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two threads at once."""
    monkeypatch.setenv(DEFECT, "noisy")
    message = message_of(compiled(bundle().path, tmp_path / "bundle"))
    assert message.endswith("a kernel failed and that is why")
    assert len(message) < 2500


def test_without_a_gpu_a_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DEFECT, "no GPU")
    with pytest.raises(native.Failure, match=r"cudaErrorNoDevice \(no CUDA-capable device is detected\)$") as caught:
        native.Runtime(compiled(bundle().path, tmp_path / "bundle"), **given())
    assert type(caught.value) is native.Failure


def test_a_frame_that_the_gpu_does_not_compute_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It leaves no arrays; the state of the frame before it goes on."""
    path, frames = compiled(remembering().path, tmp_path / "bundle"), list(drive())[:5]
    with native.Runtime(path, **given()) as runtime, native.Runtime(path) as plain:
        for number, frame in enumerate(frames):
            if number == 2:
                monkeypatch.setenv(DEFECT, "a frame fails")
                with pytest.raises(native.Failure, match="cudaGraphLaunch gives cudaErrorNoDevice"):
                    runtime.step(frame)
                assert runtime.arrays() == {}
                with pytest.raises(native.Failure, match="pillar_cells: is no array of the latest step"):
                    runtime.get("inputs/pillar_cells")
                monkeypatch.delenv(DEFECT)
            else:
                require_equal(plain.step(frame), runtime.step(frame), frame.token)


def test_a_state_that_the_gpu_does_not_give_is_no_fault_of_the_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = compiled(remembering().path, tmp_path / "bundle")
    with native.Runtime(path, **given()) as runtime:
        runtime.step(next(drive()))
        monkeypatch.setenv(DEFECT, "a frame fails")
        array = byref(native._sized(native._Array))
        assert native.load().tessera_get(runtime._handle, b"next_state", array) == 4  # TESSERA_FAILED
        with pytest.raises(native.Failure, match="download gives cudaErrorNoDevice"):
            runtime.get("next_state")


def test_after_a_golden_frame_that_failed_its_sequence_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = compiled(remembering().path, tmp_path / "bundle")
    golden = len(Bundle.load(path).golden_frames())
    with native.Runtime(path, **given()) as runtime:
        for number in range(golden):
            for _ in range(number):
                runtime.check()
            monkeypatch.setenv(DEFECT, "a frame fails")
            with pytest.raises(native.Failure, match="cudaErrorNoDevice"):
                runtime.check()
            monkeypatch.delenv(DEFECT)


def test_nvidia_s_library_refuses_what_is_no_plan_in_its_own_words(tmp_path: Path) -> None:
    """The library that Python uses; it compiles here, and would run the plan on a GPU."""
    pytest.importorskip("tensorrt_rtx")
    graph = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 18]> relu (float[4] x) => (float[4] y) {y = Relu(x)}'
    )
    target, here = TARGETS["rtx-ampere"], compiler_version(TARGETS["rtx-ampere"])
    plan, release = build_engine(graph.SerializeToString(), target).content, ".".join(here.split(".")[:3])
    for name, content, words in (("none", b"x" * 1000, "magicTag"), ("no GPU", plan, "CUDA")):
        path = copy_bundle(tmp_path / name)
        add_plan(Bundle.load(path), content, target=target.name, compiler=here)
        message = message_of(path, target=target.name, plugin=str(BUILT / "libtensorrt_rtx.so"))
        assert message.startswith(f"{path}/engines/{target.name}.plan: {release} refuses it: "), message
        assert words in message


def test_with_nvidia_s_libraries_alone_a_line_says_what_is_missing(tmp_path: Path) -> None:
    """The headers are those of TensorRT 10, as on a vehicle; the library is that for RTX."""
    path, release = copy_bundle(tmp_path / "bundle"), compiler_version(TARGETS["rtx-ampere"]).split()[1]
    add_plan(Bundle.load(path), b"none", compiler=f"tensorrt {release}")
    message = message_of(path, target="orin", plugin=str(BUILT / "libtensorrt_and_cuda.so"))
    assert re.search(r"CUDA: cuda\w+ gives cudaError|refuses it: ", message)
