"""What of ours works on a run that was imported: modules, fold, export, int8, compilers, evaluation, replay."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from centerpoint_reference import files
from commands import scored_and_replayed
from rich.console import Console
from safetensors.torch import load_file
from vocabulary import RIG

from deploy.build import build
from deploy.bundle import Bundle
from deploy.export import export
from deploy.golden import require_agreement, synthetic_frame
from deploy.onnx_export import run as run_torch
from deploy.precision.frames import Drives
from deploy.runtime import Runtime
from deploy.tolerances import LEAST
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.frame import Conditions
from perception.mmdet3d.importing import import_checkpoint
from perception.predict import TorchPredictor
from perception.sensors.inputs import prepare
from perception.training.adapt import adapt
from perception.training.checkpoint import load_model

QUIET = Console(quiet=True)
RAIN = {"name": "rain", "kind": "low_rank", "slots": ["lidar.*", "trunk.*", "heads.*"], "rank": 2, "when": ["rain"]}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imported")
    import_checkpoint(*files(folder), folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def adapted(run: Path, tables: NuScenesTables) -> Path:
    return adapt(run, RAIN, tables, "all", [], run.parent / "rain", steps=2, batch=1, learning_rate=0.05)


@pytest.fixture(scope="module")
def bundles(run: Path, sim_root: Path) -> Callable[[str], Path]:
    """The bundle of a precision, exported once."""

    @cache
    def bundle(precision: Any) -> Path:
        drives = Drives(sim_root, "v1.0-sim") if precision == "int8" else None
        return export(run, run.parent / precision, console=QUIET, precision=precision, calibration=drives).path

    return bundle


def test_a_module_is_trained_beside_the_imported_base(run: Path, adapted: Path) -> None:
    base, both = (load_file(folder / "model.safetensors") for folder in (run, adapted))
    assert all(torch.equal(both[name], tensor) for name, tensor in base.items())
    deltas = [name for name in both if ".computations.rain." in name]
    places = {name.split(".computations")[0] for name in deltas}
    assert {"lidar.layers.0.points", "trunk.lifts.0.conv", "heads.detection.branches.group5_heatmap.1"} <= places
    begun_at_zero = [name for name in deltas if name.endswith(".b.weight")]
    assert len(begun_at_zero) == len(places)
    still = {name for name in begun_at_zero if not both[name].any()}  # no gradient came there
    absent = {name.split("_")[0] for name in still}  # groups of classes of which no object was there
    assert all(name.startswith("heads.detection.branches.group") and "heatmap" not in name for name in still)
    assert len(absent) < 6


def test_its_routes_are_exported_folded_and_on_board(adapted: Path, tmp_path: Path) -> None:
    """`export` itself compares every route with the network in torch that has its module beside the layers."""
    bundle = export(adapted, tmp_path / "bundle", [[], ["rain"]], console=QUIET)
    assert [module.name for module in bundle.manifest.banked] == ["rain"]
    frame = synthetic_frame("lidar", RIG, 3)
    assert len(Runtime(bundle.path)(frame).results["detection"]) > 20
    model, rain = load_model(adapted)[0], Conditions(weather="rain")
    folded = model.deployed(rain)
    assert folded.bank.folded == ("rain",)
    inputs = prepare(frame, bundle.spec)
    require_agreement(run_torch(model, inputs, rain)[0], run_torch(folded, inputs)[0], "folded", LEAST.all(model.tasks))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_every_precision_gives_the_boxes_and_compiles(
    run: Path, bundles: Callable[[str], Path], precision: str
) -> None:
    bundle, frame = Bundle.load(bundles(precision)), synthetic_frame("lidar", RIG, seed=3)
    assert bundle.manifest.heads["detection"].config.nms is not None
    assert {t.name: t.shape for t in bundle.manifest.outputs}["detection/boxes"] == (1, 6, 40, 10)
    expected = TorchPredictor.load(run)(frame).results["detection"]
    found = Runtime(bundle.path)(frame).results["detection"]
    assert len(expected) > 20
    if precision == "fp32":
        np.testing.assert_array_equal(found.labels, expected.labels)
        np.testing.assert_allclose(found.centers, expected.centers, atol=1e-4)
        np.testing.assert_allclose(found.corners(), expected.corners(), atol=1e-3)
    elif precision == "fp16":  # a few are on the edge of being suppressed
        assert abs(len(found) - len(expected)) <= 0.05 * len(expected)
    pytest.importorskip("tensorrt_rtx")
    record = build(bundle.path, "rtx-ampere", QUIET)
    assert len(Bundle.load(bundle.path).plan("rtx-ampere").data) == record.plan_bytes
    assert record.layers >= 40


def test_it_is_scored_and_replayed(bundles: Callable[[str], Path], sim_root: Path, tmp_path: Path) -> None:
    metrics, tracks = scored_and_replayed(bundles("fp32"), sim_root, tmp_path)
    assert 0 <= metrics["mAP"] < 0.2  # random weights
    assert len(tracks["results"]) == 3
    assert np.mean([len(boxes) for boxes in tracks["results"].values()]) > 1
