"""A task that no line of the product knows runs in C++, by the kinds of its outputs."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tessera_runtime as native
from both_runtimes import compare, drive
from exported import QUIET, checkpoint_of, nano
from once import once
from toy_task import BANDS, Gauge

from deploy.bundle import Bundle
from deploy.export import export
from deploy.golden import differences
from perception.config import parse_config
from perception.tasks import TASKS


@pytest.fixture(scope="module")
def gauge() -> Iterator[Bundle]:
    """In FP16, in which neighbouring numbers near 200 are 0.125 apart."""

    def make(out: Path) -> None:
        content = nano().model_dump(mode="json")
        config = parse_config(content | {"name": "gauge", "tasks": content["tasks"] | {"gauge": {}}}, "gauge")
        export(checkpoint_of(config), out, console=QUIET, precision="fp16")

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TASKS, "gauge", Gauge)
        yield Bundle.load(once("cpp-gauge", make))


@pytest.mark.slow("exports a network")
def test_its_results_have_the_bytes_of_the_python_runtime(gauge: Bundle) -> None:
    assert compare(gauge.path, drive()) > 0
    with native.Runtime(gauge.path) as runtime:
        described = {each["name"]: each for each in runtime.describe()["results"]}
        found = runtime.step(next(drive()))
        assert described["gauge/field"]["names"] == BANDS
        assert described["gauge/reading"]["scale"] == 200
        np.testing.assert_array_equal(found["gauge/highest"], found["gauge/field"].argmax(axis=0))


@pytest.mark.slow("exports a network")
def test_its_tolerances_are_in_proportion_to_its_scale(gauge: Bundle) -> None:
    """An engine that is off by one step of FP16 passes; one that is off by a tenth of the scale does not."""
    allowed, scale = gauge.manifest.tolerances, Gauge.outputs[0].scale
    for frame in gauge.golden_frames():
        for off, right in ((np.spacing(np.float16(scale)), True), (scale / 10, False)):
            wrong = {"gauge/reading": frame.outputs["gauge/reading"] + np.float32(off)}
            found = differences(frame.outputs, {**frame.outputs, **wrong}, allowed, frame.compared)
            assert (not found) == right, (off, found)
