"""Depth labels against a loop over points, the loss against closed forms, and where training uses them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import config as little
from networks import inputs
from refusals import one_line_error
from tiny import write_tiny

from perception.config import Augment, CameraBranch, Config, Data, Depth, Image
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.frame import KEYFRAME_AGE
from perception.grid import BevGrid
from perception.model import PerceptionModel
from perception.modules.spec import LowRank
from perception.sensors.camera.depth import depth_labels
from perception.sensors.camera.depth_loss import depth_loss, depth_targets
from perception.sensors.camera.lift import Lift
from perception.training import trainable
from perception.training.loader import FrameDataset, Sample

IMAGE, CELLS, DEPTH = Image(height=32, width=64), (4, 8), Depth(near=1.0, far=21.0, bins=10, supervision=3.0)
AHEAD = np.array([[0, -1.0, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0]])  # camera at the origin, looks along x
LENS = np.array([[20.0, 0, 31.5], [0, 20.0, 15.5], [0, 0, 1]])


def by_loop(points: np.ndarray, matrices: np.ndarray, image: Image, cells: tuple[int, int], depth: Depth) -> np.ndarray:
    """`depth_labels`, a point at a time."""
    nearest = np.full((len(matrices), *cells), np.inf)
    for point in points:
        for i, matrix in enumerate(matrices):
            x, y, along = matrix @ [*point[:3], 1]
            u, v = (x / along, y / along) if along > 0 else (np.nan, np.nan)
            for row in range(cells[0]):
                for column in range(cells[1]):
                    wide, high = image.width / cells[1], image.height / cells[0]
                    inside = column * wide - 0.5 <= u < (column + 1) * wide - 0.5
                    if inside and row * high - 0.5 <= v < (row + 1) * high - 0.5:
                        nearest[i, row, column] = min(nearest[i, row, column], along)
    return np.where((nearest < depth.near) | (nearest >= depth.far), 0, nearest)


def test_a_point_at_a_known_place_labels_its_cell() -> None:
    # 10 m ahead, 4 m to the left, 3 m up: pixel (31.5 - 20 * 0.4, 15.5 - 20 * 0.3) = (23.5, 9.5), in cells of 8 pixels.
    hidden, behind, far = [20, 8, 6, 0, 0], [-10, 4, 3, 0, 0], [30, 0, 0, 0, 0]
    points = np.array([hidden, [10, 4, 3, 0, 0], behind, far], np.float32)
    expected = np.zeros((2, *CELLS))
    expected[0, 1, 3] = 10
    matrices = np.stack([LENS @ AHEAD, np.zeros((3, 4))])  # the second camera is missing
    np.testing.assert_allclose(depth_labels(points, matrices, IMAGE, CELLS, DEPTH), expected, rtol=1e-6)
    assert not depth_labels(None, matrices, IMAGE, CELLS, DEPTH).any()


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_labels_equal_a_loop_over_points(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.uniform([-8, -8, -3], [25, 8, 3], (40, 3))
    points[0, 0] = 0.5  # nearer than the first bin: hides what is behind it
    turned = np.linalg.qr(rng.normal(size=(3, 3)))[0] @ rng.normal(size=(3, 4))
    matrices = np.stack([LENS @ AHEAD, LENS @ turned])
    expected = by_loop(points, matrices, IMAGE, CELLS, DEPTH)
    assert expected[0].any()
    np.testing.assert_allclose(depth_labels(points, matrices, IMAGE, CELLS, DEPTH), expected, rtol=1e-5)


@given(st.floats(1.0, 21.0), st.integers(1, 70))
def test_the_target_as_a_distribution_has_the_depth_as_its_expectation(metres: float, bins: int) -> None:
    depth = Depth(near=1.0, far=21.0, bins=bins)
    lower, upper, share = depth_targets(torch.tensor([metres], dtype=torch.float64), depth)
    centres = 1.0 + (torch.arange(bins, dtype=torch.float64) + 0.5) * 20 / bins
    expectation = ((1 - share) * centres[lower] + share * centres[upper]).item()
    assert expectation == pytest.approx(float(np.clip(metres, centres[0], centres[-1])))
    assert 0 <= share.item() <= 1
    assert (upper - lower).item() in ((1, 0) if share.item() == 0 else (1,))


@pytest.mark.parametrize("metres", [2.0, 7.3, 13.0, 19.9])
def test_the_lift_finds_the_target_at_its_depth(metres: float) -> None:
    """Bilinear interpolation of the shares (1 - f, f) at f gives (1 - f)^2 + f^2; 1 at the centre of a bin."""
    grid = BevGrid(x=(metres - 0.5, metres + 0.5), y=(-0.5, 0.5), cell=1.0)
    branch = CameraBranch(channels=1, image=IMAGE, depth=DEPTH, heights=(0.0,))
    lower, upper, share = depth_targets(torch.full((1, 1, 1, *CELLS), metres), DEPTH)
    distribution = torch.zeros(1, 1, DEPTH.bins, *CELLS).scatter_add(2, lower, 1 - share).scatter_add(2, upper, share)
    matrix = torch.from_numpy(LENS @ AHEAD).float()[None, None]
    found = Lift(branch, grid)(torch.ones(1, 1, 1, *CELLS), distribution, matrix).item()
    f = (metres - DEPTH.near) / 2 - 0.5  # bins of 2 m
    f -= np.floor(f)
    assert found == pytest.approx((1 - f) ** 2 + f**2, abs=1e-4)


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


def test_the_gradient_is_distribution_minus_target_and_none_without_labels() -> None:
    logits = torch.randn(1, 1, 10, 1, 2, generator=torch.Generator().manual_seed(0), dtype=torch.bfloat16)
    logits = (300 * logits).requires_grad_()  # probabilities underflow
    loss = depth_loss(logits, torch.tensor([[[[5.0, 0.0]]]]), DEPTH).sums.sum()
    likely = logits.detach().double().log_softmax(dim=2)[0, 0, :, 0, 0]
    assert loss.item() == pytest.approx(-3 * (likely[1] + likely[2]).item() / 2, rel=1e-5)
    loss.backward()
    expected = logits.detach().float().softmax(dim=2)
    expected[:, :, 1] -= 0.5  # 5 m is between the centres of bins 1 and 2, at 4 and 6 m
    expected[:, :, 2] -= 0.5
    expected[..., 1] = 0
    torch.testing.assert_close(logits.grad.float(), 3 * expected, rtol=0.01, atol=0.01)
    sums, counts = depth_loss(logits, torch.zeros(1, 1, 1, 2), DEPTH)
    assert (sums.item(), counts.item()) == (0, 0)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> NuScenesTables:
    root = tmp_path_factory.mktemp("supervised") / "tiny"
    write_tiny(root)
    return NuScenesTables(root, "v1.0-tiny")


def supervised(lidar: bool = True, **training: float) -> Config:
    """The little model with augmentation and supervised depth."""
    config = little()
    camera = config.model.camera.model_copy(update={"depth": Depth(near=1.0, far=60.0, bins=32, supervision=3.0)})
    every = config.model.lidar.model_copy(update={"max_pillars": 2000, "points_per_pillar": 40})
    model = config.model.model_copy(update={"camera": camera, "lidar": every if lidar else None})
    grid = config.grid.model_copy(update={"x": (-51.2, 51.2), "y": (-51.2, 51.2), "cell": 3.2, "z": (-9.0, 9.0)})
    data = Data(augment=Augment(scale=0.3, image_scale=0.2), class_balanced=False)
    train = config.train.model_copy(update={"drop_lidar": 0.0, "drop_cameras": 0.0, **training})
    return config.model_copy(update={"grid": grid, "model": model, "data": data, "train": train})


def sample(tables: NuScenesTables, config: Config, position: int = 0) -> Sample:
    return FrameDataset(tables, tables.samples(), config, depth_cells=CELLS)[position]


def test_labels_are_those_of_the_augmented_points_in_the_augmented_pictures(tables: NuScenesTables) -> None:
    for position in range(4):
        each = sample(tables, supervised(), position)
        points = each.inputs["pillar_points"][0][each.inputs["pillar_counts"][0] > 0].reshape(-1, 5)
        points = points[points.any(axis=1) & (np.abs(points[:, 4]) < KEYFRAME_AGE)]
        assert len(points) > 450
        depth = supervised().model.camera.depth
        expected = by_loop(points, each.inputs["image_from_reference"][0], IMAGE, CELLS, depth)
        assert (expected > 0).sum() > 50
        np.testing.assert_allclose(each.labels["camera"]["depth"], expected, rtol=1e-4)


def test_labels_stay_when_the_network_gets_no_points(tables: NuScenesTables) -> None:
    labels = sample(tables, supervised()).labels["camera"]["depth"]
    dropped = sample(tables, supervised(drop_lidar=1.0))
    assert not dropped.inputs["pillar_counts"].any()
    np.testing.assert_array_equal(dropped.labels["camera"]["depth"], labels)
    alone = sample(tables, supervised(lidar=False, drop_lidar=0.5, drop_cameras=0.5))
    assert "pillar_points" not in alone.inputs
    np.testing.assert_array_equal(alone.labels["camera"]["depth"], labels)
    blind = sample(tables, supervised(drop_cameras=1.0))
    assert not blind.labels["camera"]["depth"].any()


def test_no_labels_without_lidar(tiny_root: Path) -> None:
    for file in (tiny_root / "samples" / "LIDAR_TOP").iterdir():
        file.unlink()
    labels = sample(NuScenesTables(tiny_root, "v1.0-tiny"), supervised()).labels["camera"]["depth"]
    assert labels.shape == (6, *CELLS)
    assert not labels.any()


def test_depth_is_an_output_only_where_the_camera_trains() -> None:
    depth = Depth(near=1.0, far=60.0, bins=32, supervision=1.0)
    config = little()
    camera = config.model.camera.model_copy(update={"depth": depth})
    model = PerceptionModel(config.model_copy(update={"model": config.model.model_copy(update={"camera": camera})}))
    seen = inputs(0)
    assert model.depth_cells() == CELLS
    assert model(seen)["camera/depth"].shape == (1, 6, 32, *CELLS)
    trainable.base(model)  # leaves the model itself in evaluation mode
    assert "camera/depth" in model(seen)
    trainable.base(model, ["heads.*"])
    assert "camera/depth" not in model(seen)
    trainable.joint(model)
    with torch.no_grad():
        assert "camera/depth" not in model(seen)
    for slots, trains in (("trunk.*", False), ("camera.neck", True)):
        model.bank.add(LowRank(name="module", rank=1, slots=(slots,)))
        trainable.post_hoc(model, ["module"])
        assert (model.depth_cells() is not None) == trains
        assert ("camera/depth" in model(seen)) == trains
        model.bank.delete("module")


def test_pictures_of_part_of_a_cell_are_refused() -> None:
    config = supervised()
    camera = config.model.camera.model_copy(update={"image": Image(height=36, width=64)})
    model = PerceptionModel(config.model_copy(update={"model": config.model.model_copy(update={"camera": camera})}))
    with one_line_error("model.camera.image: 36 x 64 is no multiple of 8"):
        model.depth_cells()
