"""`tessera_verify` proves a build of the library on the golden frame that goes from sensor data to results."""

import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
from both_runtimes import every_task, rotated
from exported import apart, bundle, remembering, rewritten
from lowered import switched

from deploy.bundle import Bundle
from deploy.golden import GoldenFrame
from perception.frame import Arrays

PROGRAM = Path(os.environ["TESSERA_LIBRARY"]).with_name("tessera_verify")


def verify(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PROGRAM, *map(str, arguments)], capture_output=True, text=True, check=False)


@pytest.mark.slow("exports networks")
@pytest.mark.parametrize("made", [every_task, rotated, remembering, lambda: switched("int8"), lambda: apart()[0]])
def test_a_bundle_is_as_at_the_export(made: Callable[[], Bundle]) -> None:
    done = verify(path := made().path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == f"{path}: outputs of ONNX Runtime for the golden frames: as at the export"
    assert all(line.endswith(": as at the export") for line in lines)
    for checked in ("inputs of the sensor data", "results of the outputs of model.onnx"):
        assert any(checked in line for line in lines)
    assert any("inputs of the memory" in line for line in lines) == (made().manifest.state is not None)


def other_sensors(frame: GoldenFrame) -> GoldenFrame:
    points = frame.sensors["points"] + np.float32([0.5, 0, 0, 0, 0])
    (picture, *_) = (name for name in frame.sensors if name.endswith("/ego_from_camera"))
    turned = frame.sensors[picture] @ np.diag([1.0, -1, -1, 1])
    return replace(frame, sensors={**frame.sensors, "points": points, picture: turned})


def other_results(frame: GoldenFrame) -> GoldenFrame:
    def moved(values: np.ndarray) -> np.ndarray:
        return values ^ 1 if values.dtype.kind in "iu" else values + np.asarray(0.01, values.dtype)

    return replace(frame, results={name: moved(values) for name, values in frame.results.items()})


def changed(source: Bundle, path: Path, change: Callable[[GoldenFrame], GoldenFrame]) -> Path:
    """A copy with another golden frame that has sensor data, as an export by other software would have written it."""
    copytree(source.path, path)
    frames = [change(frame) if frame.sensors else frame for frame in source.golden_frames()]
    return rewritten(path, golden=frames)


def test_other_inputs_and_results_are_named(tmp_path: Path) -> None:
    source = every_task()
    results: Arrays = next(frame for frame in source.golden_frames() if frame.sensors).results
    for change, names in ((other_sensors, ["image_from_reference", "pillar_points"]), (other_results, [*results])):
        done = verify(changed(source, tmp_path / change.__name__, change))
        assert (done.returncode, done.stderr) == (1, "")
        (line,) = (line for line in done.stdout.splitlines() if "NOT as at the export" in line)
        assert all(name in line for name in names)


def test_another_motion_is_named(tmp_path: Path) -> None:
    path = copytree(remembering().path, tmp_path / "bundle")
    first, *others = remembering().golden_frames()
    late = [replace(each, moment=each.moment._replace(timestamp=each.moment.timestamp + 50_000)) for each in others[:1]]
    rewritten(path, golden=[first, *late, *others[1:]])
    done = verify(path)
    assert done.returncode == 1
    assert "inputs of the memory: NOT as at the export: elapsed of" in done.stdout


def test_a_wrong_engine_and_what_is_no_bundle(tmp_path: Path) -> None:
    shifted = [replace(f, outputs={n: v if v.dtype.kind != "f" else v + np.float32(0.1) for n, v in f.outputs.items()})
               for f in bundle().golden_frames()]  # fmt: skip
    done = verify(rewritten(copytree(bundle().path, tmp_path / "other"), golden=shifted))
    assert done.returncode == 1
    assert "does not compute the exported network" in done.stdout
    for wrong in ((tmp_path,), ()):
        done = verify(*wrong)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    unsensed = [replace(frame, sensors={}) for frame in bundle().golden_frames()]
    done = verify(rewritten(copytree(bundle().path, tmp_path / "blind"), golden=unsensed))
    assert done.returncode == 2
    assert "no golden frame has sensor data" in done.stderr
