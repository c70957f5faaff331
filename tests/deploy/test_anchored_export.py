"""A network with anchors on its way to the vehicle: export, precisions, modules, compiler, runtime."""

from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from anchored_model import run
from commands import scored_and_replayed
from exported import QUIET, assert_equal, folder
from refusals import one_line_error
from vocabulary import RIG

from deploy.bundle import ONNX, Bundle
from deploy.engines.tensorrt import build_engine
from deploy.export import export
from deploy.golden import synthetic_frame
from deploy.precision.convert import convert
from deploy.precision.frames import Drives
from deploy.runtime import Runtime
from deploy.targets import find_target
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.frame import Frame, Prediction
from perception.modules.spec import Prompt
from perception.predict import TorchPredictor
from perception.sensors.inputs import prepare
from perception.training.checkpoint import load_model

NECKS = ["pyramid", "joined"]


@cache
def bundle(neck: str) -> Bundle:
    return export(run(neck), folder() / f"bundle-anchored-{neck}", console=QUIET)


def assert_close(a: Prediction, b: Prediction) -> None:
    """The same boxes one to one, up to the rounding of engines, which may swap neighbours in the order."""
    numbers, others = (
        np.concatenate(
            [
                x.centers,
                x.sizes,
                x.rotations[:, :2, 0],
                x.velocities[:, :2],
                x.scores[:, None],
                9.0 * x.labels[:, None],
            ],
            axis=1,
        )
        for x in (a.results["detection"], b.results["detection"])
    )
    assert len(numbers) == len(others)
    off = np.abs(numbers[:, None] - others).max(axis=2)
    np.testing.assert_array_equal(np.sort(off.argmin(axis=1)), np.arange(len(others)))
    assert off.min(axis=1).max() < 1e-3


@pytest.mark.parametrize("neck", NECKS)
def test_bundle_perceives_what_torch_does(neck: str, tables: NuScenesTables) -> None:
    predictor, runtime = TorchPredictor.load(run(neck)), Runtime(bundle(neck).path)
    frames: list[Frame] = [tables.frame(token, "lidar", 2, cameras=False) for token in tables.samples()[:2]]
    for frame in (*frames, synthetic_frame("lidar", RIG, 3)):
        expected, found = predictor(frame), runtime(frame)
        assert 20 < len(expected.results["detection"]) < 4000
        assert len(np.unique(expected.results["detection"].labels)) > 2
        assert_close(expected, found)
        assert_equal(found, runtime(frame))
    shapes = {tensor.name: tensor.shape for tensor in bundle(neck).manifest.outputs}
    assert shapes["detection/boxes"] == (1, 10, 600 if neck == "pyramid" else 200, 10)
    assert runtime.bundle.manifest.tasks == predictor.model.config.tasks


@pytest.mark.parametrize("neck", NECKS)
def test_compiler_takes_the_whole_graph(neck: str) -> None:
    pytest.importorskip("tensorrt_rtx")
    half = convert(onnx.load(bundle(neck).onnx), "fp16", (), bundle(neck).manifest.heads).graphs[ONNX]
    shapes = {tensor.name: tensor.shape for tensor in bundle(neck).manifest.inputs}
    assert build_engine(half.SerializeToString(), find_target("rtx-ampere"), inputs=shapes).layers > 10


def test_modules_fold_and_switch(tables: NuScenesTables, tmp_path: Path) -> None:
    """`rain` at every slot; the export compares each route with torch."""
    wet = next(f for f in (tables.frame(t, "lidar", 2) for t in tables.samples()) if f.conditions["weather"] == "rain")
    predictor = TorchPredictor.load(run("pyramid", modular=True))
    folded = export(run("pyramid", modular=True), tmp_path / "folded", [["rain"]], console=QUIET)
    switched = export(run("pyramid", modular=True), tmp_path / "both", [[], ["rain"]], console=QUIET)
    assert folded.manifest.folded == ("rain",)
    assert switched.manifest.banked[0].name == "rain"
    expected = predictor(wet)
    assert_close(expected, Runtime(folded.path)(wet))
    assert_close(expected, Runtime(switched.path)(wet))


def test_prompt_that_would_have_to_fold_for_several_sizes_is_refused() -> None:
    model, _ = load_model(run("pyramid"))
    model.bank.add(Prompt(name="dry", slots=("heads.detection.classes",), size=4))
    inputs = {
        name: torch.from_numpy(v) for name, v in prepare(synthetic_frame("lidar", RIG), bundle("pyramid").spec).items()
    }
    with torch.no_grad():
        model.predict(inputs)  # without a fold each map has its own
        with one_line_error(r"heads\.detection\.classes: a prompt folds for one size of input, this"):
            model.folded().predict(inputs)


def test_int8_is_scored_and_replayed(sim_root: Path, tmp_path: Path) -> None:
    """Export compares with torch; ranges are measured on the same drives."""
    drives = Drives(sim_root, "v1.0-sim")
    exported = export(run("joined"), tmp_path / "int8", console=QUIET, precision="int8", calibration=drives)
    assert any(block.precision == "int8" for block in exported.manifest.blocks)
    metrics, tracks = scored_and_replayed(exported.path, sim_root, tmp_path)
    assert 0 <= metrics["mAP"] < 0.2  # random weights
    assert len(tracks["results"]) == 3
