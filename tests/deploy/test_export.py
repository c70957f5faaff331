"""The exported graph computes what torch computes, with standard operators only, and the bundle says what it is."""

import copy
import hashlib
from collections import Counter
from functools import cache
from pathlib import Path

import exported
import lowered
import numpy as np
import onnx
import pytest
import torch
from exported import QUIET, bundle, checkpoint, checkpoint_of, keys, modular, trusting, without
from hypothesis import given
from hypothesis import strategies as st
from networks import model as small_model
from networks import tasks
from once import once
from vocabulary import NUSCENES, RIG

from deploy.bundle import ONNX, Bundle
from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.export import export
from deploy.golden import GoldenFrame, WrongEngine, dense_spreads, differences, require_agreement, synthetic_frame
from deploy.manifest import Origin
from deploy.onnx_export import run, to_onnx
from deploy.plan import plan
from deploy.precision.measure import BOUNDS, LEAST, make_golden_frames
from deploy.route import parse_conditions, steering_inputs
from deploy.tolerances import Tolerances
from deploy.trust import Release
from deploy.verify import verify
from perception.checkpoint import load_model, save_model
from perception.datasets.keyframes import Reads
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.errors import InputError
from perception.frame import Frame
from perception.model import PerceptionModel
from perception.modules.files import read_record
from perception.sensors.inputs import prepare


@cache
def tiny() -> Bundle:
    """`tiny` in full size, with a module that an input switches."""
    return Bundle.load(once("bundle-tiny", lambda out: export(checkpoint("tiny"), out, [[], ["rain"]], console=QUIET)))


def assert_onnx_equals_torch(made: Bundle, run: Path, frame: Frame, route: tuple[str, ...]) -> np.ndarray:
    """As the unfolded network, routed by the conditions; returns the scores."""
    inputs, manifest, conditions = prepare(frame, made.spec), made.manifest, parse_conditions(route, NUSCENES)
    with torch.no_grad():
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        expected = {k: v.numpy() for k, v in load_model(run)[0].predict(tensors, [conditions]).items()}
    steer = steering_inputs(conditions, inputs, manifest.banked, manifest.condition_values)
    assert differences(expected, OnnxRuntimeEngine(made.onnx).run(inputs | steer), manifest.tolerances) == []
    scores: np.ndarray = expected["detection/scores"]
    return scores


@pytest.mark.slow("exports `tiny` in full size")
@pytest.mark.parametrize("missing", [None, "camera", "lidar"])
@pytest.mark.parametrize("route", [(), ("rain",)])
def test_onnx_equals_torch_on_real_frames(nuscenes_root: Path, missing: str | None, route: tuple[str, ...]) -> None:
    tables = NuScenesTables(nuscenes_root, "v1.0-mini")
    frame = tables.frame(tables.samples(selectors=["scene-0103:1-2"])[0], Reads(sweeps=2))
    seen = without(frame, missing) if missing else frame
    scores = assert_onnx_equals_torch(tiny(), checkpoint("tiny"), seen, route)
    assert (scores > scores[:, -1:] + 2e-4).sum() > 100  # that many boxes compared


@pytest.mark.slow("exports `tiny` in full size")
@pytest.mark.parametrize("route", [(), ("rain",)])
def test_onnx_equals_torch_on_simulated_frames_and_on_nothing(tables: NuScenesTables, route: tuple[str, ...]) -> None:
    """With the module folded."""
    for scene in tables.scenes():
        frame = tables.frame(tables.samples(selectors=[scene])[0], Reads(sweeps=2))
        nothing = without(without(frame, "camera"), "lidar")
        for seen in (frame, without(frame, "camera"), without(frame, "lidar"), nothing):
            assert_onnx_equals_torch(bundle(*route), checkpoint(), seen, route)


def test_graph_keeps_to_the_standard_and_tells_nothing_of_the_machine_that_made_it() -> None:
    """Shapes are static but for the number of pillars; TensorRT takes uint8 into a Cast and nothing else."""
    content = bundle().onnx.read_bytes()
    model = onnx.load_from_string(content)
    onnx.checker.check_model(model, full_check=True)
    assert {(o.domain, o.version) for o in model.opset_import} == {("", 18)}
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions
    for tensor in (*model.graph.input, *model.graph.output):
        free = {i: d.dim_param for i, d in enumerate(tensor.type.tensor_type.shape.dim) if not d.HasField("dim_value")}
        assert free == ({1: "pillars"} if tensor.name.startswith("pillar_") else {})
    assert dict(Counter(node.op_type for node in model.graph.node)) == bundle().manifest.operators
    assert [node.op_type for node in model.graph.node if "images" in node.input] == ["Cast"]
    assert b".py" not in content
    assert b"stack_trace" not in content


