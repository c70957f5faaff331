"""The street grid of a city and its lane graph."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely
from shapely.geometry import Polygon, box

from perception.simulate.worlds import Streets

# The street grid of a city in plan coordinates (u, v), and the bend and rotation to global metres.
#
# In the plan all streets are straight and all blocks are rectangles with rounded corners, for simple geometry.
# `StreetPlan.to_global` bends them, so that headings, curves and junction angles vary as in a real city.

# Directions of travel and arms of a junction: +u, +v, -u, -v.
DIRECTIONS = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])
CROSSING_WIDTH = 4.0  # m along the street
STOP_LINE_DEPTH = 1.0  # m along the street
FRAME = 34.0  # m of land outside the outermost streets
FURNITURE = 0.9  # m, width of the strip next to the kerb for trees, lamps, parked cycles and people who wait


class StreetPlan:
    """Streets, junctions and blocks of a city in plan coordinates, and their transformation to global metres."""

    def __init__(self, style: Streets) -> None:
        self.style = style
        self.u = FRAME + 16.0 + np.arange(len(style.columns)) * style.spacing[0]
        self.v = FRAME + 16.0 + np.arange(len(style.rows)) * style.spacing[1]
        self.column_half = np.array([self._half(lanes) for lanes in style.columns])
        self.row_half = np.array([self._half(lanes) for lanes in style.rows])
        inner = (self.u[0] - self.column_half[0], self.v[0] - self.row_half[0])
        outer = (self.u[-1] + self.column_half[-1], self.v[-1] + self.row_half[-1])
        self.street_rectangle = box(*inner, *outer)
        self._offset = np.zeros(2)
        edge = np.array(self.street_rectangle.buffer(FRAME, join_style="mitre").segmentize(2.0).exterior.coords)
        bent = self.to_global(edge)
        self._offset = 5.0 - bent.min(axis=0)
        self.canvas = tuple(float(x) for x in np.ceil(bent.max(axis=0) - bent.min(axis=0) + 10.0))

    def _half(self, lanes: int) -> float:
        return lanes * self.style.lane_width + self.style.parking

    # -- junctions --------------------------------------------------------------------------------------------

    def junctions(self) -> list[tuple[int, int]]:
        """(column, row) of every junction."""
        return [(i, j) for i in range(len(self.u)) for j in range(len(self.v))]

    def neighbour(self, i: int, j: int, arm: int) -> tuple[int, int] | None:
        """The junction at the other end of the arm; None at the edge of the city."""
        k, m = i + DIRECTIONS[arm][0], j + DIRECTIONS[arm][1]
        return (int(k), int(m)) if 0 <= k < len(self.u) and 0 <= m < len(self.v) else None

    def arms(self, i: int, j: int) -> list[int]:
        return [arm for arm in range(4) if self.neighbour(i, j, arm) is not None]

    def centre(self, i: int, j: int) -> np.ndarray:
        return np.array([self.u[i], self.v[j]])

    def lanes(self, i: int, j: int, arm: int) -> int:
        """Lanes per direction of the arm's street."""
        return self.style.rows[j] if arm % 2 == 0 else self.style.columns[i]

    def half_width(self, i: int, j: int, arm: int) -> float:
        """m from the middle of the arm's street to its kerb."""
        return float(self.row_half[j] if arm % 2 == 0 else self.column_half[i])

    def crossing_start(self, i: int, j: int, arm: int) -> float:
        """m from the junction's centre, along the arm, to the near edge of its crossing."""
        return self.half_width(i, j, arm + 1) + self.style.corner + 0.4

    def reach(self, i: int, j: int, arm: int) -> float:
        """m from the junction's centre to the end of the lanes, just outside the stop line."""
        return self.crossing_start(i, j, arm) + CROSSING_WIDTH + 1.0 + STOP_LINE_DEPTH

    def on_arm(self, i: int, j: int, arm: int, along: np.ndarray, left: np.ndarray) -> np.ndarray:
        """(..., 2) plan points `along` m from the junction's centre and `left` m to the left, looking outwards."""
        direction = DIRECTIONS[arm].astype(float)
        left_of = np.array([-direction[1], direction[0]])
        return self.centre(i, j) + np.multiply.outer(along, direction) + np.multiply.outer(left, left_of)

    def rectangle(self, i: int, j: int, arm: int, along: tuple[float, float], left: tuple[float, float]) -> Polygon:
        """A rectangle on an arm, in plan coordinates; intervals as in `on_arm`."""
        corners = [(along[0], left[0]), (along[1], left[0]), (along[1], left[1]), (along[0], left[1])]
        return Polygon([self.on_arm(i, j, arm, np.array(a), np.array(b)) for a, b in corners])

    # -- blocks -----------------------------------------------------------------------------------------------

    def blocks(self) -> list[Polygon]:
        """The land between streets, up to the kerb, with rounded corners."""
        radius = self.style.corner
        return [
            box(
                self.u[i] + self.column_half[i],
                self.v[j] + self.row_half[j],
                self.u[i + 1] - self.column_half[i + 1],
                self.v[j + 1] - self.row_half[j + 1],
            )
            .buffer(-radius, join_style="mitre")
            .buffer(radius)
            for i in range(len(self.u) - 1)
            for j in range(len(self.v) - 1)
        ]

    def kerb_sides(self) -> list[tuple[int, int, int, float]]:
        """(column, row, arm, side) of every stretch of kerb: arm 0 or 1 out of a junction, side +1 left or -1 right."""
        return [
            (i, j, arm, side)
            for i, j in self.junctions()
            for arm in (0, 1)
            if self.neighbour(i, j, arm) is not None
            for side in (1.0, -1.0)
        ]

    def stretch(self, i: int, j: int, arm: int) -> tuple[float, float]:
        """Start and end of the lanes between two junctions, m along the arm from this junction's centre."""
        other = self.neighbour(i, j, arm)
        assert other is not None
        span = float(np.abs(self.centre(*other) - self.centre(i, j)).sum())
        return self.reach(i, j, arm), span - self.reach(*other, (arm + 2) % 4)

    # -- to the global frame ----------------------------------------------------------------------------------

    def to_global(self, uv: np.ndarray) -> np.ndarray:
        """(..., 2) global metres of plan points (..., 2)."""
        amplitude, wavelength = self.style.bend
        k = 2 * np.pi / wavelength
        bent_u = uv[..., 0] + amplitude * np.sin(k * uv[..., 1] + 0.7)
        bent_v = uv[..., 1] + amplitude * np.sin(k * uv[..., 0] + 2.1)
        cos, sin = np.cos(self.style.rotation), np.sin(self.style.rotation)
        return np.stack([cos * bent_u - sin * bent_v, sin * bent_u + cos * bent_v], axis=-1) + self._offset

    def heading(self, uv: np.ndarray, direction: np.ndarray) -> np.ndarray:
        """(...) global heading (rad) of the plan direction (2,) or (..., 2) at plan points (..., 2)."""
        step = self.to_global(uv + 0.5 * direction) - self.to_global(uv - 0.5 * direction)
        return np.arctan2(step[..., 1], step[..., 0])

    def bend(self, shape: Polygon) -> Polygon:
        """A plan polygon in global metres; long edges follow the bend."""
        return shapely.transform(shape.segmentize(3.0), self.to_global)


