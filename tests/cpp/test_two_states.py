"""Two states in C++: what an engine of one's own keeps, and manifests whose states do not fit."""

import os
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import tessera_runtime as native
from both_runtimes import drive, require_equal, with_recorded_plan
from counting import counting
from exported import reseal
from recorded_engine import TARGET, add_recorded_plan, golden_runs

from deploy.bundle import Bundle

pytestmark = pytest.mark.slow("exports a network that all tests of the file use")
PLUGIN = str(Path(os.environ[native.LIBRARY]).with_name("librecorded_engine.so"))


def test_an_engine_in_a_library_of_its_own_keeps_both(tmp_path: Path) -> None:
    frames = with_recorded_plan(counting(), tmp_path / "bundle", list(drive())[:6])
    given = {"target": TARGET, "plugin": PLUGIN}
    with native.Runtime(counting().path) as plain, native.Runtime(tmp_path / "bundle", **given) as recorded:
        for frame, known in frames:
            require_equal(plain.step(frame, known), recorded.step(frame, known), frame.token)
            assert {"next_state", "next_count"} <= recorded.arrays().keys()


def test_a_wrong_count_is_found_by_the_golden_frames(tmp_path: Path) -> None:
    copied = Bundle.load(copytree(counting().path, tmp_path / "bundle"))
    runs = golden_runs(copied)
    runs[-1]["next_count"] = runs[-1]["next_count"] + np.float32(1)
    add_recorded_plan(copied, runs)
    with pytest.raises(native.Failure, match="next_count is off by"):
        native.Runtime(copied.path, TARGET, plugin=PLUGIN)


@pytest.mark.parametrize(
    "change",
    [
        lambda pairs: pairs.pop(),
        lambda pairs: pairs.clear(),
        lambda pairs: pairs[1].update(output="next_state"),
        lambda pairs: pairs[1].update(pairs[0]),
        lambda pairs: pairs[1].update(warp="bev"),
        lambda pairs: pairs[1].update(warp="wheels"),
        lambda pairs: pairs[1].update(shape=[1, 3]),
    ],
)
def test_a_manifest_whose_states_do_not_fit_is_refused(change: Callable[[Any], object], tmp_path: Path) -> None:
    path = copytree(counting().path, tmp_path / "bundle")
    reseal(path, lambda manifest: change(manifest["state"]["pairs"]))
    with pytest.raises(native.Failure, match=r"state: is not that of the network|inputs.count is missing"):
        native.Runtime(path)
