"""The runtime is the predictor that the network is, leaves out what is not finite, and serves several routes.

With one graph that an input switches, with a network for each route, or with one folded.
"""

import json
import resource
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from shutil import copytree
from types import SimpleNamespace
from typing import cast

import exported
import lowered
import numpy as np
import onnx
import pytest
import torch
from commands import one_line_error
from exported import (
    QUIET,
    apart,
    assert_equal,
    bundle,
    checkpoint_of,
    copy_bundle,
    modular,
    rewritten,
    trusting,
    without,
)
from hypothesis import given
from hypothesis import strategies as st
from networks import anchored_run as anchored
from onnx import helper
from replays import gates, replay_with_faults
from tiny import token, write_tiny
from vocabulary import CONDITION_VALUES, NUSCENES, RIG

from deploy.build import build
from deploy.bundle import Bundle
from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.export import export
from deploy.golden import differences, synthetic_frame
from deploy.plan import plan, table
from deploy.replay.results import ReplayResults
from deploy.route import steering_inputs
from deploy.runtime import Runtime
from deploy.verify import verify
from perception.checkpoint import load_model, save_model
from perception.datasets.keyframes import Reads
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.errors import InputError
from perception.frame import Camera, Conditions, Frame, Prediction
from perception.grid import BevGrid
from perception.model import PerceptionModel
from perception.modules.computation.prompt import Prompt
from perception.predict import TorchPredictor
from perception.sensors.inputs import no_sensors, prepare
from perception.tasks import parse_tasks, tasks_of
from perception.tasks.task import part_of, to_prediction

FRAMES = 5
BLINDED = ("detection/boxes", "map/probabilities")
TASKS = tasks_of(parse_tasks({"detection": {}, "map": {}, "conditions": {}}), BevGrid(), NUSCENES)
DIFFERENT = 8  # frames that are repeated at new positions
SPEED = 10.0  # m/s


