"""What a program that loads the library may rely on: locale, memory, structs, and the step after a failure."""

import json
import os
import re
import subprocess
from collections.abc import Callable
from ctypes import Structure, byref, c_int64, c_void_p, sizeof
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import tessera_runtime as native
from both_runtimes import every_task
from exported import QUIET, bundle, checkpoint_of, copy_bundle, keys, nano, remembering, reseal
from once import once
from recorded_engine import TARGET, add_recorded_plan, golden_runs
from repository import ROOT

from deploy.bundle import Bundle
from deploy.export import export
from deploy.golden import synthetic_frame
from perception.config import parse_config
from perception.tasks.points.task import NONE

BUILT = Path(os.environ[native.LIBRARY]).parent
BAD_INPUT, FAILED = 3, 4  # tessera_status
without_sanitizers = pytest.mark.skipif(
    "libasan" in os.environ.get("LD_PRELOAD", ""), reason="programs without the sanitizers do not link such a library"
)


def host(*words: object, **variables: str) -> list[str]:
    """Lines that `host.cpp` prints."""

    def make(out: Path) -> None:
        out.mkdir()
        command = ["g++", "-std=c++17", ROOT / "tests/cpp/host.cpp", f"-I{ROOT}/deploy/cpp/include", "-o", out / "host"]
        subprocess.run([*command, BUILT / "libtessera.so", f"-Wl,-rpath,{BUILT}"], check=True)

    program = once("host", make) / "host"
    environment = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"} | variables
    done = subprocess.run([program, *words], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.mark.slow("compiles a host and a locale")
@without_sanitizers
def test_a_german_host_reads_and_writes_the_numbers_of_every_host(tmp_path: Path) -> None:
    """There 20261201 is written 20.261.201, and 0.6 is 0,6."""
    done = subprocess.run(["localedef", "-i", "de_DE", "-f", "UTF-8", tmp_path / "de_DE.UTF-8"], check=False)
    if done.returncode:
        pytest.skip("localedef makes no German locale (apt-get install locales)")
    (key, public), path, state = keys(tmp_path / "keys"), copy_bundle(tmp_path / "bundle"), tmp_path / "state"
    for release, status in ((20261201, "0"), (20261200, "1")):
        reseal(path, lambda manifest, release=release: manifest.update(release=release), key)
        for _ in range(2):
            said, _, message = host("german", path, public, state, LOCPATH=str(tmp_path))[0].partition(" ")
            assert said == status, message
    assert json.loads((state / "release.json").read_text())["release"] == 20261201
    assert "20261200" in message
    assert "20261201" in message


@without_sanitizers
@pytest.mark.parametrize("call", ["step", "open"])
def test_without_memory_a_call_fails_and_the_next_one_does_not(call: str) -> None:
    failed, after = host(call, bundle().path)
    assert failed.startswith(f"{FAILED} ")
    assert "export" not in failed  # would not help
    assert after == "0"


def opened(size: int, kind: Any = native._Options, **fields: int) -> int:
    options, runtime = kind(size=size, bundle=os.fsencode(bundle().path), **fields), c_void_p()
    status: int = native.load().tessera_open(byref(options), byref(runtime))
    native.load().tessera_close(runtime)
    return status


def longer(kind: type[Structure]) -> type[Structure]:
    return type("Longer", (kind,), {"_fields_": [("later", c_int64)]})


def test_a_struct_of_another_version_is_accepted_where_it_asks_for_nothing_unknown() -> None:
    """The first version's sizes are accepted for ever."""
    native._load_onnxruntime()
    kind = longer(native._Options)
    assert opened(64) == 0
    assert opened(63) == BAD_INPUT
    assert opened(sizeof(kind), kind) == 0
    assert opened(sizeof(kind), kind, later=1) == BAD_INPUT
    with native.Runtime(bundle().path) as runtime:
        for call, struct, size in (("step", native._Frame, 336), ("seconds", native._Times, 32)):
            for given, status in ((size, 0), (size - 1, BAD_INPUT)):
                function = getattr(native.load(), f"tessera_{call}")
                assert function(runtime._handle, byref(struct(size=given))) == status


@pytest.mark.slow("makes the outputs of the golden frames")
def test_after_a_failure_on_a_frame_that_resets_the_memory_is_empty(tmp_path: Path) -> None:
    """The state was cleared for the frame that came out of order. The engine has no outputs for its run."""
    path = copytree(remembering().path, tmp_path / "bundle")
    golden = golden_runs(Bundle.load(path))
    add_recorded_plan(Bundle.load(path), [*golden, golden[0], golden[0], {}, golden[0]])
    frame, valid = synthetic_frame("ego", Bundle.load(path).manifest.rig), []
    with native.Runtime(path, target=TARGET, plugin=str(BUILT / "librecorded_engine.so")) as runtime:
        for time in (1.0, 1.1, 0.9, 1.2):
            given = replace(frame, scene="drive", timestamp=int(1e6 * time))
            if time == 0.9:
                with pytest.raises(native.Failure):
                    runtime.step(given)
            else:
                valid.append(runtime.step(given)["inputs/state_valid"].item())
    np.testing.assert_array_equal(valid, [0, 1, 0])


def without_cameras() -> Bundle:
    def make(out: Path) -> None:
        content = nano().model_dump(mode="json") | {"name": "blind", "modules": []}
        content["model"]["camera"] = None
        export(checkpoint_of(parse_config(content, "blind")), out, console=QUIET)

    return Bundle.load(once("cpp-blind", make))


def described(bundle: Bundle) -> dict[str, Any]:
    """The description that a host expects, made of the manifest by the Python package."""
    manifest, taxonomy = bundle.manifest, bundle.manifest.taxonomy
    state, sweeps, nowhere = manifest.state, manifest.preprocessing.sweeps, (0.0, 0.0)
    none = {"x": nowhere, "y": nowhere, "z": nowhere, "cell": 0.0, "height": 0.0}
    results = [
        {
            "name": f"{name}/{out.name if out.kind == 'boxes' else out.result or out.name}", "kind": out.kind,
            "unit": out.unit, "scale": out.scale, "names": out.names,
            "area": none if out.area is None else out.area.model_dump(),
        }
        for name, task in manifest.heads.items()
        for out in task.outputs
        if out.result is not None
    ]  # fmt: skip
    return {
        "name": manifest.name, "release": manifest.release, "reference": manifest.grid.reference,
        "sweeps": sweeps.most if sweeps else 0, "oldest": sweeps.oldest if sweeps else 0.0,
        "spacing": state.spacing if state else nowhere, "seconds": state.seconds if state else 0.0,
        "speed": state.speed if state else 0.0, "cameras": bundle.spec.named_sensors.cameras,
        "condition_values": taxonomy.condition_values,
        "condition_kinds": tuple(map(taxonomy.kind_of, taxonomy.condition_values)), "result_count": len(results),
        "results": results,
    }  # fmt: skip


@pytest.mark.slow("exports networks")
@pytest.mark.parametrize("make", [every_task, remembering, without_cameras])
def test_a_bundle_tells_its_host_what_its_manifest_says(make: Callable[[], Bundle]) -> None:
    made = make()
    with native.Runtime(made.path) as runtime:
        found = runtime.describe()
        assert found == described(made)
        arrays = runtime.step(synthetic_frame("ego", made.manifest.rig))
        assert found == runtime.describe()
        for result in found["results"]:
            kind, names, area = (result[key] for key in ("kind", "names", "area"))
            array = arrays.get(result["name"], np.zeros(0))
            assert result["name"] in arrays or result["name"] == "detection/boxes"
            if area["cell"]:
                sides = {axis: area[axis][1] - area[axis][0] for axis in "xyz"}
                levels = round(sides["z"] / area["height"]) if area["height"] else len(names)
                assert array.shape == (levels, *(round(sides[axis] / area["cell"]) for axis in "yx"))
            if kind in ("boxes", "labels") and names:
                assert np.all((array < len(names)) | (array == NONE))
            elif kind == "value":
                assert array.shape == (len(names),)


def test_a_release_is_told_as_a_number_of_64_bits(tmp_path: Path) -> None:
    path = copy_bundle(tmp_path / "bundle")
    reseal(path, lambda manifest: manifest.update(release=2**62 + 1))
    with native.Runtime(path) as runtime:
        assert runtime.describe()["release"] == 2**62 + 1


def test_a_description_has_the_fields_that_both_versions_know() -> None:
    size = sizeof(native._Description)
    with native.Runtime(bundle().path) as runtime:

        def described_by(kind: Any, given: int) -> tuple[int, Any]:
            struct = kind(size=given)
            return native.load().tessera_describe(runtime._handle, byref(struct)), struct

        status, later = described_by(longer(native._Description), size + 8)
        assert (status, later.size, later.later, later.name) == (0, size + 8, 0, bundle().manifest.name.encode())
        status, short = described_by(native._Description, size - 1)
        assert (status, short.name) == (BAD_INPUT, None)
    assert native.load().tessera_describe(None, byref(native._Description(size=size))) == BAD_INPUT


def test_the_library_has_the_version_of_its_file() -> None:
    (file,) = (each for each in BUILT.glob("libtessera.so.*") if not each.is_symlink())
    assert native.load().tessera_version().decode() == file.name.removeprefix("libtessera.so.")
    project = (ROOT / "deploy" / "cpp" / "pyproject.toml").read_text()
    assert not re.search(r'^version = "', project, re.MULTILINE)  # of the wheel, which has the library's


def test_a_manifest_without_names_is_refused(tmp_path: Path) -> None:
    for i, change in enumerate((
        lambda content: content["results"]["detection"][2].update(names=[7]),
        lambda content: content["results"]["map"][0].update(kind="volume"),
        lambda content: content["results"]["map"][0]["area"].update(x=[0.0]),
        lambda content: content["results"].update(map=7),
        lambda content: content["results"]["map"][0].update(squeeze=True),
        lambda content: content["results"]["map"][0].update(name="layers"),
        lambda content: content["taxonomy"]["conditions"].update(weather=[7]),
        lambda content: content["preprocessing"]["sweeps"].update(oldest="1 s"),
    )):  # fmt: skip
        path = reseal(copy_bundle(tmp_path / str(i)), change)
        with pytest.raises(native.Failure, match=r"manifest\.json.*export the bundle again"):
            native.Runtime(path)
