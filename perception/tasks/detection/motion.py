"""A Kalman filter of many objects at once: constant velocity in the ground plane. numpy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# All operations are elementwise, so that results do not depend on the summation order of a BLAS library and replays
# are bit-identical. Noise is isotropic in the ground plane, so x and y share one covariance of position and velocity,
# and the update has a closed form. Height has a second filter without velocity.


@dataclass(frozen=True)
class Noise:
    """Standard deviations of N objects, (N,) each, or scalars."""

    acceleration: np.ndarray  # m/s, change of the velocity within 1 s
    climb: np.ndarray  # m, change of the height within 1 s
    position: np.ndarray  # m, of a measured centre
    velocity: np.ndarray  # m/s, of a measured velocity


@dataclass(frozen=True)
class Motion:
    """Estimated motion of N objects."""

    centers: np.ndarray  # (N, 3) m
    velocities: np.ndarray  # (N, 2) m/s in the ground plane
    covariances: np.ndarray  # (N, 3) along any direction of the ground: of position, of both, of velocity
    height_variances: np.ndarray  # (N,) m^2

    @staticmethod
    def begin(
        centers: np.ndarray, velocities: np.ndarray, noise: Noise, expected: tuple[np.ndarray, np.ndarray]
    ) -> Motion:
        """The estimate from one measurement; `expected` velocities: mean (N, 2) m/s and variances (N,) m^2/s^2."""
        given, (mean, prior), measured = is_known(velocities), expected, noise.velocity**2
        weight = np.where(given, prior / (prior + measured), 0.0)
        return Motion(
            centers=np.array(centers),
            velocities=mean + weight[:, None] * np.where(given[:, None], velocities - mean, 0.0),
            covariances=np.stack([noise.position**2, np.zeros(len(given)), (1 - weight) * prior], axis=1),
            height_variances=noise.position**2,
        )

    def predict(self, seconds: float, noise: Noise) -> Motion:
        """The prediction after `seconds` >= 0, with white noise acceleration."""
        position, both, velocity = self.covariances.T
        density = noise.acceleration**2  # m^2/s^3
        centers = self.centers.copy()
        centers[:, :2] += seconds * self.velocities
        covariances = np.stack(
            [
                position + seconds * (2 * both + seconds * velocity) + density * seconds**3 / 3,
                both + seconds * velocity + density * seconds**2 / 2,
                velocity + density * seconds,
            ],
            axis=1,
        )
        heights = self.height_variances + noise.climb**2 * seconds
        return Motion(centers, self.velocities, covariances, heights)

    def update(self, centers: np.ndarray, velocities: np.ndarray, noise: Noise) -> Motion:
        """The estimate after one measurement of each object; velocities (N, 2) m/s are not finite where not measured.

        The errors of position, velocity and height are independent, so they are processed one after the other.
        """
        position, both, velocity = self.covariances.T
        measured = noise.position**2
        total = position + measured
        innovation = centers[:, :2] - self.centers[:, :2]
        place = self.centers[:, :2] + (position / total)[:, None] * innovation
        speed = self.velocities + (both / total)[:, None] * innovation
        velocity = velocity - both * both / total
        position, both = position * measured / total, both * measured / total

        given = is_known(velocities)
        measured = noise.velocity**2
        total = velocity + measured
        innovation = np.where(given[:, None], velocities, speed) - speed
        place = place + (both / total)[:, None] * innovation
        speed = speed + (velocity / total)[:, None] * innovation
        position = np.where(given, position - both * both / total, position)
        remaining = np.where(given, measured / total, 1.0)

        gain = self.height_variances / (self.height_variances + noise.position**2)
        height = self.centers[:, 2] + gain * (centers[:, 2] - self.centers[:, 2])
        return Motion(
            centers=np.column_stack([place, height]),
            velocities=speed,
            covariances=np.stack([position, both * remaining, velocity * remaining], axis=1),
            height_variances=(1 - gain) * self.height_variances,
        )


def is_known(velocities: np.ndarray) -> np.ndarray:
    """(N,) bool: which of N velocities were measured."""
    return np.isfinite(velocities).all(axis=1)
