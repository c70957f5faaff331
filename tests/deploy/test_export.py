"""The exported graph computes what torch computes, with standard operators only."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from exported import QUIET, bundle, checkpoint, without
from hypothesis import given
from hypothesis import strategies as st
from lowered import OUTPUTS
from networks import tasks
from vocabulary import NUSCENES, RIG

from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.export import export
from deploy.golden import differences, synthetic_frame
from deploy.onnx_export import to_onnx
from deploy.route import parse_conditions
from deploy.tolerances import LEAST
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.errors import InputError
from perception.frame import Conditions, Frame
from perception.sensors.inputs import prepare
from perception.training.checkpoint import load_model

TOLERANCE = 1e-4


def torch_outputs(frame: Frame, conditions: Conditions) -> dict[str, np.ndarray]:
    """The unfolded network's, routed by the conditions."""
    model, _ = load_model(checkpoint())
    inputs = {name: torch.from_numpy(array) for name, array in prepare(frame, bundle().spec).items()}
    with torch.no_grad():
        return {name: value.numpy() for name, value in model.predict(inputs, [conditions]).items()}


def assert_onnx_equals_torch(frame: Frame, exported_for: tuple[str, ...]) -> dict[str, np.ndarray]:
    exported = bundle(*exported_for)
    expected = torch_outputs(frame, parse_conditions(exported_for, NUSCENES))
    actual = OnnxRuntimeEngine(exported.onnx).run(prepare(frame, exported.spec))
    assert differences(expected, actual, exported.manifest.tolerances) == []
    return expected


@pytest.mark.parametrize("missing", [None, "camera", "lidar"])
@pytest.mark.parametrize("conditions", [(), ("rain",)])
def test_onnx_equals_torch_on_real_frames(
    nuscenes_root: Path, missing: str | None, conditions: tuple[str, ...]
) -> None:
    tables = NuScenesTables(nuscenes_root, "v1.0-mini")
    frame = tables.frame(tables.samples(selectors=["scene-0103:1-2"])[0], sweeps=2)
    expected = assert_onnx_equals_torch(without(frame, missing) if missing else frame, conditions)
    assert (
        expected["detection/scores"] > expected["detection/scores"][:, -1:] + 2 * TOLERANCE
    ).sum() > 100  # that many boxes compared


@pytest.mark.parametrize("missing", [None, "camera", "lidar"])
def test_onnx_equals_torch_on_simulated_frames(tables: NuScenesTables, missing: str | None) -> None:
    for scene in tables.scenes():
        frame = tables.frame(tables.samples(selectors=[scene])[0], sweeps=2)
        assert_onnx_equals_torch(without(frame, missing) if missing else frame, ())


def test_onnx_equals_torch_with_nothing_to_see() -> None:
    frame = without(without(synthetic_frame("ego", RIG), "camera"), "lidar")
    assert_onnx_equals_torch(frame, ())


def test_graph_keeps_to_the_standard_domain_and_static_shapes_but_for_the_number_of_pillars() -> None:
    graph = onnx.load(bundle().onnx)
    onnx.checker.check_model(graph, full_check=True)
    assert {(o.domain, o.version) for o in graph.opset_import} == {("", 18)}
    assert {node.domain for node in graph.graph.node} == {""}
    assert not graph.functions
    for tensor in (*graph.graph.input, *graph.graph.output):
        free = {i: d.dim_param for i, d in enumerate(tensor.type.tensor_type.shape.dim) if not d.HasField("dim_value")}
        assert free == ({1: "pillars"} if tensor.name.startswith("pillar_") else {})
    assert dict(Counter(node.op_type for node in graph.graph.node)) == bundle().manifest.operators


def test_pictures_go_into_a_cast_first() -> None:
    """TensorRT takes uint8 into nothing else."""
    graph = onnx.load(bundle().onnx).graph
    assert [node.op_type for node in graph.node if "images" in node.input] == ["Cast"]


def test_graph_tells_nothing_of_the_machine_that_made_it() -> None:
    content = bundle().onnx.read_bytes()
    assert b".py" not in content
    assert b"stack_trace" not in content


def test_export_is_reproducible(tmp_path: Path) -> None:
    again = export(checkpoint(), tmp_path / "again", console=QUIET)
    assert again.manifest == bundle().manifest
    assert again.onnx.read_bytes() == bundle().onnx.read_bytes()


def test_folding_costs_nothing_and_matters() -> None:
    base, folded = bundle(), bundle("rain")
    assert folded.manifest.operators == base.manifest.operators
    assert (folded.manifest.parameters, folded.manifest.flops) == (base.manifest.parameters, base.manifest.flops)
    assert (base.manifest.folded, folded.manifest.folded) == ((), ("rain",))
    assert differences(base.golden()[1], folded.golden()[1], folded.manifest.tolerances) != []


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
    monkeypatch.setattr("deploy.network.to_onnx", lambda *arguments: onnx.load(bundle().onnx))  # the slow part
    monkeypatch.setattr(OnnxRuntimeEngine, "run", lambda self, inputs: outputs)
    with pytest.raises(InputError, match=r"map/probabilities is off by 0\.0003"):
        export(checkpoint(), tmp_path / "bundle", console=QUIET)
    assert not (tmp_path / "bundle").exists()


def test_conditions() -> None:
    assert parse_conditions(["boston", "rain"], NUSCENES) == Conditions(weather="rain", city="boston")
    assert parse_conditions([], NUSCENES) == Conditions()
    with pytest.raises(InputError, match="snow: unknown condition; choose from clear, rain"):
        parse_conditions(["snow"], NUSCENES)
    with pytest.raises(InputError, match="rain: contradicts clear; give one weather"):
        parse_conditions(["clear", "rain"], NUSCENES)


# ---- the comparison that all of this rests on


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


@given(st.integers(0, 10**6), st.sampled_from(OUTPUTS), st.integers(0, 15))
def test_one_wrong_number_is_noticed(seed: int, name: str, rank: int) -> None:
    expected = detections(seed, tied=False)
    actual = {k: v.copy() for k, v in expected.items()}
    place = (0, rank) if name != "map/probabilities" else (0, 3, 1, 2)
    actual[name][place] = actual[name][place] + (1 if actual[name].dtype == np.int64 else 0.01)
    assert differences(expected, actual, LEAST.all(tasks())) != []


def test_who_is_last_among_equals_is_free() -> None:
    expected = detections(0, tied=True)
    actual = {k: v.copy() for k, v in expected.items()}
    actual["detection/boxes"][0, -1] += 5
    assert differences(expected, actual, LEAST.all(tasks())) == []
    actual["detection/boxes"][0, 0] += 5
    assert differences(expected, actual, LEAST.all(tasks())) == ["1 of 21 compared detections differ, first rank 0"]


@pytest.mark.parametrize("broken", ["missing", "shape", "nan"])
def test_broken_outputs_are_named(broken: str) -> None:
    expected = detections(0, tied=False)
    actual = {k: v.copy() for k, v in expected.items()}
    if broken == "missing":
        del actual["map/probabilities"]
    elif broken == "shape":
        actual["map/probabilities"] = actual["map/probabilities"][:, :5]
    else:
        actual["map/probabilities"][0, 0, 0, 0] = np.nan
    assert len(differences(expected, actual, LEAST.all(tasks()))) == 1
    assert "map/probabilities" in differences(expected, actual, LEAST.all(tasks()))[0]
