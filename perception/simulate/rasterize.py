"""Rasterization of box faces: projection with near-plane clipping, exact scan conversion, depth buffer.

Pixel (row, column) is sampled at its centre, the image point (column, row), as in OpenCV and the nuScenes devkit.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from perception.simulate.snapshot import Solids

NEAR = 0.05  # m, distance of the near plane

# Outward normals and corners (in half sizes, in order around the face) of the six faces, in the box's frame.
_NORMALS = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]], np.float64)
_CORNERS = np.array(
    [
        [[1, -1, -1], [1, 1, -1], [1, 1, 1], [1, -1, 1]],
        [[-1, 1, -1], [-1, -1, -1], [-1, -1, 1], [-1, 1, 1]],
        [[1, 1, -1], [-1, 1, -1], [-1, 1, 1], [1, 1, 1]],
        [[-1, -1, -1], [1, -1, -1], [1, -1, 1], [-1, -1, 1]],
        [[-1, -1, 1], [1, -1, 1], [1, 1, 1], [-1, 1, 1]],
        [[-1, 1, -1], [1, 1, -1], [1, -1, -1], [-1, -1, -1]],
    ],
    np.float64,
)


@dataclass(frozen=True)
class Faces:
    """F flat quadrilaterals in the global frame."""

    corners: np.ndarray  # (F, 4, 3) m, in order around the face
    normals: np.ndarray  # (F, 3) outward unit vectors
    solids: np.ndarray  # (F,) index of the solid

    def __getitem__(self, chosen: np.ndarray) -> Faces:
        return Faces(**{f.name: getattr(self, f.name)[chosen] for f in fields(Faces)})

    @staticmethod
    def facing(solids: Solids, point: np.ndarray | None, direction: np.ndarray | None = None) -> Faces:
        """The front faces of the solids, seen from the point (3,) or, at infinity, from the direction (3,)."""
        cos, sin = np.cos(solids.yaws), np.sin(solids.yaws)
        rotations = np.zeros((len(cos), 3, 3))
        rotations[:, 0, 0], rotations[:, 0, 1], rotations[:, 1, 0], rotations[:, 1, 1] = cos, -sin, sin, cos
        rotations[:, 2, 2] = 1
        normals = _NORMALS @ rotations.transpose(0, 2, 1)
        if direction is None:
            middles = solids.centers[:, None] + normals * (np.abs(_NORMALS) @ (solids.sizes.T / 2)).T[..., None]
            solid, side = np.nonzero(((point - middles) * normals).sum(axis=-1) > 1e-9)
        else:
            solid, side = np.nonzero(normals @ direction > 1e-9)
        local = _CORNERS[side] * (solids.sizes[solid] / 2)[:, None]
        corners = local @ rotations[solid].transpose(0, 2, 1) + solids.centers[solid][:, None]
        return Faces(corners, normals[solid, side], solid)


def project(polygons: np.ndarray, intrinsics: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Image outlines of quadrilaterals (F, 4, 3) in the camera's frame, clipped at the near plane.

    Returns (G, 5, 2) pixels, the last corner repeated where there are fewer than five, and (G,) the index of the
    quadrilateral; those wholly behind the near plane are left out.
    """
    depths = polygons[..., 2]
    kept = np.flatnonzero((depths > NEAR).any(axis=1))
    outlines = np.concatenate([polygons[kept], polygons[kept, -1:]], axis=1)
    for i in np.flatnonzero((depths[kept] <= NEAR).any(axis=1)):
        outlines[i] = _clip(polygons[kept[i]])
    pixels = outlines @ intrinsics.T
    return pixels[..., :2] / pixels[..., 2:], kept


def _clip(polygon: np.ndarray) -> np.ndarray:
    """(5, 3) the quadrilateral (4, 3) clipped at the near plane (Sutherland & Hodgman, CACM 1974)."""
    corners: list[np.ndarray] = []
    for start, end in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if start[2] > NEAR:
            corners.append(start)
        if (start[2] > NEAR) != (end[2] > NEAR):
            corners.append(start + (end - start) * (NEAR - start[2]) / (end[2] - start[2]))
    corners += [corners[-1]] * (5 - len(corners))
    return np.stack(corners)


