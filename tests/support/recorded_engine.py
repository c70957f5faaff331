"""The C++ runtime with an engine of recorded outputs, which takes nothing from the heap: what its own steps take."""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np

from deploy.bundle import Bundle, EngineRecord
from deploy.engines import open_engine
from perception.frame import Frame
from perception.session import run_with_state
from perception.state import NEXT, states_of

ROOT = Path(__file__).parents[2]
TARGET, COMPILER = "rtx-ampere", "tensorrt_rtx 1.7.1.116"  # of the engine, deploy/cpp/tests/recorded_engine.c
COUNTED = """
import ctypes, pickle, sys
import tessera_runtime as native

with open(sys.argv[2], "rb") as file:
    frames = pickle.load(file)
counter = ctypes.CDLL(sys.argv[3])
counting = ctypes.c_int.in_dll(counter, "tessera_count_allocations")
counted = ctypes.c_long.in_dll(counter, "tessera_allocations")
with native.Runtime(sys.argv[1], target=sys.argv[5], plugin=sys.argv[4]) as runtime:
    given = [native._frame(frame, known) for frame, known in frames]
    for turn in range(3):
        for frame, _ in given:
            before, counting.value = counted.value, turn > 0
            status = runtime._library.tessera_step(runtime._handle, ctypes.byref(frame))
            counting.value = 0
            print(status, counted.value - before)
"""


def golden_runs(bundle: Bundle) -> list[dict[str, np.ndarray]]:
    """Outputs of the golden frames, in order, with the whole state."""
    engine, runs = open_engine(bundle), []
    state = engine.new_state()
    for frame in bundle.golden_frames():
        outputs = run_with_state(engine.run, frame.inputs, state)
        states = {} if state is None else state.read()
        runs.append({**outputs, **{NEXT + name: each for name, each in states.items()}})
    return runs


def recorded_plan(bundle: Bundle, runs: Sequence[Mapping[str, np.ndarray]], repeated: int = 0) -> bytes:
    """The plan that gives these outputs one after the other; after the last it goes on with run `repeated`.

    A run without outputs fails.
    """
    outputs = [each.name for each in bundle.manifest.outputs]
    names = sorted(outputs, key=lambda name: name in states_of(outputs).values())  # the states come last
    outputs = [b"".join(np.ascontiguousarray(run[name]).tobytes() for name in names if run) for run in runs]
    return struct.pack("q", repeated) + b"".join(struct.pack("q", bool(each)) + each for each in outputs)


def add_recorded_plan(bundle: Bundle, runs: Sequence[Mapping[str, np.ndarray]], repeated: int = 0) -> None:
    plan, of = recorded_plan(bundle, runs, repeated), bundle.files["model.onnx"]
    record = EngineRecord(
        target=TARGET, compiler=COMPILER, layers=0, seconds=1.0, plan_bytes=len(plan),
        plan_sha256=sha256(plan).hexdigest(), refittable=False, onnx_sha256=of, weights_sha256=of,
    )  # fmt: skip
    bundle.add_plan(plan, record)


def count_allocations(bundle: Path, frames: Sequence[tuple[Frame, Sequence[str]]], built: Path) -> list[int]:
    """How often each step takes memory from the heap, counted by an interposed allocator in a process of its own.

    Args:
        bundle: with a recorded plan.
        frames: each with what is known to hold; all were stepped through twice before, so that the buffers are as
            large as they become.
        built: folder of libtessera.so and the libraries of its tests.
    """
    counter = built / "libcount_allocations.so"
    paths = os.pathsep.join([str(ROOT / "deploy" / "cpp" / "python"), str(ROOT)])
    environment = os.environ | {"LD_PRELOAD": str(counter), "PYTHONPATH": paths}
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(pickle.dumps(list(frames)))
        words = [sys.executable, "-c", COUNTED, bundle, file.name, counter, built / "librecorded_engine.so", TARGET]
        done = subprocess.run(list(map(str, words)), env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [list(map(int, line.split())) for line in done.stdout.splitlines()]
    assert [status for status, _ in lines] == [0] * 3 * len(frames)
    return [count for _, count in lines[2 * len(frames) :]]