STEP = 0.5  # m between points of a path
LATERAL_ACCELERATION = 2.2  # m/s^2, the maximum in a turn
REAR_CLEARANCE = 2.8  # m, taken off the radius of a near turn so that the rear of a bus clears the kerb
CLEAR_GAP = 3.3  # m between two paths at which vehicles on them no longer overlap


@dataclass
class Lane:
    """A lane between junctions, or a connector through one."""

    path: np.ndarray  # (N, 2) m, global, in the direction of travel, STEP apart
    length: float  # m
    speed: float  # m/s, limit
    junction: int  # that a connector crosses or a lane leads to
    arm_in: int  # arm by which traffic enters the junction
    arm_out: int  # arm by which a connector leaves the junction; -1 for lanes
    index: int  # 0 = next to the kerb
    connector: bool
    start: tuple[int, int, int]  # (column, row, arm) of the junction that a lane comes from
    successors: list[int]  # indices in LaneGraph.lanes
    predecessor: int = -1  # the lane that a connector continues
    siblings: tuple[tuple[int, float], ...] = ()  # connectors from the same lane, and m until they are CLEAR_GAP apart


def resample(path: np.ndarray, step: float = STEP) -> tuple[np.ndarray, float]:
    """The polyline (N, 2) resampled to points about `step` m apart, and its length in m."""
    arc = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1))])
    at = np.linspace(0.0, arc[-1], max(2, round(arc[-1] / step) + 1))
    return np.stack([np.interp(at, arc, path[:, 0]), np.interp(at, arc, path[:, 1])], axis=1), float(arc[-1])


