"""The lane graph of a city: lanes between junctions, and connectors through them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from perception.simulate.street_plan import DIRECTIONS, StreetPlan

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
            for arm in range(4):
                if plan.neighbour(i, j, arm) is not None:
                    for k in range(plan.lanes(i, j, arm)):
                        self._add_lane(i, j, arm, k)
        for i, j in self.junctions:
            for arm in range(4):
                if plan.neighbour(i, j, arm) is not None:
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
        uv = plan.centre(i, j) + along[:, None] * DIRECTIONS[arm] + left[:, None] * _left(arm)
        path, length = resample(plan.to_global(uv))
        arm_in = (arm + 2) % 4
        self._by_start[i, j, arm, k] = self._by_end[other[0], other[1], arm_in, k] = len(self.lanes)
        junction = self.junctions.index(other)
        self.lanes.append(Lane(path, length, plan.style.speed, junction, arm_in, -1, k, False, (i, j, arm), []))

    def _add_connectors(self, i: int, j: int, arm_in: int) -> None:
        plan, lanes = self.plan, self.plan.lanes(i, j, arm_in)
        heading = (arm_in + 2) % 4
        near = self._near(heading)
        far = (near + 2) % 4
        exists = [plan.neighbour(i, j, arm) is not None for arm in range(4)]
        for k in range(lanes):
            options = []
            if exists[heading]:
                options.append((heading, k))
            if exists[near] and k == 0:
                options.append((near, 0))
            if exists[far] and k == lanes - 1:
                options.append((far, plan.lanes(i, j, far) - 1))
            if not options:  # a corner of the city: all lanes turn the same way
                arm = near if exists[near] else far
                options.append((arm, min(k, plan.lanes(i, j, arm) - 1)))
            for arm_out, k_out in options:
                self._add_connector(i, j, (arm_in, k), (arm_out, k_out))

    def _near(self, heading: int) -> int:
        """The arm out of a turn that does not cross oncoming traffic."""
        return (heading + (3 if self.plan.style.right_hand else 1)) % 4

    def _add_connector(self, i: int, j: int, lane_in: tuple[int, int], lane_out: tuple[int, int]) -> None:
        """A straight line or a quarter circle with straight ends, between lanes given as (arm, index)."""
        plan, (arm_in, k_in), (arm_out, k_out) = self.plan, lane_in, lane_out
        heading = (arm_in + 2) % 4
        begin, end = DIRECTIONS[heading].astype(float), DIRECTIONS[arm_out].astype(float)
        left_in = self.offset(plan.lanes(i, j, arm_in), k_in) * _left(heading)
        left_out = self.offset(plan.lanes(i, j, arm_out), k_out) * _left(arm_out)
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
            if arm_out == self._near(heading):
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


def _left(arm: int) -> np.ndarray:
    direction = DIRECTIONS[arm].astype(float)
    return np.array([-direction[1], direction[0]])