def long_drive(frames: int) -> Iterator[Frame]:
    """A straight drive; weather and light change, and sensors fail now and then."""
    pool = [synthetic_frame("ego", RIG, seed) for seed in range(DIFFERENT)]
    for frame in pool:  # small pictures, because resizing large ones would take most of the time
        for name, camera in frame.cameras.items():
            cast(dict[str, Camera], frame.cameras)[name] = replace(camera, image=camera.image[::8, ::8].copy())
    for i in range(frames):
        frame, pose = pool[i % DIFFERENT], np.eye(4)
        pose[0, 3] = 0.5 * SPEED * i
        yield replace(
            frame,
            token=f"frame-{i}",
            timestamp=500_000 * i,
            global_from_reference=pose,
            global_from_ego=pose,
            points=None if i % 13 == 0 else frame.points,
            cameras={} if i % 17 == 0 else frame.cameras,
            conditions=Conditions(weather=("clear", "rain")[i // 50 % 2], light=("day", "night")[i // 70 % 2]),
        )


def resident() -> float:
    """Resident memory of this process in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def test_step_is_prepare_engine_and_postprocess() -> None:
    runtime, frame = Runtime(bundle().path), synthetic_frame("ego", RIG, seed=3)
    outputs = OnnxRuntimeEngine(bundle().onnx).run(prepare(frame, bundle().spec))
    expected = to_prediction(bundle().manifest.heads, outputs)
    seen = runtime.step(frame)
    assert_equal(seen.prediction, expected)
    assert_equal(runtime(frame), expected)
    assert set(seen.seconds) == {"admit", "check", "preprocess", "engine", "postprocess", "health", "belief", "memory"}
    assert all(seconds > 0 for seconds in seen.seconds.values())


def test_golden_mismatch_refuses_to_drive(tmp_path: Path) -> None:
    """Sealed and whole, but the recorded outputs are another network's, or an engine's that drifts a little."""
    inputs, outputs = bundle().golden()
    path = rewritten(copy_bundle(tmp_path / "bundle"), golden=(inputs, bundle("rain").golden()[1]))
    Bundle.load(path)
    with one_line_error("does not compute the exported network"):
        Runtime(path)
    for first, offset, said in ((20, 5e-5, None), (20, 2e-4, r"scores is off by 0\.0002"), (200, 5e-5, "in the mean")):
        drifted = {name: array.copy() for name, array in outputs.items()}
        drifted["detection/scores"][:, :first] += np.float32(offset)
        rewritten(path, golden=(inputs, drifted))
        with pytest.raises(InputError, match=said) if said else nullcontext():
            Runtime(path)


@pytest.mark.slow("40 frames, and the bundle that the tests of the file share")
def test_memory_does_not_grow() -> None:
    vehicle, frames, held = Runtime(bundle("rain").path), 40, []
    for frame in long_drive(frames):
        vehicle.step(frame)
        held.append(resident())
    begin, end = np.array_split(held[frames // 10 :], 4)[::3]  # a tenth allocates what is allocated once
    outputs = sum(4 * int(np.prod(output.shape)) for output in vehicle.bundle.manifest.outputs)  # bytes, at least
    assert (
        np.median(end) - np.median(begin) < frames / 2 * outputs / 1e6
    )  # growth is over three quarters of nine tenths


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
    runtime, seen = Runtime(bundle().path), []
    network = runtime._networks[0]

    def run(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        seen.append({name: array.ctypes.data for name, array in inputs.items()})
        return network.engine.run(inputs)

    runtime._networks = [replace(network, engine=SimpleNamespace(run=run, new_state=network.engine.new_state))]
    for frame in frames[:2]:
        runtime.step(frame)
    assert seen[0] == seen[1]


def blinded(path: Path) -> Path:
    """A bundle whose network gives NaN for boxes and map where it sees no point."""
    model = onnx.load(copy_bundle(path) / "model.onnx")
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
    verdict = replay_with_faults(tmp_path / "tiny", out, bundle=path, faults=faults, gates=easy)["verdict"]
    assert not (out / "scenes").exists()
    blind = [token("sample", i) for i in (2, 3)]
    finished = ReplayResults.load(out)
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
        "conditions/distance": np.zeros((1, 3), np.float32),
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


@cache
def banked() -> Path:
    return checkpoint_of(modular("banked", exported.BANK))


@pytest.mark.slow("traces a network with modules of six kinds of facts")
def test_one_graph_serves_several_routes_and_any_mixture_of_them(tmp_path: Path) -> None:
    made = export(banked(), tmp_path / "bundle", exported.ROUTES, console=QUIET)
    manifest = made.manifest
    assert manifest.routes == ("boston", "boston+rain", "boston+night")
    asked = {"rain": ("rain",), "night": ("night",), "blind": ("no-cameras",)}
    assert {m.name: m.asks for m in manifest.banked} == asked
    assert (manifest.folded, manifest.inline) == ((), ("city", "film"))
    assert manifest.condition_values == CONDITION_VALUES
    model, _ = load_model(banked())
    runtime, engine = Runtime(tmp_path / "bundle"), OnnxRuntimeEngine(made.onnx)
    frame = synthetic_frame("ego", RIG, 3)
    for known in ({}, {"weather": "rain"}, {"light": "night"}, {"weather": "rain", "light": "night"}):
        conditions = Conditions(city="boston", **known)
        for seen in (frame, without(frame, "camera"), without(frame, "lidar")):
            inputs = prepare(seen, made.spec)
            steer = steering_inputs(conditions, inputs, manifest.banked, manifest.condition_values)
            actual = engine.run(inputs | steer)
            tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
            with torch.no_grad():
                expected = {name: value.numpy() for name, value in model.predict(tensors, [conditions]).items()}
            assert differences(expected, actual, manifest.tolerances) == [], (conditions, seen.cameras.keys())
            if seen is frame:
                step = runtime(replace(frame, conditions=conditions))
                np.testing.assert_array_equal(step.results["map"], to_prediction(manifest.heads, actual).results["map"])


def test_the_plan_says_what_is_banked_where_and_sums_up() -> None:
    planned = plan(banked(), exported.ROUTES)
    steps = {step.slot: step for step in planned.steps}
    assert (steps["trunk.stage0.0"].what, steps["trunk.stage0.0"].modules) == ("folded", ("city",))
    stage = steps["trunk.stage1.0"]
    assert (stage.what, stage.modules, stage.why) == ("banked", ("city", "rain"), "rain: not on all routes")
    assert steps["camera.backbone.bn1"].modules == ("night",)
    assert steps["fused"].why == "blind: not on all routes"
    shown = table(planned)
    assert shown.row_count == len(planned.steps) + 1
    assert shown.caption == "on no route, not exported: dry"
    unknown, contradiction = "hail: unknown condition; choose from clear", "rain: contradicts clear; give one weather"
    for conditions, message in ((["hail"], unknown), (["clear", "rain"], contradiction)):
        with pytest.raises(InputError, match=message):
            plan(banked(), [conditions])


def test_the_plan_of_a_router_in_the_graph_and_of_a_network_without_a_detector(tmp_path: Path) -> None:
    module = exported.AFFINE[0] | {"slots": ["trunk.*", "lidar.*"]}
    run = checkpoint_of(modular("chosen", [module], routing={"kind": "learned", "choose": "soft"}))
    steps = {step.slot: step for step in plan(run).steps}
    chosen = steps["trunk.stage0.0"]
    assert (chosen.what, chosen.why) == ("banked", "selected by the router in the graph")
    assert steps["lidar.pillar"].what == "folded"
    config = modular("mapping", [exported.AFFINE[0] | {"slots": ["trunk.*"]}], tasks={"map": {"channels": 8}})
    save_model(tmp_path, config, PerceptionModel(config))
    assert {step.what for step in plan(tmp_path).steps} == {"folded"}


@pytest.mark.slow("exports three networks, which other tests use too")
def test_each_frame_gets_the_network_that_asks_for_most() -> None:
    """There is none for night alone, so that night gets the one that asks for nothing."""
    made, network = apart()[0], load_model(exported.apart_checkpoint())[0]
    rain, night = {"weather": "rain"}, {"light": "night"}
    for known, served in (({}, {}), ({**rain, "city": "boston"}, rain), (rain | night, rain | night), (night, {})):
        frame = replace(synthetic_frame("ego", RIG, 3), conditions=Conditions(**known))
        inputs = {name: torch.from_numpy(a) for name, a in prepare(frame, made.spec).items()}
        with torch.no_grad():
            outputs = {k: v.numpy() for k, v in network.predict(inputs, [Conditions(**served)]).items()}
        expected = to_prediction(made.manifest.heads, outputs).results
        found = Runtime(made.path).step(frame).prediction.results
        np.testing.assert_allclose(found["detection"].scores, expected["detection"].scores, atol=1e-4)
        np.testing.assert_allclose(found["map"], expected["map"], atol=1e-4)


def test_verify_looks_into_every_network_each_with_the_operators_of_the_base_alone(tmp_path: Path) -> None:
    made, base = apart()[0], bundle().manifest
    assert verify(made.path)["routes"] == "base, rain with its own network, rain+night with its own network"
    for part in (made.manifest, *(route.manifest for route in made.routes.values())):
        assert (part.operators, part.parameters, part.flops) == (base.operators, base.parameters, base.flops)
        assert part.banked == ()
    assert [part.manifest.folded for part in made.routes.values()] == [("rain",), ("rain", "night")]
    for file, message in (
        ("routes/rain/model.onnx", "was changed"),
        ("routes/rain/manifest.json", "was changed"),
        ("routes/rain/more", "does not name this file"),
        ("routes/fog/manifest.json", "does not name this file"),
    ):
        path = copytree(made.path, tmp_path / file.replace("/", "-"))
        (path / file).parent.mkdir(exist_ok=True)
        with (path / file).open("ab") as opened:
            opened.write(b" ")
        with pytest.raises(InputError, match=f"{file.split('/')[-1]}: .*{message}"):
            Bundle.load(path)
    exported.reseal(path, lambda manifest: manifest.update(apart=["../elsewhere"]))
    with pytest.raises(InputError, match=r"apart: '\.\./elsewhere' is none of clear"):
        Bundle.load(path)


@pytest.mark.slow("compiles three networks")
def test_every_network_is_compiled_and_a_signature_holds_for_all(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    (made, private, key), public = apart(), tmp_path / "mine.pem"
    public.write_bytes(key.read_bytes())  # a vehicle keeps its state beside it
    path = copytree(made.path, tmp_path / "bundle")
    _, another = exported.keys(tmp_path / "another")
    build(path, "rtx-ampere", QUIET)  # plans that nobody signed
    assert set(Bundle.load(path, trusting(public)).routes) == {"rain", "rain+night"}
    with pytest.raises(InputError, match="not the signature"):
        Bundle.load(path, trusting(another))
    with pytest.raises(InputError, match=r"routes/rain/engines/rtx-ampere\..*is not signed"):
        Bundle.load(path, replace(trusting(public), state=None)).routes["rain"].plan("rtx-ampere")
    build(path, "rtx-ampere", QUIET, sign=private)
    found = Bundle.load(path, trusting(public))
    plans = [part.plan("rtx-ampere") for part in (found, *found.routes.values())]
    assert len({plan.data for plan in plans}) == 3
    assert "rtx-ampere by tensorrt_rtx" in verify(path)["engines"]
    plans[1].path.write_bytes(plans[0].data)
    with pytest.raises(InputError, match=r"routes/rain/engines/rtx-ampere.plan: was changed"):
        verify(path)


def assert_close(a: Prediction, b: Prediction) -> None:
    """The same boxes one to one, up to the rounding of engines, which may swap neighbours in the order."""
    numbers, others = (
        np.column_stack([x.centers, x.sizes, x.rotations[:, :2, 0], x.velocities[:, :2], x.scores, 9.0 * x.labels])
        for x in (a.results["detection"], b.results["detection"])
    )
    assert len(numbers) == len(others)
    off = np.abs(numbers[:, None] - others).max(axis=2)
    np.testing.assert_array_equal(np.sort(off.argmin(axis=1)), np.arange(len(others)))
    assert off.min(axis=1).max() < 1e-3


@pytest.mark.slow("exports a network with three maps of anchors")
def test_anchors_perceive_what_torch_does(tables: NuScenesTables, tmp_path: Path) -> None:
    """With a module at every slot that an input switches."""
    run = anchored("pyramid", modular=True)
    predictor, made = TorchPredictor.load(run), export(run, tmp_path / "bundle", [[], ["rain"]], console=QUIET)
    runtime, manifest = Runtime(made.path), made.manifest
    assert (manifest.folded, [each.name for each in manifest.banked]) == ((), ["rain"])
    frames = [tables.frame(token, Reads("lidar", 2, cameras=False)) for token in tables.samples()[:2]]
    for frame in (*frames, synthetic_frame("lidar", RIG, 3)):
        for weather in ("rain", "clear"):
            seen = replace(frame, conditions=Conditions(weather=weather))
            expected, found = predictor(seen), runtime(seen)
            assert 20 < len(expected.results["detection"]) < 4000
            assert len(np.unique(expected.results["detection"].labels)) > 2
            assert_close(expected, found)
            assert_equal(found, runtime(seen))
    assert {tensor.name: tensor.shape for tensor in manifest.outputs}["detection/boxes"] == (1, 10, 600, 10)
    assert manifest.tasks == predictor.model.config.tasks


def test_prompt_that_would_have_to_fold_for_several_sizes_is_refused() -> None:
    model, config = load_model(anchored("pyramid"))
    model.bank.add(Prompt.Options(name="dry", slots=("heads.detection.classes",), size=4))
    inputs = prepare(synthetic_frame("lidar", RIG), config.spec)
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    with torch.no_grad():
        model.predict(tensors)  # without a fold each map has its own
        with one_line_error(r"heads\.detection\.classes: a prompt folds for one size of input, this"):
            model.folded().predict(tensors)


@pytest.mark.slow("bundles of three precisions that other tests use too")
@pytest.mark.parametrize("weather", ["rain", "night"])
def test_a_scene_says_which_of_the_switched_modules_run(weather: str) -> None:
    runtime, known = Runtime(lowered.switched("fp32").path), {"rain": {"weather": "rain"}, "night": {"light": "night"}}
    frame = replace(synthetic_frame("ego", RIG, 3), conditions=Conditions(**known[weather]))
    for i in range(4):  # until it is believed
        seen = runtime.step(replace(frame, token=str(i), timestamp=100_000 * i))
    assert {name: routed.weight for name, routed in seen.route.items()} == {
        name: float(name == weather) for name in ("rain", "night")
    }
