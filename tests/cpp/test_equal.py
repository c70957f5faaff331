"""The C++ runtime gives the bytes of the Python runtime: inputs, outputs and results, frame by frame of a drive."""

import os
import subprocess
from collections.abc import Callable
from ctypes import POINTER, Structure, byref, c_double
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tessera_runtime as native
from both_runtimes import MODULES, compare, drive, every_task, require_equal, rotated, write_frames
from commands import without_ci
from counting import counting
from exported import QUIET, add_route, apart, bundle, checkpoint_of, modular, nano, remembering, reseal
from mmdet3d_networks import trained_kitti
from once import once
from recorded_engine import TARGET, add_recorded_plan, golden_runs
from repository import ROOT
from tiny import write_tiny

from deploy.bundle import Bundle
from deploy.export import export
from deploy.precision.calibrate import Drives
from perception.config import parse_config
from perception.datasets.pandaset import PandaSet
from perception.mmdet3d.importing import import_pointpillars
from perception.sensors import inputs
from perception.sensors import native as python_native
from perception.tasks.task import to_prediction


def in_int8() -> Bundle:
    """With modules that an input switches."""

    def make(out: Path) -> None:
        drives = out.with_name("cpp-int8-drives")
        write_tiny(drives)
        given = {"precision": "int8", "calibration": Drives(drives, "v1.0-tiny")}
        export(checkpoint_of(modular("int8", MODULES)), out, [[], ["rain"]], QUIET, **given)

    return Bundle.load(once("cpp-int8", make))


def apart_and_switched() -> Bundle:
    """A module of one network alone, which an input switches there."""

    def make(out: Path) -> None:
        wet = {"name": "wet-blind", "kind": "rescale", "slots": ["fuse*"], "when": ["rain", "no-cameras"]}
        export(checkpoint_of(modular("switched", [*MODULES[:1], wet])), out, [[], ["rain"]], QUIET, apart=True)

    return Bundle.load(once("cpp-switched", make))


def with_other_tasks() -> Bundle:
    """In rain a network without a map, whose detections are suppressed."""

    def make(out: Path) -> None:
        content = nano().model_dump(mode="json") | {"modules": []}
        del content["tasks"]["map"]
        content["tasks"]["detection"]["suppression"] = {"threshold": 0.03, "kind": "circle", "within": "class"}
        own = export(checkpoint_of(parse_config(content, "boxes")), out.with_name("cpp-boxes"), console=QUIET)
        add_route(copytree(bundle().path, out), own)

    return Bundle.load(once("cpp-other-tasks", make))


SCHEMA_13 = {"map": {}, "points": {"none": 255}, "occupancy": {"levels": 253}}  # its `postprocessing`


def of_schema_13() -> Bundle:
    """Every task, described as before results had kinds."""

    def describe(content: dict[str, Any]) -> None:
        (boxes, *_), taxonomy = content["results"].pop("detection"), content["taxonomy"]
        nms = {"suppression": boxes["suppression"], "velocity": boxes["velocity"]}
        doubts = {"kinds": taxonomy["conditions"], "limit": content["results"]["conditions"][0]["doubt"][1]}
        content |= {"schema_version": 13, "postprocessing": {**SCHEMA_13, "detection": nms, "conditions": doubts}}
        del content["results"], content["tolerances"]["scales"]

    return Bundle.load(once("cpp-schema-13", lambda out: reseal(copytree(every_task().path, out), describe)))


BUNDLES: dict[str, Callable[[], Bundle]] = {
    "memory": remembering,
    "rain": lambda: bundle("rain"),
    "apart": lambda: apart()[0],
    "apart, with a module of one": apart_and_switched,
    "apart, with other tasks": with_other_tasks,
    "every task": every_task,
    "every task, schema 13": of_schema_13,
    "rotated": rotated,
    "two states": counting,
    "INT8": in_int8,
}


@pytest.mark.slow("exports networks")
@pytest.mark.parametrize("name", BUNDLES)
def test_all_bytes_of_a_drive_are_those_of_the_python_runtime(name: str) -> None:
    loaded = BUNDLES[name]()
    assert compare(loaded.path, drive(loaded.spec.grid.reference)) > 100  # detections


def test_checks_in_idle_time_change_nothing_and_a_restart_begins_anew() -> None:
    path, frames = remembering().path, list(drive())[:8]
    lost = replace(frames[0], global_from_ego=np.full((4, 4), np.nan))  # it is where the frame before was
    with native.Runtime(path) as checked, native.Runtime(path) as plain:
        for frame in frames:
            expected, actual = plain.step(frame), checked.step(frame)
            require_equal(expected, actual, frame.token)
            detections = actual["detection/centers"].copy()
            checked.check()
            np.testing.assert_array_equal(checked.get("detection/centers"), detections)
            with pytest.raises(native.Failure, match="outputs/detection/boxes: is no array of the latest step"):
                checked.get("outputs/detection/boxes")  # those of the golden frame are there now
            assert checked.arrays().keys() == {name for name in expected if not name.startswith("outputs/")}
        checked.restart()
        with pytest.raises(native.Failure, match="rain: is no module"):
            checked.weight("rain")
        with native.Runtime(path) as fresh:
            for frame in [lost, *frames]:
                require_equal(fresh.step(frame), checked.step(frame), frame.token)


