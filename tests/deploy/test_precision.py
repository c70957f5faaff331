"""Graphs in FP16 and INT8: what is rounded and what is not, against FP32 torch; NVIDIA's compiler takes them all."""

import copy
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import lowered
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from damaged import damaged
from exported import without
from graphs import onnx_model
from networks import config, tasks, uniform_tolerances
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from deploy.engines.tensorrt import build_engine
from deploy.golden import Arrays, GoldenFrame, differences
from deploy.golden_detections import clear_detections, match_detections
from deploy.precision.calibrate import PERCENTILE, ranges
from deploy.precision.graph import CONVOLUTIONS, places
from deploy.precision.half import to_half
from deploy.precision.measure import MARGIN, make_golden_frames
from deploy.precision.quantise import CPU, TENSORRT, activations, quantisable, quantise
from deploy.precision.sensitivity import LARGEST_ERROR, blocks, sensitivity
from deploy.targets import find_target
from deploy.tolerances import BOUNDS, Precision, Ranked, Spread, Tolerances
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.errors import InputError
from perception.frame import Frame
from perception.sensors.inputs import InputSpec, prepare
from perception.tasks.task import part_of


def typed(graph: onnx.ModelProto) -> dict[str, int]:
    whole = onnx.shape_inference.infer_shapes(graph, strict_mode=True).graph
    return {v.name: v.type.tensor_type.elem_type for v in (*whole.value_info, *whole.input, *whole.output)}


def giving(graph: onnx.ModelProto, tensors: list[str]) -> onnx.ModelProto:
    """A copy whose outputs are these tensors."""
    copy, types = onnx.ModelProto(), typed(graph)
    copy.CopyFrom(graph)
    del copy.graph.output[:]
    copy.graph.output.extend(helper.make_tensor_value_info(name, types[name], None) for name in tensors)
    return copy


# ---- every precision, against torch and the compiler


