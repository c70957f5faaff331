"""Free space: what it says of each cell, by hand and by another library's geometry, and where its grid lies."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from perceived import boxes_of, frame_at, manifest_of, rigid
from ros_idl import read, xyz, xyzw
from shapely import Polygon, STRtree, points
from vocabulary import CONDITIONS, MAP_CLASSES, NUSCENES, PRIOR, SENSORS

from deploy.live.messages.free_space import FREE, TAKEN, UNKNOWN, FreeSpace, occupancy_grid
from deploy.live.messages.messages import Message, Messages
from deploy.recordings.ros_types import encode, header
from perception.frame import Boxes, Prediction
from perception.grid import BevGrid, VoxelGrid
from perception.scene.scene import Scene
from perception.tasks import parse_tasks, tasks_of
from perception.tasks.detection.tracker import Tracks
from perception.tasks.occupancy.result import OccupancyResult
from perception.tasks.occupancy.task import OccupiedSpace

MAP_GRID, FINE = BevGrid((-8, 8), (-4, 4), cell=1.0), VoxelGrid((-4, 4), (-4, 4), (-1, 3), 0.5)


def space(*tasks: str, voxels: VoxelGrid = FINE) -> FreeSpace:
    shape = {"x": voxels.x, "y": voxels.y, "z": voxels.z, "cell": voxels.cell}
    configs = parse_tasks({name: shape if name == "occupancy" else {} for name in tasks})
    return FreeSpace(tasks_of(configs, MAP_GRID, NUSCENES))


def remembered(voxels: VoxelGrid, taken: Sequence[tuple[float, float, float]], name: str = "manmade") -> Any:
    """A state with free voxels everywhere, but at these places."""
    occupied, classes = np.full(voxels.shape, 0.1, np.float32), np.full(voxels.shape, 17, np.uint8)
    index, inside = voxels.indices(np.array(taken))
    assert inside.all()
    occupied.flat[index], classes.flat[index] = 0.9, 1 + NUSCENES.point_names.index(name)
    nothing: Any = None
    return OccupiedSpace(OccupancyResult(classes, occupied, occupied, np.zeros(360), voxels), nothing, nothing, {})


def drivable(road: np.ndarray) -> np.ndarray:
    """A map whose first layer is this (rows, columns)."""
    assert MAP_CLASSES[0] == "drivable_area"
    return np.stack([road.astype(np.float32)] + [np.zeros(MAP_GRID.shape, np.float32)] * (len(MAP_CLASSES) - 1))


def test_a_cell_is_free_where_all_say_so() -> None:
    """Rows along y; the road is y < 0; a wall and a low kerb beside it; nothing is known of one column."""
    road = np.zeros(MAP_GRID.shape)
    road[:4], road[0, 5] = 0.9, np.float32(PRIOR[0])
    states = {"map": drivable(road), "occupancy": remembered(FINE, [(1.2, -1.3, 1.0), (-2.2, -1.3, -0.6)])}
    both = space("map", "occupancy").cells(states, Boxes.none())
    expected = np.full(MAP_GRID.shape, TAKEN)
    expected[:4] = UNKNOWN  # beyond the voxels
    expected[:4, 4:12] = FREE
    expected[0, 5] = UNKNOWN
    expected[2, 9] = TAKEN  # the wall; the kerb is below the vehicle's body
    np.testing.assert_array_equal(both, expected)
    lone = space("map").cells(states, Boxes.none())
    np.testing.assert_array_equal(
        lone, np.where(np.isclose(road, PRIOR[0]), UNKNOWN, np.where(road > 0.5, FREE, TAKEN))
    )
    voxels = space("occupancy")
    assert voxels.grid == BevGrid(FINE.x, FINE.y, FINE.z, FINE.cell)
    assert [*zip(*np.nonzero(voxels.cells(states, Boxes.none()) == TAKEN), strict=True)] == [(5, 10)]
    flat = {"occupancy": remembered(FINE, [(1.2, -1.3, 1.0)], "terrain")}
    assert not (voxels.cells(flat, Boxes.none()) == TAKEN).any()
    assert space("detection").cells({}, Boxes.none()) is None
    unseen = replace(flat["occupancy"].fused, occupied=np.full(FINE.shape, np.float32(126 / 253)))
    assert (voxels.cells({"occupancy": replace(flat["occupancy"], fused=unseen)}, Boxes.none()) == UNKNOWN).all()


def test_coarse_voxels_take_all_their_cells() -> None:
    coarse = VoxelGrid((-8, 8), (-4, 4), (-1, 3), 4.0)
    states = {"map": drivable(np.ones(MAP_GRID.shape)), "occupancy": remembered(coarse, [(1.0, 1.0, 1.0)])}
    expected = np.full(MAP_GRID.shape, FREE)
    expected[4:8, 8:12] = TAKEN
    np.testing.assert_array_equal(space("map", "occupancy", voxels=coarse).cells(states, Boxes.none()), expected)


def test_cells_under_objects_are_taken() -> None:
    """Every cell whose centre an object covers, and none that is further than a cell from one."""
    rng = np.random.default_rng(0)
    x, y, yaw = rng.uniform(-9, 9, 12), rng.uniform(-5, 5, 12), rng.uniform(-4, 4, 12)
    objects = boxes_of(*([0, x[i], y[i], 0, 1.9, 4.5, 1.6, yaw[i], 0, 0, 1] for i in range(12)))
    for some in (objects.select(np.arange(3)), objects):
        cells = space("map").cells({"map": drivable(np.ones(MAP_GRID.shape))}, some)
        centers = points(MAP_GRID.centers().reshape(-1, 2).astype(float))
        tree = STRtree([Polygon(corners) for corners in some.corners()[:, [2, 3, 7, 6], :2]])
        inside = np.zeros(MAP_GRID.shape, bool)
        inside.flat[tree.query(centers, "intersects")[0]] = True
        near = np.zeros(MAP_GRID.shape, bool)
        near.flat[tree.query(centers, "dwithin", distance=MAP_GRID.cell)[0]] = True
        taken = cells == TAKEN
        assert inside.any()
        assert (taken[inside]).all()
        assert not (taken & ~near).any()


def test_free_space_lies_on_the_ground_where_the_lidar_has_it() -> None:
    manifest = manifest_of("map")
    grid = manifest.heads["map"].grid
    frame, scene = frame_at(rigid(70, 80, 1, 0.7), rigid(1.0, 0.5, 1.8, np.pi / 2)), Scene(SENSORS, {}, CONDITIONS)
    scene.observe(frame)
    state = np.zeros((len(MAP_CLASSES), *grid.shape), np.float32)
    state[0, 3, 7] = 1
    seen = replace(scene.update(frame, Prediction({})), states={"map": state})
    (found,) = (read(m) for m in Messages(manifest).scene(frame, seen) if m.topic.endswith("free_space"))
    rows, columns = grid.shape
    assert (found.info.width, found.info.height) == (columns, rows)
    assert [i for i, value in enumerate(found.data) if value == FREE] == [3 * columns + 7]
    origin = found.info.origin
    # ahead of the LiDAR is the vehicle's left: x of the grid is y, and y of the grid is -x
    assert xyz(origin.position) == pytest.approx([1.0 - grid.y[0], 0.5 + grid.x[0], 0], abs=1e-9)
    assert xyzw(origin.orientation) == pytest.approx([0, 0, np.sqrt(0.5), np.sqrt(0.5)], abs=1e-9)
    assert found.info.resolution == pytest.approx(grid.cell)
    oblong = occupancy_grid(header(0, ""), np.eye(4), MAP_GRID, np.zeros(MAP_GRID.shape, np.int8))
    about = read(Message("", "nav_msgs/msg/OccupancyGrid", encode(oblong))).info
    assert (about.width, about.height, xyz(about.origin.position)) == (16, 8, [-8, -4, 0])


def test_a_track_of_the_map_takes_the_cells_under_it_and_free_voxels_are_not_sent() -> None:
    """The LiDAR looks ahead, 1 m before the vehicle's middle."""
    manifest, pose = manifest_of("detection", "map", "occupancy"), rigid(70, 80, 1, 0.7)
    frame, scene = frame_at(pose, rigid(1, 0, 2, 0)), Scene(SENSORS, {}, CONDITIONS)
    scene.observe(frame)
    car = boxes_of([0, 12.0, 6.0, 1, 2, 4.5, 1.6, 0, 0, 0, 1]).transformed(pose)
    voxels = remembered(manifest.heads["occupancy"].voxels, [(3.3, 3.3, 1.0)])
    voxels.fused.occupied[0, 0, 0] = 0.6  # likelier not free, but free is the likeliest of its classes
    grid, one = manifest.heads["map"].grid, np.ones(1)
    states = {
        "detection": Tracks(one.astype(int), car, one, 0 * one, one > 0),
        "map": np.ones((len(MAP_CLASSES), *grid.shape), np.float32),
        "occupancy": voxels,
    }
    seen = replace(scene.update(frame, Prediction({})), states=states)
    found = {each.topic: read(each) for each in Messages(manifest).scene(frame, seen)}
    assert found["/perception/occupancy"].width == 1
    cells = np.array(found["/perception/free_space"].data).reshape(grid.shape)
    for place, expected in (([11.0, 6.0], TAKEN), ([3.3, 3.3], TAKEN), ([11.0, -6.0], FREE)):
        column, row = np.floor(grid.continuous(np.array([place]))[0]).astype(int)
        assert cells[row, column] == expected
