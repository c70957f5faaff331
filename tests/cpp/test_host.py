"""What a program that loads the library may rely on: locale, memory, structs, and the step after a failure."""

import json
import os
import subprocess
from ctypes import Structure, byref, c_int64, c_void_p, sizeof
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import tessera_runtime as native
from exported import bundle, copy_bundle, keys, remembering, reseal
from once import once
from recorded_engine import TARGET, add_recorded_plan, golden_runs
from repository import ROOT

from deploy.bundle import Bundle
from deploy.golden import synthetic_frame

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
