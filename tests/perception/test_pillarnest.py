"""The trunk of ConvNeXt blocks at every precision and with modules, and the IoU in scores, as in PillarNeSt."""

from typing import Any

import numpy as np
import pytest
import torch
from commands import one_line_error
from hypothesis import given
from hypothesis import strategies as st
from shapely.affinity import rotate, translate
from shapely.geometry import box as rectangle
from vocabulary import CLASSES, NUSCENES, RIG

from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.engines.tensorrt import build_engine
from deploy.golden import synthetic_frame
from deploy.onnx_export import to_onnx
from deploy.precision.calibrate import ranges
from deploy.precision.convert import to_half
from deploy.precision.quantise import CPU, TENSORRT, activations, quantisable, quantise
from deploy.targets import find_target
from perception.bev.trunks import ConvNextBlock, ConvNextTrunk
from perception.config import Config, parse_config
from perception.frame import Boxes, Conditions
from perception.grid import BevGrid
from perception.model import PerceptionModel
from perception.parts import Trunk
from perception.sensors.inputs import prepare
from perception.tasks.detection.config import DetectionHead, IouScore
from perception.tasks.detection.targets import center_labels, iou_3d, iou_loss

SMALL = {
    "name": "small",
    "grid": {"x": [-3.2, 3.2], "y": [-3.2, 3.2], "cell": 0.4, "reference": "lidar"},
    "model": {
        "lidar": {"max_pillars": 64, "points_per_pillar": 4, "channels": 4, "encoder": "padded", "pool": "max_mean"},
        "fusion": False,
        "fused_channels": 4,
        "trunk": {
            "kind": "convnext", "channels": [4, 6], "blocks": [1, 1], "strides": [1, 2], "kernels": [7, 5],
            "first_joined": 1, "up_channels": 4, "stride": 2,
        },
    },
    "tasks": {
        "detection": {
            "channels": 4, "top_k": 20, "attributes": "speed", "iou": {"beta": 0.5, "threshold": 0.1},
            "suppression": {"kind": "rotated", "threshold": 0.1},
        },
    },
}  # fmt: skip


CONFIG = parse_config(SMALL, "small")
INPUTS = prepare(synthetic_frame("lidar", RIG, seed=3), CONFIG.spec)


@torch.no_grad()
def shaken(config: Config) -> PerceptionModel:
    """A network with random weights of which none is at its neutral value."""
    torch.manual_seed(1)
    model = PerceptionModel(config)
    for name, parameter in model.named_parameters():
        if not name.endswith("heatmap.1.layer.bias"):
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.ndim == 1 else 0.1))
    return model.eval()


@pytest.mark.slow("traces a network, calibrates and runs it at three precisions, and compiles it")
@torch.no_grad()
def test_the_trunk_exports_at_every_precision_and_compiles() -> None:
    model, inputs = shaken(CONFIG).deployed(Conditions()), INPUTS
    heatmap = model.heads["detection"].head.branches["heatmap"][1].layer
    heatmap.weight.mul_(10)
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    best = model(tensors)["detection/heatmap"].flatten().topk(11).values
    heatmap.bias += np.log(0.1 / 0.9) - best[-2:].mean()  # ten are above the threshold
    expected = {name: value.numpy() for name, value in model.predict(tensors).items()}
    graph = to_onnx(model, inputs, list(expected))
    found = OnnxRuntimeEngine(graph.SerializeToString()).run(inputs)
    assert np.count_nonzero(expected["detection/scores"]) == 10
    np.testing.assert_allclose(found["detection/scores"], expected["detection/scores"], atol=1e-6)

    def change(other: Any) -> float:
        """Of the best scores; others may cross the threshold."""
        scores = OnnxRuntimeEngine(other.SerializeToString()).run(inputs)["detection/scores"]
        return float(np.abs(scores - expected["detection/scores"])[:, :5].max())

    assert 0 < change(to_half(graph)) < 0.01
    layers = [*quantisable(graph.graph)]
    assert sum("trunk" in node.input[1] for node in quantisable(graph.graph).values()) == 2 * 3 + 1 + 1
    measured = ranges(graph, activations(graph.graph), [inputs])
    for layout in (CPU, TENSORRT):
        quantised = quantise(graph, layers, measured, layout)
        assert 0 < change(quantised) < 0.1
    pytest.importorskip("tensorrt_rtx")
    shapes = {name: array.shape for name, array in inputs.items()}
    assert build_engine(quantised.SerializeToString(), find_target("rtx-ada"), inputs=shapes).layers


@torch.no_grad()
def test_modules_at_its_slots_fold() -> None:
    parts = [
        {"name": "rank", "kind": "low_rank", "slots": ["trunk.*"], "rank": 2},
        {"name": "scaled", "kind": "scale_shift", "slots": ["trunk.stage*"]},
    ]
    model = shaken(parse_config(SMALL | {"modules": parts}, "small")).double()
    held = {name for name, slot in model.bank.slots.items() if "scaled" in slot.computations}
    parts_of_block = {f"trunk.stage1.0.{part}" for part in ("depthwise", "norm", "expand", "project")}
    assert parts_of_block | {"trunk.stage1.down", "trunk.stage1.down.norm", "trunk.stage1.norm"} <= held
    inputs = {name: torch.from_numpy(array) for name, array in INPUTS.items()}
    inputs["pillar_points"] = inputs["pillar_points"].double()
    folded = model.folded(Conditions())
    assert not any(slot.computations for slot in folded.bank.slots.values())
    plain = PerceptionModel(CONFIG).double()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "computations" not in k})
    with_modules, found, without = (each.eval()(inputs)["detection/heatmap"] for each in (model, folded, plain))
    torch.testing.assert_close(found, with_modules, rtol=1e-9, atol=1e-9)
    assert (without - with_modules).abs().max() > 0.01


