"""Lens, depth and lift of the camera branch against loops and closed forms; where training uses depth labels."""

import itertools
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import one_line_error
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import config as little
from networks import disturb, inputs, spec
from scipy.spatial.transform import Rotation
from torch import Tensor, nn

from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.engines.tensorrt import build_engine
from deploy.onnx_export import to_onnx
from deploy.targets import find_target
from perception.config import Augment, Config, Data, parse_config
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.errors import InputError
from perception.frame import Conditions
from perception.grid import BevGrid
from perception.model import PerceptionModel, Trace
from perception.modules.computation.weight_delta import LowRank
from perception.modules.routing.fixed import make_fixed_routes, present
from perception.sensors.camera.config import CameraBranch, Depth, Image
from perception.sensors.camera.lift import Lift
from perception.sensors.camera.network import depth_loss, intrinsics
from perception.sensors.camera.picture import depth_labels
from perception.training import optimize
from perception.training.loader import FrameDataset, Sample

IMAGE, CELLS, DEPTH = Image(height=32, width=64), (4, 8), Depth(near=1.0, far=21.0, bins=10, supervision=3.0)
AHEAD = np.array([[0, -1.0, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0]])  # camera at the origin, looks along x
LENS = np.array([[20.0, 0, 31.5], [0, 20.0, 15.5], [0, 0, 1]])
GRID = BevGrid(x=(-4.0, 4.0), y=(-2.0, 2.0), z=(-2.0, 2.0), cell=1.0)  # 4 rows, 8 columns


def lift_by_loop(config, grid, context, depth, matrices):
    """Bilinear look-up of every voxel in every camera, in numpy, one at a time."""
    n, c, h, w = context.shape
    rows, columns = grid.shape
    result = np.zeros((c, len(config.heights), rows, columns))
    bins = config.depth.bins
    for row, column, iz in np.ndindex(rows, columns, len(config.heights)):
        x, y = grid.x[0] + (column + 0.5) * grid.cell, grid.y[0] + (row + 0.5) * grid.cell
        point = np.array([x, y, config.heights[iz], 1.0])
        for i in range(n):
            u, v, along = matrices[i] @ point
            if along <= 0.1:
                continue
            u, v = u / along, v / along
            if not (-0.5 <= u <= config.image.width - 0.5 and -0.5 <= v <= config.image.height - 0.5):
                continue
            fu, fv = (u + 0.5) * w / config.image.width - 0.5, (v + 0.5) * h / config.image.height - 0.5
            feature = np.zeros(c)
            for y in (int(np.floor(fv)), int(np.floor(fv)) + 1):
                for x in (int(np.floor(fu)), int(np.floor(fu)) + 1):
                    if 0 <= y < h and 0 <= x < w:
                        feature += (1 - abs(fv - y)) * (1 - abs(fu - x)) * context[i, :, y, x]
            near_v, near_u = int(np.clip(np.round(fv), 0, h - 1)), np.clip(fu, 0, w - 1)
            bin_at = (along - config.depth.near) / (config.depth.far - config.depth.near) * bins - 0.5
            likely = 0.0
            for x in (int(np.floor(near_u)), int(np.floor(near_u)) + 1):
                for d in (int(np.floor(bin_at)), int(np.floor(bin_at)) + 1):
                    if x < w and 0 <= d < bins:
                        likely += max(0, 1 - abs(near_u - x)) * (1 - abs(bin_at - d)) * depth[i, d, near_v, x]
            result[:, iz, row, column] += likely * feature
    return result.reshape(c * len(config.heights), rows, columns)


def test_lift_equals_a_loop_over_voxels_and_ignores_missing_cameras():
    config = CameraBranch(channels=3, image=IMAGE, depth=Depth(near=0.5, far=8.0, bins=7), heights=(-0.5, 0.5))
    rng = np.random.default_rng(0)
    lift = Lift(config, GRID).double()
    context = rng.normal(size=(3, 3, 4, 8))
    depth = rng.dirichlet(np.ones(7), size=(3, 4, 8)).transpose(0, 3, 1, 2)
    # One camera looks along x, one along -y and a bit down; the third is missing.
    intrinsics = np.array([[30.0, 0, 31.5], [0, 30.0, 15.5], [0, 0, 1]])
    forward = np.array([[0, -1.0, 0, 0.1], [0, 0, -1, 0.2], [1, 0, 0, 0.3]])
    right = np.array([[-1.0, 0, 0, 0.2], [0, -0.1, -1, 0.1], [0, -1, 0.1, 0.2]])
    matrices = np.stack([intrinsics @ forward, intrinsics @ right, np.zeros((3, 4))])
    pulled = lift(*(torch.from_numpy(a)[None] for a in (context, depth, matrices)))
    expected = lift_by_loop(config, GRID, context, depth, matrices)
    assert (np.abs(expected).sum(axis=0) > 0).mean() > 0.3  # the cameras see a good part of the grid
    np.testing.assert_allclose(pulled[0].numpy(), expected, atol=1e-6)  # voxels are float32 numbers

    none = lift(*(torch.from_numpy(a)[None] for a in (context, depth, 0 * matrices)))
    assert torch.equal(none, torch.zeros_like(none))


