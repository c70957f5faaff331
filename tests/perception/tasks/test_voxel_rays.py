"""Rays through voxels, against an intersection of every ray with every voxel."""

from __future__ import annotations

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from perception.voxel_rays import traverse
from perception.voxels import VoxelGrid

GRID = VoxelGrid(x=(-2.0, 2.0), y=(-1.5, 2.0), z=(0.0, 1.5), cell=0.5)
# Whole numbers of half cells hit faces, edges and corners; the others are anywhere.
_coordinate = st.one_of(st.integers(-14, 14).map(lambda n: n / 4), st.floats(-4, 4))
_point = st.tuples(_coordinate, _coordinate, _coordinate)


def paths(origins: np.ndarray, ends: np.ndarray, grid: VoxelGrid) -> dict[int, list[int]]:
    """The voxels of each ray in order."""
    found: dict[int, list[int]] = {}
    for rays, voxels in traverse(origins, ends, grid):
        for ray, voxel in zip(rays.tolist(), voxels.tolist(), strict=True):
            found.setdefault(ray, []).append(voxel)
    return found


def spans(origin: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(V,) shares of the ray's length at which it enters and leaves each voxel; enters > leaves: it misses it."""
    corners = GRID.centers().reshape(-1, 3).astype(np.float64) - GRID.cell / 2
    direction = end - origin
    enters, leaves = np.zeros(len(corners)), np.ones(len(corners))
    for axis in range(3):
        low, high = corners[:, axis], corners[:, axis] + GRID.cell
        if abs(direction[axis]) < 1e-12:
            misses = (origin[axis] < low - 1e-9) | (origin[axis] > high + 1e-9)
            enters[misses] = np.inf
        else:
            a, b = (low - origin[axis]) / direction[axis], (high - origin[axis]) / direction[axis]
            enters, leaves = np.maximum(enters, np.minimum(a, b)), np.minimum(leaves, np.maximum(a, b))
    return enters, leaves


@settings(max_examples=150, deadline=None)
@example([((-1.75, 0.25, 0.25), (1.75, 0.25, 0.25))])
@example([((0.0, 0.0, 0.0), (0.0, 0.0, 0.0))])
@example([((-3.0, -3.0, 0.5), (3.0, 3.0, 0.5))])
@example([((2.0, 0.0, 0.5), (3.0, 0.0, 0.5)), ((-3.0, 0.0, 0.5), (-2.0, 0.0, 0.5))])
@given(st.lists(st.tuples(_point, _point), min_size=1, max_size=4))
def test_a_ray_crosses_the_voxels_that_it_has_a_length_in(rays: list) -> None:
    origins, ends = np.array([a for a, _ in rays]), np.array([b for _, b in rays])
    found = paths(origins, ends, GRID)
    columns, rows = GRID.shape[2], GRID.shape[1]
    for ray, (origin, end) in enumerate(zip(origins, ends, strict=True)):
        path = np.array(found.get(ray, []), np.int64)
        enters, leaves = spans(origin, end)
        length = max(float(np.linalg.norm(end - origin)), 1e-9)
        middle = origin + np.where(enters < leaves, (enters + leaves) / 2, 0)[:, None] * (end - origin)
        depth = (GRID.cell / 2 - np.abs(middle - GRID.centers().reshape(-1, 3))).min(axis=1)
        certain = (enters < leaves) & (depth > 1e-6)  # what runs along a face may be of either side
        assert {*np.flatnonzero(certain).tolist()} <= {*path.tolist()}
        assert np.all(enters[path] <= leaves[path] + 1e-6 / length)
        assert np.all(np.diff(enters[path]) >= -1e-6 / length)
        place = np.stack([path % columns, path // columns % rows, path // (columns * rows)], axis=1)
        assert np.all(np.abs(np.diff(place, axis=0)).sum(axis=1) == 1)
        for point, index in ((origin, 0), (end, -1)):
            (voxel,), (inside,) = GRID.indices(point[None])
            assert not inside or path[index] == voxel


def test_rays_keep_their_index_though_they_have_different_lengths() -> None:
    origins = np.array([[-1.75, 0.25, 0.25]] * 4)
    ends = np.array([[-1.7, 0.25, 0.25], [1.75, 0.25, 0.25], [np.nan, 0.0, 0.0], [-0.75, 0.25, 0.25]])
    found = paths(origins, ends, GRID)
    assert {ray: len(path) for ray, path in found.items()} == {0: 1, 1: 8, 3: 3}
    first = int(GRID.indices(origins[:1])[0][0])
    assert found[3] == [first, first + 1, first + 2]


def test_no_rays_have_no_steps() -> None:
    assert list(traverse(np.empty((0, 3)), np.empty((0, 3)), GRID)) == []
    assert list(traverse(np.full((2, 3), 9.0), np.full((2, 3), 8.0), GRID)) == []
    outwards = np.array([[2.0, 0.1, 0.6]]), np.array([[3.0, 0.1, 0.6]])  # the upper end of x is not in the grid
    assert list(traverse(*outwards, GRID)) == []
    assert paths(*outwards[::-1], GRID) == {}
