"""A network with two states, one a map and one a vector, goes through export and runtime."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import onnxruntime
import pytest
from commands import one_line_error
from counting import counting
from exported import reseal
from vocabulary import RIG

from deploy.bundle import Bundle
from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.golden import WrongEngine
from deploy.runtime import Runtime
from deploy.street import street_frame
from perception.frame import Frame
from perception.sensors.inputs import prepare
from perception.tasks.task import to_prediction

pytestmark = pytest.mark.slow("exports a network that all tests of the file use")

# Of each frame: s, m along the street, whether there is a LiDAR; the frame whose states it uses, and the next count.
DRIVE: list[tuple[float, float, bool, int | None, tuple[float, float]]] = [
    (0.0, 0, True, None, (1, 0.0)),
    (0.1, 1, True, 0, (2, 0.1)),
    (0.2, 2, False, 1, (3, 0.2)),  # leaves the states, which are of a frame with more sensors
    (0.3, 3, True, 1, (3, 0.3)),
    (0.4, 903, True, None, (1, 0.0)),  # a jump
    (0.5, 904, True, 4, (2, 0.1)),
    (2.5, 906, True, None, (1, 0.0)),  # a gap
    (2.6, 907, True, 6, (2, 0.1)),
]


def frames_of_drive() -> list[Frame]:
    frames = []
    for i, (time, x, sees, _, _) in enumerate(DRIVE):
        pose = np.eye(4)
        pose[:2, 3] = 600 + x, 1600
        points = {} if sees else {"points": None, "sweep_of_point": np.zeros(0, np.uint8)}
        frame = replace(street_frame("ego", RIG, (2.0 * i, 0.0, 2.0 * i)), cameras={}, token=str(i), scene="street")
        placed = replace(frame, global_from_reference=pose, global_from_ego=pose)
        frames.append(replace(placed, timestamp=round(1e6 * (1 + time)), **points))
    return frames


def test_each_frame_has_the_states_of_the_frame_that_a_plain_loop_gives_it() -> None:
    bundle, runtime = counting(), Runtime(counting().path)
    graph = onnxruntime.InferenceSession(bundle.onnx.read_bytes())
    names, shapes = [each.name for each in graph.get_outputs()], bundle.manifest.input_shapes
    frames, left = frames_of_drive(), list[dict[str, np.ndarray]]()
    for frame, (time, _, _, of, count) in zip(frames, DRIVE, strict=True):
        motion, states = np.eye(4), {name: np.zeros(shapes[name], np.float32) for name in ("state", "count")}
        if of is not None:
            motion = np.linalg.inv(frame.global_from_reference) @ frames[of].global_from_reference
            states = left[of]
        told = {
            "current_from_previous": motion[None], "state_valid": [of is not None],
            "elapsed": [0 if of is None else time - DRIVE[of][0]],
        }  # fmt: skip
        pillars = {name: each for name, each in prepare(frame, bundle.spec).items() if name in shapes}
        arrays = {name: np.asarray(each, np.float32) for name, each in told.items()}
        outputs = dict(zip(names, graph.run(None, pillars | arrays | states), strict=True))
        np.testing.assert_allclose(outputs["next_count"], [count], rtol=1e-6)
        left.append({name: outputs.pop(f"next_{name}") for name in ("state", "count")})
        expected, found = to_prediction(bundle.manifest.heads, outputs).results, runtime.step(frame).prediction.results
        np.testing.assert_allclose(found["map"], expected["map"], atol=1e-5)
        np.testing.assert_allclose(found["detection"].scores, expected["detection"].scores, atol=1e-5)


def test_the_manifest_lists_both() -> None:
    pairs = counting().manifest.states
    assert [(each.input, each.output, each.warp) for each in pairs] == [
        ("state", "next_state", "bev"), ("count", "next_count", "none")
    ]  # fmt: skip
    assert pairs[1].shape == (1, 2)


def test_the_golden_frames_find_a_wrong_count() -> None:
    bundle, engine = counting(), OnnxRuntimeEngine(counting().onnx)

    class Forgetful:
        new_state = staticmethod(engine.new_state)

        def run(self, inputs: Any, state: Any) -> Any:
            outputs = engine.run(inputs, state)
            state._arrays[state._latest]["count"].fill(1)
            return outputs

    bundle.require_golden(engine, "engine", "model.onnx")
    with pytest.raises(WrongEngine, match="next_count is off by"):
        bundle.require_golden(Forgetful(), "engine", "model.onnx")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m["state"]["pairs"].pop(), "outputs are"),
        (lambda m: m["state"]["pairs"][1].update(input="state"), "state: is not that of the network"),
        (lambda m: m["state"]["pairs"][1].update(warp="bev"), "state: is not that of the network"),
        (lambda m: m["state"]["pairs"][1].update(warp="wheels"), "state.pairs.1.warp: "),
    ],
)
def test_a_manifest_whose_states_do_not_fit_is_refused(
    change: Callable[[Any], object], words: str, tmp_path: Path
) -> None:
    path = copytree(counting().path, tmp_path / "bundle")
    with one_line_error(says=words):
        reseal(path, change)
        Bundle.load(path)


def test_the_states_of_earlier_bundles_are_maps(tmp_path: Path) -> None:
    path = copytree(counting().path, tmp_path / "bundle")

    def as_before(manifest: Any) -> None:
        manifest["state"]["pairs"][0].pop("warp")
        manifest["state"]["pairs"][0]["frame"] = "reference"

    reseal(path, as_before)
    assert Bundle.load(path).manifest.states[0].warp == "bev"
