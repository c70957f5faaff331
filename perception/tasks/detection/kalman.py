"""A constant-velocity Kalman filter for many objects at once. numpy only.

All operations are elementwise, so that results do not depend on the summation order of a BLAS library and replays are
bit-identical. Noise is isotropic in the ground plane, so x and y share one covariance of position and velocity, and the
update has a closed form. Height has a second filter without velocity.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Noise:
    """Standard deviations of N objects, (N,) each, or scalars."""

    acceleration: np.ndarray  # m/s, change of the velocity within 1 s
    climb: np.ndarray  # m, change of the height within 1 s
    position: np.ndarray  # m, of a measured centre
    velocity: np.ndarray  # m/s, of a measured velocity
    speed: np.ndarray  # m/s, of the prior of velocities


@dataclass(frozen=True)
class Motion:
    """Estimated motion of N objects."""

    centers: np.ndarray  # (N, 3) m
    velocities: np.ndarray  # (N, 2) m/s in the ground plane
    covariances: np.ndarray  # (N, 3) along any direction of the ground: of position, of both, of velocity
    height_variances: np.ndarray  # (N,) m^2

    @staticmethod
    def begun(centers: np.ndarray, velocities: np.ndarray, noise: Noise) -> Motion:
        """The initial estimate from one measurement, with a prior by class; arguments as in `updated`."""
        known, prior, measured = _known(velocities), noise.speed**2, noise.velocity**2
        weight = np.where(known, prior / (prior + measured), 0.0)
        return Motion(
            centers=np.array(centers),
            velocities=weight[:, None] * np.where(known[:, None], velocities, 0.0),
            covariances=np.stack([noise.position**2, np.zeros(len(known)), (1 - weight) * prior], axis=1),
            height_variances=noise.position**2,
        )

    def predicted(self, seconds: float, noise: Noise) -> Motion:
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

    def updated(self, centers: np.ndarray, velocities: np.ndarray, noise: Noise) -> Motion:
        """The estimate after one measurement of each object.

        The errors of position, velocity and height are independent, so they are processed one after the other.

        Args:
            centers: (N, 3) m.
            velocities: (N, 2) m/s; not finite where not measured.
        """
        position, both, velocity = self.covariances.T
        measured = noise.position**2
        total = position + measured
        innovation = centers[:, :2] - self.centers[:, :2]
        place = self.centers[:, :2] + (position / total)[:, None] * innovation
        speed = self.velocities + (both / total)[:, None] * innovation
        velocity = velocity - both * both / total
        position, both = position * measured / total, both * measured / total

        known = _known(velocities)
        measured = noise.velocity**2
        total = velocity + measured
        innovation = np.where(known[:, None], velocities, speed) - speed
        place = place + (both / total)[:, None] * innovation
        speed = speed + (velocity / total)[:, None] * innovation
        position = np.where(known, position - both * both / total, position)
        kept = np.where(known, measured / total, 1.0)

        gain = self.height_variances / (self.height_variances + noise.position**2)
        height = self.centers[:, 2] + gain * (centers[:, 2] - self.centers[:, 2])
        return Motion(
            centers=np.column_stack([place, height]),
            velocities=speed,
            covariances=np.stack([position, both * kept, velocity * kept], axis=1),
            height_variances=(1 - gain) * self.height_variances,
        )


def _known(velocities: np.ndarray) -> np.ndarray:
    return np.isfinite(velocities).all(axis=1)