@pytest.mark.parametrize("target", ["rtx-ampere", "rtx-ada"])
@pytest.mark.parametrize("kind", ["folded", "banked"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_every_precision_compiles(precision: str, kind: str, target: str) -> None:
    pytest.importorskip("tensorrt_rtx")
    graph = lowered.graph(precision, kind)
    onnx.checker.check_model(graph, full_check=True)
    shapes = {name: array.shape for name, array in lowered.frame(0, kind).items()}
    assert build_engine(graph.SerializeToString(), find_target(target), inputs=shapes).layers > 0


def test_tensorrt_refuses_the_layout_of_the_cpu() -> None:
    """Which is why there are two."""
    pytest.importorskip("tensorrt_rtx")
    shapes = {name: array.shape for name, array in lowered.frame(0).items()}
    with pytest.raises(InputError, match=r"rtx-ada: tensorrt_rtx .* refuses"):
        build_engine(lowered.graph("int8.cpu").SerializeToString(), find_target("rtx-ada"), inputs=shapes)


def rounded(values: torch.Tensor, precision: str, channels: int | None = None) -> torch.Tensor:
    """To half, or to INT8 with a scale for all together, or along an axis.

    A range that was measured on other frames may be twice as wide as this one's, which costs a bit.
    """
    if precision == "fp16":
        return values.half().float()
    axes = [i for i in range(values.ndim) if i != channels]
    largest = values.abs().max() if channels is None else values.abs().amax(dim=axes, keepdim=True)
    step = (largest / (63 if channels is None else 127)).clamp(min=1e-12)
    return torch.round(values / step) * step


def emulated(inputs: dict[str, torch.Tensor], precision: str) -> dict[str, np.ndarray]:
    """What torch gives where every convolution's weights and inputs are rounded, the last layers' too."""
    network = copy.deepcopy(lowered.network())
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            layer.weight.data = rounded(layer.weight.data, precision, int(isinstance(layer, nn.ConvTranspose2d)))
            layer.register_forward_pre_hook(lambda _, given: tuple(rounded(each, precision) for each in given))
    with torch.no_grad():
        return {name: value.numpy() for name, value in network.predict(inputs).items()}


FURTHER = 2  # than the emulated rounding: it strikes elsewhere
FAR = Spread(each=1e9, mean=1e9)
SAME_CELL = Ranked(score=FAR, center=Spread(each=0.8, mean=0.8), size=FAR, heading=FAR, velocity=FAR, lost=1)


def score_error(expected: Arrays, actual: Arrays) -> float:
    """Root mean square over the detections that both found: rounding also decides which of two cells is a peak."""
    mine, other = (part_of("detection", each) for each in (expected, actual))
    mine, other = ({**each, "attributes": np.zeros_like(each["labels"])} for each in (mine, other))
    found = match_detections(mine, other, 0, np.ones(mine["scores"].shape[1:], bool), SAME_CELL)
    assert len(found.offsets["score"]) >= 20
    return float(np.sqrt((found.offsets["score"] ** 2).mean()))


def map_error(expected: Arrays, actual: Arrays) -> float:
    return float(np.abs(expected["map/probabilities"] - actual["map/probabilities"]).mean())


def assert_close(frame: Frame, graph: onnx.ModelProto, precision: str) -> None:
    """As close to torch as torch with the same rounding is, whatever machine computes both."""
    inputs = prepare(frame, InputSpec.of(config()))
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    with torch.no_grad():
        expected = {name: value.numpy() for name, value in lowered.network().predict(tensors).items()}
    actual, rough = lowered.run(graph, inputs), emulated(tensors, precision)
    for error in (score_error, map_error):
        assert 0 < error(expected, actual) <= FURTHER * error(expected, rough)
    if precision == "fp16":  # the boxes too, but for a few whose peak or attribute is another
        bounds = BOUNDS["fp16"].ranked
        expected, actual, rough = (part_of("detection", each) for each in (expected, actual, rough))
        compared = clear_detections(expected, bounds.score.each / MARGIN)[0]
        lost, allowed = (len(match_detections(expected, each, 0, compared, bounds).lost) for each in (actual, rough))
        assert compared.sum() > 20
        assert lost <= FURTHER * max(1, allowed)


def calibrated(tables: NuScenesTables, selectors: list[str], precision: str) -> onnx.ModelProto:
    """The graph at this precision, INT8 from these keyframes."""
    whole = lowered.single()
    if precision == "fp16":
        return lowered.graph("fp16")
    spec = InputSpec.of(config())
    frames = [prepare(tables.frame(t, sweeps=2), spec) for t in tables.samples(selectors=selectors)]
    measured = ranges(whole, activations(whole.graph), frames)
    return quantise(whole, [*quantisable(whole.graph)], measured, TENSORRT if precision == "int8" else CPU)


@pytest.mark.parametrize("precision", ["fp16", "int8", "int8.cpu"])
def test_real_frames_equal_torch_within_rounding(nuscenes_root: Path, precision: str) -> None:
    tables = NuScenesTables(nuscenes_root, "v1.0-mini")
    graph = calibrated(tables, ["scene-0103:0-1", "scene-0103:2-4"], precision)
    frame = tables.frame(tables.samples(selectors=["scene-0103:1-2"])[0], sweeps=2)
    for seen in (frame, without(frame, "camera"), without(frame, "lidar")):
        assert_close(seen, graph, precision)


@pytest.mark.parametrize("precision", ["fp16", "int8", "int8.cpu"])
def test_simulated_frames_equal_torch_within_rounding(tables: NuScenesTables, precision: str) -> None:
    others = [f"{scene}:{i}-{i + 1}" for scene in tables.scenes() for i in (0, 2)]
    graph = calibrated(tables, others, precision)
    for scene in tables.scenes():
        assert_close(tables.frame(tables.samples(selectors=[f"{scene}:1-2"])[0], sweeps=2), graph, precision)


def proved(precision: Precision, kind: str) -> tuple[dict[str, onnx.ModelProto], tuple[GoldenFrame, ...], Tolerances]:
    """The graphs at this precision by file, their golden frames and tolerances."""
    names = {"model.onnx": precision} | ({"model.cpu.onnx": "int8.cpu"} if precision == "int8" else {})
    graphs = {file: lowered.graph(name, kind) for file, name in names.items()}
    frames = {str(seed): lowered.frame(seed, kind) for seed in range(3)}
    expected = {name: (inputs, lowered.run(lowered.single(kind), inputs)) for name, inputs in frames.items()}
    return graphs, *make_golden_frames(graphs, precision, expected, tasks())


@pytest.mark.parametrize("kind", ["folded", "banked"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_tolerance_passes_the_graph_and_no_other(precision: Precision, kind: str) -> None:
    """Others: cameras in another order, no LiDAR, the weights of one layer upside down, no modules instead of some."""
    graphs, frames, allowed = proved(precision, kind)

    def found(graph: onnx.ModelProto, file: str, change: Callable[[lowered.Arrays], lowered.Arrays]) -> bool:
        return any(
            differences(f.outputs, lowered.run(graph, change(dict(f.inputs))), allowed, f.compared)
            for f in frames
            if f.graph == file
        )

    for file, graph in graphs.items():
        assert not found(graph, file, lambda inputs: inputs)
        assert found(damaged(graph), file, lambda inputs: inputs)
        if kind == "folded":
            assert found(graph, file, lambda inputs: inputs | {"images": inputs["images"][:, ::-1]})
            assert found(graph, file, lambda inputs: inputs | {"pillar_counts": 0 * inputs["pillar_counts"]})
        else:
            assert found(graph, file, lambda inputs: inputs | {"route": np.zeros((1, 2), np.float32)})


def test_a_graph_that_is_too_far_off_gets_no_tolerance() -> None:
    inputs = lowered.frame(0)
    graphs = {"model.onnx": damaged(lowered.graph("fp16"))}
    with pytest.raises(InputError, match=r"the graph in fp16 does not compute the network: .* at a higher precision$"):
        make_golden_frames(graphs, "fp16", {"first": (inputs, lowered.run(lowered.single(), inputs))}, tasks())


# ---- FP16


def test_half_is_what_lies_between_the_sensors_and_the_last_layers() -> None:
    graph = lowered.graph("fp16")
    types = typed(graph)
    by_type = {t: Counter(n.op_type for n in graph.graph.node if types[n.output[0]] == t) for t in set(types.values())}
    half, whole = by_type[TensorProto.FLOAT16], by_type[TensorProto.FLOAT]
    # Heat map, what is regressed at its peaks, map, and the cameras' context and depth are last layers.
    assert (half["Conv"], whole["Conv"], half["ConvTranspose"]) == (31, 4, 2)
    single = {"Gemm", "ScatterND", "GridSample", "Softmax", "ReduceSum", "TopK", "Sigmoid", "Exp"}
    assert single.isdisjoint(half)
    assert single <= {*whole} | {"TopK"}
    for name in ("input", "output"):
        assert [v.type for v in getattr(graph.graph, name)] == [v.type for v in getattr(lowered.single().graph, name)]


def test_geometry_and_pillars_keep_every_bit() -> None:
    graph = lowered.single()
    grids = [node.input[1] for node in graph.graph.node if node.op_type == "GridSample"]
    canvas = [node.output[0] for node in graph.graph.node if node.op_type == "ScatterND"]
    assert (len(grids), len(canvas)) == (2, 1)
    inputs = lowered.frame(0)
    expected, actual = (lowered.run(giving(g, grids + canvas), inputs) for g in (graph, lowered.graph("fp16")))
    for name, values in expected.items():
        np.testing.assert_array_equal(actual[name], values)


def test_a_cast_stands_only_where_the_precision_changes() -> None:
    graph = lowered.graph("fp16")
    types = typed(graph)
    made = {node.output[0]: node for node in graph.graph.node}
    for node in graph.graph.node:
        if node.op_type == "Cast" and node.output[0].endswith((".half", ".single")):
            assert types[node.input[0]] != types[node.output[0]]
            assert made[node.input[0]].op_type != "Cast" or not node.input[0].endswith((".half", ".single"))


def test_weights_beyond_half_are_refused() -> None:
    graph = onnx.ModelProto()
    graph.CopyFrom(lowered.single())
    tensor = next(t for t in graph.graph.initializer if t.name.endswith("trunk.stages.1.1.conv.layer.weight"))
    tensor.CopyFrom(numpy_helper.from_array(1e6 * numpy_helper.to_array(tensor), tensor.name))
    with pytest.raises(InputError, match=r"model\.trunk\.stages\.1\.1.*beyond FP16; export with another precision"):
        to_half(graph)


# ---- INT8


def small_graph(weight: np.ndarray, bias: np.ndarray) -> onnx.ModelProto:
    """x (1, I, 1, N) -> 1x1 convolution -> ReLU -> y."""
    nodes = [
        helper.make_node("Identity", ["x"], ["a"]),
        helper.make_node("Conv", ["a", "w", "b"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Identity", ["r"], ["y"]),
    ]
    return onnx_model(
        nodes, {"x": [1, weight.shape[1], 1, 50]}, {"y": None}, {"w": weight[:, :, None, None], "b": bias}
    )


@pytest.mark.parametrize("layout", [TENSORRT, CPU], ids=["tensorrt", "cpu"])
def test_a_quantised_layer_by_hand(layout: object) -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(0, [[1.0], [0.01], [0.0]], (3, 5)).astype(np.float32)
    bias, x = np.array([0.5, -0.01, 3.0], np.float32), rng.uniform(-1, 3, (5, 50)).astype(np.float32)
    between = {"a": (-1.0, 2.0), "r": (0.0, 4.0)}  # some are clipped
    actual = lowered.run(quantise(small_graph(weight, bias), ["c"], between, layout), {"x": x[None, :, None]})["y"]
    scale = np.abs(weight).max(axis=1, keepdims=True) / 127
    whole = np.rint(np.divide(weight, scale, out=np.zeros_like(weight), where=scale > 0))
    if layout is TENSORRT:
        rounded = np.clip(np.rint(x / (2 / 127)), -128, 127) * (2 / 127)
        expected = np.maximum((whole * scale) @ rounded + bias[:, None], 0)
        atol = 1e-5
    else:
        step, out = 3 / 255, 4 / 255
        rounded = (np.clip(np.rint(x / step) + 85, 0, 255) - 85) * step
        exact = (whole * scale) @ rounded + bias[:, None]
        expected = np.clip(np.rint(exact / out), 0, 255) * out
        atol = 1.01 * out  # a number between two steps may go to either
        assert (np.abs(actual[0, :, 0] - expected) > 1e-5).mean() < 0.02
    np.testing.assert_allclose(actual[0, :, 0], expected, atol=atol)


def test_ranges_are_percentiles_of_all_frames() -> None:
    values = np.random.default_rng(0).normal(1, [[1], [3]], (2, 250_000)).astype(np.float32)
    nodes = [helper.make_node("Neg", ["x"], ["n"]), helper.make_node("Exp", ["n"], ["y"])]
    model = onnx_model(nodes, {"x": [250_000]}, {"y": [250_000]})
    low, high = ranges(model, ["n"], [{"x": row} for row in values])["n"]
    cut = (100 - PERCENTILE) / 2
    expected = np.percentile(-values, [cut, 100 - cut])
    np.testing.assert_allclose([low, high], expected, atol=3 * np.ptp(values) / 2048)


def test_last_layers_and_view_transform_are_never_quantised() -> None:
    graph = lowered.graph("int8").graph
    rounded = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    convolutions = [node for node in graph.node if node.op_type in CONVOLUTIONS]
    plain = {node.output[0] for node in convolutions if not {node.input[0], node.input[1]} <= rounded}
    where = places(lowered.single().graph)
    assert plain == where.heads | where.view_transform
    assert (len(where.heads), len(where.view_transform), len(convolutions)) == (3, 1, 37)
    for node in graph.node:
        if node.op_type in ("GridSample", "Softmax", "TopK", "Sigmoid", "Gemm"):
            assert rounded.isdisjoint(node.input), node.op_type


def test_the_cpu_layout_runs_on_integer_kernels(tmp_path: Path) -> None:
    """All of its convolutions but the last layers and the two transposed ones, by what ONNX Runtime makes of it."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    content = lowered.graph("int8.cpu").SerializeToString()
    onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    made = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert made["QLinearConv"] == 31
    assert made["Conv"] + made["FusedConv"] == 4


def test_blocks_are_the_parts_of_the_model() -> None:
    found = blocks(lowered.single().graph)
    assert {"camera.backbone", "fuse.mix", "trunk.stages.0", "trunk.lifts.2", "heads.detection", "heads.map"} <= {
        *found
    }
    assert sorted(layer for layers in found.values() for layer in layers) == sorted(quantisable(lowered.single().graph))
    banked = blocks(lowered.single("banked").graph)
    assert {*banked} == {*found}  # modules belong to the block of their slot
    assert len(banked["trunk.stages.1"]) == 3 * len(found["trunk.stages.1"])


def test_a_block_that_hurts_stays_in_fp32() -> None:
    """One channel between two layers of a block a thousand times the size, and back: FP32 computes the same."""
    graph = onnx.ModelProto()
    graph.CopyFrom(lowered.single())
    frames = [lowered.frame(1)]
    before = {b.name: b for b in sensitivity(graph, lowered.measured(), frames)}
    weights = {t.name: t for t in graph.graph.initializer}
    first, second = (weights[f"model.trunk.stages.2.{i}.conv.layer.weight"] for i in (1, 2))
    bias = weights[f"{first.name}_bias"]
    for tensor, index, factor in ((first, 0, 1e3), (bias, 0, 1e3), (second, (slice(None), 0), 1e-3)):
        values = numpy_helper.to_array(tensor).copy()
        values[index] *= factor
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    same = differences(
        lowered.run(lowered.single(), frames[0]), lowered.run(graph, frames[0]), uniform_tolerances(1e-2, tasks())
    )
    assert same == []
    spoilt = ranges(graph, lowered.measured(), frames)
    after = {b.name: b for b in sensitivity(graph, spoilt, frames)}
    assert before["trunk.stages.2"].error < LARGEST_ERROR < after["trunk.stages.2"].error
    assert (before["trunk.stages.2"].precision, after["trunk.stages.2"].precision) == ("int8", "fp32")
    assert after["heads.map"].precision == "int8"
