"""FP16 and INT8: what is rounded and what is not, against FP32 torch; bundles say how exact they are."""

import copy
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lowered
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from commands import one_line_error, refuses
from exported import remembering, remembering_at, without
from lowered import onnx_model, switched, switched_run
from networks import config, tasks, uniform_tolerances
from onnx import TensorProto, helper, numpy_helper
from tiny import write_tiny
from torch import nn

from deploy.build import build
from deploy.engines import open_engine
from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.golden import clear_detections, differences, match_detections
from deploy.manifest import Calibration
from deploy.precision import calibrate
from deploy.precision.calibrate import PERCENTILE, ranges
from deploy.precision.convert import LARGEST_ERROR, Errors, blocks, error, require_close_outputs, sensitivity, to_half
from deploy.precision.graph import CONVOLUTIONS, places
from deploy.precision.measure import BOUNDS, MARGIN, is_below_saturation, make_golden_frames
from deploy.precision.quantise import CPU, TENSORRT, Layout, activations, quantisable, quantise
from deploy.tolerances import Precision, Ranked, Spread
from deploy.verify import verify
from perception.datasets.keyframes import Reads
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.errors import InputError
from perception.frame import Arrays, Frame
from perception.sensors.inputs import prepare
from perception.state import Limits
from perception.tasks.task import part_of


def single() -> onnx.ModelProto:
    return lowered.single("folded")


def at(precision: str) -> onnx.ModelProto:
    return lowered.graph(precision, "folded")


def typed(graph: onnx.ModelProto) -> dict[str, int]:
    whole = onnx.shape_inference.infer_shapes(graph, strict_mode=True).graph
    return {v.name: v.type.tensor_type.elem_type for v in (*whole.value_info, *whole.input, *whole.output)}


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


def assert_close(frame: Frame, graph: onnx.ModelProto, precision: str) -> int:
    """As close to torch as torch with the same rounding is, whatever machine computes both.

    Returns:
        The number of compared detections, in FP16.
    """
    inputs = prepare(frame, config().spec)
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    with torch.no_grad():
        expected = {name: value.numpy() for name, value in lowered.network().predict(tensors).items()}
    actual, rough = lowered.run(graph, inputs), emulated(tensors, precision)
    for apart in (score_error, lambda a, b: np.abs(a["map/probabilities"] - b["map/probabilities"]).mean()):
        assert 0 < apart(expected, actual) <= FURTHER * apart(expected, rough)
    if precision == "fp16":  # the boxes too, but for a few whose peak or attribute is another
        bounds = BOUNDS["fp16"].ranked
        expected, actual, rough = (part_of("detection", each) for each in (expected, actual, rough))
        compared = clear_detections(expected, bounds.score.each / MARGIN)[0]
        lost, allowed = (len(match_detections(expected, each, 0, compared, bounds).lost) for each in (actual, rough))
        assert lost <= FURTHER * max(1, allowed)
        return int(compared.sum())
    return 0


@pytest.mark.parametrize("precision", ["fp16", "int8", "int8.cpu"])
def test_frames_equal_torch_within_rounding(keyframes: tuple[Path, str], precision: str) -> None:
    """INT8 is calibrated on the keyframes before and after."""
    tables, spec, graph = NuScenesTables(*keyframes), config().spec, single()
    scenes = tables.scenes() if keyframes[1] == "v1.0-sim" else ["scene-0103"]
    if precision == "fp16":
        graph = at("fp16")
    else:
        others = tables.samples(selectors=[f"{scene}:{part}" for scene in scenes for part in ("0-1", "2-3")])
        drives = [prepare(tables.frame(token, Reads(sweeps=2)), spec) for token in others]
        measured = ranges(graph, activations(graph.graph), drives)
        assert [*measured] == sorted(measured)  # ONNX Runtime gives another order in each process
        layout = TENSORRT if precision == "int8" else CPU
        graph = quantise(graph, [*quantisable(graph.graph)], measured, layout)
    for scene in scenes:
        frame = tables.frame(tables.samples(selectors=[f"{scene}:1-2"])[0], Reads(sweeps=2))
        views = frame, without(frame, "camera"), without(frame, "lidar")
        compared = sum(assert_close(seen, graph, precision) for seen in views)
        assert precision != "fp16" or compared > 60