def test_lift_keeps_projection_in_full_precision_under_autocast():
    config = CameraBranch(channels=3, image=IMAGE, depth=Depth(bins=7), heights=(0.0,))
    lift = Lift(config, GRID)
    context, depth = torch.randn(1, 1, 3, 4, 8), torch.rand(1, 1, 7, 4, 8)
    matrices = torch.tensor([[[[31.5, -30.0, 0, 0.1], [15.5, 0, -30.0, 0.2], [1, 0, 0, 5.3]]]])
    plain = lift(context, depth, matrices)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(lift(context, depth, matrices), plain)


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.sampled_from([-1.0, 1.0]), st.sampled_from([-1.0, 1.0]))
def test_intrinsics_of_a_known_camera_and_zeros_of_a_missing_one(seed, flip, mirror):
    rng, image = np.random.default_rng(seed), Image(height=256, width=704)
    fx, fy, cx, cy = rng.uniform([100, 100, 0, 0], [1500, 1500, 700, 250])
    lens = np.array([[mirror * fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    first, second = (Rotation.random(random_state=int(rng.integers(2**32))).as_matrix() for _ in range(2))
    similarity = np.eye(4)  # of the reference frame, as `draw_similarity`
    similarity[:3, :3] = rng.uniform(0.8, 1.2) * second * [1, flip, 1]
    similarity[:3, 3] = rng.normal(size=3)
    projection = torch.from_numpy(lens @ np.c_[first, rng.normal(size=3)] @ np.linalg.inv(similarity))
    expected = [fx / 704, fy / 256, cx / 704, cy / 256]
    np.testing.assert_allclose(intrinsics(projection, image), expected, rtol=1e-9, atol=1e-9)
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_allclose(intrinsics(projection.float(), image), expected, rtol=1e-4, atol=1e-5)
    assert not intrinsics(0 * projection, image).any()


def with_camera(config: Config, **camera: Any) -> Config:
    changed = config.model.camera.model_copy(update=camera)
    return config.model_copy(update={"model": config.model.model_copy(update={"camera": changed})})


def with_lens() -> Config:
    """The little model with cameras alone, of whose lenses the depth knows."""
    config = with_camera(little(), depth=little().model.camera.depth.model_copy(update={"intrinsics": True}))
    model = config.model.model_copy(update={"lidar": None})
    return config.model_copy(update={"model": model, "tasks": {"map": config.tasks["map"]}})


@cache
def trained() -> PerceptionModel:
    """With statistics of real activations, a gate that has learned, and a module at every slot of the depth."""
    torch.manual_seed(0)
    model = PerceptionModel(with_lens())
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model(pictures())
        torch.nn.init.normal_(model.camera.lens_depth.gate.layer.weight, std=1.0)
    model.bank.add(spec("module", "low_rank", "camera.lens*", "camera.depth*"))
    disturb(model, "module")
    return model.eval()


def pictures() -> dict[str, Tensor]:
    return {name: inputs(0)[name] for name in ("images", "image_from_reference")}


def logits(model: PerceptionModel, zoom: float = 1.0) -> Tensor:
    """Logits of the depth for cameras whose focal lengths are `zoom` times as large, and the same pictures."""
    given = pictures()
    x, y, z = given["image_from_reference"].unbind(dim=2)
    longer = torch.stack([zoom * x, zoom * y, z], dim=2)
    with torch.no_grad():
        return model.camera.encode(given["images"], longer)[1]


def test_the_lens_makes_no_difference_at_first_and_does_once_learned_without_nan_of_a_missing_camera() -> None:
    torch.manual_seed(0)
    model = PerceptionModel(with_lens()).eval()
    lens, given = model.camera.lens_depth, pictures()
    features = torch.randn(6, 32, 4, 8)
    plain = lens.head(lens.mix(features))
    torch.testing.assert_close(lens(features, given["image_from_reference"]), plain)
    assert torch.equal(logits(model), logits(model, 1.5))
    assert (logits(trained()) - logits(trained(), 1.5)).abs().max() > 0.01

    given["image_from_reference"] = given["image_from_reference"].clone()
    given["image_from_reference"][:, 2:] = 0
    model.train()(given)["map/logits"].sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.camera.parameters())
    assert lens.gate.layer.weight.grad.any()


def depth_of(model: PerceptionModel) -> Any:
    """The depth alone, as `to_onnx` takes a network."""
    alone = nn.ModuleDict({"depth": model.camera.lens_depth})
    alone.predict = lambda given: {"y": alone["depth"](given["features"], given["image_from_reference"])}
    return alone


def test_the_graph_computes_what_torch_does_and_compiles() -> None:
    fog, projections = Conditions(weather="fog"), pictures()["image_from_reference"].clone()
    projections[:, 5] = 0
    given = {"features": torch.randn(6, 32, 4, 8), "image_from_reference": projections}
    with torch.no_grad():
        ((route, _),) = make_fixed_routes(trained().bank, ["map"], [fog], present(trained().bank, pictures()))
        with trained().bank.current.running(route):
            expected = depth_of(trained()).predict(given)["y"]
        plain = depth_of(trained().folded()).predict(given)["y"]
    assert (expected - plain).abs().max() > 0.1  # what the module changes
    arrays = {name: values.numpy() for name, values in given.items()}
    graph = to_onnx(depth_of(trained().deployed(fog)), arrays, ["y"]).SerializeToString()
    np.testing.assert_allclose(OnnxRuntimeEngine(graph).run(arrays)["y"], expected, atol=1e-4)
    pytest.importorskip("tensorrt_rtx")
    shapes = {name: values.shape for name, values in arrays.items()}
    assert build_engine(graph, find_target("rtx-ada"), inputs=shapes).layers > 0


def by_loop(points, matrices, depth):
    """`depth_labels`, a point at a time."""
    nearest = np.full((len(matrices), *CELLS), np.inf)
    for i, point in itertools.product(range(len(matrices)), points):
        x, y, along = matrices[i] @ [*point[:3], 1]
        if along > 0:
            column, row = (int(np.floor((at / along + 0.5) / 8)) for at in (x, y))
            if 0 <= row < 4 and 0 <= column < 8:
                nearest[i, row, column] = min(nearest[i, row, column], along)
    return np.where((nearest < depth.near) | (nearest >= depth.far), 0, nearest)


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_labels_equal_a_loop_over_points(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.uniform([-8, -8, -3], [25, 8, 3], (40, 3))
    points[0, 0] = 0.5  # nearer than the first bin: hides what is behind it
    turned = np.linalg.qr(rng.normal(size=(3, 3)))[0] @ rng.normal(size=(3, 4))
    matrices = np.stack([LENS @ AHEAD, LENS @ turned, np.zeros((3, 4))])  # the third camera is missing
    expected = by_loop(points, matrices, DEPTH)
    assert expected[0].any()
    np.testing.assert_allclose(depth_labels(points, matrices, IMAGE, CELLS, DEPTH), expected, rtol=1e-5)
    assert not depth_labels(None, matrices, IMAGE, CELLS, DEPTH).any()


def test_the_loss_is_the_cross_entropy_of_the_labelled_cells() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 10, *CELLS, generator=generator, dtype=torch.float64)
    labels = 1 + 20 * torch.rand(2, 3, *CELLS, generator=generator, dtype=torch.float64)
    labels[:, 0] = 0
    labels[1, 1, 2] = 0
    sums, counts = depth_loss(logits, labels, DEPTH)
    expected, number = torch.zeros(2, dtype=torch.float64), torch.zeros(2)
    for b, n, row, column in np.ndindex(2, 3, *CELLS):
        if (metres := labels[b, n, row, column].item()) > 0:
            target = np.maximum(0, 1 - np.abs(np.arange(10) - np.clip((metres - 1) / 2 - 0.5, 0, 9)))
            p = logits[b, n, :, row, column].numpy()
            expected[b] -= target @ (p - np.log(np.exp(p).sum()))
            number[b] += 1
    torch.testing.assert_close(sums, 3 * expected, rtol=1e-5, atol=1e-5)  # computed in float32
    assert counts.tolist() == number.tolist()


def supervised(lidar: bool = True, **training: float) -> Config:
    """The little model with augmentation and supervised depth."""
    config = with_camera(little(), depth=Depth(near=1.0, far=60.0, bins=32, supervision=3.0))
    every = config.model.lidar.model_copy(update={"max_pillars": 2000, "points_per_pillar": 40})
    model = config.model.model_copy(update={"lidar": every if lidar else None})
    grid = config.grid.model_copy(update={"x": (-51.2, 51.2), "y": (-51.2, 51.2), "cell": 3.2, "z": (-9.0, 9.0)})
    data = Data(augment=Augment(scale=0.3, image_scale=0.2), class_balanced=False)
    train = config.train.model_copy(update={"drop": {}, **training})
    return config.model_copy(update={"grid": grid, "model": model, "data": data, "train": train})


def sample(root: Path, position: int = 0, **changed: Any) -> Sample:
    tables = NuScenesTables(root, "v1.0-tiny")
    return FrameDataset(tables, tables.samples(), supervised(**changed), supervision={"camera": CELLS})[position]


def test_labels_are_those_of_the_augmented_points_in_the_augmented_pictures(recorded_root):
    for position in range(4):
        each = sample(recorded_root, position)
        arrays, _ = each.frames[-1]
        points = arrays["pillar_points"][0][arrays["pillar_counts"][0] > 0].reshape(-1, 5)
        points = points[points.any(axis=1) & (points[:, 4] == 0)]
        assert len(points) > 450
        expected = by_loop(points, arrays["image_from_reference"][0], supervised().model.camera.depth)
        assert (expected > 0).sum() > 50
        np.testing.assert_allclose(each.labels["camera"]["depth"], expected, rtol=1e-4)


def test_labels_stay_when_the_network_gets_no_points_and_are_none_without_lidar(recorded_root, tmp_path):
    labels = sample(recorded_root).labels["camera"]["depth"]
    dropped = sample(recorded_root, drop={"lidar": 1.0})
    assert not dropped.frames[-1][0]["pillar_counts"].any()
    np.testing.assert_array_equal(dropped.labels["camera"]["depth"], labels)
    alone = sample(recorded_root, lidar=False, drop={"lidar": 0.5, "cameras": 0.5})
    assert "pillar_points" not in alone.frames[-1][0]
    np.testing.assert_array_equal(alone.labels["camera"]["depth"], labels)
    assert not sample(recorded_root, drop={"cameras": 1.0}).labels["camera"]["depth"].any()

    copy = shutil.copytree(recorded_root, tmp_path / "copy")
    shutil.rmtree(copy / "samples" / "LIDAR_TOP")
    labels = sample(copy).labels["camera"]["depth"]
    assert labels.shape == (6, *CELLS)
    assert not labels.any()


def test_depth_is_an_output_only_where_the_camera_trains():
    model = PerceptionModel(with_camera(little(), depth=Depth(near=1.0, far=60.0, bins=32, supervision=1.0)))
    seen = inputs(0)

    def logits() -> dict[str, Tensor]:
        trace = Trace()
        assert "camera/depth" not in model(seen, trace=trace)
        return trace.supervised

    assert model.supervision() == {"camera": CELLS}
    assert logits()["camera/depth"].shape == (1, 6, 32, *CELLS)
    optimize.joint(model)
    model.training = False
    assert "camera/depth" in logits()
    optimize.freeze(model, {"heads.*": 1, "*": 0})
    assert not logits()
    optimize.joint(model)
    for slots, trains in (("trunk.*", False), ("camera.neck", True)):
        model.bank.add(LowRank.Options(name="module", rank=1, slots=(slots,)))
        optimize.post_hoc(model, ["module"])
        assert bool(model.supervision()) == trains
        assert ("camera/depth" in logits()) == trains
        model.bank.delete("module")
    with one_line_error("model.camera.image: 36 x 64 is no multiple of 8"):
        PerceptionModel(with_camera(supervised(), image=Image(height=36, width=64))).supervision()


def without_cameras(given: dict[str, Tensor], lost: slice) -> dict[str, Tensor]:
    """A batch whose frames lack these cameras."""
    changed = {name: given[name].clone() for name in ("images", "image_from_reference")}
    for values in changed.values():
        values[:, lost] = 0
    return given | changed


ALL, TWO = slice(None), slice(1, 3)


def test_a_step_without_images_learns_the_same_without_the_camera_branch():
    """The map of the cameras is zeros then, from the branch too, which gets no gradient through it."""
    blind, results = without_cameras(inputs(0), ALL), []
    for training, images in ((False, 6), (True, 0)):
        torch.manual_seed(0)
        model, encoded = PerceptionModel(little()), list[int]()
        optimize.joint(model)
        model.camera.smooth.register_forward_hook(lambda _, given, __, encoded=encoded: encoded.append(len(given[0])))
        outputs = model(blind, trace=Trace(), training=training)
        assert encoded == [images]
        torch.stack([output.square().sum() for output in outputs.values()]).sum().backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        assert gradients
        assert not any(name.startswith("camera.") for name in gradients)
        results.append((outputs, gradients))
    torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.parametrize("lost", [ALL, TWO])
def test_the_statistics_of_the_camera_are_those_of_the_images_that_there_are(lost: slice) -> None:
    """Beside frames that lack their cameras, or some of them. Only the order of sums differs."""
    seen, missing = inputs(0), without_cameras(inputs(1), lost)
    present = missing["image_from_reference"].flatten(2).any(dim=2)
    images = torch.cat([seen["images"][0], missing["images"][present]])[None]
    projections = torch.cat([seen["image_from_reference"][0], missing["image_from_reference"][present]])[None]
    batch = {name: torch.cat([seen[name], missing[name]]) for name in seen}
    statistics = []
    for run in (lambda m: m(batch, training=True), lambda m: m.camera.encode(images, projections), lambda m: None):
        torch.manual_seed(0)
        model = PerceptionModel(little())
        run(model.train())
        statistics.append({n: v for n, v in model.camera.state_dict().items() if "running_" in n})
    torch.testing.assert_close(statistics[0], statistics[1], rtol=1e-4, atol=1e-5)
    assert any((a - b).abs().max() > 0.01 for a, b in zip(statistics[0].values(), statistics[2].values(), strict=True))


def test_a_module_of_some_frames_sees_their_images_whatever_others_lack() -> None:
    """In a training batch with frames that have all images, some and none, in fog and not."""
    model = trained()
    batch = [inputs(0), without_cameras(inputs(1), TWO), without_cameras(inputs(2), ALL), inputs(3)]
    given = {name: torch.cat([frame[name] for frame in batch]) for name in pictures()}
    conditions = [Conditions(weather=weather) for weather in ("clear", "fog", "fog", "fog")]
    with torch.no_grad():
        model.bank.modules["module"] = model.bank.modules["module"].model_copy(update={"when": ("fog",)})
        expected, found = model(given, conditions), model(given, conditions, training=True)
        plain = model(given, [Conditions()] * 4)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (found["map/logits"] - plain["map/logits"]).flatten(1).abs().max(dim=1).values.gt(1e-3).tolist() == [
        False, True, False, True,
    ]  # fmt: skip


@pytest.mark.parametrize("stride", [1, 2])
def test_cameras_alone_are_seen_on_the_cells_of_the_heads(stride):
    """Whatever the cells of their own map are."""
    content = little().model_dump(mode="json")
    content["model"] |= {"lidar": None, "camera": content["model"]["camera"] | {"stride": stride}}
    model = PerceptionModel(
        parse_config(content | {"modules": [{"name": "memory", "kind": "memory"}]}, "cameras")
    ).eval()
    seen = {name: inputs(1)[name] for name in ("images", "image_from_reference")}
    past = {"current_from_previous": torch.eye(4)[None], "state_valid": torch.ones(1), "elapsed": torch.ones(1)}
    with torch.no_grad():
        outputs = model({**seen, **past, **model.no_states(1)})
    assert outputs["detection/heatmap"].shape[-2:] == little().head_grid.shape
    assert outputs["next_state"].shape == model.no_states(1)["state"].shape


@pytest.mark.parametrize("stages", [(2, 3, 9), (), (-1,), (5,)])
@pytest.mark.parametrize("backbone", ["resnet10t", "tf_efficientnet_lite0"])
def test_levels_that_a_backbone_does_not_have_are_one_line(backbone: str, stages: tuple[int, ...]) -> None:
    config = {
        "name": "a",
        "model": {"camera": {"backbone": backbone, "stages": stages}, "lidar": None},
        "tasks": {"map": {}},
    }
    with pytest.raises(InputError, match=r"model\.camera\.stages") as error:
        PerceptionModel(parse_config(config, "a.yaml"))
    assert len(str(error.value).splitlines()) == 1
