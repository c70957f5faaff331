"""A bundle carries a memory: its golden sequence finds what goes wrong with a state, and the runtime owns it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from commands import one_line_error
from exported import (
    MEMORY,
    QUIET,
    add_route,
    bundle,
    checkpoint_of,
    looking,
    modular,
    remembering,
    remembering_at,
    remembering_run,
    reseal,
)
from tiny import write_tiny
from vocabulary import RIG

from deploy.bundle import Bundle
from deploy.engines.onnxruntime import OnnxRuntimeEngine, OnnxRuntimeState
from deploy.export import export
from deploy.golden import WrongEngine, require_agreement
from deploy.golden_file import require_end_to_end
from deploy.runtime import Runtime
from deploy.street import street_frame
from deploy.tolerances import Precision
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.frame import Conditions, Frame, Prediction
from perception.predict import TorchPredictor
from perception.session import run_with_state
from perception.state import MOTION_INPUTS, state_inputs

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
Arrays = dict[str, np.ndarray]


def invert(inputs: Arrays) -> Arrays:
    return inputs | {"current_from_previous": np.linalg.inv(inputs["current_from_previous"]).astype(np.float32)}


def leave_out(inputs: Arrays) -> Arrays:
    return inputs | {"current_from_previous": np.eye(4, dtype=np.float32)[None]}


def never_reset(inputs: Arrays) -> Arrays:
    return inputs | {"state_valid": np.ones(1, np.float32)}


def in_milliseconds(inputs: Arrays) -> Arrays:
    return inputs | {"elapsed": 1000 * inputs["elapsed"]}


class Wrong:
    """An engine with a wrong state: other inputs than it is given, or never the next state."""

    def __init__(self, bundle: Bundle, change: Callable[[Arrays], Arrays] = dict, stale: bool = False) -> None:
        self.engine = OnnxRuntimeEngine(bundle.cpu_onnx)
        self.change, self.stale, self.new_state = change, stale, self.engine.new_state

    def run(self, inputs: Arrays, state: OnnxRuntimeState) -> Arrays:
        outputs = self.engine.run(self.change(dict(inputs)), state)
        if self.stale and inputs["state_valid"].any():
            state.swap()
        return outputs


@pytest.mark.slow("three precisions of one trace, with a sequence; other tests use them too")
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_golden_sequence_finds_a_wrong_state(precision: Precision) -> None:
    """An engine in INT8 may be off by more than a wrong time moves it; the next test finds that one."""
    bundle = remembering_at(precision)
    graph = bundle.cpu_onnx.name
    bundle.require_golden(Wrong(bundle), "engine", graph)
    timed = [in_milliseconds] if precision != "int8" else []
    for wrong in (
        *(Wrong(bundle, each) for each in (invert, leave_out, never_reset, *timed)),
        Wrong(bundle, stale=True),
    ):
        with pytest.raises(WrongEngine):
            bundle.require_golden(wrong, "engine", graph)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("wrong", [invert, leave_out, never_reset, in_milliseconds])
def test_software_that_tells_the_memory_something_else_is_refused(
    precision: Precision, wrong: Callable[[Arrays], Arrays], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = remembering_at(precision)
    golden, file = bundle.golden_frames(), bundle.path / "golden.safetensors"
    require_end_to_end(golden, bundle.manifest, file)
    monkeypatch.setattr("perception.session.state_inputs", lambda *given: wrong(state_inputs(*given)))
    with one_line_error(says="not as at the export"):
        require_end_to_end(golden, bundle.manifest, file)


@pytest.mark.slow("three precisions of one trace, which other tests use too")
def test_the_manifest_says_how_the_state_goes_on() -> None:
    manifest = remembering().manifest
    (pair,), state = manifest.state.pairs, manifest.state
    assert (pair.input, pair.output, pair.shape, pair.warp) == ("state", "next_state", (1, 8, 64, 64), "bev")
    assert (state.seconds, state.speed, state.spacing) == (1.2, 70.0, (0.1, 0.5))
    assert {each.name for each in manifest.inputs} >= {"state", *MOTION_INPUTS}
    assert not {"If", "Loop", "Scan"} & manifest.operators.keys()
    assert manifest.operators["GridSample"] == bundle().manifest.operators["GridSample"] + 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.pop("state"), "outputs are"),
        (lambda m: m["state"]["pairs"][0].update(shape=[1, 8, 128, 128]), "state: is not that of the network"),
        (lambda m: m["state"]["pairs"][0].update(input="elapsed"), "state: is not that of the network"),
        (lambda m: m["state"].update(pairs=[]), "outputs are"),
        (lambda m: m["inputs"].pop(), "state: is not that of the network"),
    ],
)
def test_a_manifest_whose_state_does_not_fit_is_refused(
    change: Callable[[Any], object], words: str, tmp_path: Path
) -> None:
    path = copytree(remembering().path, tmp_path / "bundle")
    with one_line_error(says=words):
        reseal(path, change)
        Bundle.load(path)


def moving(count: int = 4, spacing: float = 0.1) -> list[Frame]:
    """A vehicle that drives along the street of the golden frames."""
    frames = [street_frame("ego", RIG, (2.0 * i, 0.1 * i, 2.0 * i)) for i in range(count)]
    times = [int(1e6 * (1 + spacing * i)) for i in range(count)]
    return [
        replace(each, token=str(i), scene="street", timestamp=times[i], cameras={}) for i, each in enumerate(frames)
    ]


def scores(prediction: Prediction) -> list[float]:
    found: list[float] = prediction.results["detection"].scores.tolist()
    return found


def test_states_that_stay_with_the_engine_are_the_networks_outputs_bit_for_bit() -> None:
    bundle = remembering()
    engine, golden = OnnxRuntimeEngine(bundle.onnx), bundle.golden_frames()
    state, given = engine.new_state(), np.zeros(bundle.manifest.input_shapes["state"], np.float32)
    assert state is not None
    for frame in golden:
        alone = engine.run({**frame.inputs, "state": given if frame.inputs["state_valid"].any() else 0 * given})
        for name, array in run_with_state(engine.run, frame.inputs, state).items():
            np.testing.assert_array_equal(array, alone[name])
        given = alone["next_state"]
        np.testing.assert_array_equal(state.read()["state"], given)


def test_a_state_that_is_not_finite_is_not_multiplied_by_zero() -> None:
    engine, frame = OnnxRuntimeEngine(remembering().onnx), remembering().golden_frames()[0]
    state = engine.new_state()
    assert state is not None
    state._arrays[0]["state"].fill(np.nan)
    expected = frame.outputs["detection/scores"]
    np.testing.assert_allclose(run_with_state(engine.run, frame.inputs, state)["detection/scores"], expected, atol=1e-3)


def test_a_bundle_remembers_as_the_trained_network_does(tmp_path: Path) -> None:
    """On a drive at 2 Hz; without its memory it sees something else."""
    write_tiny(tmp_path, keyframes=4)
    tables, runtime = NuScenesTables(tmp_path, "v1.0-tiny"), Runtime(remembering().path)
    trained = TorchPredictor.load(remembering_run())
    reads, tokens = runtime.bundle.spec.reads, tables.samples()
    found = [(frame, scores(each)) for frame, each in runtime.predictions(tables, reads, tokens)]
    expected = [scores(each) for _, each in trained.predictions(tables, reads, tokens)]
    for (_, mine), other in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-3)
    assert [scores(runtime.step(frame).prediction) for frame, _ in found] == [mine for _, mine in found]
    alone = [scores(runtime(frame)) == mine for frame, mine in found]
    assert alone == [True, False, False, False]


@pytest.mark.parametrize(
    "change",
    [
        {"scene": "another"},
        {"timestamp": 1_150_000},  # before the frame before
        {"timestamp": 1_200_000 + 1_300_000},
        {"global_from_reference": np.diag([1.0, 1.0, 1.0, 1.0]) + 1e3 * np.eye(4, k=3)},
        {"global_from_reference": np.full((4, 4), np.nan)},
    ],
)
def test_a_state_that_cannot_be_used_is_not(change: dict[str, Any]) -> None:
    runtime, frames = Runtime(remembering().path), moving()
    for frame in frames[:3]:
        seen = runtime.step(frame)
    assert scores(seen.prediction) != scores(runtime(frames[2]))
    changed = replace(frames[3], **change)
    seen = runtime.step(changed)
    assert scores(seen.prediction) == scores(runtime(frames[3]))
    posed = "global_from_reference" in change
    assert ("global_from_reference" in seen.health["vehicle"].reasons if "vehicle" in seen.health else False) == posed


@pytest.mark.parametrize(
    "change",
    [
        {"global_from_reference": np.eye(4) + 12 * np.eye(4, k=3)},  # as far as in 0.2 s
        {"timestamp": 1_050_000},  # after the frame of the state
    ],
)
def test_a_state_is_not_used_where_the_drive_does_not_go_on_in_an_outage(change: dict[str, Any]) -> None:
    """From the frame before; the state is of the one before that, from which it could."""
    runtime, (first, second, third, _) = Runtime(remembering().path), moving()
    blind, dark = replace(second, points=None), replace(third, points=None)
    expected = scores(runtime(dark))
    assert [scores(runtime.step(each).prediction) == expected for each in (first, blind, dark)] == [False] * 3
    runtime.restart()
    for frame in (first, blind):
        runtime.step(frame)
    seen = runtime.step(replace(dark, **change))
    assert scores(seen.prediction) == expected
    reasons = seen.health["vehicle"].reasons if "vehicle" in seen.health else ""
    assert ("impossible motion" in reasons) == ("global_from_reference" in change)


def test_a_frame_after_some_without_a_pose_is_no_jump() -> None:
    """They have that of the frame before; where the next one is says nothing of its motion since."""
    runtime, (first, second, third, last) = Runtime(remembering().path), moving(spacing=0.04)  # 50 m/s
    lost = [replace(each, global_from_reference=np.full((4, 4), np.nan)) for each in (second, third)]
    reasons = [
        health["vehicle"].reasons if "vehicle" in (health := runtime.step(each).health) else ""
        for each in (first, *lost, last)
    ]
    assert [("global_from_reference" in each, "motion" in each) for each in reasons[:3]] == [
        (False, False),
        (True, False),
        (True, False),
    ]
    assert "motion" not in reasons[3]


def test_the_memory_begins_anew_at_a_restart_and_outlasts_a_frame_without_data() -> None:
    """Which leaves the state in every bit."""
    runtime, frames = Runtime(remembering().path), moving()
    blind = replace(frames[1], points=None)
    first, dark, last = (scores(runtime.step(each).prediction) for each in (frames[0], blind, frames[2]))
    assert (first == scores(runtime(frames[0])), dark == scores(runtime(blind))) == (True, False)
    assert last != scores(runtime(frames[2]))
    runtime.restart()
    runtime.step(frames[0])
    runtime.restart()  # at a frame whose time continues
    assert scores(runtime.step(frames[1]).prediction) == scores(runtime(frames[1]))
    runtime.restart()
    assert [scores(runtime.step(each).prediction) for each in (frames[0], frames[2])] == [first, last]
    runtime.restart()
    assert [scores(runtime.step(each).prediction) for each in (frames[0], blind, frames[2])] == [first, dark, last]


def test_after_a_frame_that_the_engine_fails_on_the_state_of_the_one_before_goes_on() -> None:
    runtime, frames = Runtime(remembering().path), moving()
    expected = [scores(runtime.step(each).prediction) for each in (frames[0], frames[2])]
    runtime.restart()
    assert scores(runtime.step(frames[0]).prediction) == expected[0]
    (network,) = runtime._networks
    failing: Any = SimpleNamespace(run=lambda *_: 1 / 0, new_state=network.engine.new_state)
    runtime._networks = [replace(network, engine=failing)]
    with pytest.raises(ZeroDivisionError):
        runtime.step(frames[1])
    runtime._networks = [network]
    assert scores(runtime.step(frames[2]).prediction) == expected[1]


def test_after_a_failure_on_a_frame_that_resets_the_memory_is_empty() -> None:
    """The state was cleared for the frame that came out of order: the frame after it has none to use."""
    runtime, frames = Runtime(remembering().path), moving()
    for frame in frames[1:3]:
        runtime.step(frame)
    (network,) = runtime._networks
    failing: Any = SimpleNamespace(run=lambda *_: 1 / 0, new_state=network.engine.new_state)
    runtime._networks = [replace(network, engine=failing)]
    with pytest.raises(ZeroDivisionError):
        runtime.step(frames[0])
    runtime._networks = [network]
    assert scores(runtime.step(frames[3]).prediction) == scores(runtime(frames[3]))


def test_a_golden_frame_in_between_leaves_the_state() -> None:
    plain, checked = Runtime(remembering().path), Runtime(remembering().path)
    for frame in moving():
        checked.check()
        assert scores(checked.step(frame).prediction) == scores(plain.step(frame).prediction)


def test_what_follows_an_output_that_is_not_finite_begins_anew() -> None:
    runtime, frames = Runtime(remembering().path), moving()
    runtime.step(frames[0])
    state = runtime._session._state
    state._arrays[state._latest]["state"].fill(np.nan)
    assert scores(runtime.step(frames[1]).prediction) != scores(runtime(frames[1]))
    assert scores(runtime.step(frames[2]).prediction) == scores(runtime(frames[2]))


@pytest.mark.slow("exports a network with a memory for one of two routes")
@pytest.mark.parametrize("apart", [False, True])
def test_a_memory_for_some_conditions_begins_anew_where_they_begin(apart: bool, tmp_path: Path) -> None:
    """In one graph the state of other frames is their map; a network of its own for them has none."""
    run = checkpoint_of(modular("rainy", [{**MEMORY, "when": ["rain"]}]), spread=0.1)
    bundle = export(run, tmp_path / "bundle", [[], ["rain"]], console=QUIET, apart=apart)
    assert (bundle.manifest.state is None) == apart
    runtime, (first, second, third, _) = Runtime(bundle.path), moving()
    tags = {"rain": Conditions(weather="rain"), "dry": Conditions(weather="clear")}

    def see(*given: tuple[Frame, str]) -> list[list[float]]:
        frames = {frame.token: replace(frame, conditions=tags[weather]) for frame, weather in given}
        source: Any = SimpleNamespace(frame=lambda token, reads: frames[token])
        return [scores(each) for _, each in runtime.predictions(source, runtime.bundle.spec.reads, [*frames])]

    wet, dry = see((first, "rain"), (second, "rain")), see((first, "dry"), (second, "dry"))
    assert wet[0] == dry[0] == scores(runtime(first))
    assert dry[1] == scores(runtime(second))
    assert wet[1] != dry[1]
    changing = see((first, "rain"), (second, "dry"), (third, "rain"))
    assert changing[:2] == [wet[0], dry[1]]
    assert (changing[2] == scores(runtime(third))) == apart
    runtime.restart()
    runtime.step(first)
    jumped = replace(second, global_from_reference=np.eye(4) + 1e3 * np.eye(4, k=3))
    assert "impossible motion" in runtime.step(jumped).health["vehicle"].reasons


@pytest.mark.slow("exports two networks with a memory")
def test_networks_for_routes_share_the_state(tmp_path: Path) -> None:
    """As one network does whose modules change with the weather; the bundle says what the memory was trained for."""
    rain = {"name": "rain", "kind": "low_rank", "slots": ["fuse*", "trunk.*"], "rank": 2, "when": ["rain"]}
    run = checkpoint_of(modular("shared", [MEMORY | {"spacing": [0.2, 0.4]}, rain]))
    runtime = Runtime(export(run, tmp_path / "bundle", [[], ["rain"]], console=QUIET, apart=True).path)
    assert [each.bundle.manifest.state.spacing for each in runtime._networks] == [(0.2, 0.4)] * 2
    assert runtime.spacing == 0.2
    weather = ["clear", "rain", "rain", "clear"]
    frames = {
        each.token: replace(each, conditions=Conditions(weather=tag))
        for each, tag in zip(moving(), weather, strict=True)
    }
    source: Any = SimpleNamespace(frame=lambda token, reads: frames[token])
    trained, reads = TorchPredictor.load(run), runtime.bundle.spec.reads
    found = [scores(each) for _, each in runtime.predictions(source, reads, [*frames])]
    expected = [scores(each) for _, each in trained.predictions(source, reads, [*frames])]
    for mine, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-4)
    alone = [scores(each) for token in frames for _, each in trained.predictions(source, reads, [token])]
    assert [one == other for one, other in zip(expected, alone, strict=True)] == [True, False, False, False]


def test_networks_with_states_of_several_shapes_are_no_bundle(tmp_path: Path) -> None:
    path = copytree(remembering().path, tmp_path / "bundle")
    add_route(path, looking())
    with one_line_error(says="/routes/rain/manifest.json: state: has another shape than that of the bundle's other"):
        Bundle.load(path)


def test_the_state_is_compared_as_far_as_it_may_differ() -> None:
    frame, allowed = remembering().golden_frames()[0], remembering().manifest.tolerances
    state = frame.outputs["next_state"]
    assert allowed.state is not None
    most = np.float32(allowed.state * np.sqrt(np.square(state, dtype=np.float64).mean()))
    require_agreement(frame.outputs, {**frame.outputs, "next_state": state + 0.9 * most}, "engine", allowed)
    with pytest.raises(WrongEngine, match="next_state is off by"):
        require_agreement(frame.outputs, {**frame.outputs, "next_state": state + 1.1 * most}, "engine", allowed)