@pytest.mark.slow("traces a network for all tests of the file")
@pytest.mark.parametrize(
    ("precision", "kind"), [("fp32", "banked"), ("fp16", "folded"), ("int8", "folded"), ("int8", "banked")]
)
def test_the_tolerance_passes_the_graph_and_no_other(precision: Precision, kind: str) -> None:
    """Others: cameras in another order, no LiDAR, the weights of one layer upside down, no modules instead of some."""
    names = {"model.onnx": precision} | ({"model.cpu.onnx": "int8.cpu"} if precision == "int8" else {})
    graphs = {file: lowered.graph(name, kind) for file, name in names.items()}
    inputs = {str(seed): lowered.frame(seed, kind) for seed in range(3)}
    expected = {name: (each, lowered.run(lowered.single(kind), each)) for name, each in inputs.items()}
    golden, allowed = make_golden_frames(graphs, precision, expected, tasks())

    def found(graph: onnx.ModelProto, file: str, change: Callable[[lowered.Arrays], lowered.Arrays]) -> bool:
        return any(
            differences(f.outputs, lowered.run(graph, change(dict(f.inputs))), allowed, f.compared)
            for f in golden
            if f.graph == file
        )

    for file, graph in graphs.items():
        assert not found(graph, file, lambda inputs: inputs)
        assert found(lowered.damage_convolution(graph), file, lambda inputs: inputs)
        if kind == "folded":
            assert found(graph, file, lambda inputs: inputs | {"images": inputs["images"][:, ::-1]})
            assert found(graph, file, lambda inputs: inputs | {"pillar_counts": 0 * inputs["pillar_counts"]})
        else:
            assert found(graph, file, lambda inputs: inputs | {"route": np.zeros((1, 2), np.float32)})


def test_a_graph_that_is_too_far_off_gets_no_tolerance() -> None:
    inputs = lowered.frame(0)
    graphs = {"model.onnx": lowered.damage_convolution(at("fp16"))}
    with pytest.raises(InputError, match=r"the graph in fp16 does not compute the network: .* at a higher precision$"):
        make_golden_frames(graphs, "fp16", {"first": (inputs, lowered.run(single(), inputs))}, tasks())


def test_half_is_what_lies_between_the_sensors_and_the_last_layers() -> None:
    """And a cast stands only where the precision changes."""
    graph = at("fp16")
    types, made = typed(graph), {node.output[0]: node for node in graph.graph.node}
    by_type = {t: Counter(n.op_type for n in graph.graph.node if types[n.output[0]] == t) for t in set(types.values())}
    half, whole = by_type[TensorProto.FLOAT16], by_type[TensorProto.FLOAT]
    # Heat map, what is regressed at its peaks, map, and the cameras' context and depth are last layers.
    assert (half["Conv"], whole["Conv"], half["ConvTranspose"]) == (31, 4, 2)
    exact = {"Gemm", "ScatterND", "GridSample", "Softmax", "ReduceSum", "TopK", "Sigmoid", "Exp"}
    assert exact.isdisjoint(half)
    assert exact <= {*whole} | {"TopK"}
    for name in ("input", "output"):
        assert [v.type for v in getattr(graph.graph, name)] == [v.type for v in getattr(single().graph, name)]
    casts = [n for n in graph.graph.node if n.op_type == "Cast" and n.output[0].endswith((".half", ".single"))]
    for node in casts:
        assert types[node.input[0]] != types[node.output[0]]
        assert made[node.input[0]].op_type != "Cast" or not node.input[0].endswith((".half", ".single"))


