"""What a sensor fault does to the data: the kinds of faults, and their options."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from perception.evaluation import corrupt
from perception.frame import Camera, Frame
from perception.scene.health.monitor import Status
from perception.section import Section

LONGEST_DELAY = 10.0  # s for which frames are kept in memory

Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Amount = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Kind(Section):
    """What a fault does to a sensor's data. Subclasses override some methods; calibration and timestamps stay."""

    expected_statuses: ClassVar[frozenset[Status]]  # with any of them, health has detected the fault
    shows_earlier: ClassVar[bool] = False  # what an earlier frame had

    def camera(self, camera: Camera, past: Camera | None, rng: np.random.Generator) -> Camera | None:
        """Return the camera with the fault.

        Args:
            past: the camera in the earlier frame that a frozen or late sensor still shows.
            rng: seeded by the fault, the sensor and the frame.
        """
        return replace(camera, image=self.image(camera.image, rng))

    def image(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return image

    def lidar(self, frame: Frame, past: Frame | None, rng: np.random.Generator) -> Frame:
        """Return the frame with the fault; the frame must have points, all of one LiDAR."""
        return frame


class Drop(Kind):
    """Nothing arrives."""

    expected_statuses = frozenset({"missing"})

    def camera(self, camera: Camera, past: Camera | None, rng: np.random.Generator) -> None:
        return None

    def lidar(self, frame: Frame, past: Frame | None, rng: np.random.Generator) -> Frame:
        return frame.without_points()


class Freeze(Kind):
    """The last data before the fault are repeated as if they were new."""

    expected_statuses = frozenset({"frozen"})
    shows_earlier = True

    def camera(self, camera: Camera, past: Camera | None, rng: np.random.Generator) -> Camera | None:
        return past and replace(camera, image=past.image)

    def lidar(self, frame: Frame, past: Frame | None, rng: np.random.Generator) -> Frame:
        without = frame.without_points()
        return without if past is None else replace(without, points=past.points, sweep_of_point=past.sweep_of_point)


class Delay(Kind):
    """Data arrive late, with their own time and pose; until the first ones the sensor is missing."""

    expected_statuses = frozenset({"late", "missing"})
    shows_earlier = True
    seconds: Annotated[float, Field(gt=0, le=LONGEST_DELAY)] = 0.5

    def camera(self, camera: Camera, past: Camera | None, rng: np.random.Generator) -> Camera | None:
        return past

    def lidar(self, frame: Frame, past: Frame | None, rng: np.random.Generator) -> Frame:
        if past is None or past.points is None:
            return frame.without_points()
        late = past.points + np.array([0, 0, 0, 0, 1e-6 * (frame.timestamp - past.timestamp)], np.float32)
        shown = replace(frame.without_points(), points=late, sweep_of_point=past.sweep_of_point)
        return corrupt.moved(shown, np.linalg.inv(frame.global_from_reference) @ past.global_from_reference)


class Blackout(Kind):
    """The sensor works but sees nothing: black pictures, sweeps without returns."""

    expected_statuses = frozenset({"dark", "missing"})

    def image(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return np.zeros_like(image)

    def lidar(self, frame: Frame, past: Frame | None, rng: np.random.Generator) -> Frame:
        return frame.select_points(slice(0))


class Blur(Kind):
    expected_statuses = frozenset({"blurred"})
    pixels: Amount = 5.0  # standard deviation, in the recorded picture

    def image(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return corrupt.blurred(image, self.pixels)


class Noise(Kind):
    expected_statuses = frozenset({"noisy"})
    levels: Amount = 25.0  # standard deviation for pictures, of 255 grey levels
    metres: Amount = 0.1  # standard deviation for points

    def image(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return corrupt.noisy_image(image, self.levels, rng)

    def lidar(self, frame: Frame, past: Frame | None, rng: np.random.Generator) -> Frame:
        return corrupt.noisy_points(frame, self.metres, rng)


class Miscalibration(Kind):
    """The mounting is rotated and shifted against the calibration; the LiDAR's about the frame of reference.

    Within a second, health detects a LiDAR if the ground below it tilts or rises more than by suspension and road.
    While the vehicle drives, it detects within seconds a camera that is rotated against the LiDAR, or a LiDAR that is
    rotated against most cameras. `perception.scene.health.alignment` has the limits; rotations about a camera's own
    axis and shifts alone are not detected.
    """

    expected_statuses = frozenset({"miscalibrated"})
    degrees: NotNegative = 1.0
    metres: NotNegative = 0.05

    def camera(self, camera: Camera, past: Camera | None, rng: np.random.Generator) -> Camera:
        return replace(camera, ego_from_camera=camera.ego_from_camera @ self._displacement(rng))

    def lidar(self, frame: Frame, past: Frame | None, rng: np.random.Generator) -> Frame:
        return corrupt.moved(frame, self._displacement(rng))

    def _displacement(self, rng: np.random.Generator) -> np.ndarray:
        return corrupt.displacement(self.degrees, self.metres, rng)


class Points(Kind):
    """Returns are lost, as in spray or on dark paint."""

    expected_statuses = frozenset({"thinned"})
    share: Share = 0.5

    def lidar(self, frame: Frame, past: Frame | None, rng: np.random.Generator) -> Frame:
        return corrupt.thinned(frame, self.share, rng)


class Corruption(Kind):
    """Packets arrive with wrong bytes."""

    expected_statuses = frozenset({"corrupt"})
    share: Share = 0.2  # of the LiDAR's packets, or of the pictures' rows of blocks

    def image(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return corrupt.damaged_image(image, self.share, rng)

    def lidar(self, frame: Frame, past: Frame | None, rng: np.random.Generator) -> Frame:
        return corrupt.garbled_points(frame, self.share, rng)


KINDS: dict[str, type[Kind]] = {kind.__name__.lower(): kind for kind in Kind.__subclasses__()}

SENSORS_OF_KIND = {"blur": "cameras", "points": "lidar"}  # kinds that only this group of sensors can have
