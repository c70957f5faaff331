"""Plans run on the golden frames where this machine has their GPU: when verified, and before they are stored."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from commands import one_line_error
from exported import QUIET, copy_bundle, plan_record
from refits import no_gpu

from deploy.build import build
from deploy.bundle import Bundle
from deploy.engines import cuda, tensorrt
from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.integrity import Content
from deploy.state import EngineState
from deploy.targets import Target
from deploy.verify import verify

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
        def __init__(self, plan: Content, target: Target, weights: Content | None = None) -> None:
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
