"""The limits of the health monitor, one table for each kind of sensor. docs/health.md says how each was measured.

What a sign is computed from (how many rows of a picture, which grid of turns) stays beside the computation.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class CameraLimits:
    """A camera that gives 8-bit colour pictures, as JPEG or raw."""

    frozen: float = 0.25  # s that the same picture may be given: a camera may be slower than the frames
    late: float = 0.15  # s between the picture's time and the frame's
    dark_level: int = 10  # of 255: pixels below it are dark
    bright_level: int = 245  # of 255: pixels above it are bright
    nearly_all: float = 0.99  # share of the pixels that are dark, or bright
    most: float = 0.5  # share of the pixels that are dark, where the rest is noise
    shapeless: float = 0.95  # texture; that of white noise is 1
    smooth: float = 0.02  # texture above that of a smooth slope, 0.25
    seam: float = 30.0  # grey levels between the lowest pixels of a JPEG block and the highest of the next
    torn: float = 0.17  # share of a row of blocks that is parted from the rows above and below
    noisy: float = 12.0  # grey levels, standard deviation


@dataclass(frozen=True)
class LidarLimits:
    """A spinning LiDAR: an HDL-32E on a car's roof, 20 turns a second. Another kind brings its own numbers.

    The first part is what the monitor says; the second what it takes for the latest sweep, for ground and for a ring;
    the third the beams, which `edges` looks at.
    """

    frozen: float = 0.25  # s that the same points may be given
    late: float = 0.15  # s that the newest point may be older than the frame
    far: float = 500.0  # m; a point beyond is no measurement
    impossible: float = 0.01  # share of the points that are not finite or beyond `far`
    garbled: float = 0.03  # share of the azimuth whose returns are far and bright as no street is
    rough: float = 0.03  # m, of the ground nearby
    fewest_points: int = 2000  # of a sweep
    thinned: float = 0.7  # share of the points, and of their density nearby, that lately were usual
    usual: float = 60.0  # s in which fewer points become usual
    broken: float = 0.6  # share of the ground's points that have both neighbours on their ring
    tilted: float = 1.5  # degrees between the ground and the vehicle's x-y plane
    raised: float = 0.2  # m between the ground and the vehicle's origin
    levelled: float = 1.25  # s, and at least 3 frames, of which the ground is the median

    sweep: float = 0.04  # s: points that are not older than the newest by more are the latest sweep's
    sectors: int = 180  # of azimuth, each as wide as what one packet covers
    beyond: float = 50.0  # m; most beams meet the ground nearer
    beyond_share: float = 0.3  # of a sector's returns that are beyond, where it is garbled
    bright: float = 70.0  # intensity, mean of a sector that is garbled
    near: tuple[float, float] = (3.0, 12.0)  # m from the vehicle's origin, where the ground is seen densely
    level: float = 1.0  # m above and below the vehicle's origin that is looked at for the ground
    cell_points: int = 5  # that a cell of 1 x 1 m needs, for its spread to mean something
    ring: tuple[float, float] = (5.0, 12.0)  # m: nearer, noise of the range is as large as a step along the ring
    flat: float = 0.3  # m above and below the vehicle's origin that is taken for ground
    enough: int = 200  # points on the ground, to look for gaps
    narrowest: float = 0.25  # quantile of the distances to the nearest point that is taken for a step
    apart: float = 1.6  # steps; two are a gap

    column: float = 0.4  # degrees of azimuth of the range image's columns, a little more than a firing's
    row: float = 1.4  # degrees of elevation of its rows, a little more than between beams
    rows: int = 24
    lowest: float = -15.0  # degrees, elevation of the first row
    range: tuple[float, float] = (4.0, 60.0)  # m: nearer, the LiDAR sees past what the cameras see
    above: tuple[float, float] = (0.3, 0.02)  # m, and its slope over the range: what is lower is ground
    behind: tuple[float, float] = (0.5, 1.1)  # m, and times the range, that what is seen beside an edge is farther
    topmost: float = 2.5  # degrees below the highest beam, where nothing ends but the view
    half_beam: float = 0.66  # degrees from the highest return of what ends to its end, in the mean


@dataclass(frozen=True)
class AlignmentLimits:
    """Cameras against a LiDAR. `sure` and `agreed` are how much better another turn fits than any tolerated one."""

    moved: float = 1.0  # m, and
    later: float = 0.4  # s later there are other edges to look at
    forgotten: float = 0.15  # of all that was seen before, with each frame: the last six or seven count
    fewest: int = 3  # frames
    tolerated: float = 0.9  # degrees
    sure: float = 1.4  # in roots of the number of points, and
    agreed: float = 2.0  # in the root of the squares of the parts' gains: at least four parts must want it
    still: float = 0.5  # of both, for what was told before
    several: int = 3  # cameras, and more than half of them: what they have in common is the LiDAR's


@dataclass(frozen=True)
class HealthLimits:
    camera: CameraLimits = field(default_factory=CameraLimits)
    lidar: LidarLimits = field(default_factory=LidarLimits)
    alignment: AlignmentLimits = field(default_factory=AlignmentLimits)
    held: float = 1.0  # s that a finding which chance may hide in a frame outlives its last sign
