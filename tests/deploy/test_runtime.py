"""The runtime verifies before it drives, is the predictor that the network is, and leaves out what is not finite."""

import argparse
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bench_runtime
import numpy as np
import onnx
import pytest
from commands import one_line_error
from exported import assert_equal, bundle, checkpoint, copied, rewritten, without
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper
from replays import gates, replayed
from tiny import token, write_tiny
from vocabulary import NUSCENES, RIG

from deploy.bundle import Bundle
from deploy.engines import open_engine
from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.golden import synthetic_frame
from deploy.replay.journal import JOURNAL
from deploy.replay.results import Finished
from deploy.runtime import Runtime
from perception.errors import InputError
from perception.frame import Frame, Prediction
from perception.grid import BevGrid
from perception.predict import TorchPredictor
from perception.sensors.inputs import no_sensors, prepare
from perception.tasks import tasks_of
from perception.tasks.conditions.task import ConditionsConfig
from perception.tasks.detection.config import DetectionHead
from perception.tasks.map.config import MapHead
from perception.tasks.result import to_prediction
from perception.tasks.task import part_of

FRAMES = 5
BLINDED = ("detection/boxes", "map/probabilities")
TASKS = tasks_of(
    {"detection": DetectionHead(), "map": MapHead(), "conditions": ConditionsConfig()}, BevGrid(), NUSCENES
)


def test_step_is_prepare_engine_and_postprocess() -> None:
    runtime, frame = Runtime(bundle().path), synthetic_frame("ego", RIG, seed=3)
    expected = to_prediction(
        bundle().manifest.heads, OnnxRuntimeEngine(bundle().onnx).run(prepare(frame, bundle().spec))
    )
    seen = runtime.step(frame)
    assert_equal(seen.prediction, expected)
    assert_equal(runtime(frame), expected)
    assert set(seen.seconds) == {"preprocess", "engine", "postprocess", "health", "belief", "memory"}
    assert all(seconds > 0 for seconds in seen.seconds.values())


@pytest.mark.parametrize("missing", [None, "camera", "lidar"])
def test_runtime_agrees_with_the_torch_predictor(missing: str | None) -> None:
    frame = synthetic_frame("ego", RIG, seed=5)
    frame = without(frame, missing) if missing else frame
    expected, actual = TorchPredictor.load(checkpoint())(frame), Runtime(bundle().path)(frame)
    np.testing.assert_allclose(actual.results["detection"].scores, expected.results["detection"].scores, atol=1e-4)
    np.testing.assert_allclose(actual.results["map"], expected.results["map"], atol=1e-4)


def test_golden_mismatch_refuses_to_drive(tmp_path: Path) -> None:
    """Sealed and whole, but the recorded outputs are another network's, or an engine's that drifts a little."""
    inputs, outputs = bundle().golden()
    path = rewritten(copied(tmp_path / "bundle"), golden=(inputs, bundle("rain").golden()[1]))
    Bundle.load(path)
    with one_line_error("does not compute the exported network"):
        Runtime(path)
    for first, offset, said in ((20, 5e-5, None), (20, 2e-4, r"scores is off by 0\.0002"), (200, 5e-5, "in the mean")):
        drifted = {name: array.copy() for name, array in outputs.items()}
        drifted["detection/scores"][:, :first] += np.float32(offset)
        rewritten(path, golden=(inputs, drifted))
        if said is None:
            Runtime(path)
            continue
        with pytest.raises(InputError, match=said):
            Runtime(path)


@pytest.mark.slow("40 frames, and the bundle that the tests of the file share")
def test_memory_does_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """`tools/bench.py runtime` drives 10,000 frames, through its own network."""
    frames, vehicles = 40, bundle("rain")
    monkeypatch.setattr(bench_runtime, "export", lambda *arguments, **options: vehicles)
    figures = bench_runtime.runtime(argparse.Namespace(frames=frames))
    outputs = sum(4 * int(np.prod(output.shape)) for output in vehicles.manifest.outputs)  # bytes, at least
    assert figures["growth_megabytes"] < frames / 2 * outputs / 1e6  # growth is over three quarters of nine tenths


def test_inputs_are_written_to_the_same_memory_and_hold_nothing_of_the_frame_before() -> None:
    spec = bundle().spec
    frames = [synthetic_frame("ego", RIG, seed) for seed in (1, 2)]
    frames += [without(frames[0], "camera"), without(frames[1], "lidar"), frames[0]]
    memory = no_sensors(spec)
    addresses = {name: array.ctypes.data for name, array in memory.items()}
    for frame in frames:
        found = prepare(frame, spec, into=memory)
        for name, fresh in prepare(frame, spec).items():
            np.testing.assert_array_equal(found[name], fresh)
        assert {name: array.ctypes.data for name, array in found.items()} == addresses


# ----- NaN and infinity out of an engine: left out, counted, and a gate that fails -----