@pytest.mark.slow("exports twice")
def test_export_is_reproducible(tmp_path: Path) -> None:
    again = export(checkpoint(), tmp_path / "again", console=QUIET)
    assert again.manifest == bundle().manifest
    assert again.onnx.read_bytes() == bundle().onnx.read_bytes()


def test_flops_of_the_convolutions() -> None:
    """Counted once more from the ONNX shapes: 2 x outputs x kernel area x input channels."""
    model = onnx.load(bundle().onnx)
    for tensor in model.graph.input:
        for each in tensor.type.tensor_type.shape.dim:
            if each.dim_param == "pillars":
                each.dim_value = bundle().spec.lidar.max_pillars
    del model.graph.value_info[:]
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*graph.value_info, *graph.output)}
    weights = {i.name: list(i.dims) for i in graph.initializer}
    total = 0
    for node in graph.node:
        if node.op_type == "Conv":
            total += 2 * int(np.prod(shapes[node.output[0]])) * int(np.prod(weights[node.input[1]][1:]))
        elif node.op_type == "ConvTranspose":
            size = shapes[node.input[0]] if node.input[0] in shapes else weights[node.input[0]]
            total += 2 * int(np.prod(size)) * int(np.prod(weights[node.input[1]][1:]))
        elif node.op_type == "Gemm":
            rows, columns = shapes[node.output[0]]
            total += 2 * rows * columns * (int(np.prod(weights[node.input[1]])) // columns)
    assert bundle().manifest.flops == total


def test_operator_outside_the_standard_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Program:
        model_proto = onnx.load(bundle().onnx)

    node = Program.model_proto.graph.node[3]
    node.domain, node.op_type = "com.acme", "FastPillars"
    monkeypatch.setattr(torch.onnx, "export", lambda *arguments, **options: Program)
    model, _ = load_model(checkpoint())
    inputs, outputs = bundle().golden()
    with pytest.raises(InputError, match=r"com\.acme::FastPillars"):
        to_onnx(model, inputs, list(outputs))


def test_engine_that_computes_something_else_is_not_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, outputs = bundle().golden()
    outputs["map/probabilities"] = outputs["map/probabilities"] + np.float32(3e-4)
    monkeypatch.setattr("deploy.export.to_onnx", lambda *arguments: onnx.load(bundle().onnx))  # the slow part
    monkeypatch.setattr(OnnxRuntimeEngine, "run", lambda self, inputs: outputs)
    with pytest.raises(InputError, match=r"map/probabilities is off by 0\.0003"):
        export(checkpoint(), tmp_path / "bundle", console=QUIET)
    assert not (tmp_path / "bundle").exists()


DATA = ("v1.0-sim: 6 keyframes of 2 scenes", "v1.0-fog: 3 keyframes of 1 scenes")


@pytest.mark.slow("traces a network with modules of every affine kind")
def test_affine_modules_of_every_kind_cost_nothing_but_a_prompt_a_constant(tmp_path: Path) -> None:
    modules = [*exported.AFFINE, exported.PROMPT]
    # So many modules of 0.05 make depths' logits of 7,000, whose softmax is not the same on all processors in float32.
    checkpoint = checkpoint_of(modular("affine", modules), spread=0.03)
    folded, base = export(checkpoint, tmp_path / "bundle", [["rain"]], console=QUIET).manifest, bundle().manifest
    assert folded.folded == tuple(m["name"] for m in modules if m["name"] != "dry")
    assert folded.inline == ()
    assert folded.flops == base.flops
    more = {k: n - base.operators.get(k, 0) for k, n in folded.operators.items() if n != base.operators.get(k, 0)}
    assert more == {"Add": 1}
    steps = plan(checkpoint, [["rain"]]).steps
    assert {(step.what, step.parameters, step.flops) for step in steps} == {("folded", 0, 0)}
    assert [step.slot for step in steps] == [
        name for name, slot in load_model(checkpoint)[0].bank.slots.items() if slot.computations
    ]


@pytest.fixture(scope="module")
def bent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with modules that fold, that do not, and that no route runs."""
    kept = exported.AFFINE[0] | {"name": "kept", "slots": ["heads.map"]}  # behind one that does not fold
    modules = [exported.NOT_AFFINE, exported.AFFINE[0] | {"slots": ["fused"]}, kept, exported.AFFINE[-1]]
    network, config = load_model(checkpoint_of(modular("bent", modules)))
    run = tmp_path_factory.mktemp("bent") / "run"
    save_model(run, config, network, DATA)
    network.bank.save("rank", run / "modules" / "rank", "fog over the sea", {"mAP": 0.25})
    with torch.no_grad():
        next(network.parameters()).add_(1)
    network.bank.save("bend", run / "modules" / "bend", "of another base")  # of which nothing must be believed
    return run


@pytest.mark.slow("exports a network with modules")
def test_a_bundle_says_what_is_folded_where_it_comes_from_and_brings_its_modules(bent: Path, tmp_path: Path) -> None:
    """As the plan said before; the cost of what does not fold is counted."""
    key, public = keys(tmp_path)
    out, planned = tmp_path / "bundle", plan(bent)
    manifest = export(bent, out, console=QUIET, release=Release(license="CC-BY-NC-SA-4.0", sign=key)).manifest
    assert (manifest.folded, manifest.inline) == (("rank",), ("bend", "kept"))
    assert {step.slot: step.what for step in planned.steps} == {
        "fused": "folded", **dict.fromkeys(("camera.neck", "trunk.stage0.1", "heads.map"), "inline")
    }  # fmt: skip
    both = next(step for step in planned.steps if step.slot == "heads.map")
    assert both.modules == ("bend", "kept")
    assert "bend cannot fold" in both.why
    assert planned.unused == ("dry",)
    assert manifest.operators["Relu"] == bundle().manifest.operators["Relu"] + 3
    assert manifest.operators["Conv"] == bundle().manifest.operators["Conv"] + 8
    assert manifest.parameters == planned.parameters + sum(step.parameters for step in planned.steps)
    assert manifest.flops == planned.flops + sum(step.flops for step in planned.steps)

    trained = load_model(bent)[0]
    assert manifest.modules == ("bend", "rank", "kept", "dry")
    assert manifest.origin == Origin(
        checkpoint=hashlib.sha256((bent / "model.safetensors").read_bytes()).hexdigest(),
        base=trained.bank.base_hash(),
        modules={"rank": "fog over the sea", "bend": "", "kept": ""},
        data=DATA,
        golden=synthetic_frame("ego", RIG).token,
        license="CC-BY-NC-SA-4.0",
    )
    told = verify(out, trusting(public))
    assert told["modules"] == "rank (fog over the sea), bend (domain not known), kept (domain not known)"
    assert told["trained on"] == "; ".join(DATA)
    assert told["license"] == "CC-BY-NC-SA-4.0"
    assert told["golden frames"].startswith("synthetic-0 and others: ")

    files = sorted(file.name for file in (out / "modules").iterdir())
    assert files == sorted(f"{name}.{end}" for name in ("bend", "kept", "rank") for end in ("json", "safetensors"))
    assert read_record(out / "modules" / "rank").metrics == {"mAP": 0.25}
    again = load_model(bent)[0]
    for name in ("rank", "bend", "kept"):
        again.bank.delete(name)
    assert again.bank.load(*(out / "modules" / name for name in ("bend", "rank", "kept"))) == ["bend", "rank", "kept"]
    assert all(torch.equal(trained.state_dict()[key], tensor) for key, tensor in again.state_dict().items())
    assert Bundle.load(out, trusting(public)).manifest == manifest


def test_a_key_that_cannot_sign_is_said_before_anything_is_done(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.pem: cannot read the key"):
        export(tmp_path / "no run", tmp_path / "bundle", console=QUIET, release=Release(sign=tmp_path / "none.pem"))


MAP = "map/probabilities"


@cache
def scaled(factor: float) -> tuple[PerceptionModel, onnx.ModelProto]:
    """The logits of its map are this many times as large, and so are their rounding errors."""
    network = small_model().deployed()
    name, last = [each for each in network.heads["map"].named_modules() if isinstance(each[1], torch.nn.Conv2d)][-1]
    with torch.no_grad():
        last.weight *= factor
    changes = {f"model.heads.map.{name}.weight": lambda weight: weight * np.float32(factor)}
    return network, lowered.change_weights(lowered.single("folded"), changes)


@cache
def prove(factor: float, wrong: bool = False) -> tuple[tuple[GoldenFrame, ...], Tolerances]:
    network, graph = scaled(factor)
    frames = {str(seed): (lowered.frame(seed), run(network, lowered.frame(seed))[0]) for seed in range(3)}
    return make_golden_frames({ONNX: lowered.damage_convolution(graph) if wrong else graph}, "fp32", frames, tasks())


@pytest.mark.slow("computes a network in float64")
@pytest.mark.parametrize("factor", [1, 30])
def test_tolerances_cover_the_rounding_errors_of_float32(factor: float) -> None:
    (golden, allowed), (network, graph) = prove(factor), scaled(factor)
    exact = copy.deepcopy(network).double()
    for frame in golden:
        assert differences(frame.outputs, lowered.run(graph, frame.inputs), allowed, frame.compared) == []
        double = {k: v.astype(np.float64) if v.dtype == np.float32 else v for k, v in frame.inputs.items()}
        spreads = dense_spreads(run(exact, double)[0][MAP], frame.outputs[MAP], 1.0)
        for each, most in zip(spreads, allowed.dense[MAP].values(), strict=True):
            assert each.each <= most.each
            assert each.mean <= most.mean


def test_a_network_that_multiplies_rounding_errors_has_greater_tolerances() -> None:
    usual, wide = (prove(factor)[1] for factor in (1, 30))
    assert all(each == LEAST.cells for each in usual.dense[MAP].values())
    assert max(each.each for each in wide.dense[MAP].values()) > LEAST.cells.each
    assert wide.ranked == usual.ranked  # detection does not see it
    with pytest.raises(InputError, match=r"^the graph in fp32 does not .*: tolerance map.* train the network further"):
        prove(1e4)  # float32 cannot hold it; by more, all cells are sure


def test_a_wrong_graph_does_not_widen_them() -> None:
    wrong, (golden, allowed) = lowered.damage_convolution(scaled(1)[1]), prove(1, wrong=True)
    bounds = dict(BOUNDS["fp32"].all(tasks()).numbers())
    assert all(number < bounds[name] for name, number in allowed.numbers() if bounds[name])
    for frame in golden:
        with pytest.raises(WrongEngine, match="does not compute the exported network"):
            require_agreement(frame.outputs, lowered.run(wrong, frame.inputs), "engine", allowed, frame.compared)


def detections(seed: int, tied: bool, k: int = 30) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    scores = rng.choice([0.2, 0.5, 0.8], (1, k)) if tied else rng.permutation(np.linspace(0.1, 0.9, k))[None]
    return {
        "detection/boxes": rng.normal(0, 10, (1, k, 10)).astype(np.float32),
        "detection/scores": -np.sort(-scores).astype(np.float32),
        "detection/labels": rng.integers(0, 10, (1, k)),
        "detection/attributes": rng.integers(-1, 8, (1, k)),
        "map/probabilities": rng.uniform(0, 1, (1, 6, 4, 4)).astype(np.float32),
    }


@given(st.integers(0, 10**6), st.booleans())
def test_order_among_equal_scores_does_not_matter(seed: int, tied: bool) -> None:
    expected = detections(seed, tied)
    shuffle = np.lexsort([np.random.default_rng(seed).random(30), -expected["detection/scores"][0]])
    actual = {k: v if k == "map/probabilities" else v[:, shuffle] for k, v in expected.items()}
    assert differences(expected, actual, LEAST.all(tasks())) == []


def test_who_is_last_among_equals_is_free() -> None:
    expected, actual = detections(0, tied=True), detections(0, tied=True)
    actual["detection/boxes"][0, -1] += 5
    assert differences(expected, actual, LEAST.all(tasks())) == []
    actual["detection/boxes"][0, 0] += 5
    gone, differs = "1 compared detections are gone, first rank 0", "1 of 21 compared detections differ, first rank 0"
    assert differences(expected, actual, LEAST.all(tasks())) == [gone, differs]


def test_broken_outputs_are_named() -> None:
    expected = detections(0, tied=False)
    infinite = expected[MAP].copy()
    infinite[0, 0, 0, 0] = np.inf
    for said, broken in (("is missing", {}), ("has shape", {MAP: infinite[:, :5]}), ("is not finite", {MAP: infinite})):
        actual = {name: values for name, values in expected.items() if name != MAP} | broken
        (problem,) = differences(expected, actual, LEAST.all(tasks()))
        assert problem.startswith(f"{MAP} {said}")
