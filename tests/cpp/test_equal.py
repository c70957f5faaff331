"""The C++ runtime gives the bytes of the Python runtime: inputs, outputs and results, frame by frame of a drive."""

from collections.abc import Callable, Iterator
from pathlib import Path

import kitti_reference as kitti
import numpy as np
import pytest
import tessera_runtime as native
from both_runtimes import Python, drive, every_task, rotated
from exported import QUIET, apart, bundle, remembering
from lowered import switched
from once import once
from repository import ROOT

from deploy.bundle import Bundle
from deploy.export import export
from perception.datasets.pandaset import PandaSet
from perception.frame import Frame
from perception.mmdet3d.importing import import_pointpillars
from perception.sensors import inputs

BUNDLES: dict[str, Callable[[], Bundle]] = {
    "memory": remembering,
    "rain": lambda: bundle("rain"),
    "apart": lambda: apart()[0],
    "every task": every_task,
    "rotated": rotated,
    "INT8": lambda: switched("int8"),
}


def require_equal(expected: dict[str, np.ndarray], actual: dict[str, np.ndarray], where: str) -> None:
    assert expected.keys() == actual.keys(), where
    for name, array in expected.items():
        found = actual[name]
        assert (found.dtype, found.shape) == (array.dtype, array.shape), f"{where}: {name}"
        assert found.tobytes() == np.ascontiguousarray(array).tobytes(), f"{where}: {name}"


def compare(path: Path, frames: Iterator[Frame]) -> int:
    python, compared = Python(path), 0
    with native.Runtime(path) as runtime:
        for frame in frames:
            expected = python.step(frame)
            actual = runtime.step(frame, python.believed.known())
            require_equal(expected, actual, f"{path.name}, frame {frame.token}")
            assert {name: runtime.weight(name) for name in python.weights} == python.weights
            compared += len(expected["detection/scores"])
    return compared


@pytest.mark.slow("exports networks")
@pytest.mark.parametrize("name", BUNDLES)
def test_all_bytes_of_a_drive_are_those_of_the_python_runtime(name: str) -> None:
    loaded = BUNDLES[name]()
    assert compare(loaded.path, drive(loaded.spec.grid.reference)) > 100  # detections


def test_python_makes_the_same_inputs_by_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = every_task().spec
    for frame in drive():
        expected = inputs.prepare(frame, spec)
        with monkeypatch.context() as patch:
            patch.setattr(inputs, "NATIVE", native)
            require_equal(expected, inputs.prepare(frame, spec), frame.token)


def test_a_network_of_kitti_sees_the_same_on_a_real_drive(pandaset_root: Path) -> None:
    """PandaSet's frames 16 to 23, with the anchors' NMS."""

    def make(out: Path) -> None:
        run = out.with_name("cpp-kitti-run")
        import_pointpillars(ROOT / "configs" / "kitti" / "pointpillars.yaml", kitti.weights_file(), run)
        export(run, out, console=QUIET)

    path = once("cpp-kitti", make)
    spec = Bundle.load(path).spec
    drives = PandaSet(pandaset_root, spec.rig)
    assert compare(path, (drives.frame(f"002-{i}", spec.reads) for i in range(16, 24))) > 50