def test_geometry_and_pillars_keep_every_bit() -> None:
    grids = [node.input[1] for node in single().graph.node if node.op_type == "GridSample"]
    canvas = [node.output[0] for node in single().graph.node if node.op_type == "ScatterND"]
    assert (len(grids), len(canvas)) == (2, 1)
    found = []
    for graph in (copy.deepcopy(single()), copy.deepcopy(at("fp16"))):
        types = typed(graph)
        del graph.graph.output[:]
        graph.graph.output.extend(helper.make_tensor_value_info(name, types[name], None) for name in grids + canvas)
        found.append(lowered.run(graph, lowered.frame(0)))
    for name, values in found[0].items():
        np.testing.assert_array_equal(found[1][name], values)


def test_weights_beyond_half_are_refused() -> None:
    graph = lowered.change_weights(single(), {"model.trunk.stages.1.1.conv.layer.weight": lambda weight: 1e6 * weight})
    with pytest.raises(InputError, match=r"model\.trunk\.stages\.1\.1.*beyond FP16; export with another precision"):
        to_half(graph)


@pytest.mark.parametrize("layout", [TENSORRT, CPU], ids=["tensorrt", "cpu"])
def test_a_quantised_layer_by_hand(layout: object) -> None:
    """x (1, I, 1, N) -> 1x1 convolution -> ReLU -> y."""
    rng = np.random.default_rng(0)
    weight = rng.normal(0, [[1.0], [0.01], [0.0]], (3, 5)).astype(np.float32)
    bias, x = np.array([0.5, -0.01, 3.0], np.float32), rng.uniform(-1, 3, (5, 50)).astype(np.float32)
    nodes = [
        helper.make_node(*each)
        for each in (("Identity", ["x"], ["a"]), ("Conv", ["a", "w", "b"], ["c"]), ("Relu", ["c"], ["r"]))
    ]
    constants = {"w": weight[:, :, None, None], "b": bias}
    graph = onnx_model(
        [*nodes, helper.make_node("Identity", ["r"], ["y"])], {"x": [1, 5, 1, 50]}, {"y": None}, constants
    )
    between = {"a": (-1.0, 2.0), "r": (0.0, 4.0)}  # some are clipped
    actual = lowered.run(quantise(graph, ["c"], between, layout), {"x": x[None, :, None]})["y"]
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
    graph = at("int8").graph
    rounded = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    convolutions = [node for node in graph.node if node.op_type in CONVOLUTIONS]
    plain = {node.output[0] for node in convolutions if not {node.input[0], node.input[1]} <= rounded}
    where = places(single().graph)
    assert plain == where.heads | where.view_transform
    assert (len(where.heads), len(where.view_transform), len(convolutions)) == (3, 1, 37)
    for node in graph.node:
        if node.op_type in ("GridSample", "Softmax", "TopK", "Sigmoid", "Gemm"):
            assert rounded.isdisjoint(node.input), node.op_type


