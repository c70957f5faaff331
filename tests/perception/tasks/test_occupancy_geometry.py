"""Where voxels lie: on the feature map, along rays, in other frames of reference."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from occupied import CLASSES, FREE, SMALL, Occupied, random_occupancy
from pydantic import ValidationError
from training_runs import small
from vocabulary import NUSCENES

from perception.config import Augment
from perception.frame import Frame
from perception.grid import BevGrid
from perception.tasks.occupancy.config import OccupancyHead
from perception.tasks.occupancy.free_space import body_levels, free_rays
from perception.tasks.occupancy.labels import UNKNOWN, resampled
from perception.tasks.occupancy.network import ChannelToHeightHead
from perception.tasks.occupancy.placement import Placement
from perception.tasks.occupancy.result import OccupancyResult
from perception.tasks.occupancy.task import OccupancyTask
from perception.tasks.occupancy.truth import on_grid_of_truth
from perception.training.augment import draw_similarity, transformed
from perception.voxels import Occupancy, VoxelGrid

GRID = BevGrid((-51.2, 51.2), (-51.2, 51.2), cell=0.8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": (56.0, 64.0)}, "x: 56 to 64 m is outside the grid"),
        ({"z": (-1.0, 5.3)}, "z: -1 to 5.3 m is not a whole number of voxels"),
        ({"body": (6.0, 7.0)}, "no voxel is 6 to 7 m high"),
        ({"losses": {"classes": {"cars": 1.0}}}, "losses.classes: 'cars' is none of others, barrier"),
    ],
)
def test_voxels_that_do_not_fit_are_refused(changes: dict[str, object], message: str) -> None:
    content = small().model_dump(mode="json")
    content["grid"] |= {"x": GRID.x, "y": GRID.y, "cell": 0.8}
    content["tasks"] = {"occupancy": {"flat": []} | changes}
    with pytest.raises(ValidationError, match=message):
        type(small()).model_validate(content)


@pytest.mark.parametrize(
    ("voxels", "stride"),
    [
        (VoxelGrid((-40.0, 40.0), (-8.0, 16.0), cell=0.4), 1),
        (VoxelGrid((-40.0, 40.0), (-8.0, 16.0), cell=1.6), 2),
        (VoxelGrid((-64.0, 8.0), (16.0, 56.0), cell=0.8), 1),  # beyond the map on two sides
    ],
)
def test_the_head_reads_the_cells_under_its_voxels(voxels: VoxelGrid, stride: int) -> None:
    config = OccupancyHead(x=voxels.x, y=voxels.y, z=voxels.z, cell=voxels.cell)
    head = ChannelToHeightHead(config, 4, GRID, CLASSES)
    place = Placement.of(voxels, GRID)
    assert place.coarser == stride
    centers = torch.from_numpy(GRID.centers()).movedim(-1, 0)[None]
    known = torch.cat([centers, torch.ones_like(centers[:, :1])], dim=1)
    x, y, inside = head._placed(known)[0]
    area = BevGrid(voxels.x, voxels.y, cell=0.8)
    expected = torch.from_numpy(area.centers())
    covered = torch.from_numpy((np.abs(area.centers()) < 51.2).all(axis=-1))
    np.testing.assert_array_equal(inside.bool(), covered)
    torch.testing.assert_close(torch.stack([x, y], dim=-1)[covered], expected[covered])
    assert not torch.stack([x, y], dim=-1)[~covered].any()
    logits = head(torch.randn(1, 4, *GRID.shape))["logits"]
    assert logits.shape == (1, voxels.shape[0] * len(CLASSES), *voxels.shape[1:])


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
    config = OccupancyHead(x=voxels.x, y=voxels.y, z=voxels.z, cell=voxels.cell)
    head = ChannelToHeightHead(config, 4, GRID, CLASSES)
    centers = torch.from_numpy(GRID.centers()).movedim(-1, 0)[None]
    x, y, inside = head._placed(torch.cat([centers, torch.ones_like(centers[:, :1])], dim=1))[0]
    area = BevGrid(voxels.x, voxels.y, cell=voxels.cell * finer)
    expected = torch.from_numpy(area.centers())
    away = np.abs(area.centers()).max(axis=-1)
    covered = torch.from_numpy(away < 51.2 - 0.4)
    torch.testing.assert_close(torch.stack([x, y], dim=-1)[covered], expected[covered], atol=1e-4, rtol=0)
    torch.testing.assert_close(inside[covered], torch.ones_like(inside[covered]))
    assert not inside[torch.from_numpy(away > 51.2 + 0.4)].any()
    logits = head(torch.randn(2, 4, *GRID.shape))["logits"]
    assert logits.shape == (2, voxels.shape[0] * len(CLASSES), *voxels.shape[1:])


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
    rays = free_rays(grid)
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
    rng = np.random.default_rng(seed)
    yaw, pitch = rng.uniform(-3, 3), 0.05
    turn = np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
    slope = np.array([[np.cos(pitch), 0, np.sin(pitch)], [0, 1, 0], [-np.sin(pitch), 0, np.cos(pitch)]])
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = turn @ slope, [*rng.uniform(-500, 500, 2), 3]
    return Frame("a", 0, "ego", pose, pose, None, {})


@pytest.mark.parametrize("observed", ["lidar", "cameras", "either"])
def test_labels_are_the_observed_voxels(observed: str) -> None:
    truth = random_occupancy("a")
    seen = {"lidar": truth.seen_by_lidar, "cameras": truth.seen_by_cameras}
    seen["either"] = seen["lidar"] | seen["cameras"]
    labels = task(observed=observed).labels(posed(1), Occupied(None))["classes"]
    np.testing.assert_array_equal(labels, np.where(seen[observed], truth.classes, UNKNOWN))
    assert (task().labels(posed(1))["classes"] == UNKNOWN).all()


def test_what_lies_on_the_ground_is_in_a_large_voxel_of_it() -> None:
    fine = VoxelGrid(SMALL.x, SMALL.y, SMALL.z, SMALL.cell / 2)
    classes, (road, box) = np.full(fine.shape, FREE, np.uint8), (CLASSES.index("driveable_surface"), 0)
    classes[:, :, :2], classes[0, 0, 0] = road, box
    seen = np.ones(fine.shape, bool)
    labels = task().labels(posed(1), Occupied(None, lambda _: Occupancy(fine, classes, seen, seen)))["classes"]
    assert labels[0, 0, 0] == box
    assert (labels[0, 1:, 0] == road).all()
    assert (
        (
            task(flat=[]).labels(posed(1), Occupied(None, lambda _: Occupancy(fine, classes, seen, seen)))["classes"][
                0, 0, 0
            ]
        )
        == road
    )


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
        frame = transformed(posed(seed), similarity)
        labels = own.labels(frame, Occupied(None, lambda _: truth))["classes"]
        centers = own.voxels.centers().reshape(-1, 3).astype(np.float64)
        places = np.column_stack([centers, np.ones(len(centers))]) @ np.linalg.inv(similarity).T
        index, inside = truth.grid.indices(places)
        expected = np.where(inside, truth.classes.reshape(-1)[index], UNKNOWN)
        share = (labels.reshape(-1) == expected).mean()
        assert share > 0.9999  # but for centres on an edge
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
    found = resampled(classes, fine, coarse, np.eye(4), FREE + 1, flat)
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
    centers = truth.centers().reshape(-1, 3).astype(np.float64)
    places = np.column_stack([centers, np.ones(len(centers))]) @ np.linalg.inv(lidar).T
    index, inside = own.indices(places)
    expected = np.where(inside, classes.reshape(-1)[index], FREE)
    np.testing.assert_array_equal(found.reshape(-1), expected)
    assert 0 < (~inside).sum() < inside.sum()
