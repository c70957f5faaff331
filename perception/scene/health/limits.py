"""The limits of the health monitor for each kind of sensor. docs/health.md says how they were measured.

A rig gives others for its own sensors, as in `health: {min_points: 500}`. Parameters of the features themselves (such
as the number of rows sampled) are beside their computation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from perception.section import Section

Pair = Annotated[tuple[float, float], Field(strict=False)]


class CameraLimits(Section):
    """A camera with 8-bit colour images, JPEG or raw."""

    frozen: float = 0.25  # s without a new image; cameras may be slower than the frames
    late: float = 0.15  # s between the times of image and frame
    dark_level: int = 10  # of 255: pixels below it are dark
    bright_level: int = 245  # of 255: pixels above it are bright
    nearly_all: float = 0.99  # share of dark, or bright, pixels
    mostly_dark: float = 0.5  # share of dark pixels where the others are noise
    shapeless: float = 0.95  # texture, which is 1 for white noise
    smooth: float = 0.02  # texture above that of a smooth gradient, 0.25
    seam: float = 30.0  # grey levels between the last row of a JPEG block and the first row of the next
    torn: float = 0.17  # share of a row of blocks with seams to the rows above and below
    noisy: float = 12.0  # grey levels, standard deviation


class LidarLimits(Section):
    """A spinning LiDAR; the defaults are for an HDL-32E on a car's roof at 20 Hz."""

    # Limits of the monitor.
    frozen: float = 0.25  # s without new points
    late: float = 0.15  # s between the newest point and the frame
    far: float = 500.0  # m, beyond which a point cannot be a measurement
    impossible: float = 0.01  # share of points that are not finite or beyond `far`
    garbled: float = 0.03  # share of garbled sectors of azimuth, see `beyond`
    rough: float = 0.03  # m, roughness of the ground nearby
    min_points: int = 2000  # of a sweep
    thinned: float = 0.7  # share of the usual number of points, and of their usual density nearby
    usual: float = 60.0  # s, time constant with which the usual numbers decrease
    broken: float = 0.6  # share of ground points with both neighbours on their ring
    tilted: float = 1.5  # degrees between the ground and the vehicle's x-y plane
    raised: float = 0.2  # m between the ground and the vehicle's origin
    levelled: float = 1.25  # s, window of the median of the ground plane; at least 3 frames

    # Definitions of garbled sector, ground and ring.
    sectors: int = 180  # of azimuth; each is the width of a packet
    beyond: float = 50.0  # m; most beams meet the ground nearer
    beyond_share: float = 0.3  # of the returns of a garbled sector lie beyond
    bright: float = 70.0  # mean intensity of a garbled sector
    near: Pair = (3.0, 12.0)  # m from the vehicle's origin, where ground points are dense
    level: float = 1.0  # m above and below the vehicle's origin in which ground is searched
    cell_points: int = 5  # minimum for the spread of a 1 x 1 m cell
    ring: Pair = (5.0, 12.0)  # m; nearer, range noise is as large as a step along the ring
    flat: float = 0.3  # m above and below the vehicle's origin in which points are ground
    min_ground_points: int = 200  # to look for gaps
    step_quantile: float = 0.25  # of the distances to the nearest point, taken as the step along a ring
    max_step: float = 1.6  # steps between neighbours; a lost point leaves 2

    # The range image in which `edges` finds edges.
    column: float = 0.4  # degrees of azimuth, a little more than between firings
    row: float = 1.4  # degrees of elevation, a little more than between beams
    rows: int = 24
    lowest: float = -15.0  # degrees, elevation of the first row
    range: Pair = (4.0, 60.0)  # m; nearer, the parallax to the cameras is too large
    above: Pair = (0.3, 0.02)  # m, and slope over the range, below which points are ground
    behind: Pair = (0.5, 1.1)  # m, and factor of the range, by which the background is farther
    topmost: float = 2.5  # degrees below the highest beam, where tops are not object tops
    half_beam: float = 0.66  # degrees, mean distance of an object's top to its highest return


@dataclass(frozen=True)
class AlignmentLimits:
    """Cameras against a LiDAR. A rotation is reported if it fits better than all tolerated ones by `min_gain` and
    `min_agreement`."""

    min_motion: float = 1.0  # m, and
    min_interval: float = 0.4  # s between evaluated frames, so that their edges differ
    forgetting: float = 0.15  # of the sum over earlier frames, at each frame: the last six or seven count
    min_frames: int = 3
    tolerance: float = 0.9  # degrees
    min_gain: float = 1.4  # relative to the square root of the number of points
    min_agreement: float = 2.0  # sum of the gains of image parts relative to their norm: at least four parts agree
    hysteresis: float = 0.5  # factor of both limits for rotations that were reported in the frame before
    min_cameras: int = 3  # and more than half of them: a rotation that they share is the LiDAR's
