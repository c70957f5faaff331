"""The canary of the memory's GridSample: against the operator's definition and torch; a wrong engine is refused."""

import importlib
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from commands import one_line_error
from exported import QUIET, bundle, plan_record, remembering
from refits import no_gpu
from torch.nn import functional as F

from deploy.build import build
from deploy.bundle import Bundle
from deploy.canary import MAP, MOST, MOVED, PLACES, canary_graph, canary_inputs, canary_outputs, require_canary
from deploy.engines import cuda, tensorrt
from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.engines.tensorrt import build_engine
from deploy.golden import WrongEngine
from deploy.integrity import Content
from deploy.state import EngineState
from deploy.targets import Target, find_target
from deploy.verify import verify

Arrays = Mapping[str, np.ndarray]
ROW = "GridSample of the memory"


def sample(inputs: Arrays, kind: torch.dtype = torch.float64, **options: Any) -> dict[str, np.ndarray]:
    """By torch."""
    values, places = (torch.from_numpy(inputs[name]).to(kind) for name in (MAP, PLACES))
    moved = F.grid_sample(values, places, **{"mode": "bilinear", "align_corners": False} | options)
    return {MOVED: moved.numpy().astype(np.float64)}


def test_the_network_is_one_that_onnx_accepts_and_its_outputs_are_torchs() -> None:
    model = onnx.load_from_string(canary_graph())
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["GridSample"]
    inputs = canary_inputs()
    assert {each.name: each.type.tensor_type.shape.dim[-1].dim_value for each in model.graph.input} == {
        name: array.shape[-1] for name, array in inputs.items()
    }
    expected = canary_outputs(inputs)[MOVED]
    np.testing.assert_allclose(expected, sample(inputs)[MOVED], atol=1e-12)
    assert 0.1 < (expected == 0).mean() < 0.5  # outside
    require_canary(OnnxRuntimeEngine(canary_graph(), "canary").run, "ONNX Runtime")


WRONG: dict[str, Callable[[Arrays], Arrays]] = {
    "aligned": lambda inputs: sample(inputs, align_corners=True),
    "nearest": lambda inputs: sample(inputs, mode="nearest"),
    "border": lambda inputs: sample(inputs, padding_mode="border"),
    "half": lambda inputs: sample({name: each.astype(np.float16) for name, each in inputs.items()}),
    "transposed": lambda inputs: sample({**inputs, PLACES: inputs[PLACES][..., ::-1].copy()}),
    "nan": lambda inputs: {MOVED: np.full_like(inputs[MAP], np.nan)},
}


@pytest.mark.parametrize("way", WRONG)
def test_an_engine_with_other_values_is_refused_in_one_line(way: str) -> None:
    require_canary(lambda inputs: sample(inputs, torch.float32), "torch")
    with pytest.raises(
        WrongEngine, match=r"the engine: computes GridSample wrongly, .* use another version"
    ) as refused:
        require_canary(WRONG[way], "the engine")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["rtx-ampere", "rtx-ada"])
def test_nvidias_compiler_takes_it(name: str) -> None:
    pytest.importorskip("tensorrt_rtx")
    assert build_engine(canary_graph(), find_target(name)).layers == 1


def with_plan(folder: Path) -> Path:
    """A copy of the bundle with a memory that has a plan for an Orin."""
    path = Path(shutil.copytree(remembering().path, folder / "bundle"))
    Bundle.load(path).add_plan(b"plan", plan_record(path, b"plan"), None)
    return path


@pytest.mark.slow("the first test that needs them exports two bundles")
def test_verify_runs_it_for_a_bundle_with_a_memory_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ROW not in verify(bundle().path)
    assert verify(remembering().path)[ROW] == "as in closed form in ONNX Runtime"

    def tampered(inputs: Arrays) -> dict[str, np.ndarray]:
        return {MOVED: canary_outputs(inputs)[MOVED] + 2 * MOST}

    monkeypatch.setattr("deploy.canary.canary_outputs", tampered)
    verify(bundle().path)
    with one_line_error("ONNX Runtime: computes GridSample wrongly"):
        verify(remembering().path)