def blinded(path: Path) -> Path:
    """A bundle whose network gives NaN for boxes and map where it sees no point."""
    model = onnx.load(copied(path) / "model.onnx")
    graph = model.graph
    for node in graph.node:
        node.output[:] = [f"{name}_raw" if name in BLINDED else name for name in node.output]
        node.input[:] = [f"{name}_raw" if name in BLINDED else name for name in node.input]
    graph.node.extend(
        [
            helper.make_node("Cast", ["pillar_counts"], ["counts"], to=onnx.TensorProto.FLOAT),
            helper.make_node("ReduceSum", ["counts"], ["points"], keepdims=0),
            helper.make_node("Div", ["points", "points"], ["one_or_nan"]),
            *(helper.make_node("Mul", [f"{name}_raw", "one_or_nan"], [name]) for name in BLINDED),
        ]
    )
    return rewritten(path, onnx=model.SerializeToString())


def test_a_replay_with_nan_finishes_and_fails(tmp_path: Path) -> None:
    write_tiny(tmp_path / "tiny", FRAMES)
    path, out = blinded(tmp_path / "bundle"), tmp_path / "out"
    faults, easy = ["drop:lidar@1.0-2.0"], gates({"metric": "dropped", "at_most": 1000})
    verdict = replayed(tmp_path / "tiny", out, bundle=path, faults=faults, gates=easy)["verdict"]
    assert not (out / JOURNAL).exists()
    blind = [token("sample", i) for i in (2, 3)]
    finished = Finished.load(out)
    assert finished.not_finite == blind
    counts = {line["token"]: line["not_finite"] for line in finished.lines}
    assert all(counts[each] == {"detection/boxes": 200, "map/probabilities": 6 * 128 * 128} for each in blind)
    results = json.loads((out / "results.json").read_text())["results"]
    assert [len(boxes) for boxes in results.values()].count(0) == len(blind)
    assert results.keys() == counts.keys()
    assert all(results[each] == [] for each in blind)
    assert not verdict["passed"]
    (case,) = (case for case in verdict["cases"] if case["name"] == "finite")
    assert case["reason"].startswith(f"2 of {FRAMES} frames not finite, first {blind[0]}")
    assert [case["passed"] for case in verdict["cases"]].count(False) == 1
    # The route to a single prediction says so, too.
    with pytest.raises(InputError, match="not finite"):
        Runtime(path)(Frame("s", 0, "ego", np.eye(4), np.eye(4), None, {}))


@given(data=st.data())
def test_what_is_finite_stays_as_it_is(data: st.DataObject) -> None:
    """As if the network had never given the other boxes; of the map the other cells, of what it recognises all."""
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    number = data.draw(st.integers(1, 12))
    outputs = {
        "detection/boxes": rng.normal(0, 9, (1, number, 10)).astype(np.float32),
        "detection/scores": -np.sort(-rng.random((1, number), np.float32)),
        "detection/labels": rng.integers(0, 10, (1, number)),
        "detection/attributes": rng.integers(-1, 8, (1, number)),
        "map/probabilities": rng.random((1, 6, 3, 4), np.float32),
        "conditions/probabilities": np.full((1, 7), 0.5, np.float32),
    }
    bad = st.sampled_from([np.nan, np.inf, -np.inf])
    wrong = data.draw(st.sets(st.integers(0, number - 1)))
    for i in wrong:
        column = data.draw(st.integers(0, 10))
        array = outputs["detection/scores"][0] if column == 10 else outputs["detection/boxes"][0, :, column]
        array[i] = data.draw(bad)
    cells = data.draw(st.sets(st.integers(0, 71)))
    outputs["map/probabilities"].reshape(-1)[list(cells)] = data.draw(bad)
    unknown = data.draw(st.booleans())
    outputs["conditions/probabilities"][0, 0] = data.draw(bad) if unknown else 0.5

    found = to_prediction(TASKS, outputs)
    kept = [i for i in range(number) if i not in wrong]
    boxes = {name: outputs[name][:, kept] for name in outputs if name.startswith("detection/")}
    expected_map = outputs["map/probabilities"].copy()
    expected_map.reshape(-1)[list(cells)] = np.nan
    expected = TASKS["detection"].result({name: values[0] for name, values in part_of("detection", boxes).items()})
    assert_equal(found, Prediction({"detection": expected, "map": expected_map[0]}))
    assert (found.results["conditions"] == {}) == unknown
    numbers = (len(wrong), len(cells), int(unknown))
    counts = dict(zip((*BLINDED, "conditions/probabilities"), numbers, strict=True))
    assert found.not_finite == {name: count for name, count in counts.items() if count}


def test_a_frame_is_prepared_in_the_memory_of_the_frame_before(monkeypatch: pytest.MonkeyPatch) -> None:
    addresses: list[dict[str, int]] = []

    def recorded(bundle: Bundle, target: str) -> Any:
        engine = open_engine(bundle, target)

        def run(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            addresses.append({name: array.ctypes.data for name, array in inputs.items()})
            return engine.run(inputs)

        return SimpleNamespace(run=run)

    monkeypatch.setattr("deploy.runtime.open_engine", recorded)
    runtime = Runtime(bundle().path)
    addresses.clear()
    for seed in (1, 2):
        runtime.step(synthetic_frame("ego", RIG, seed))
    assert addresses[0] == addresses[1]
