"""The latest pictures of a recorded camera, from which that of each frame is chosen."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from deploy.replay.sources.counts import Counts
from deploy.replay.sources.messages import CorruptMessage, Intrinsics, Lens, Picture
from deploy.replay.sources.topics import CameraTopics
from perception.datasets.files import jpeg_file
from perception.frame import Camera
from perception.rig import RigCamera

UNMOUNTED = "no transform from the sensor to the vehicle"
_MOST = 32  # pictures


def intrinsics_of(camera: RigCamera) -> Intrinsics:
    """The calibration of a rig's camera; rectified pictures keep its focal length and size."""
    matrix, coefficients, lens = camera.intrinsics, camera.lens.distortion if camera.lens else (), None
    if coefficients:
        model = "rational_polynomial" if len(coefficients) == 8 else "plumb_bob"
        lens = Lens(model, np.array(coefficients), matrix, np.eye(3), matrix, camera.size)
    return Intrinsics(0, camera.name, camera.size, matrix, lens)


class CameraPictures:
    """A bounded number of pictures, not yet decoded, and the camera's latest calibration.

    Args:
        tolerance: us, largest difference between the stamps of a picture and of its frame.
        keep: us of recording time for which a picture is kept.
    """

    def __init__(self, topics: CameraTopics, tolerance: int, keep: int) -> None:
        self.topics, self._tolerance, self._keep = topics, tolerance, keep
        self.intrinsics: Intrinsics | None = None
        self._pictures: deque[tuple[int, Picture]] = deque(maxlen=_MOST)

    def set_intrinsics(self, intrinsics: Intrinsics) -> None:
        """Set the calibration. CameraInfo repeats it with each picture; an equal lens is kept with its remap tables."""
        before = self.intrinsics
        if before is not None and before.lens is not None and before.lens.equals(intrinsics.lens):
            intrinsics = replace(intrinsics, lens=before.lens)
        self.intrinsics = intrinsics

    def add(self, time: int, picture: Picture) -> None:
        """Add a picture that was recorded at this time (us)."""
        while self._pictures and time - self._pictures[0][0] > self._keep:
            self._pictures.popleft()
        self._pictures.append((time, picture))

    def closest(
        self,
        stamp: int,
        pose_at: Callable[[int], np.ndarray | None],
        mounting_of: Callable[[str], np.ndarray | None],
        counts: Counts,
    ) -> Camera | None:
        """Return the picture closest to the stamp (us), with its pose and calibration; None if there is no usable one.

        Damaged pictures are counted and dropped; then the next closest one is used.
        """
        by_distance = [(abs(each.stamp - stamp), each.stamp, n) for n, (_, each) in enumerate(self._pictures)]
        dropped = []
        camera = None
        for distance, _, n in sorted(by_distance):
            if distance > self._tolerance:
                break
            picture = self._pictures[n][1]
            pose = pose_at(picture.stamp)
            if pose is None:
                counts.add_problem("unposed", self.topics.image)
                dropped.append(picture)
                continue
            try:
                camera = self._camera(picture, pose, mounting_of)
                break
            except CorruptMessage as error:
                counts.add_corrupt(self.topics.image, str(error))
                dropped.append(picture)
        for picture in dropped:
            self._pictures = deque((each for each in self._pictures if each[1] is not picture), maxlen=_MOST)
        return camera

    def has(self, stamp: int) -> bool:
        """Whether there is a picture near a stamp (us); it may turn out to be damaged."""
        return any(abs(each.stamp - stamp) <= self._tolerance for _, each in self._pictures)

    def _camera(self, picture: Picture, pose: np.ndarray, mounting_of: Callable[[str], np.ndarray | None]) -> Camera:
        mounting = mounting_of(self.topics.frame or picture.frame)
        if self.intrinsics is None:
            raise CorruptMessage("a picture of a camera without CameraInfo")
        if mounting is None:
            raise CorruptMessage(UNMOUNTED)
        if picture.size != self.intrinsics.size:
            raise CorruptMessage("a picture of another size than its CameraInfo")
        lens = self.intrinsics.lens if self.topics.unrectified else None
        if lens is not None and not lens.known:
            raise CorruptMessage("a picture with an unknown lens model")
        image = picture.decode()
        file = jpeg_file(picture.content, image) if lens is None else None
        if (image.shape[1], image.shape[0]) != picture.size:
            raise CorruptMessage("a picture of another size than its header says")
        if lens is not None:
            image = lens.rectify(image)
            mounting = mounting.copy()
            mounting[:3, :3] = mounting[:3, :3] @ lens.rotation.T
        return Camera(image, self.intrinsics.matrix, mounting, pose, picture.stamp, file)
