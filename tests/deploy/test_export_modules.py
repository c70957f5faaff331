"""Modules in a bundle: what folds is gone, what does not is in the graph, and the compiler takes it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from exported import AFFINE, BANK, NOT_AFFINE, PROMPT, QUIET, ROUTES, bundle, checkpoint_of, modular, without
from vocabulary import CONDITION_VALUES, RIG

from deploy.build import build
from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.export import export
from deploy.golden import differences, synthetic_frame
from deploy.plan import plan
from deploy.route import steering_inputs
from deploy.runtime import Runtime
from perception.frame import Conditions
from perception.sensors.inputs import prepare
from perception.tasks.result import to_prediction
from perception.training.checkpoint import load_model


def test_affine_modules_of_every_kind_cost_nothing_but_a_prompt_a_constant(tmp_path: Path) -> None:
    modules = [*AFFINE, PROMPT]
    # So many modules of 0.05 make depths' logits of 7,000, whose softmax is not the same on all processors in float32.
    checkpoint = checkpoint_of(modular("affine", modules), spread=0.03)
    folded = export(checkpoint, tmp_path / "bundle", [["rain"]], console=QUIET).manifest
    assert folded.folded == tuple(m["name"] for m in modules if m["name"] != "dry")
    assert folded.inline == ()
    base = bundle().manifest
    assert folded.flops == base.flops
    more = {k: n - base.operators.get(k, 0) for k, n in folded.operators.items() if n != base.operators.get(k, 0)}
    assert more == {"Add": 1}


def test_what_does_not_fold_stays_in_the_graph_and_compiles_and_the_plan_counts_it(tmp_path: Path) -> None:
    kept = AFFINE[0] | {"name": "kept", "slots": ["heads.map"]}  # behind one that does not fold
    checkpoint = checkpoint_of(modular("bent", [NOT_AFFINE, AFFINE[0] | {"slots": ["fused"]}, kept]))
    exported, planned = export(checkpoint, tmp_path / "bundle", console=QUIET), plan(checkpoint)
    manifest = exported.manifest
    assert (manifest.folded, manifest.inline) == (("rank",), ("bend", "kept"))
    assert manifest.operators["Relu"] == bundle().manifest.operators["Relu"] + 3
    assert manifest.operators["Conv"] == bundle().manifest.operators["Conv"] + 8
    assert manifest.parameters == planned.parameters + sum(step.parameters for step in planned.steps)
    assert manifest.flops == planned.flops + sum(step.flops for step in planned.steps)
    pytest.importorskip("tensorrt_rtx")
    assert build(tmp_path / "bundle", "rtx-ampere", QUIET).layers > 0


@pytest.mark.parametrize(
    "routing",
    [
        {"kind": "learned", "choose": "top_k", "k": 2, "level": "slot"},
        {"kind": "learned", "choose": "soft", "level": "cell"},
    ],
)
def test_a_learned_router_is_part_of_the_graph_and_compiles(tmp_path: Path, routing: dict[str, object]) -> None:
    modules = [
        {"name": "a", "kind": "low_rank", "slots": ["trunk.stage*"], "rank": 2, "when": ["rain"]},
        {"name": "b", "kind": "bottleneck", "slots": ["trunk.stage0.1", "heads.map"], "when": ["night"]},
    ]
    name = "-".join(str(value) for value in routing.values())
    exported = export(checkpoint_of(modular(name, modules, routing=routing)), tmp_path / "bundle", console=QUIET)
    assert (exported.manifest.folded, exported.manifest.inline) == ((), ("a", "b"))
    pytest.importorskip("tensorrt_rtx")
    assert build(tmp_path / "bundle", "rtx-ampere", QUIET).layers > 0


def test_one_graph_serves_several_routes_and_any_mixture_of_them(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(modular("banked", BANK))
    exported = export(checkpoint, tmp_path / "bundle", ROUTES, console=QUIET)
    manifest = exported.manifest
    assert manifest.routes == ("boston", "boston+rain", "boston+night")
    assert {m.name: m.asks for m in manifest.banked} == {
        "rain": ("rain",),
        "night": ("night",),
        "blind": ("no-cameras",),
    }
    assert (manifest.folded, manifest.inline) == ((), ("city", "film"))
    assert manifest.condition_values == CONDITION_VALUES
    model, _ = load_model(checkpoint)
    runtime, engine = Runtime(tmp_path / "bundle"), OnnxRuntimeEngine(exported.onnx)
    frame = synthetic_frame("ego", RIG, 3)
    for conditions in (
        Conditions(city="boston"),
        Conditions(weather="rain", city="boston"),
        Conditions(light="night", city="boston"),
        Conditions(weather="rain", light="night", city="boston"),
    ):
        for seen in (frame, without(frame, "camera"), without(frame, "lidar")):
            inputs = prepare(seen, exported.spec)
            steer = steering_inputs(conditions, inputs, manifest.banked, manifest.condition_values)
            actual = engine.run(inputs | steer)
            tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
            with torch.no_grad():
                expected = {name: value.numpy() for name, value in model.predict(tensors, [conditions]).items()}
            assert differences(expected, actual, manifest.tolerances) == [], (
                conditions,
                seen.cameras.keys(),
            )
            if seen is frame:
                step = runtime(replace(frame, conditions=conditions))
                np.testing.assert_array_equal(step.results["map"], to_prediction(manifest.heads, actual).results["map"])
    pytest.importorskip("tensorrt_rtx")
    assert build(tmp_path / "bundle", "rtx-ampere", QUIET).layers > 0
