"""With an engine of recorded outputs: what a step takes from the heap, and that a wrong engine is found."""

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tessera_runtime as native
from both_runtimes import Python, drive, every_task
from exported import plan_record, remembering
from repository import ROOT
from safetensors.numpy import save

from deploy.bundle import Bundle
from deploy.engines import open_engine
from deploy.state import run_with_state
from perception.frame import Frame
from perception.modules.spec import NEXT_STATE

BUILT = Path(os.environ["TESSERA_LIBRARY"]).parent
ENGINE = BUILT / "librecorded_engine.so"
TARGET, COMPILER = "rtx-ampere", "tensorrt_rtx 1.7.1.116"
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
            print(turn, status, counted.value - before)
"""


def with_recorded_plan(source: Bundle, path: Path, boxes_off: float = 0) -> list[tuple[Frame, tuple[str, ...]]]:
    """Copies the bundle, with the outputs of its golden frames and of a drive as the plan of `recorded_engine`.

    Args:
        boxes_off: m along x, in the outputs of the last golden frame.

    Returns:
        The frames of the drive, each with the conditions that are believed.
    """
    copied = Bundle.load(shutil.copytree(source.path, path))
    engine, golden = open_engine(copied), copied.golden_frames()
    runs, state = [], engine.new_state()
    for frame in golden:
        outputs = run_with_state(engine, frame.inputs, state) if state is not None else engine.run(frame.inputs)
        runs.append(outputs | ({NEXT_STATE: state.read()} if state is not None else {}))
    runs[-1]["detection/boxes"][..., 0] += boxes_off
    python, frames = Python(copied.path), []
    for frame in drive():
        arrays = python.step(frame)
        runs.append(
            {name.removeprefix("outputs/"): each for name, each in arrays.items() if name.startswith("outputs/")}
        )
        if NEXT_STATE in arrays:
            runs[-1][NEXT_STATE] = arrays[NEXT_STATE]
        frames.append((frame, python.believed.known()))
    named = {f"{i}/{name}": np.ascontiguousarray(each) for i, run in enumerate(runs) for name, each in run.items()}
    plan = save(named, metadata={"repeated": str(len(golden))})
    copied.add_plan(plan, plan_record(copied.path, plan, target=TARGET, compiler=COMPILER))
    return frames


@pytest.mark.parametrize("network", [remembering, every_task])
def test_a_step_takes_nothing_from_the_heap_once_it_has_seen_such_frames(network, tmp_path: Path) -> None:
    """Counted by an interposed allocator, with an engine that takes nothing, on the same frames in each turn."""
    frames = with_recorded_plan(network(), tmp_path / "bundle")
    (tmp_path / "frames.pickle").write_bytes(pickle.dumps(frames))
    counter = BUILT / "libcount_allocations.so"
    words = [sys.executable, "-c", COUNTED, tmp_path / "bundle", tmp_path / "frames.pickle", counter, ENGINE, TARGET]
    paths = os.pathsep.join([str(ROOT / "deploy" / "cpp" / "python"), str(ROOT)])
    environment = os.environ | {"LD_PRELOAD": str(counter), "PYTHONPATH": paths}
    done = subprocess.run(list(map(str, words)), env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [list(map(int, line.split())) for line in done.stdout.splitlines()]
    assert len(lines) == 3 * len(frames)
    assert {status for _, status, _ in lines} == {0}
    assert [count for turn, _, count in lines if turn == 2] == [0] * len(frames)


def test_an_engine_whose_boxes_are_off_is_refused_in_the_words_of_python(tmp_path: Path) -> None:
    with_recorded_plan(remembering(), tmp_path / "bundle", boxes_off=0.5)
    with pytest.raises(
        native.WrongEngine, match="golden frame street-.*: does not compute"
    ):
        native.Runtime(tmp_path / "bundle", target=TARGET, plugin=str(ENGINE))
