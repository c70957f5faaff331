"""Rotations, poses, and points inside boxes. numpy only."""

from __future__ import annotations

from typing import Any

import numpy as np


def rotation_matrices(quaternions: np.ndarray) -> np.ndarray:
    """(..., 3, 3) from quaternions (..., 4) in the order w x y z, of any length."""
    q = np.asarray(quaternions, np.float64)
    w, x, y, z = np.moveaxis(q / np.linalg.norm(q, axis=-1, keepdims=True), -1, 0)
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
    return np.moveaxis(rotation, (0, 1), (-2, -1))


def rigid(translation: Any, quaternion: Any) -> np.ndarray:
    """(4, 4) parent_from_child, from a translation (m) and a quaternion w x y z."""
    matrix = np.eye(4)
    matrix[:3, :3] = rotation_matrices(np.asarray(quaternion, np.float64))
    matrix[:3, 3] = translation
    return matrix


def quaternions(rotations: np.ndarray) -> np.ndarray:
    """(N, 4) unit quaternions w x y z, w >= 0, of rotation matrices (N, 3, 3).

    Four times the outer product q q^T is linear in the matrix. Its row with the largest diagonal entry is a multiple of
    q without cancellation at any angle (Shepperd, "Quaternion from rotation matrix", 1978).
    """
    outer = _outer(rotations)
    largest = np.argmax(np.diagonal(outer, axis1=1, axis2=2), axis=1)
    q = outer[np.arange(len(outer)), largest]
    q = q / np.linalg.norm(q, axis=1, keepdims=True)
    return np.where(q[:, :1] < 0, -q, q)


def axes_and_angles(rotations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, 3) unit axes and (N,) angles (rad, 0 to pi) of rotation matrices (N, 3, 3); the axis of no rotation is 0."""
    q = quaternions(rotations)
    sines = np.linalg.norm(q[:, 1:], axis=1)
    axes = np.divide(q[:, 1:], sines[:, None], out=np.zeros((len(q), 3)), where=sines[:, None] > 0)
    return axes, 2 * np.arctan2(sines, q[:, 0])


def quaternion(rotation: np.ndarray) -> list[float]:
    """The quaternion of one matrix; differs from `quaternions` in the last digit, for the bytes of simulated drives."""
    trace = np.trace(rotation)
    diagonal = np.array([trace, *np.diag(rotation)])
    largest = int(np.argmax(diagonal))
    q = _outer(rotation[None])[0, largest]
    q[largest] = 1 + 2 * diagonal[largest] - trace
    q = q / np.linalg.norm(q)
    return [float(x) for x in (-q if q[0] < 0 else q)]


def _outer(m: np.ndarray) -> np.ndarray:
    """(N, 4, 4) four times q q^T for rotation matrices (N, 3, 3)."""
    xx, yy, zz = m[:, 0, 0], m[:, 1, 1], m[:, 2, 2]
    wx, wy, wz = m[:, 2, 1] - m[:, 1, 2], m[:, 0, 2] - m[:, 2, 0], m[:, 1, 0] - m[:, 0, 1]
    xy, xz, yz = m[:, 0, 1] + m[:, 1, 0], m[:, 0, 2] + m[:, 2, 0], m[:, 1, 2] + m[:, 2, 1]
    rows = [
        [1 + xx + yy + zz, wx, wy, wz],
        [wx, 1 + xx - yy - zz, xy, xz],
        [wy, xy, 1 - xx + yy - zz, yz],
        [wz, xz, yz, 1 - xx - yy + zz],
    ]
    return np.moveaxis(np.array(rows), 2, 0)


def rotation_about(axis: np.ndarray, angle: float) -> np.ndarray:
    """(3, 3) rotation by an angle (rad) about a unit vector, by Rodrigues' formula."""
    cross = np.cross(np.eye(3), axis)
    return np.asarray(np.eye(3) + (np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross))


# Products and inverses of small matrices. BLAS and LAPACK add in the order of their build and machine, these in one, so
# that every runtime of a bundle gives the same inputs in every bit.


def product(*matrices: np.ndarray) -> np.ndarray:
    """The product of matrices (n, k) float64, from left to right."""
    result = matrices[0]
    for matrix in matrices[1:]:
        terms = result[:, :, None] * matrix
        result = terms[:, 0]
        for k in range(1, len(matrix)):
            result = result + terms[:, k]
    return result


def inverse(pose: np.ndarray) -> np.ndarray:
    """The inverse of an affine matrix (4, 4) with the last row 0 0 0 1, by its cofactors; ZeroDivisionError without
    one."""
    (a, b, c, x), (d, e, f, y), (g, h, i, z), _ = pose.tolist()
    rows = (
        (e * i - f * h, c * h - b * i, b * f - c * e),
        (f * g - d * i, a * i - c * g, c * d - a * f),
        (d * h - e * g, b * g - a * h, a * e - b * d),
    )
    determinant = a * rows[0][0] + b * rows[1][0] + c * rows[2][0]
    turned = [[value / determinant for value in row] for row in rows]
    return np.array([*([p, q, r, -(p * x + q * y + r * z)] for p, q, r in turned), [0.0, 0.0, 0.0, 1.0]])


def move(points: np.ndarray, transform: np.ndarray) -> None:
    """Transform the coordinates of points (N, >=3) in place, by a matrix (4, 4) of their type."""
    turned = points[:, :3] @ transform[:3, :3].T
    for axis in range(3):  # by columns, because numpy is slow along an axis of length three
        np.add(turned[:, axis], transform[axis, 3], out=points[:, axis])


def points_in_boxes(points: np.ndarray, centers: np.ndarray, sizes: np.ndarray, yaws: np.ndarray) -> np.ndarray:
    """(B,) number of points (N, 3) inside each upright box, faces included, as the devkit's `points_in_box` counts.

    centers (B, 3) m, sizes (B, 3) width, length, height m, yaws (B,) rad.
    """
    points = points[np.argsort(points[:, 0], kind="stable")]
    radius = np.hypot(sizes[:, 0], sizes[:, 1]) / 2
    first = np.searchsorted(points[:, 0], centers[:, 0] - radius)
    last = np.searchsorted(points[:, 0], centers[:, 0] + radius, side="right")
    counts = np.zeros(len(centers), np.int64)
    for n in range(len(centers)):
        x, y, z = (points[first[n] : last[n]] - centers[n]).T
        along = np.abs(np.cos(yaws[n]) * x + np.sin(yaws[n]) * y) <= sizes[n, 1] / 2
        across = np.abs(np.cos(yaws[n]) * y - np.sin(yaws[n]) * x) <= sizes[n, 0] / 2
        counts[n] = np.count_nonzero(along & across & (np.abs(z) <= sizes[n, 2] / 2))
    return counts


def unit_headings(vectors: np.ndarray) -> np.ndarray:
    """(N, 2) sine and cosine of yaws, from these times any positive factor; a yaw of 0 where both are 0."""
    length = np.sqrt(np.square(vectors).sum(axis=1, keepdims=True))
    return np.divide(vectors, length, out=np.tile([0.0, 1.0], (len(vectors), 1)), where=length > 0)


def along_and_aside(places: np.ndarray, centers: np.ndarray, headings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(P, N) m ahead and to the left of boxes with centers (N, >=2) and headings (N, 2), of places (P, >=2)."""
    x, y = (places[:, None, axis] - centers[:, axis] for axis in (0, 1))
    sine, cosine = headings.T
    return x * cosine + y * sine, y * cosine - x * sine
