"""A sensor that the C++ runtime does not know: its host makes the inputs, and the rest is as in Python."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
import tessera_runtime as native
from exported import QUIET, checkpoint_of, reseal
from networks import LITTLE, module
from once import once
from toy_radar import NAME, RadarSensor, rig_with_radar
from vocabulary import RIG

from deploy.export import export
from deploy.golden import synthetic_frame
from deploy.runtime import Runtime
from perception.config import parse_config
from perception.frame import Frame, Scan
from perception.sensors import SENSORS
from perception.sensors.inputs import prepare

INPUTS = ("radar_returns", "radar_cells")


@pytest.fixture(scope="module", autouse=True)
def _radar() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SENSORS, "radar", RadarSensor)
        yield


@pytest.fixture(scope="module")
def runtimes(_radar: None) -> tuple[native.Runtime, Runtime]:
    content = copy.deepcopy(LITTLE) | {"name": "radar", "rig": rig_with_radar(RIG).model_dump(mode="json")}
    content["model"]["scanners"] = {"radar": {}}
    content["modules"] = [module("blind", "no-radar", slots=("radar.*", "trunk.*"))]
    config = parse_config(content, "radar")
    bundle = once("radar-bundle", lambda out: export(checkpoint_of(config), out, [()], console=QUIET))
    return native.Runtime(bundle), Runtime(bundle)


def seen(seed: int) -> Frame:
    frame, rng = synthetic_frame("ego", RIG, seed), np.random.default_rng(seed)
    returns = rng.uniform([-12, -12, -1, -5, -5], [12, 12, 1, 5, 5], (9, 5)).astype(np.float32)
    return replace(frame, scans={NAME: Scan("radar", frame.timestamp, {"returns": returns})})


def test_its_inputs_give_the_bytes_of_python_and_none_are_as_without_the_sensor(
    runtimes: tuple[native.Runtime, Runtime],
) -> None:
    library, python = runtimes
    for seed in range(3):
        for frame in (seen(seed), seen(seed).without({NAME}, RIG.sensors.lidars)):
            inputs = {name: each for name, each in prepare(frame, python.bundle.spec).items() if name in INPUTS}
            found = library.step(frame, inputs=inputs if frame.scans else None)
            expected = python.step(frame).prediction.results["map"]
            for name, array in inputs.items():
                np.testing.assert_array_equal(found[f"inputs/{name}"], array)
            np.testing.assert_allclose(found["map/probabilities"], expected, rtol=0, atol=1e-6)


def test_what_a_host_gives_wrongly_is_one_line(runtimes: tuple[native.Runtime, Runtime]) -> None:
    library, frame = runtimes[0], seen(0)
    for inputs, says in (
        ({"images": np.zeros(3)}, "tessera_input.name: images is no input that a host makes"),
        ({"radar_cells": np.zeros((1, 15), np.int32)}, "tessera_input.bytes: radar_cells has 64, not 60"),
    ):
        with pytest.raises(native.Failure, match=says):
            library.step(frame, inputs=inputs)
    library.step(frame)


@pytest.mark.parametrize(
    ("scanners", "says"),
    [({"nobody": 0}, "nobody: is no input"), ({"images": 0}, "images: is no input"),
     ({"pillar_cells": 0}, "pillar_cells: is no input"),
     ({"radar_cells": 1e300}, "radar_cells: is no integer"), ({"radar_cells": None}, "radar_cells: is no integer")],
)  # fmt: skip
def test_a_manifest_with_wrong_inputs_of_a_host_is_refused(
    runtimes: tuple[native.Runtime, Runtime], tmp_path: Path, scanners: dict[str, object], says: str
) -> None:
    path = copytree(runtimes[1].bundle.path, tmp_path / "bundle")
    reseal(path, lambda content: content["preprocessing"].update(scanners=scanners))
    with pytest.raises(native.Failure, match=f"/preprocessing/scanners/{says}"):
        native.Runtime(path)
