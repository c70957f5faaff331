"""The canary of the memory's GridSample: against the operator's definition and torch; a wrong engine is refused."""

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
from exported import bundle, plan_record, remembering
from refits import no_gpu
from torch.nn import functional as F

from deploy.bundle import Bundle
from deploy.canary import MAP, MOST, MOVED, PLACES, canary_graph, canary_inputs, canary_outputs, require_canary
from deploy.engines import cuda, tensorrt
from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.engines.tensorrt import build_engine
from deploy.golden import WrongEngine
from deploy.targets import find_target
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
    told = verify(with_plan(tmp_path))[ROW]
    assert told.startswith("as in closed form in ONNX Runtime, orin by its compiler NOT RUN (orin: needs tensorrt")


@pytest.mark.parametrize(("way", "capability"), [(None, 87), ("aligned", 87), (None, 89)])
def test_verify_runs_it_on_a_gpu_of_the_target(
    way: str | None, capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the GPU and its compiler, as neither is here; tests/deploy/test_gpu.py has the real ones."""
    path, run = with_plan(tmp_path), sample if way is None else WRONG[way]
    monkeypatch.setattr(cuda, "compute_capability", lambda: capability)
    monkeypatch.setattr(tensorrt, "import_compiler", lambda target: None)
    plan = tensorrt.CompiledPlan(b"compiled", 1, "tensorrt 10.14.1")
    monkeypatch.setattr(tensorrt, "build_engine", lambda content, target: plan)
    monkeypatch.setattr(tensorrt, "TensorRtEngine", lambda content, target: SimpleNamespace(run=run))
    if way is not None:
        with one_line_error("orin: tensorrt 10.14.1: computes GridSample wrongly"):
            verify(path)
        return
    expected = (
        "tensorrt 10.14.1" if capability == 87 else "its compiler NOT RUN (the GPU here has compute capability 8.9)"
    )
    assert verify(path)[ROW] == f"as in closed form in ONNX Runtime, orin by {expected}"