@pytest.mark.slow("exports a network")
def test_numbers_that_are_not_finite_are_counted_as_in_python(tmp_path: Path) -> None:
    copied, rng = Bundle.load(copytree(every_task().path, tmp_path / "bundle")), np.random.default_rng(0)
    runs = golden_runs(copied)
    wrong = {name: each.copy() for name, each in runs[0].items()}
    for name, each in wrong.items():
        if each.dtype == np.float32 and name != "next_state":
            each.reshape(-1)[rng.integers(each.size, size=5)] = [np.nan, np.inf, -np.inf, np.nan, np.inf]
    add_recorded_plan(copied, [*runs, wrong], repeated=len(runs))
    expected = to_prediction(copied.manifest.heads, wrong).not_finite
    assert len(expected) == 8
    plugin = str(Path(os.environ[native.LIBRARY]).with_name("librecorded_engine.so"))
    with native.Runtime(copied.path, TARGET, plugin=plugin) as runtime:
        found = runtime.step(next(drive()))["not_finite"].tolist()
    names = sorted(name for name in wrong if name != "next_state")
    assert found == [expected.get(name, 0) for name in names]


def test_python_makes_the_same_inputs_by_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = every_task().spec
    for frame in drive():
        expected = inputs.prepare(frame, spec)
        with monkeypatch.context() as patch:
            patch.setattr(python_native, "NATIVE", native)
            require_equal(expected, inputs.prepare(frame, spec), frame.token)


@pytest.mark.parametrize(("low", "cell"), [(0.0, 1e-12), (0.7, 1e-9)])
def test_cells_that_no_int_counts_are_refused(low: float, cell: float) -> None:
    """In float32 0.7 is a little lower, and so may be a point."""
    grid = SimpleNamespace(shape=(2, 3), cell=cell, x=(low, low + 1), y=(low, low + 1), z=(-1.0, 1.0))
    points, made = np.full((2, 5), low, np.float32), np.ones((4, 5, 5), np.float32)
    with pytest.raises(native.Failure, match="too small for its range"):
        native.group(points, grid, made, np.ones(4, np.int32), np.ones(4, np.int32))


@pytest.mark.parametrize(
    "wrong",
    [
        {"points": np.zeros((3, 4), np.float32)}, {"pillars": np.zeros((4, 5, 4), np.float32)},
        {"pillars": np.zeros((4, 5, 5))}, {"pillars": np.zeros((5, 5, 4), np.float32).T}, {"counts": np.zeros(3, int)},
        {"counts": np.zeros(3, np.int32)}, {"cells": np.zeros(8, np.int32)[::2]},
        {"cells_of_points": np.zeros(2, np.int32)},
    ],
)  # fmt: skip
def test_arrays_of_which_other_memory_would_be_written_are_refused(wrong: dict[str, np.ndarray]) -> None:
    grid = SimpleNamespace(shape=(2, 3), cell=1.0, x=(0.0, 3.0), y=(0.0, 2.0), z=(-1.0, 1.0))
    given = {
        "points": np.zeros((3, 5), np.float32), "pillars": np.zeros((4, 5, 5), np.float32),
        "counts": np.zeros(4, np.int32), "cells": np.zeros(4, np.int32), "cells_of_points": np.zeros(3, np.int32),
    }  # fmt: skip
    assert native.group(grid=grid, **given) == 1
    with pytest.raises(native.Failure, match=f"{next(iter(wrong))}: is .* in one piece"):
        native.group(grid=grid, **given | wrong)


def test_pictures_of_which_other_memory_would_be_written_are_refused() -> None:
    recorded, picture = np.zeros((4, 6, 3), np.uint8), np.zeros((2, 3, 3), np.uint8)
    native.fill_picture(recorded, picture, 256)
    wrong = [(recorded[..., :1], picture), (recorded / 1, picture), (recorded, picture[:, ::2]), (recorded[0], picture)]
    for one, other in wrong:
        with pytest.raises(native.Failure, match="in one piece"):
            native.fill_picture(one, other, 256)


def test_a_network_of_kitti_sees_the_same_on_a_real_drive(pandaset_root: Path) -> None:
    """Two frames of PandaSet, with the anchors' NMS."""

    def make(out: Path) -> None:
        run = out.with_name("cpp-kitti-run")
        import_pointpillars(ROOT / "configs" / "kitti" / "pointpillars.yaml", trained_kitti(), run)
        export(run, out, console=QUIET)

    path = once("cpp-kitti", make)
    spec = Bundle.load(path).spec
    drives = PandaSet(pandaset_root, spec.rig)
    assert compare(path, (drives.frame(f"002-{i}", spec.reads) for i in (16, 23))) > 50