@dataclass(frozen=True)
class Spans:
    """The pixels that F convex outlines cover, as a half-open column interval [left, right) in each row."""

    top: np.ndarray  # (F,) first row
    start: np.ndarray  # (F + 1,) where each outline's rows begin in left and right
    left: np.ndarray  # (rows of all outlines,) first column
    right: np.ndarray  # (rows of all outlines,) column after the last
    columns: np.ndarray  # (F, 2) smallest left and greatest right

    @staticmethod
    def of(outlines: np.ndarray, width: int, height: int) -> Spans:
        """Scan conversion of outlines (F, N, 2) in pixels.

        A pixel is covered when its centre is inside. Of outlines that share an edge, exactly one covers each pixel.
        """
        v = outlines[..., 1]
        top = np.ceil(v.min(axis=1)).clip(0, height).astype(np.int64)
        bottom = np.ceil(v.max(axis=1)).clip(0, height).astype(np.int64)
        start = np.concatenate([[0], np.cumsum(bottom - top)])
        face = np.repeat(np.arange(len(outlines)), bottom - top)
        row = np.arange(start[-1]) - start[face] + top[face]
        left, right = np.full(len(row), np.inf), np.full(len(row), -np.inf)
        following = np.roll(outlines, -1, axis=1)
        for edge in range(outlines.shape[1]):
            (u0, v0), (u1, v1) = outlines[face, edge].T, following[face, edge].T
            crossed = (v0 <= row) != (v1 <= row)
            with np.errstate(divide="ignore", invalid="ignore"):
                u = u0 + (row - v0) * ((u1 - u0) / (v1 - v0))
            np.minimum(left, u, out=left, where=crossed)
            np.maximum(right, u, out=right, where=crossed)
        left = np.ceil(left).clip(0, width).astype(np.int64)
        right = np.ceil(right).clip(0, width).astype(np.int64)
        columns = np.zeros((len(outlines), 2), np.int64)
        filled = bottom > top
        if filled.any():
            columns[filled, 0] = np.minimum.reduceat(left, start[:-1][filled])
            columns[filled, 1] = np.maximum.reduceat(right, start[:-1][filled])
        return Spans(top, start, left, right, columns)


def draw(
    spans: Spans, planes: np.ndarray, groups: np.ndarray, inverse_depth: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Draw faces into the depth buffer `inverse_depth` (H, W) float32 1/m.

    Args:
        planes: (F, 3) such that the inverse depth of a face at pixel (u, v) is planes @ (u, v, 1).
        groups: (F,) ascending; index of the object that the face belongs to, negative for none.

    Returns:
        (H, W) int32 index of the face at each pixel, -1 for none, and (groups.max() + 1,) the number of pixels that
        each group covers without occlusion.
    """
    height, width = inverse_depth.shape
    u, v = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
    columns = np.arange(width)
    face_at = np.full((height, width), -1, np.int32)
    mask = np.zeros((height, width), bool)
    covered = np.zeros(groups.max(initial=-1) + 1, np.int64)
    current, bounds = -1, (height, 0, width, 0)  # the group in `mask` and its bounding rectangle
    a, b, c = np.ascontiguousarray(planes.T, np.float32)
    tops, lefts, rights = spans.top.tolist(), spans.columns[:, 0].tolist(), spans.columns[:, 1].tolist()
    starts, group_of = spans.start.tolist(), groups.tolist()
    for face in range(len(group_of)):
        first, last = starts[face], starts[face + 1]
        x0, x1 = lefts[face], rights[face]
        if first == last or x0 >= x1:
            continue
        y0 = tops[face]
        y1 = y0 + last - first
        here = columns[x0:x1]
        inside = (here >= spans.left[first:last, None]) & (here < spans.right[first:last, None])
        if group_of[face] >= 0:
            if group_of[face] != current:
                _close_group(mask, current, bounds, covered)
                current, bounds = group_of[face], (height, 0, width, 0)
            mask[y0:y1, x0:x1] |= inside
            bounds = (min(bounds[0], y0), max(bounds[1], y1), min(bounds[2], x0), max(bounds[3], x1))
        buffer = inverse_depth[y0:y1, x0:x1]
        face_inverse_depth = a[face] * u[x0:x1] + (b[face] * v[y0:y1] + c[face])
        inside &= face_inverse_depth > buffer
        np.copyto(buffer, face_inverse_depth, where=inside)
        np.copyto(face_at[y0:y1, x0:x1], face, where=inside)
    _close_group(mask, current, bounds, covered)
    return face_at, covered


def _close_group(mask: np.ndarray, group: int, bounds: tuple[int, int, int, int], covered: np.ndarray) -> None:
    if group >= 0:
        y0, y1, x0, x1 = bounds
        covered[group] = np.count_nonzero(mask[y0:y1, x0:x1])
        mask[y0:y1, x0:x1] = False