def test_the_layout_of_onnx_runtime_is_for_it(tmp_path: Path) -> None:
    """ONNX Runtime has integer kernels for all convolutions of its own but the last layers and two transposed ones."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(at("int8.cpu").SerializeToString(), options, providers=["CPUExecutionProvider"])
    made = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert (made["QLinearConv"], made["Conv"] + made["FusedConv"]) == (31, 4)


def test_blocks_are_the_parts_of_the_model() -> None:
    found = blocks(single().graph)
    parts = {"camera.backbone", "fuse.mix", "trunk.stages.0", "trunk.lifts.2", "heads.detection", "heads.map"}
    assert parts <= {*found}
    assert sorted(layer for layers in found.values() for layer in layers) == sorted(quantisable(single().graph))
    banked = blocks(lowered.single("banked").graph)
    assert {*banked} == {*found}  # modules belong to the block of their slot
    assert len(banked["trunk.stages.1"]) == 3 * len(found["trunk.stages.1"])


@pytest.mark.parametrize(
    ("expected", "actual", "found"),
    [
        ((0.0, 0.0), (0.0, 0.0), 0.0),
        ((0.0, 0.0), (0.0, 0.5), 1e6),
        ((3.0, 4.0), (3.0, 4.5), 0.1),
        ((3.0, 4.0), (3.0, np.nan), 1e6),
        ((3.0, 4.0), (np.inf, 4.0), 1e6),
        ((np.nan, 4.0), (3.0, 4.0), 1e6),
    ],
)
def test_the_error_of_what_is_0_or_not_finite_is_a_number(
    expected: tuple[float, float], actual: tuple[float, float], found: float
) -> None:
    """And it is not hidden behind that of another map, whichever comes first."""
    other, same = np.ones(2, np.float32), np.zeros(2, np.float32)
    for order in (1, -1):
        names = ("a", "b", "c")[::order]
        maps = (dict(zip(names, (same, np.float32(each), other), strict=True)) for each in (expected, actual))
        first, second = ([each] for each in maps)
        assert error(first, second) == pytest.approx(found)


def test_int8_whose_output_is_not_a_number_is_refused() -> None:
    task: Any = SimpleNamespace(outputs=[SimpleNamespace(name="y", steady=False)])
    shape = {"x": [1, 2]}
    frames = [{"x": np.array([[-1.0, 2.0]], np.float32)}]
    root, same = (
        onnx_model([helper.make_node(kind, ["x"], ["task/y"])], shape, {"task/y": [1, 2]}) for kind in ("Sqrt", "Relu")
    )
    with one_line_error(says="int8 changes task/y too much on the drives it was calibrated on"):
        require_close_outputs(same, root, frames, {"task": task})
    require_close_outputs(same, same, frames, {"task": task})


@pytest.mark.slow("measures each block in INT8")
def test_a_block_that_hurts_stays_in_fp32() -> None:
    """One channel between two layers of a block a thousand times the size, and back: FP32 computes the same."""
    frames, measured = [lowered.frame(1)], lowered.measure_ranges("folded")
    before = {b.name: b for b in sensitivity(Errors(single(), measured, frames))}
    first, second = (f"model.trunk.stages.2.{i}.conv.layer.weight" for i in (1, 2))

    def grown(values: np.ndarray) -> np.ndarray:
        values[0] *= 1e3
        return values

    def shrunk(values: np.ndarray) -> np.ndarray:
        values[:, 0] *= 1e-3
        return values

    graph = lowered.change_weights(single(), {first: grown, f"{first}_bias": grown, second: shrunk})
    same = (lowered.run(each, frames[0]) for each in (single(), graph))
    assert differences(*same, uniform_tolerances(1e-2, tasks())) == []
    after = {b.name: b for b in sensitivity(Errors(graph, ranges(graph, measured, frames), frames))}
    assert before["trunk.stages.2"].error < LARGEST_ERROR < after["trunk.stages.2"].error
    assert (before["trunk.stages.2"].precision, after["trunk.stages.2"].precision) == ("int8", "fp32")
    assert after["heads.map"].precision == "int8"


def drives() -> Path:
    """Three keyframes with all sensors."""
    return switched("int8").path.parent / "drives"


@pytest.mark.slow("traces a network with modules, and measures INT8 block by block")
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_the_manifest_says_how_exact_it_is(precision: Precision) -> None:
    manifest = switched(precision).manifest
    assert manifest.precision == precision
    found, bounds = manifest.tolerances, BOUNDS[precision]
    spreads = [(each, bounds.cells) for each in found.dense["map/probabilities"].values()]
    spreads += [(each, getattr(bounds.ranked, name)) for name, each in found.ranked["detection"].spreads()]
    assert all(0 <= each.each <= bound.each and 0 <= each.mean <= bound.mean for each, bound in spreads)
    assert found.ranked["detection"].lost == bounds.ranked.lost
    assert found.ranked["detection"].score.each > BOUNDS["fp32"].ranked.score.each  # it is lowered
    assert [module.name for module in manifest.banked] == ["rain", "night"]
    assert bool(manifest.blocks) == (precision == "int8")
    for block in manifest.blocks:
        assert block.precision == ("int8" if block.error <= LARGEST_ERROR else "fp32")
    assert sum(block.precision == "int8" for block in manifest.blocks) >= len(manifest.blocks) / 2


def test_each_engine_gets_its_layout_with_the_ranges_of_the_drives(tmp_path: Path) -> None:
    bundle, types, rounded = switched("int8"), {}, {}
    for name in (bundle.cpu_onnx.name, bundle.onnx.name):
        graph = onnx.load(bundle.path / name).graph
        constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        nodes = [node for node in graph.node if node.op_type == "QuantizeLinear"]
        types[name] = {constants[node.input[2]].dtype.name for node in nodes}
        rounded = {node.input[0]: constants[node.input[1]] for node in nodes}
    assert types == {"model.cpu.onnx": {"uint8"}, "model.onnx": {"int8"}}
    assert switched("fp16").cpu_onnx.name == "model.onnx"
    calibration = Calibration.model_validate_json((bundle.path / "calibration.json").read_bytes())
    assert calibration.data == "v1.0-tiny"
    assert list(calibration.frames) == NuScenesTables(drives(), "v1.0-tiny").samples()
    assert len(rounded) > 20
    for name, scale in rounded.items():  # of model.onnx
        np.testing.assert_allclose(scale, max(map(abs, calibration.ranges[name])) / 127, rtol=1e-6)
    assert verify(bundle.path)["calibration"] == f"{len(calibration.ranges)} ranges on 3 keyframes of v1.0-tiny"
    engine, allowed = open_engine(bundle), bundle.manifest.tolerances
    for frame in bundle.golden_frames("model.cpu.onnx"):
        assert differences(frame.outputs, engine.run(frame.inputs), allowed, frame.compared) == []
    pytest.importorskip("tensorrt_rtx")
    copied = shutil.copytree(bundle.path, tmp_path / "bundle")
    assert build(copied, "rtx-ada").onnx_sha256 == bundle.files["model.onnx"]


def test_wrong_arguments_are_one_line(tmp_path: Path) -> None:
    for message, *arguments in (
        ("int8: needs --calibrate", "--precision", "int8"),
        ("for the drives of --calibrate", "--scenes", "scene-0001"),
        ("nowhere", "--precision", "int8", "--calibrate", "nowhere"),
        ("--apart: one route has one network", "--apart"),
        ("--apart: one route has one network", "--apart", "--conditions", "rain,night"),
        ("--expires 2020-02-02: is past", "--expires", "2020-02-02"),
        ("--expires 9999-12-31T23:59-12:00: not a date", "--expires", "9999-12-31T23:59-12:00"),
        ("scene-9", "--precision", "int8", "--calibrate", drives(), "--scenes", "scene-9"),
    ):
        assert message in refuses("export", switched_run(), "--out", tmp_path / "bundle", *arguments)
        assert not (tmp_path / "bundle").exists()


def test_frames_are_spread_over_the_drives_and_have_a_camera(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = config().spec
    write_tiny(tmp_path / "drives")
    shutil.rmtree(tmp_path / "drives" / "samples" / "CAM_FRONT")
    front = calibrate.Drives(tmp_path / "drives", "v1.0-tiny").inputs(spec)
    assert len(front) == 3  # five are enough
    for camera in (tmp_path / "drives" / "samples").glob("CAM_*"):
        shutil.rmtree(camera)
    with pytest.raises(InputError, match="no keyframe of these scenes has all sensors"):
        calibrate.Drives(tmp_path / "drives", "v1.0-tiny").inputs(spec)
    monkeypatch.setattr(calibrate, "MOST", 2)
    every, first, last = (
        calibrate.Drives(drives(), "v1.0-tiny", [scenes]).inputs(spec)
        for scenes in ("scene-0001:0-3", "scene-0001:0-1", "scene-0001:2-3")
    )
    assert list(every) == [*first, *last]
    for (actual,), (expected,) in zip(every.values(), (first | last).values(), strict=True):
        np.testing.assert_array_equal(actual["pillar_points"], expected["pillar_points"])


def test_a_network_with_a_memory_is_calibrated_on_clips(tmp_path: Path) -> None:
    """Keyframes half a second apart, the frames before each, and how the vehicle moved between them."""
    write_tiny(tmp_path)
    spec = replace(config().spec, memory=Limits(seconds=1.2, speed=70.0))
    clips = [*calibrate.Drives(tmp_path, "v1.0-tiny").inputs(spec).values()]
    assert [[float(frame["elapsed"][0]) for frame in clip] for clip in clips] == [[0.0], [0.0, 0.5], [0.0, 0.5, 0.5]]
    for frame in clips[2][1:]:
        np.testing.assert_allclose(frame["current_from_previous"][0], np.eye(4) - 2.5 * np.eye(4, k=3), atol=1e-5)
    for name, array in clips[1][1].items():
        np.testing.assert_array_equal(array, clips[2][1][name])


@pytest.mark.slow("exports a network that other tests use too")
def test_the_state_of_a_clip_is_what_its_earlier_frames_leave() -> None:
    engine, golden = OnnxRuntimeEngine(remembering().onnx), remembering().golden_frames()
    clip = [frame.inputs for frame in golden if frame.name.startswith("moving")]
    assert [bool(each["state_valid"]) for each in clip] == [False, True, True]
    state = np.zeros(remembering().manifest.input_shapes["state"], np.float32)
    for inputs in clip[:-1]:
        state = engine.run({**inputs, "state": state})["next_state"]
    found = calibrate.with_state(clip, engine)
    np.testing.assert_array_equal(found["state"], state)
    assert np.abs(state).max() > 0
    assert all(found[name] is array for name, array in clip[-1].items())


@pytest.mark.slow("exports a network in three precisions that other tests use too")
def test_fp16_rounds_nothing_from_the_state_to_the_next_one() -> None:
    graph = onnx.load(remembering_at("fp16").onnx)
    kinds, memory = typed(graph), places(onnx.load(remembering().onnx).graph).memory
    assert "next_state" in memory
    assert TensorProto.FLOAT16 in kinds.values()
    floats = {name: kinds[name] for name in memory if kinds[name] != TensorProto.INT64}
    assert {*floats.values()} == {TensorProto.FLOAT}


@pytest.mark.slow("exports a network that other tests use too")
@pytest.mark.parametrize("layout", [TENSORRT, CPU])
def test_int8_rounds_what_the_trunk_reads_but_not_the_state(layout: Layout) -> None:
    """Where all convolutions are INT8, also the first of the trunk, which reads what the next state is made of."""
    graph = onnx.load(remembering().onnx)
    parts, wide = places(graph.graph), dict.fromkeys(activations(graph.graph), (-4.0, 4.0))
    found = quantise(graph, quantisable(graph.graph), wide, layout).graph
    made = {name: node for node in found.node for name in node.output}
    before = {node.output[0]: node for node in graph.graph.node}
    rounded_map = [
        node.input[0] for node in found.node if node.op_type == "QuantizeLinear" and node.input[0] in parts.memory
    ]
    assert len(rounded_map) == 1, "the trunk reads it rounded"
    for output in parts.memory:
        for name, original in zip(made[output].input, before[output].input, strict=True):
            assert name == original or original not in parts.memory


def test_scores_that_differ_from_1_by_rounding_alone_are_not_compared() -> None:
    steps = np.float32(1) - np.float32(2**-24) * np.array([[0, 1, 2, 10, 100, 1e6]], np.float32)
    assert is_below_saturation({"scores": steps}).tolist() == [[False] * 4 + [True] * 2]
