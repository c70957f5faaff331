"""With an engine of recorded outputs: what a step takes from the heap, and that a wrong engine is found."""

import os
from pathlib import Path

import pytest
import tessera_runtime as native
from both_runtimes import drive, every_task, with_recorded_plan
from exported import remembering
from recorded_engine import TARGET, count_allocations

BUILT = Path(os.environ["TESSERA_LIBRARY"]).parent
ENGINE = BUILT / "librecorded_engine.so"


@pytest.mark.skipif(
    "libasan" in os.environ.get("LD_PRELOAD", ""), reason="the sanitizers have an allocator of their own"
)
@pytest.mark.parametrize("network", [remembering, every_task])
def test_a_step_takes_nothing_from_the_heap_once_it_has_seen_such_frames(network, tmp_path: Path) -> None:
    """Counted by an interposed allocator, with an engine that takes nothing, on the same frames in each turn."""
    frames = with_recorded_plan(network(), tmp_path / "bundle", drive())
    assert count_allocations(tmp_path / "bundle", frames, BUILT) == [0] * len(frames)


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