def test_blocks_are_skipped_more_often_the_later_they_come_and_in_training_only() -> None:
    stages = {"channels": (4, 4, 4), "blocks": (2, 1, 2), "strides": (1, 1, 1), "kernels": (3, 3, 3)}
    trunk = ConvNextTrunk(Trunk(kind="convnext", **stages, stride=1, drop_path=0.4), 4, 1)
    blocks = [module for module in trunk.modules() if isinstance(module, ConvNextBlock)]
    np.testing.assert_allclose([block.drop for block in blocks], [0, 0.1, 0.2, 0.3, 0.4], atol=1e-7)

    torch.manual_seed(0)
    block, x = blocks[-1], torch.randn(1, 4, 6, 6).expand(4000, -1, -1, -1)
    with torch.no_grad():
        whole = block.eval()(x[:1]) - x[:1]
        change = block.train()(x) - x
    skipped = (change == 0).flatten(1).all(dim=1)
    assert abs(skipped.float().mean() - 0.4) < 0.04  # five standard deviations
    torch.testing.assert_close(change[~skipped], (whole / 0.6).expand(int((~skipped).sum()), -1, -1, -1))


def test_settings_that_do_not_go_together_are_refused() -> None:
    for trunk, message in (
        ({"kernels": [7, 7, 7]}, "`kernels`, `first_joined` and `drop_path` are for the kind `convnext`"),
        ({"kind": "convnext"}, "the kind `convnext` needs `kernels`, an odd number for each stage"),
        ({"kind": "convnext", "kernels": [7, 7, 7], "pyramid": True}, "`pyramid` is for the kind `second`"),
    ):
        with one_line_error(says=message):
            parse_config({"name": "a", "model": {"trunk": trunk}}, "a")


number, size = st.floats(-3, 3), st.floats(0.2, 5)
box = st.tuples(number, number, st.floats(-1, 1), size, size, size, st.floats(-7, 7))


@given(box, box)
def test_the_iou_is_that_of_polygons_times_heights(one: tuple[float, ...], other: tuple[float, ...]) -> None:
    def footprint(values: tuple[float, ...]) -> Any:
        x, y, _, width, length, _, yaw = values
        ahead = rectangle(-length / 2, -width / 2, length / 2, width / 2)
        return translate(rotate(ahead, yaw, origin=(0, 0), use_radians=True), x, y)

    top, bottom = (pick(v[2] + sign * v[5] / 2 for v in (one, other)) for pick, sign in ((min, 1), (max, -1)))
    shared = footprint(one).intersection(footprint(other)).area * max(top - bottom, 0)
    union = sum(v[3] * v[4] * v[5] for v in (one, other)) - shared
    rows = [torch.tensor([(*v[:6], np.sin(v[6]), np.cos(v[6]))], dtype=torch.float64) for v in (one, other)]
    np.testing.assert_allclose(iou_3d(*rows), [shared / union], atol=1e-7)


def test_the_loss_of_the_iou_is_its_distance_from_that_of_the_predicted_box() -> None:
    grid, groups = BevGrid(x=(-8.0, 8.0), y=(-8.0, 8.0), z=(-3.0, 5.0), cell=2.0), (CLASSES[:5], CLASSES[5:])
    head = DetectionHead(groups=groups, iou=IouScore()).settled(NUSCENES)
    cars, others = CLASSES.index("car"), CLASSES.index("pedestrian")
    boxes = Boxes.from_yaws(
        centers=np.array([[1.0, 1.0, 0.0], [-3.0, 5.0, 0.5]]),
        sizes=np.array([[2.0, 4.0, 1.5], [0.6, 0.6, 1.8]]),
        yaws=np.array([0.5, 2.0]),
        velocities=np.full((2, 2), np.nan),
        labels=np.array([cars, others]),
        attributes=np.array([-1, -1]),
        scores=np.ones(2),
    )
    labels = {name: torch.from_numpy(values)[None] for name, values in center_labels(boxes, grid, head).items()}
    maps = []
    for group in (0, 1):
        own: dict[str, torch.Tensor] = {"iou": torch.zeros(1, 1, 8, 8)}
        for name in ("offset", "height", "size", "heading"):
            own[name] = torch.zeros(1, labels[name].shape[2], 64)
            for i in (labels["groups"][0] == group).nonzero()[:, 0]:
                own[name][0, :, labels["cells"][0, i]] = labels[name][0, i]
            own[name] = own[name].unflatten(2, (8, 8))
        maps.append({name: values.requires_grad_() for name, values in own.items()})
    # The car's box is the annotated one, predicted with an IoU of 0.5. The pedestrian's is as far up as half its height
    # (IoU 1/3), and its IoU is predicted to be sigmoid(2).
    with torch.no_grad():
        maps[1]["height"] += 0.9
        maps[1]["iou"] += 2
    loss = iou_loss(maps, labels, weight=3.0, cell=2.0)
    wanted = 3 * (0.5 + abs(1 / 3 - 1 / (1 + np.exp(-2))))
    np.testing.assert_allclose([float(loss.sums[0]), int(loss.counts[0])], [wanted, 2], rtol=1e-5)
    loss.sums.sum().backward()
    assert maps[0]["iou"].grad.count_nonzero() == maps[1]["iou"].grad.count_nonzero() == 1
    assert maps[1]["height"].grad is None
