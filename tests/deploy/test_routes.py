"""What a bundle serves several routes with: one graph that an input switches, or a network for each, or one folded."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
import torch
from commands import one_line_error
from exported import (
    AFFINE,
    BANK,
    QUIET,
    ROUTES,
    apart,
    apart_checkpoint,
    assert_equal,
    bundle,
    checkpoint_of,
    keys,
    modular,
    trusting,
    without,
)
from networks import anchored_run as anchored
from vocabulary import CONDITION_VALUES, RIG

from deploy.build import build
from deploy.bundle import Bundle
from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.export import export
from deploy.golden import differences, synthetic_frame
from deploy.plan import plan, table
from deploy.route import steering_inputs
from deploy.runtime import Runtime
from deploy.verify import verify
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.errors import InputError
from perception.frame import Conditions, Prediction
from perception.modules.spec import Prompt
from perception.predict import TorchPredictor
from perception.sensors.inputs import InputSpec, prepare
from perception.tasks.result import to_prediction
from perception.training.checkpoint import load_model

# ---- one graph


@cache
def banked() -> Path:
    return checkpoint_of(modular("banked", BANK))


@pytest.mark.slow("traces a network with modules of six kinds of facts")
def test_one_graph_serves_several_routes_and_any_mixture_of_them(tmp_path: Path) -> None:
    exported = export(banked(), tmp_path / "bundle", ROUTES, console=QUIET)
    manifest = exported.manifest
    assert manifest.routes == ("boston", "boston+rain", "boston+night")
    asked = {"rain": ("rain",), "night": ("night",), "blind": ("no-cameras",)}
    assert {m.name: m.asks for m in manifest.banked} == asked
    assert (manifest.folded, manifest.inline) == ((), ("city", "film"))
    assert manifest.condition_values == CONDITION_VALUES
    model, _ = load_model(banked())
    runtime, engine = Runtime(tmp_path / "bundle"), OnnxRuntimeEngine(exported.onnx)
    frame = synthetic_frame("ego", RIG, 3)
    for known in ({}, {"weather": "rain"}, {"light": "night"}, {"weather": "rain", "light": "night"}):
        conditions = Conditions(city="boston", **known)
        for seen in (frame, without(frame, "camera"), without(frame, "lidar")):
            inputs = prepare(seen, exported.spec)
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
    planned = plan(banked(), ROUTES)
    steps = {step.slot: step for step in planned.steps}
    assert (steps["trunk.stage0.0"].what, steps["trunk.stage0.0"].modules) == ("folded", ("city",))
    stage = steps["trunk.stage1.0"]
    assert (stage.what, stage.modules, stage.why) == ("banked", ("city", "rain"), "rain: not on all routes")
    assert steps["camera.backbone.bn1"].modules == ("night",)
    assert steps["fused"].why == "blind: not on all routes"
    shown = table(planned)
    assert shown.row_count == len(planned.steps) + 1
    assert shown.caption == "on no route, not exported: dry"
    with pytest.raises(InputError, match="hail: unknown condition"):
        plan(banked(), [["hail"]])


def test_slots_of_a_router_in_the_graph_are_said_to_be() -> None:
    module = AFFINE[0] | {"slots": ["trunk.*", "lidar.*"]}
    run = checkpoint_of(modular("chosen", [module], routing={"kind": "learned", "choose": "soft"}))
    steps = {step.slot: step for step in plan(run).steps}
    chosen = steps["trunk.stage0.0"]
    assert (chosen.what, chosen.why) == ("banked", "selected by the router in the graph")
    assert steps["lidar.pillar"].what == "folded"


# ---- a network for each route: as cheap as the base, the right one for every frame, none unguarded


def exported() -> Bundle:
    return apart()[0]


@pytest.mark.slow("exports three networks, which other tests use too")
@pytest.mark.parametrize(
    ("conditions", "served"),
    [
        (Conditions(), Conditions()),
        (Conditions(weather="rain", city="boston"), Conditions(weather="rain")),
        (Conditions(weather="rain", light="night"), Conditions(weather="rain", light="night")),
        (Conditions(light="night"), Conditions()),  # no network for night alone: the one that asks for nothing
    ],
)
def test_each_frame_gets_the_network_that_asks_for_most_of_what_is_known(
    conditions: Conditions, served: Conditions
) -> None:
    frame = replace(synthetic_frame("ego", RIG, 3), conditions=conditions)
    inputs = {name: torch.from_numpy(a) for name, a in prepare(frame, exported().spec).items()}
    with torch.no_grad():
        outputs = {k: v.numpy() for k, v in load_model(apart_checkpoint())[0].predict(inputs, [served]).items()}
    expected = to_prediction(exported().manifest.heads, outputs)
    found = Runtime(exported().path).step(frame).prediction
    np.testing.assert_allclose(found.results["detection"].scores, expected.results["detection"].scores, atol=1e-4)
    np.testing.assert_allclose(found.results["map"], expected.results["map"], atol=1e-4)


def test_verify_looks_into_every_network_each_with_the_operators_of_the_base_alone(tmp_path: Path) -> None:
    assert verify(exported().path)["routes"] == "base, rain with its own network, rain+night with its own network"
    for part in (exported(), *exported().routes.values()):
        assert (part.manifest.operators, part.manifest.banked) == (bundle().manifest.operators, ())
    assert [part.manifest.folded for part in exported().routes.values()] == [("rain",), ("rain", "night")]
    for file, message in (
        ("routes/rain/model.onnx", "was changed"),
        ("routes/rain/manifest.json", "was changed"),
        ("routes/rain+night/golden.safetensors", "was changed"),
        ("routes/rain/more", "does not name this file"),
        ("routes/fog/manifest.json", "does not name this file"),
    ):
        path = copytree(exported().path, tmp_path / file.replace("/", "-"))
        (path / file).parent.mkdir(exist_ok=True)
        with (path / file).open("ab") as opened:
            opened.write(b" ")
        with pytest.raises(InputError, match=f"{file.split('/')[-1]}: .*{message}"):
            Bundle.load(path)
    path = copytree(exported().path, tmp_path / "bundle")
    forged = exported().manifest.model_copy(update={"apart": ("../elsewhere",)})
    (path / "manifest.json").write_bytes(forged.hashed_json())
    with pytest.raises(InputError, match=r"apart: '\.\./elsewhere' is none of clear"):
        Bundle.load(path)


@pytest.mark.slow("compiles three networks")
def test_every_network_is_compiled_and_a_signature_holds_for_all(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    path, (_, private, _), public = copytree(exported().path, tmp_path / "bundle"), apart(), tmp_path / "mine.pem"
    public.write_bytes(apart()[2].read_bytes())  # a vehicle keeps its state beside it
    _, another = keys(tmp_path / "another")
    build(path, "rtx-ampere", QUIET)  # plans that nobody signed
    assert set(Bundle.load(path, trusting(public)).routes) == {"rain", "rain+night"}
    with pytest.raises(InputError, match="not the signature"):
        Bundle.load(path, trusting(another))
    with pytest.raises(InputError, match=r"routes/rain/engines/rtx-ampere\..*sign"):
        Bundle.load(path, trusting(public)).routes["rain"].plan("rtx-ampere")
    build(path, "rtx-ampere", QUIET, sign=private)
    found = Bundle.load(path, trusting(public))
    plans = [part.plan("rtx-ampere") for part in (found, *found.routes.values())]
    assert len({plan.data for plan in plans}) == 3
    assert "rtx-ampere by tensorrt_rtx" in verify(path)["engines"]
    plans[1].path.write_bytes(plans[0].data)
    with pytest.raises(InputError, match=r"routes/rain/engines/rtx-ampere.plan: was changed"):
        verify(path)


# ---- a network with anchors, as those that are imported


def assert_close(a: Prediction, b: Prediction) -> None:
    """The same boxes one to one, up to the rounding of engines, which may swap neighbours in the order."""
    numbers, others = (
        np.column_stack(
            [x.centers, x.sizes, x.rotations[:, :2, 0], x.velocities[:, :2], x.scores[:, None], 9.0 * x.labels[:, None]]
        )
        for x in (a.results["detection"], b.results["detection"])
    )
    assert len(numbers) == len(others)
    off = np.abs(numbers[:, None] - others).max(axis=2)
    np.testing.assert_array_equal(np.sort(off.argmin(axis=1)), np.arange(len(others)))
    assert off.min(axis=1).max() < 1e-3


@pytest.mark.slow("exports networks with two kinds of neck")
@pytest.mark.parametrize(
    ("neck", "routes", "candidates"), [("joined", [["rain"]], 200), ("pyramid", [[], ["rain"]], 600)]
)
def test_anchors_perceive_what_torch_does_with_a_module_folded_or_switched(
    neck: str, routes: list[list[str]], candidates: int, tables: NuScenesTables, tmp_path: Path
) -> None:
    """`rain` at every slot."""
    predictor = TorchPredictor.load(anchored(neck, modular=True))
    made = export(anchored(neck, modular=True), tmp_path / "bundle", routes, console=QUIET)
    runtime, manifest = Runtime(made.path), made.manifest
    known = (Conditions(weather="rain"), *([] if manifest.folded else [Conditions(weather="clear")]))
    assert (manifest.folded, [each.name for each in manifest.banked]) == (
        (("rain",), []) if len(routes) == 1 else ((), ["rain"])
    )
    frames = [tables.frame(token, "lidar", 2, cameras=False) for token in tables.samples()[:2]]
    for frame in (*frames, synthetic_frame("lidar", RIG, 3)):
        for conditions in known:
            seen = replace(frame, conditions=conditions)
            expected, found = predictor(seen), runtime(seen)
            assert 20 < len(expected.results["detection"]) < 4000
            assert len(np.unique(expected.results["detection"].labels)) > 2
            assert_close(expected, found)
            assert_equal(found, runtime(seen))
    assert {tensor.name: tensor.shape for tensor in manifest.outputs}["detection/boxes"] == (1, 10, candidates, 10)
    assert manifest.tasks == predictor.model.config.tasks


def test_prompt_that_would_have_to_fold_for_several_sizes_is_refused() -> None:
    model, config = load_model(anchored("pyramid"))
    model.bank.add(Prompt(name="dry", slots=("heads.detection.classes",), size=4))
    inputs = prepare(synthetic_frame("lidar", RIG), InputSpec.of(config))
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    with torch.no_grad():
        model.predict(tensors)  # without a fold each map has its own
        with one_line_error(r"heads\.detection\.classes: a prompt folds for one size of input, this"):
            model.folded().predict(tensors)