class LaneGraph:
    """All lanes and connectors of a city."""

    def __init__(self, plan: StreetPlan) -> None:
        self.plan = plan
        self.lanes: list[Lane] = []
        self.junctions = plan.junctions()
        self._by_start: dict[tuple[int, int, int, int], int] = {}
        self._by_end: dict[tuple[int, int, int, int], int] = {}
        for i, j in self.junctions:
            for arm in plan.arms(i, j):
                for k in range(plan.lanes(i, j, arm)):
                    self._add_lane(i, j, arm, k)
        for i, j in self.junctions:
            for arm in plan.arms(i, j):
                self._add_connectors(i, j, arm)
        self._find_siblings()

    def offset(self, lanes: int, k: int) -> float:
        """m from the middle of the street to the middle of lane k, positive to the left of the direction of travel."""
        distance = (lanes - 1 - k + 0.5) * self.plan.style.lane_width
        return -distance if self.plan.style.right_hand else distance

    def _add_lane(self, i: int, j: int, arm: int, k: int) -> None:
        plan = self.plan
        other = plan.neighbour(i, j, arm)
        assert other is not None
        start, end = plan.stretch(i, j, arm)
        along = np.linspace(start, end, 80)
        left = np.full(80, self.offset(plan.lanes(i, j, arm), k))
        uv = plan.centre(i, j) + along[:, None] * DIRECTIONS[arm] + left[:, None] * _direction_left_of(arm)
        path, length = resample(plan.to_global(uv))
        arm_in = (arm + 2) % 4
        self._by_start[i, j, arm, k] = self._by_end[other[0], other[1], arm_in, k] = len(self.lanes)
        junction = self.junctions.index(other)
        self.lanes.append(Lane(path, length, plan.style.speed, junction, arm_in, -1, k, False, (i, j, arm), []))

    def _add_connectors(self, i: int, j: int, arm_in: int) -> None:
        plan, lanes = self.plan, self.plan.lanes(i, j, arm_in)
        heading = (arm_in + 2) % 4
        near = self._near_arm(heading)
        far = (near + 2) % 4
        arms = plan.arms(i, j)
        for k in range(lanes):
            options = []
            if heading in arms:
                options.append((heading, k))
            if near in arms and k == 0:
                options.append((near, 0))
            if far in arms and k == lanes - 1:
                options.append((far, plan.lanes(i, j, far) - 1))
            if not options:  # a corner of the city: all lanes turn the same way
                arm = near if near in arms else far
                options.append((arm, min(k, plan.lanes(i, j, arm) - 1)))
            for arm_out, k_out in options:
                self._add_connector(i, j, (arm_in, k), (arm_out, k_out))

    def _near_arm(self, heading: int) -> int:
        """The arm out of a turn that does not cross oncoming traffic."""
        return (heading + (3 if self.plan.style.right_hand else 1)) % 4

    def _add_connector(self, i: int, j: int, lane_in: tuple[int, int], lane_out: tuple[int, int]) -> None:
        """A straight line or a quarter circle with straight ends, between lanes given as (arm, index)."""
        plan, (arm_in, k_in), (arm_out, k_out) = self.plan, lane_in, lane_out
        heading = (arm_in + 2) % 4
        begin, end = DIRECTIONS[heading].astype(float), DIRECTIONS[arm_out].astype(float)
        left_in = self.offset(plan.lanes(i, j, arm_in), k_in) * _direction_left_of(heading)
        left_out = self.offset(plan.lanes(i, j, arm_out), k_out) * _direction_left_of(arm_out)
        p0 = -plan.reach(i, j, arm_in) * begin + left_in
        p1 = plan.reach(i, j, arm_out) * end + left_out
        if heading == arm_out:
            uv = p0 + np.linspace(0, 1, 60)[:, None] * (p1 - p0)
            limit = plan.style.speed
        else:
            corner = left_in + left_out  # where the middle lines of the two lanes intersect
            # The circle starts and ends outside the rounded kerb, so that vehicles do not cut the corner.
            radius = min(
                plan.half_width(i, j, arm_out) + plan.style.corner + float(begin @ corner),
                plan.half_width(i, j, arm_in) + plan.style.corner - float(end @ corner),
            )
            if arm_out == self._near_arm(heading):
                radius -= REAR_CLEARANCE
            middle = corner - radius * begin + radius * end
            angle = np.linspace(0, np.pi / 2, 40)[:, None]
            arc = middle - radius * np.cos(angle) * end + radius * np.sin(angle) * begin
            uv = np.concatenate([p0[None], arc, p1[None]])
            limit = float(np.sqrt(LATERAL_ACCELERATION * radius))
        dense, _ = resample(uv)
        path, length = resample(plan.to_global(plan.centre(i, j) + dense))
        origin, target = self._by_end[i, j, arm_in, k_in], self._by_start[i, j, arm_out, k_out]
        self.lanes[origin].successors.append(len(self.lanes))
        self.lanes.append(
            Lane(
                path,
                length,
                limit,
                self.junctions.index((i, j)),
                arm_in,
                arm_out,
                k_in,
                True,
                (i, j, arm_out),
                [target],
                origin,
            )
        )

    def _find_siblings(self) -> None:
        for lane in self.lanes:
            for a in lane.successors if not lane.connector else ():
                pairs = []
                for b in lane.successors:
                    n = min(len(self.lanes[a].path), len(self.lanes[b].path))
                    gaps = np.linalg.norm(self.lanes[a].path[:n] - self.lanes[b].path[:n], axis=1)
                    if a != b:
                        apart = np.flatnonzero(gaps > CLEAR_GAP)
                        pairs.append((b, float(apart[0] if len(apart) else n) * STEP))
                self.lanes[a].siblings = tuple(pairs)


def _direction_left_of(arm: int) -> np.ndarray:
    direction = DIRECTIONS[arm].astype(float)
    return np.array([-direction[1], direction[0]])
