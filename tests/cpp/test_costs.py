"""With an engine of recorded outputs: what a step takes from the heap, and that a wrong engine is found."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import tessera_runtime as native
from both_runtimes import TARGET, drive, every_task, with_recorded_plan
from exported import remembering
from repository import ROOT

BUILT = Path(os.environ["TESSERA_LIBRARY"]).parent
ENGINE = BUILT / "librecorded_engine.so"
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


@pytest.mark.skipif(
    "libasan" in os.environ.get("LD_PRELOAD", ""), reason="the sanitizers have an allocator of their own"
)
@pytest.mark.parametrize("network", [remembering, every_task])
def test_a_step_takes_nothing_from_the_heap_once_it_has_seen_such_frames(network, tmp_path: Path) -> None:
    """Counted by an interposed allocator, with an engine that takes nothing, on the same frames in each turn."""
    frames = with_recorded_plan(network(), tmp_path / "bundle", drive())
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


def test_a_check_that_fails_takes_the_engine_s_outputs(tmp_path: Path) -> None:
    """The engine gives those of the frame again, which are not those of a golden frame."""
    ((frame, known),) = with_recorded_plan(remembering(), tmp_path / "bundle", list(drive())[1:2])
    with native.Runtime(tmp_path / "bundle", target=TARGET, plugin=str(ENGINE)) as runtime:
        assert "outputs/detection/boxes" in runtime.step(frame, known)
        with pytest.raises(native.WrongEngine):
            runtime.check()
        with pytest.raises(native.Failure, match="is no array of the latest step"):
            runtime.get("outputs/detection/boxes")


def test_an_engine_whose_boxes_are_off_is_refused_in_the_words_of_python(tmp_path: Path) -> None:
    with_recorded_plan(remembering(), tmp_path / "bundle", (), boxes_off=0.5)
    with pytest.raises(native.WrongEngine, match=r"golden frame street-.*: does not compute"):
        native.Runtime(tmp_path / "bundle", target=TARGET, plugin=str(ENGINE))
