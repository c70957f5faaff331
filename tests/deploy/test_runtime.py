"""The runtime verifies before it drives, and is the predictor that the network is."""

import argparse
from pathlib import Path

import numpy as np
import pytest
from bench_runtime import runtime, small
from exported import assert_equal, bundle, checkpoint, copied, rewritten, without
from refusals import one_line_error
from vocabulary import MAP_CLASSES, RIG

from deploy.bundle import Bundle
from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.golden import synthetic_frame
from deploy.runtime import Runtime
from perception.errors import InputError
from perception.predict import TorchPredictor
from perception.sensors.inputs import no_sensors, prepare
from perception.tasks.result import to_prediction


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
    """Sealed and whole, but the recorded outputs are another network's."""
    golden = bundle().golden()[0], bundle("rain").golden()[1]
    path = rewritten(copied(tmp_path / "bundle"), golden=golden)
    Bundle.load(path)
    with one_line_error("does not compute the exported network"):
        Runtime(path)


def test_engine_that_drifts_a_little_is_refused(tmp_path: Path) -> None:
    inputs, outputs = bundle().golden()
    path = copied(tmp_path / "bundle")
    for offset, accepted in ((5e-5, True), (2e-4, False)):
        drifted = outputs | {"detection/scores": outputs["detection/scores"] + np.float32(offset)}
        rewritten(path, golden=(inputs, drifted))
        if accepted:
            Runtime(path)
        else:
            with pytest.raises(InputError, match=r"scores is off by 0\.0002"):
                Runtime(path)


def test_memory_does_not_grow() -> None:
    """`tools/bench.py runtime` drives 10,000 frames."""
    frames, config = 150, small()
    figures = runtime(argparse.Namespace(frames=frames))
    outputs = 4 * (
        10 * config.tasks["detection"].top_k + len(MAP_CLASSES) * config.grid.build().cells
    )  # bytes, at least
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