@no_gpu
def test_verify_says_on_which_targets_it_did_not_run(tmp_path: Path) -> None:
    told = verify(with_plan(tmp_path))
    assert told[ROW].startswith("as in closed form in ONNX Runtime, orin by its compiler NOT RUN (orin: needs tensorrt")
    assert told["engines"].startswith("orin by tensorrt 10.3.0, not signed, NOT RUN (orin: needs tensorrt")


@pytest.mark.parametrize(
    ("capability", "version", "canary", "plan"),
    [
        (87, "10.3.0", "orin by tensorrt 10.3.0", "gives the golden frames"),
        (87, "10.14.1", "orin by tensorrt 10.14.1", "compiled by tensorrt 10.3.0"),
        (89, "10.3.0", "NOT RUN (the GPU here has compute capability 8.9)", "NOT RUN (the GPU here has compute"),
    ],
)
def test_verify_runs_it_and_the_plan_on_a_gpu_of_the_target(
    capability: int, version: str, canary: str, plan: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = with_plan(tmp_path)
    stand_in(monkeypatch, path, capability, version, sample)
    told = verify(path)
    assert canary in told[ROW]
    assert plan in told["engines"]


def test_verify_refuses_a_wrong_canary_and_a_wrong_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = with_plan(tmp_path)
    stand_in(monkeypatch, path, 87, "10.3.0", WRONG["aligned"])
    with one_line_error("orin: tensorrt 10.3.0: computes GridSample wrongly"):
        verify(path)
    stand_in(monkeypatch, path, 87, "10.3.0", sample, off=0.1)
    with one_line_error(r"orin\.plan: tensorrt 10\.3\.0, golden frame .* does not compute the exported network"):
        verify(path)


def test_build_stores_no_plan_that_does_not_give_the_golden_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copytree(remembering().path, tmp_path / "bundle"))
    stand_in(monkeypatch, path, 87, "10.3.0", sample, off=0.1)
    with one_line_error(r"tensorrt 10\.3\.0, golden frame .* does not compute the exported network"):
        build(path, "orin", QUIET)
    assert not (path / "engines").exists()
    stand_in(monkeypatch, path, 87, "10.3.0", sample)
    build(path, "orin", QUIET)
    assert Bundle.load(path).plan("orin").data == b"compiled"


def stand_in(
    monkeypatch: pytest.MonkeyPatch,
    path: Path,
    capability: int,
    version: str,
    canary: Callable[[Arrays], Arrays],
    off: float = 0.0,
) -> None:
    """A stand-in for the GPU and its compiler, as neither is here; tests/deploy/test_gpu.py has the real ones.

    Args:
        path: the bundle whose network its plans compute.
        off: what they add to each output.
    """

    class Engine(OnnxRuntimeEngine):
        def __init__(self, plan: Content, target: Target, weights: Content | None = None) -> None:
            super().__init__((path / "model.onnx").read_bytes(), plan.path)
            self.is_canary = plan.data == b"canary"

        def run(self, inputs: Arrays, state: EngineState | None = None) -> dict[str, np.ndarray]:
            if self.is_canary:
                return dict(canary(inputs))
            return {name: output + np.float32(off) for name, output in super().run(inputs, state).items()}

    def compiled(content: bytes, *_: object) -> tensorrt.CompiledPlan:
        return tensorrt.CompiledPlan(b"canary" if content == canary_graph() else b"compiled", 1, f"tensorrt {version}")

    module = SimpleNamespace(__name__="tensorrt", __version__=version)
    for where in (tensorrt, importlib.import_module("deploy.build")):
        monkeypatch.setattr(where, "build_engine", compiled)
        monkeypatch.setattr(where, "TensorRtEngine", Engine)
    monkeypatch.setattr("deploy.build.compiles_here", lambda target: True)
    monkeypatch.setattr(cuda, "compute_capability", lambda: capability)
    monkeypatch.setattr(tensorrt, "import_compiler", lambda target: module)
