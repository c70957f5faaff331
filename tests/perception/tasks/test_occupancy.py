"""Occupancy: where voxels lie, labels, losses and decoding against plain loops, and its memory over a drive."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import small
from occupied import CLASSES, FREE, SMALL, random_occupancy
from pydantic import ValidationError
from scipy.spatial.transform import Rotation
from torch import Tensor
from vocabulary import NUSCENES

from perception.config import Augment
from perception.frame import Frame
from perception.grid import OTHERS, BevGrid, Occupancy, VoxelGrid
from perception.loss import lovasz_softmax
from perception.tasks.occupancy.config import OccupancyHead, Placement
from perception.tasks.occupancy.labels import UNKNOWN, resample
from perception.tasks.occupancy.memory import HALF_LIFE, PROBABILITIES
from perception.tasks.occupancy.metric import on_grid_of_truth
from perception.tasks.occupancy.network import ChannelToHeightHead, cross_entropy, lovasz, scale_loss
from perception.tasks.occupancy.rays import body_levels, make_free_rays
from perception.tasks.occupancy.result import OccupancyResult, levels_of
from perception.tasks.occupancy.task import OccupancyTask
from perception.tasks.outputs import decode
from perception.training.augment import draw_similarity

COARSE = BevGrid((-25.6, 25.6), (-25.6, 25.6), cell=1.6)
GRID = BevGrid((-51.2, 51.2), (-51.2, 51.2), cell=0.8)


def test_voxels_that_do_not_fit_are_refused() -> None:
    content = small().model_dump(mode="json")
    content["grid"] |= {"x": GRID.x, "y": GRID.y, "cell": 0.8}
    for changes, message in (
        ({"x": (56.0, 64.0)}, "x: 56 to 64 m is outside the grid"),
        ({"z": (-1.0, 5.3)}, "z: -1 to 5.3 m is not a whole number of voxels"),
        ({"body": (6.0, 7.0)}, "no voxel is 6 to 7 m high"),
        ({"losses": {"classes": {"cars": 1.0}}}, "losses.classes: 'cars' is none of others, barrier"),
    ):
        content["tasks"] = {"occupancy": {"flat": []} | changes}
        with pytest.raises(ValidationError, match=message):
            type(small()).model_validate(content)


def placed(voxels: VoxelGrid) -> tuple[Tensor, Tensor]:
    """Of features that are the places x and y: those that the head sees at its cells, and where there are any."""
    head = ChannelToHeightHead(OccupancyHead(x=voxels.x, y=voxels.y, z=voxels.z, cell=voxels.cell), 4, GRID, CLASSES)
    logits = head(torch.randn(2, 4, *GRID.shape))["logits"]
    assert logits.shape == (2, voxels.shape[0] * len(CLASSES), *voxels.shape[1:])
    centers = torch.from_numpy(GRID.centers()).movedim(-1, 0)[None]
    x, y, inside = head._place_features(torch.cat([centers, torch.ones_like(centers[:, :1])], dim=1))[0]
    return torch.stack([x, y], dim=-1), inside


@pytest.mark.parametrize(
    ("voxels", "stride"),
    [
        (VoxelGrid((-40.0, 40.0), (-8.0, 16.0), cell=0.4), 1),
        (VoxelGrid((-40.0, 40.0), (-8.0, 16.0), cell=1.6), 2),
        (VoxelGrid((-64.0, 8.0), (16.0, 56.0), cell=0.8), 1),  # beyond the map on two sides
    ],
)
def test_the_head_reads_the_cells_under_its_voxels(voxels: VoxelGrid, stride: int) -> None:
    assert Placement.of(voxels, GRID).coarser == stride
    (found, inside), centers = placed(voxels), BevGrid(voxels.x, voxels.y, cell=0.8).centers()
    covered = (np.abs(centers) < 51.2).all(axis=-1)
    np.testing.assert_array_equal(inside.bool(), covered)
    torch.testing.assert_close(found[covered], torch.from_numpy(centers[covered]))
    assert not found[~covered].any()


@pytest.mark.parametrize(
    ("voxels", "finer"),
    [
        (VoxelGrid((-40.0, 40.0), (-40.0, 40.0), (-1.0, 5.0), cell=0.5), 1),
        (VoxelGrid((-39.6, 40.4), (-8.0, 16.0), cell=0.4), 2),  # half a cell beside the edges of the map's
        (VoxelGrid((-39.6, 40.4), (-8.0, 16.2), cell=0.2), 1),  # no whole squares of four
        (VoxelGrid((-60.3, 8.1), (16.0, 56.5), (-1.0, 5.3), cell=0.9), 1),  # beyond the map on two sides
    ],
)
def test_where_edges_do_not_meet_features_are_interpolated(voxels: VoxelGrid, finer: int) -> None:
    """Exact for features that are linear in x and y, up to half a cell from the edge of the map."""
    (found, inside), centers = placed(voxels), BevGrid(voxels.x, voxels.y, cell=voxels.cell * finer).centers()
    away = np.abs(centers).max(axis=-1)
    covered = away < 51.2 - 0.4
    torch.testing.assert_close(found[covered], torch.from_numpy(centers[covered]), atol=1e-4, rtol=0)
    torch.testing.assert_close(inside[covered], torch.ones_like(inside[covered]))
    assert not inside[away > 51.2 + 0.4].any()


def marched(blocked: np.ndarray, grid: VoxelGrid, angle: float) -> tuple[float, float]:
    """Distance to the first blocked column in steps of a millimetre, and to the end of the grid."""
    steps = np.arange(0, 60, 0.001)
    x, y = steps * np.cos(angle), steps * np.sin(angle)
    column, row = np.floor((x - grid.x[0]) / grid.cell).astype(int), np.floor((y - grid.y[0]) / grid.cell).astype(int)
    inside = (column >= 0) & (column < grid.shape[2]) & (row >= 0) & (row < grid.shape[1])
    met = np.zeros(len(steps), bool)
    met[inside] = blocked[row[inside], column[inside]]
    end = steps[inside][-1] if inside.any() else 0.0
    return (steps[met][0] if met.any() else end), end


@pytest.mark.parametrize("grid", [VoxelGrid(cell=1.6), VoxelGrid((-8.0, 24.0), (-16.0, 8.0), cell=0.8)])
def test_free_distances_are_those_of_a_march(grid: VoxelGrid) -> None:
    rng = np.random.default_rng(0)
    blocked = rng.random(grid.shape[1:]) < 0.02
    rays = make_free_rays(grid)
    for layer in (blocked, np.zeros_like(blocked)):
        free = rays.free(layer)
        for direction in range(7, 360, 23):  # not along edges or through corners
            distance, end = marched(layer, grid, np.radians(direction))
            assert free[direction] == pytest.approx(distance, abs=0.002)
            assert rays.ends[direction] == pytest.approx(end, abs=0.002)
    assert len({*rays.free(blocked).round(2)}) > 30


def test_levels_of_the_vehicles_body_are_those_it_reaches() -> None:
    grid = VoxelGrid()  # levels from -1 m, 0.4 m each
    for body in ((0.3, 2.0), (0.2, 2.2), (-5.0, 9.0), (0.61, 0.62)):
        levels = range(grid.shape[0])[body_levels(grid, body)]
        edges = [(-1 + 0.4 * i, -0.6 + 0.4 * i) for i in range(16)]
        assert [*levels] == [i for i, (low, high) in enumerate(edges) if high > body[0] + 1e-9 and low < body[1] - 1e-9]


def task(**options: object) -> OccupancyTask:
    shape = {"x": SMALL.x, "y": SMALL.y, "z": SMALL.z, "cell": SMALL.cell}
    return OccupancyTask(OccupancyHead.model_validate(shape | options), GRID, NUSCENES)


def posed(seed: int) -> Frame:
    """A frame somewhere on a slope."""
    rng, pose = np.random.default_rng(seed), np.eye(4)
    pose[:3, :3] = Rotation.from_euler("ZY", [rng.uniform(-3, 3), 0.05]).as_matrix()
    pose[:3, 3] = [*rng.uniform(-500, 500, 2), 3]
    return Frame("a", 0, "ego", pose, pose, None, {})


def test_labels_are_the_observed_voxels() -> None:
    truth = random_occupancy("a")
    either = truth.seen_by_lidar | truth.seen_by_cameras
    for observed, seen in (("lidar", truth.seen_by_lidar), ("cameras", truth.seen_by_cameras), ("either", either)):
        labels = task(observed=observed).labels(replace(posed(1), truth={"occupancy": truth}))["classes"]
        np.testing.assert_array_equal(labels, np.where(seen, truth.classes, UNKNOWN))
    assert (task().labels(posed(1))["classes"] == UNKNOWN).all()


def test_what_lies_on_the_ground_is_in_a_large_voxel_of_it() -> None:
    fine = VoxelGrid(SMALL.x, SMALL.y, SMALL.z, SMALL.cell / 2)
    classes, (road, box) = np.full(fine.shape, FREE, np.uint8), (CLASSES.index("driveable_surface"), 0)
    classes[:, :, :2], classes[0, 0, 0] = road, box
    seen = np.ones(fine.shape, bool)
    frame = replace(posed(1), truth={"occupancy": Occupancy(fine, classes, seen, seen)})
    for options, first in (({}, box), ({"flat": []}, road)):
        labels = task(**options).labels(frame)["classes"]
        assert labels[0, 0, 0] == first
        assert (labels[0, 1:, 0] == road).all()


def looked_up(
    grid: VoxelGrid, pose: np.ndarray, source: VoxelGrid, classes: np.ndarray, outside: int
) -> tuple[np.ndarray, np.ndarray]:
    """The class at each voxel's centre in a source with this pose, and whether it is in the source."""
    centers = grid.centers().reshape(-1, 3).astype(np.float64)
    index, inside = source.indices(np.column_stack([centers, np.ones(len(centers))]) @ np.linalg.inv(pose).T)
    return np.where(inside, classes.reshape(-1)[index], outside), inside


