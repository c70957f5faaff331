"""With an engine of recorded outputs: what a step takes from the heap, and that a wrong engine is found."""

import os
import re
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import tessera_runtime as native
from both_runtimes import drive, every_task, with_recorded_plan
from exported import remembering, reseal
from recorded_engine import TARGET, add_recorded_plan, count_allocations, golden_runs

from deploy.bundle import Bundle
from deploy.engine import sampled
from deploy.golden import differences

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


@pytest.mark.slow("makes the outputs of the golden frames")
def test_wrong_detections_are_counted_as_python_counts_them(tmp_path: Path) -> None:
    """Some are moved, relabelled or lost, at random: as many labels differ, are gone and differ in all."""
    bundle = Bundle.load(copytree(remembering().path, tmp_path / "bundle"))
    golden, frame, reported = golden_runs(bundle), bundle.golden_frames()[0], set[str]()
    for seed in range(6):
        rng, wrong = np.random.default_rng(seed), {name: each.copy() for name, each in golden[0].items()}
        chosen = rng.choice(np.flatnonzero(frame.compared["detection"][0]), 40, replace=False)
        if seed % 2:
            wrong["detection/labels"][0, chosen] = rng.integers(0, 10, 40)
        if seed % 3:
            wrong["detection/boxes"][0, chosen[20:], :2] += rng.choice([0.5, 90], (20, 1)).astype(np.float32)
        if not seed % 2:
            wrong["detection/attributes"][0, chosen] += 1
        actual = wrong | {"next_state": sampled(wrong["next_state"])}
        expected = differences(frame.outputs, actual, bundle.manifest.tolerances, frame.compared)
        add_recorded_plan(bundle, [wrong, *golden[1:]])
        assert expected
        with pytest.raises(native.WrongEngine) as caught:
            native.Runtime(bundle.path, target=TARGET, plugin=str(ENGINE))
        counts = [re.match(r"\d+ (of \d+ )?[a-z ]+", problem) for problem in expected]
        for count in (count[0] for count in counts if count):
            assert count in str(caught.value)
            reported.add(count.split(" ", 1)[1])
    assert {"labels differ", "compared detections are gone"} < reported


@pytest.mark.slow("makes the outputs of the golden frames")
def test_headings_that_all_turn_are_off_as_python_finds_them(tmp_path: Path) -> None:
    def widened(manifest: dict[str, Any]) -> None:
        manifest["tolerances"]["ranked"]["detection"]["heading"]["each"] = 0.5

    bundle = Bundle.load(reseal(copytree(remembering().path, tmp_path / "bundle"), widened))
    golden, frame = golden_runs(bundle), bundle.golden_frames()[0]
    wrong, turn = {name: each.copy() for name, each in golden[0].items()}, [[np.cos(0.2), np.sin(0.2)]]
    turn.append([-turn[0][1], turn[0][0]])
    wrong["detection/boxes"][..., 6:8] = wrong["detection/boxes"][..., 6:8] @ np.float32(turn)
    actual = wrong | {"next_state": sampled(wrong["next_state"])}
    (problem,) = differences(frame.outputs, actual, bundle.manifest.tolerances, frame.compared)
    add_recorded_plan(bundle, [wrong, *golden[1:]])
    with pytest.raises(native.WrongEngine) as caught:
        native.Runtime(bundle.path, target=TARGET, plugin=str(ENGINE))
    expected, found = (re.findall(r"heading is off by ([0-9.]+)", said) for said in (problem, str(caught.value)))
    assert float(found[0]) == pytest.approx(float(expected[0]), rel=0.05)