def test_a_host_may_know_later_versions_of_the_structs(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = next(drive())
    with native.Runtime(bundle().path) as runtime:
        expected = {name: each.copy() for name, each in runtime.step(frame).items()}
        later = type("_Camera", (Structure,), {"_fields_": [*native._Camera._fields_, ("more", c_double)]})
        fields = [(name, POINTER(later) if name == "cameras" else kind) for name, kind in native._Frame._fields_]
        monkeypatch.setattr(native, "_Camera", later)
        monkeypatch.setattr(native, "_Frame", type("_Frame", (Structure,), {"_fields_": fields}))
        require_equal(expected, runtime.step(frame), frame.token)


@pytest.mark.parametrize("wrong", ["points", "sweep_of_point", "cameras"])
def test_an_array_of_another_shape_is_refused(wrong: str) -> None:
    frame = next(drive())
    name, camera = next(iter(frame.cameras.items()))
    arrays: dict[str, Any] = {
        "points": frame.points[:, :4], "sweep_of_point": frame.sweep_of_point[:7],
        "cameras": {name: replace(camera, image=camera.image[..., :1])},
    }  # fmt: skip
    with native.Runtime(bundle().path) as runtime, pytest.raises(native.Failure, match="has the shape"):
        runtime.step(replace(frame, **{wrong: arrays[wrong]}))


def test_a_camera_without_a_picture_is_missing() -> None:
    frame = next(drive())
    name, *_ = frame.cameras
    cameras = {each: camera for each, camera in frame.cameras.items() if each != name}
    with native.Runtime(bundle().path) as runtime:
        expected = {each: array.copy() for each, array in runtime.step(replace(frame, cameras=cameras)).items()}
        given, kept = native._frame(frame, ())
        given.cameras[0].rgb = None
        assert native.load().tessera_step(runtime._handle, byref(given)) == 0
        require_equal(expected, runtime.arrays(), name)
        given.cameras[0].height = given.cameras[0].width = 0
        assert native.load().tessera_step(runtime._handle, byref(given)) == 0
        require_equal(expected, runtime.arrays(), name)
        del kept


def test_a_call_without_a_runtime_says_so() -> None:
    library = native.load()
    for call in (library.tessera_check, library.tessera_restart):
        assert call(None) == 3
        assert library.tessera_message(None) == b"runtime: is NULL"


def test_the_example_prints_the_detections_of_a_folder_of_frames(tmp_path: Path) -> None:
    """It gives points alone, so that the network sees no picture."""
    frames = [replace(frame, cameras={}) for frame in list(drive())[:3]]
    lines = write_frames(frames, tmp_path)
    program = Path(os.environ["TESSERA_LIBRARY"]).with_name("run_folder")
    (home := tmp_path / "home").mkdir()
    command = [program, bundle("rain").path, tmp_path]
    done = subprocess.run(command, env=without_ci(home), capture_output=True, text=True, check=True)
    assert not [*home.rglob("*onnxruntime*")]  # nothing to report of what it runs
    expected = []
    with native.Runtime(bundle("rain").path) as runtime:
        (names,) = (each["names"] for each in runtime.describe()["results"] if each["name"] == "detection/labels")
        for frame in frames:
            arrays = runtime.step(replace(frame, scene="", sweep_of_point=0 * frame.sweep_of_point))
            rows = zip(*(arrays[f"detection/{name}"] for name in ("labels", "centers", "scores")), strict=True)
            expected += [
                f"{frame.token} {x:.9g} {y:.9g} {z:.9g} {score:.9g} {names[label]}" for label, (x, y, z), score in rows
            ]
    assert done.stdout.splitlines() == expected
    first, *numbers = lines[0].split()
    (tmp_path / "part.bin").write_bytes(bytes(21))
    (tmp_path / "many.bin").write_bytes(bytes(20 * 400_001))
    for path, line, message in (
        (tmp_path, lines[0], "not a bundle"),
        *((bundle("rain").path, wrong, "has no time (us) and two poses") for wrong in (
            "", first, f"{first} 1.5s {' '.join(numbers[1:])}", f"{first} soon {' '.join(numbers[1:])}",
            f"{lines[0]} 1", lines[0] + "s", " ".join([first, *numbers[:-1]]))),
        *((bundle("rain").path, " ".join([name, *numbers]), "a part of a point") for name in ("part", "many")),
    ):  # fmt: skip
        (tmp_path / "frames.txt").write_text(f"{line}\n")
        wrong = subprocess.run([program, path, tmp_path], capture_output=True, text=True, check=False)
        assert (wrong.returncode, wrong.stdout, wrong.stderr.count("\n")) == (2, "", 1), line
        assert message in wrong.stderr
