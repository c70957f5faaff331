"""A detector with known mistakes."""

from collections.abc import Callable

import numpy as np

from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.frame import Boxes, Frame, Prediction


def detector(tables: NuScenesTables) -> Callable[[Frame], Prediction]:
    """Sees annotated objects by their LiDAR points, which pull their centres, and rates them by the pictures."""

    def predict(frame: Frame) -> Prediction:
        boxes = tables.recording(frame.token).annotated("boxes").transformed(np.linalg.inv(frame.global_from_reference))
        centers, scores = boxes.centers.copy(), np.zeros(len(boxes))
        points = np.zeros((0, 3)) if frame.points is None else frame.points[:, :3].astype(np.float64)
        grain = [np.abs(np.diff(camera.image.astype(int), axis=1)).mean() for camera in frame.cameras.values()]
        mounting = sum(camera.ego_from_camera[0, 3] for camera in frame.cameras.values())
        for i in range(len(boxes)):
            local = (points - boxes.centers[i]) @ boxes.rotations[i]
            inside = (np.abs(local) <= boxes.sizes[i][[1, 0, 2]] / 2 + 0.2).all(axis=1)
            if inside.any():
                centers[i] = points[inside].mean(axis=0)
            scores[i] = inside.sum() / (inside.sum() + 5) + 0.01 * sum(grain) / (i + 1) + 0.001 * mounting
        found = Boxes(**{**boxes.__dict__, "centers": centers, "scores": np.clip(scores, 0, 1)})
        return Prediction({"detection": found.select(scores > 0.3)})

    return predict