def test_labels_of_an_augmented_frame_are_what_is_there() -> None:
    """Flipped, turned, scaled and shifted: each voxel has the class at the place that it shows."""
    truth = random_occupancy("a", VoxelGrid((-25.6, 25.6), (-25.6, 25.6), (-1.0, 5.4), 0.8))
    truth = replace(truth, seen_by_lidar=np.ones(truth.grid.shape, bool))
    own = task(cell=0.8)
    settings = Augment(flip=True, rotation=0.4, scale=0.1, translation=1.0)
    flips = set()
    for seed in range(4):
        similarity = draw_similarity(np.random.default_rng(seed), settings)
        flips.add(bool(np.linalg.det(similarity[:2, :2]) < 0))
        frame = replace(posed(seed), truth={"occupancy": truth}).transformed(similarity)
        labels = own.labels(frame)["classes"]
        expected, inside = looked_up(own.voxels, similarity, truth.grid, truth.classes, UNKNOWN)
        assert (labels.reshape(-1) == expected).mean() > 0.9999  # but for centres on an edge
        assert 0 < (~inside).sum() < inside.sum()
    assert flips == {False, True}


@pytest.mark.parametrize("parts", [(2, 2, 2), (1, 2, 2)], ids=["cubes", "lower"])
def test_a_large_voxel_has_the_most_frequent_class_that_stands_up(parts: tuple[int, int, int]) -> None:
    """Parts: levels, rows and columns of fine voxels in a large one."""
    area, edge = (0.0, 4.8), 0.4
    fine = VoxelGrid(area, area, area, edge)
    coarse = VoxelGrid(area, area, area, edge * parts[1], "ego", edge * parts[0])
    assert fine.shape == tuple(n * part for n, part in zip(coarse.shape, parts, strict=True))
    rng, flat = np.random.default_rng(3), (3, 4)
    classes = rng.choice([0, 1, 2, 3, 4, FREE, UNKNOWN], fine.shape, p=[0.05, 0.05, 0.05, 0.1, 0.1, 0.35, 0.3])
    unknown = np.kron(rng.random(coarse.shape) < 0.1, np.ones(parts))
    classes = np.where(unknown, UNKNOWN, classes).astype(np.uint8)
    found = resample(classes, fine, coarse, np.eye(4), FREE + 1, flat)
    kinds = set()
    for place in np.ndindex(coarse.shape):
        own = classes[tuple(slice(n * i, n * (i + 1)) for i, n in zip(place, parts, strict=True))].ravel()
        known = own[own != UNKNOWN]
        ranks = [[c for c in range(FREE) if c not in flat], flat, [FREE]]
        best = next(([c for c in rank if (known == c).any()] for rank in ranks if np.isin(known, rank).any()), None)
        expected = UNKNOWN if best is None else max(best, key=lambda c: ((known == c).sum(), -c))
        assert found[place] == expected
        kinds.add(int(expected))
    assert {0, 3, FREE, UNKNOWN} <= kinds


