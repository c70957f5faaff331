"""Frames with a spot in a picture, points of keyframes, and boxes."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from perception.frame import PER_POINT, Boxes, Camera, Frame
from perception.tasks.detection.columns import BoxColumns
from perception.tasks.points.task import ClassifiedPoints


def keyframe(points: np.ndarray | None) -> dict[str, Any]:
    """Arguments of a frame: points that are all of the keyframe, of one LiDAR."""
    sweeps = None if points is None else np.zeros(len(points), np.uint8)
    return dict.fromkeys(PER_POINT) | {"points": points, "sweep_of_point": sweeps}


def points_of(frame: Frame) -> dict[str, Any]:
    """Arguments of a frame: the points of another."""
    return {name: getattr(frame, name) for name in PER_POINT}


def make_boxes(
    centers: Any, sizes: Any = (2.0, 4.5, 1.6), yaws: Any = 0.0, velocities: Any = (0.0, 0.0), labels: Any = 0,
    attributes: Any = -1, scores: Any = 1.0,
) -> Boxes:  # fmt: skip
    """Boxes at centers (N, 3), by default cars that stand; what is given once is that of each."""
    n = len(centers)

    def each(values: Any, *shape: int) -> np.ndarray:
        return np.array(np.broadcast_to(values, (n, *shape)))

    places = np.array(centers, np.float64).reshape(n, 3)
    return Boxes.from_yaws(
        places, each(sizes, 3), each(yaws), each(velocities, 2), each(labels), each(attributes), each(scores)
    )


def _blob(height: int, width: int, u: float, v: float) -> np.ndarray:
    """A picture with a bright spot around pixel (u, v)."""
    y, x = np.mgrid[:height, :width]
    spot = 255 * np.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * 6.0**2))
    return np.repeat(np.round(spot).astype(np.uint8)[..., None], 3, axis=2)


def spot_of(image: np.ndarray) -> np.ndarray:
    """(2,) u and v of the middle of the bright spot."""
    weights = image[..., 0].astype(np.float64)
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    return np.array([(weights * x).sum(), (weights * y).sum()]) / weights.sum()


def paint_frame(point: np.ndarray, size: tuple[int, int] = (900, 1600)) -> Frame:
    """A frame whose front camera, at its own time and place, sees a bright spot where the point (3,) projects."""
    ego_from_camera = np.eye(4)
    ego_from_camera[:3, :3] = [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]
    ego_from_camera[:3, 3] = (1.7, 0.1, 1.5)
    ego, later = np.eye(4), np.eye(4)
    ego[:3, 3], later[:3, 3] = (600, 1600, 0), (600.4, 1600.05, 0)
    later[:2, :2] = [[np.cos(0.02), -np.sin(0.02)], [np.sin(0.02), np.cos(0.02)]]
    focal = 1260 * size[1] / 1600
    intrinsics = np.array([[focal, 0, size[1] / 2], [0, focal, size[0] / 2], [0, 0, 1]])
    camera = Camera(np.zeros((*size, 3), np.uint8), intrinsics, ego_from_camera, later, 0)
    frame = Frame("t", 0, "ego", ego, ego, cameras={"CAM_FRONT": camera}, **keyframe(np.zeros((0, 5), np.float32)))
    painted = replace(camera, image=_blob(*size, *_pixel(frame.image_from_reference("CAM_FRONT"), point)))
    return replace(frame, cameras={"CAM_FRONT": painted})


def _pixel(projection: np.ndarray, point: np.ndarray) -> np.ndarray:
    u, v, depth = projection @ np.append(point, 1)
    return np.array([u, v]) / depth


def random_boxes(
    rng: np.random.Generator, frames: int, ties: bool = False, classes: Sequence[int] = (0, 5, 8, 9), boxes: int = 60
) -> tuple[BoxColumns, BoxColumns]:
    """Annotations, and detections of most of them among false ones; some velocities and attributes are unknown."""
    labels = rng.choice(classes, boxes)
    rows = np.column_stack(
        [
            rng.integers(0, frames, boxes), labels, rng.uniform(-8, 8, (boxes, 3)), rng.uniform(0.5, 4, (boxes, 3)),
            rng.uniform(-7, 7, boxes), rng.normal(0, 3, (boxes, 2)), rng.integers(-1, 8, boxes),
            np.ones(boxes), rng.integers(1, 5, boxes),
        ]
    )  # fmt: skip
    rows[rng.random(boxes) < 0.1, 9:11] = np.nan
    found = rows[rng.integers(0, boxes, 3 * boxes)]
    found[:, 2:5] += rng.normal(0, 1.2, (len(found), 3))
    found[:, 5:8] *= rng.uniform(0.8, 1.2, (len(found), 3))
    found[:, 8] += rng.normal(0, 1, len(found))
    found[:, 9:11] = rng.normal(0, 3, (len(found), 2))
    found[:, 12] = rng.integers(1, 6, len(found)) / 5 if ties else rng.uniform(0.01, 1, len(found))
    return BoxColumns(rows), BoxColumns(found)


def classified(classes: np.ndarray) -> ClassifiedPoints:
    """The result of a network that is sure of these classes (K,)."""
    return ClassifiedPoints(classes.astype(np.uint8), np.ones(len(classes), np.float32))