def test_results_in_the_lidars_frame_are_compared_where_they_are() -> None:
    """The LiDAR is above the ground and looks to the left."""
    ego, lidar = posed(2).global_from_ego, np.eye(4)
    lidar[:2, :2], lidar[:3, 3] = [[0, -1], [1, 0]], [1.03, 0.47, 1.83]
    frame = replace(posed(2), reference="lidar", global_from_reference=ego @ lidar)
    own = VoxelGrid((-8.0, 8.0), (-8.0, 8.0), (-3.0, 2.0), 0.5, "lidar")
    truth = VoxelGrid((-6.4, 6.4), (-6.4, 9.6), (-1.0, 5.4), 0.8)
    classes = np.random.default_rng(0).integers(0, FREE, own.shape).astype(np.uint8)
    nothing = np.zeros(own.shape, np.float32)
    found = on_grid_of_truth(frame, OccupancyResult(classes, nothing, nothing, np.zeros(360), own), truth, FREE)
    expected, inside = looked_up(truth, lidar, own, classes, FREE)
    np.testing.assert_array_equal(found.reshape(-1), expected)
    assert 0 < (~inside).sum() < inside.sum()


# ---- losses and decoding


def by_definition(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The Lovasz extension of the Jaccard loss: a sum over nested sets of the largest errors."""
    losses = []
    for each in sorted({*labels.tolist()}):
        positive = {*np.flatnonzero(labels == each).tolist()}
        errors = np.abs((labels == each) - probabilities[:, each])
        order = np.argsort(-errors, kind="stable")
        wrong = [{*order[:k].tolist()} for k in range(len(order) + 1)]
        jaccard = [len(some) / len(positive | some) for some in wrong]  # 1 - IoU if exactly these are mispredicted
        losses.append(errors[order] @ np.diff(jaccard))
    return float(np.mean(losses))


@pytest.mark.parametrize("seed", range(4))
def test_lovasz_is_the_extension_of_the_jaccard_loss(seed: int) -> None:
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.ones(4), 30)
    labels = rng.integers(0, 3, 30)  # one class does not occur
    loss = lovasz_softmax(torch.from_numpy(probabilities), torch.from_numpy(labels))
    assert loss.item() == pytest.approx(by_definition(probabilities, labels), abs=1e-12)
    nothing = lovasz_softmax(torch.zeros(0, 3, requires_grad=True), torch.zeros(0, dtype=torch.int64))
    nothing.backward()
    assert nothing.item() == 0


def problem(seed: int, count: int = 200, classes: int = 5) -> tuple[Tensor, Tensor]:
    """Logits and labels; one class never occurs."""
    torch.manual_seed(seed)
    return 2 * torch.randn(count, classes, dtype=torch.float64), torch.randint(1, classes, (count,))


@pytest.mark.parametrize("everywhere", [False, True])
def test_the_scale_loss_is_monoscenes_and_the_cross_entropy_torchs(everywhere: bool) -> None:
    """Precision, recall and specificity of each class that occurs, one after the other; classes have weights."""
    logits, labels = problem(1)
    if everywhere:
        labels = torch.full_like(labels, 2)  # then there is no specificity
    p = logits.softmax(dim=1).numpy()
    truth = torch.nn.functional.one_hot(labels, 5).bool()
    losses = []
    for c in set(labels.tolist()):
        own = labels.numpy() == c
        hits = sum(p[i, c] for i in range(len(p)) if own[i])
        loss = -np.log(hits / sum(p[:, c])) - np.log(hits / own.sum())
        if not own.all():
            loss -= np.log(sum(1 - p[i, c] for i in range(len(p)) if not own[i]) / (~own).sum())
        losses.append(loss)
    assert len(losses) == (1 if everywhere else 4)
    assert scale_loss(torch.from_numpy(p), truth).item() == pytest.approx(np.mean(losses), rel=1e-12)
    assert scale_loss(truth.double(), truth) == 0
    weights = torch.tensor([1.0, 0.1, 2.0, 0.0, 3.0], dtype=torch.float64)
    expected = torch.nn.functional.cross_entropy(logits, labels, weights)
    torch.testing.assert_close(cross_entropy(logits, labels, weights), expected)
    assert cross_entropy(logits, labels, torch.zeros(5)) == 0


def test_lovasz_takes_all_that_is_occupied_and_as_much_free_space_that_looks_occupied() -> None:
    logits, labels = problem(2, 300)
    p = logits.softmax(dim=1)
    free = 4
    labels[40:] = free
    occupied, empty = np.flatnonzero(labels != free), np.flatnonzero(labels == free)
    hardest = sorted(empty, key=lambda i: p[i, free].item())[: len(occupied)]
    chosen = [*occupied, *hardest]
    assert lovasz(p, labels, free).item() == pytest.approx(lovasz_softmax(p[chosen], labels[chosen]).item(), rel=1e-12)
    some = labels[:50]  # with less free space than that
    assert lovasz(p[:50], some, free).item() == pytest.approx(lovasz_softmax(p[:50], some).item(), rel=1e-12)
    assert torch.isfinite(lovasz(p[40:], labels[40:], free))  # nothing is occupied


def head(**options: object) -> tuple[OccupancyTask, torch.nn.Module]:
    shape = {"x": SMALL.x, "y": SMALL.y, "z": SMALL.z, "cell": 0.8}
    task = OccupancyTask(OccupancyHead.model_validate(shape | options), COARSE, NUSCENES)
    torch.manual_seed(0)
    return task, task.network(4)


def test_terms_and_classes_have_their_weights_and_unobserved_voxels_none() -> None:
    weights = {"cross_entropy": 2.0, "lovasz": 0.0, "geometric": 3.0, "semantic": 1.0, "classes": {"free": 0.25}}
    task, network = head(losses=weights)
    rng = np.random.default_rng(0)
    truth = np.where(rng.random((2, *task.voxels.shape)) < 0.7, FREE, rng.integers(0, FREE, (2, *task.voxels.shape)))
    truth[0, :, :30] = 255
    logits = torch.randn(2, len(CLASSES) * task.voxels.shape[0], *task.voxels.shape[1:], dtype=torch.float64)
    losses = network.losses({"logits": logits}, {"classes": torch.from_numpy(truth.astype(np.uint8))})
    assert losses.keys() == {"cross_entropy", "geometric", "semantic"}
    first = logits[0].reshape(task.voxels.shape[0], len(CLASSES), *task.voxels.shape[1:])[:, :, 30:]
    own, labels = first.movedim(1, -1).reshape(-1, len(CLASSES)), torch.from_numpy(truth[0, :, 30:].reshape(-1))
    p, free = own.softmax(dim=1), labels == FREE
    by_class = torch.where(torch.arange(len(CLASSES)) == FREE, 0.25, 1.0).double()
    entropy = torch.nn.functional.cross_entropy(own, labels, by_class)
    assert losses["cross_entropy"].sums[0].item() == pytest.approx(2 * entropy.item(), rel=1e-9)
    geometric = scale_loss(1 - p[:, FREE:], ~free[:, None])
    assert losses["geometric"].sums[0].item() == pytest.approx(3 * geometric.item(), rel=1e-9)
    assert losses["geometric"].counts.tolist() == [1, 1]


@pytest.mark.parametrize("odds", [1.0, 4.0])
def test_decoding_gives_classes_probabilities_and_free_distances(odds: float) -> None:
    task, network = head(body=(0.3, 2.0), odds=odds)
    torch.manual_seed(1)
    logits = 2 * torch.randn(1, task.voxels.shape[0], len(CLASSES), *task.voxels.shape[1:])
    logits[:, :, FREE] += 6.5  # much free space
    outputs = network.decode({"logits": logits.flatten(1, 2)})
    p = logits.double().softmax(dim=2).numpy()[0]
    assert outputs["classes"].dtype == torch.uint8
    things = p[:, :FREE]
    best = things.argmax(axis=1)
    np.testing.assert_array_equal(outputs["classes"][0], np.where(things.max(axis=1) > odds * p[:, FREE], best, FREE))
    assert odds > 1 or (outputs["classes"][0].numpy() == p.argmax(axis=1)).all()
    np.testing.assert_allclose(outputs["occupied"][0], 1 - p[:, FREE], atol=1e-6)
    np.testing.assert_allclose(outputs["others"][0], p[:, OTHERS], atol=1e-6)
    flat = [i for i, name in enumerate(CLASSES) if name in ("driveable_surface", "other_flat", "sidewalk", "terrain")]
    assert len(flat) == 4
    solid = (1 - p[:, FREE] > 0.5) & ~np.isin(best, flat)
    blocked = solid[body_levels(task.voxels, (0.3, 2.0))].any(axis=0)
    np.testing.assert_array_equal(outputs["free"][0], make_free_rays(task.voxels).free(blocked))
    assert (blocked != solid.any(axis=0)).any()  # heights count
    assert 10 < len(np.unique(outputs["free"])) < 360


# ---- over a drive


NEAR = OccupancyHead(x=(-12.8, 12.8), y=(-12.8, 12.8), z=(-1.0, 2.2), cell=0.8)
TASK = OccupancyTask(NEAR, BevGrid((-12.8, 12.8), (-12.8, 12.8)), NUSCENES)
VOXELS = TASK.voxels
FAR = np.full(360, 12.8, np.float32)
CAR, WALL, ROAD = (CLASSES.index(name) for name in ("car", "manmade", "driveable_surface"))


def driven(x: float, y: float, yaw: float, seconds: float) -> Frame:
    pose = np.eye(4)
    pose[:2, :2] = [[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]]
    pose[:2, 3] = x, y
    return Frame("a", round(seconds * 1e6), "ego", pose, pose, None, {})


def seen_of(world: Any, frame: Frame, occupied: float = 0.95) -> OccupancyResult:
    """What a network would say of a world: (N, 3) global points -> classes."""
    centers = VOXELS.centers().reshape(-1, 3).astype(np.float64)
    pose = frame.global_from_reference
    classes = world(centers @ pose[:3, :3].T + pose[:3, 3]).reshape(VOXELS.shape).astype(np.uint8)
    probability = np.where(classes == FREE, 1 - occupied, occupied).astype(np.float32)
    others = np.where(classes == OTHERS, probability, 0).astype(np.float32)
    return TASK.result({"classes": classes, "occupied": probability, "others": others, "free": FAR})


def blocks(points: np.ndarray) -> np.ndarray:
    """A wall 4 m to the left and posts of 4 m, above a road."""
    x, y, z = points.T
    classes = np.where(z < -0.2, ROAD, FREE)
    classes = np.where((np.abs(y - 6) < 2) & (z > -0.2), WALL, classes)
    return np.where((np.abs((x + 2) % 16 - 8) < 2) & (np.abs(y + 6) < 2) & (z > -0.2), WALL, classes)


def test_the_world_stays_where_it_is_while_the_vehicle_goes_on() -> None:
    memory = TASK.memory()
    arrays = memory._window.arrays
    size = sum(array.nbytes for array in arrays.values())
    for i in range(40):
        frame = driven(0.37 * i, 0.1 * i, 0.02 * i, 0.1 * i)
        seen = seen_of(blocks, frame)
        state = memory.update(frame, seen)
    assert sum(array.nbytes for array in arrays.values()) == size
    # Edges of voxels that are not aligned with those of the memory are off by one; what is within them is the same.
    inner = [np.roll(seen.classes, shift, axis) for axis in (1, 2) for shift in (-1, 0, 1)]
    steady = np.logical_and.reduce([each == seen.classes for each in inner])
    steady[:, [0, -1]] = steady[:, :, [0, -1]] = False
    assert steady.mean() > 0.5
    assert (state.classes[steady] == seen.classes[steady]).mean() > 0.99
    occupied = seen.classes != FREE
    same = np.abs(state.occupied - seen.occupied)[steady & occupied] < 0.01  # frames that repeat it make nothing surer
    assert same.mean() > 0.9
    assert state.free.min() < 12
    nothing = memory.update(driven(5000.0, 0.0, 0.0, 5.0), seen_of(lambda p: np.full(len(p), FREE), driven(0, 0, 0, 0)))
    assert (nothing.classes == FREE).all()
    assert nothing.free.min() >= 12.8 - 1e-4


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=8))
def test_a_voxel_holds_the_mean_of_log_odds_whose_loss_is_no_larger_than_the_frames(seeds: list[int]) -> None:
    """Of a world that stands still. Earlier frames count for three, and those without both probabilities for none."""
    memory, odds, count = TASK.memory(), np.zeros((2, *VOXELS.shape)), np.zeros(VOXELS.shape)
    losses = np.zeros((2, 2, *VOXELS.shape))  # by truth
    for i, seed in enumerate(seeds):
        rng = np.random.default_rng(seed)
        said = rng.random((2, *VOXELS.shape)).astype(np.float32)
        said[:, rng.random(VOXELS.shape) < 0.2] = np.nan
        said[1, rng.random(VOXELS.shape) < 0.1] = np.nan
        classes = np.where(said[0] > 0.5, WALL, FREE).astype(np.uint8)
        result = TASK.result(dict(zip(PROBABILITIES, said, strict=True)) | {"classes": classes, "free": FAR})
        state = memory.update(driven(0, 0, 0, 0.1 * i), result)
        p = np.stack([result.occupied, result.others]).astype(np.float64)
        known, p = ~np.isnan(p).any(axis=0), np.nan_to_num(p).clip(1 / (1 + np.exp(4)), 1 / (1 + np.exp(-4)))
        share = known / (count + 1)
        odds += (np.log(p / (1 - p)) - odds) * share
        losses += (np.stack([-np.log(1 - p), -np.log(p)]) - losses) * share
        count = np.minimum(count + known, 3)
    fused = np.stack([state.occupied, state.others])
    np.testing.assert_allclose(fused, 1 / (1 + np.exp(-odds)), atol=0.5 / 253 + 0.002)
    seen, exact = count > 0, 1 / (1 + np.exp(-odds))
    assert (np.stack([-np.log(1 - exact), -np.log(exact)]) <= losses + 1e-9)[:, :, seen].all()


@pytest.mark.parametrize("blind", [True, False])
@pytest.mark.parametrize(("label", "stays"), [(CAR, False), (WALL, True)])
def test_what_moves_fades_when_it_is_seen_no_more(label: int, stays: bool, blind: bool) -> None:
    memory, there = TASK.memory(), np.zeros(VOXELS.shape, bool)
    there[2:, 20:24, 20:24] = True
    classes, said = np.where(there, label, FREE).astype(np.uint8), np.where(there, 0.9, 0.1).astype(np.float32)
    outputs = {"classes": classes, "occupied": said, "others": said, "free": FAR}
    first = memory.update(driven(0, 0, 0, 0), TASK.result(outputs))
    assert (first.classes[there] == label).all()
    nothing = np.full(VOXELS.shape, np.nan, np.float32)  # the network says nothing
    hidden = None if blind else TASK.result(outputs | dict.fromkeys(PROBABILITIES, nothing))
    later = memory.update(driven(0, 0, 0, HALF_LIFE), hidden)
    for name in PROBABILITIES:
        p = [float(getattr(state, name)[there].mean()) for state in (first, later)]
        odds = [np.log(each / (1 - each)) for each in p]
        assert odds[1] == pytest.approx(odds[0] if stays else odds[0] / 2, abs=0.05)
    last = memory.update(driven(0, 0, 0, 20 * HALF_LIFE), hidden)
    assert (last.classes[there] == (label if stays else FREE)).all()
    assert (last.classes[~there] == FREE).all()


def test_a_result_comes_back_from_its_file_bit_by_bit() -> None:
    rng = np.random.default_rng(0)
    outputs = {
        "classes": rng.integers(0, FREE + 1, VOXELS.shape).astype(np.uint8),
        "occupied": rng.random(VOXELS.shape).astype(np.float32),
        "others": rng.random(VOXELS.shape).astype(np.float32),
        "free": rng.random(360).astype(np.float32),
    }
    outputs["occupied"][0, 0] = [0.5 - 1e-4, 0.5 + 1e-4] * 16
    near = TASK.result(outputs).occupied
    np.testing.assert_array_equal(near > 0.5, outputs["occupied"] > 0.5)
    np.testing.assert_allclose(near, outputs["occupied"], atol=0.5 / 253 + 1e-6)
    broken = {name: values.copy() for name, values in outputs.items()}
    broken["occupied"][1, :3], broken["others"][0, 1, 2], broken["free"][:2] = np.inf, np.nan, np.nan
    assert decode(TASK.outputs, broken)[1] == {"occupied": 96, "others": 1, "free": 2}
    seen = TASK.result(broken)
    assert seen.free[:2].tolist() == [0, 0]
    assert np.isnan(seen.occupied[1, :3]).all()
    assert np.isnan(seen.others[0, 1, 2])
    finite = np.where(np.isinf(broken["occupied"]), np.nan, broken["occupied"])
    np.testing.assert_array_equal(levels_of(seen.occupied), levels_of(finite))
    (layer,) = TASK.draw(driven(0, 0, 0, 0), seen, None)
    there = (np.nan_to_num(seen.occupied) > 0.5) & (seen.classes != FREE)
    np.testing.assert_array_equal(layer.centers, VOXELS.centers()[there])
    np.testing.assert_array_equal(layer.labels, seen.classes[there])
    assert [*layer.colours] == [*CLASSES[:-1]]
    assert layer.edges.tolist() == VOXELS.edges.tolist()
