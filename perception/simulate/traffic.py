"""Traffic: vehicles that follow lanes and each other, signals at junctions, and people on the crossings between them.

Car following is the Intelligent Driver Model (Treiber, Hennecke, Helbing, Physical Review E 62, 2000, eq. 3-5).
A junction is given to one arm at a time, and with it to those from the opposite arm who do not cross its path. A
vehicle claims it while it can still stop in front of it, and only when the crossings and the exit on its way are free.
So paths never conflict by construction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from perception.simulate.city import City, Crossing
from perception.simulate.lanes import Lane

DT = 0.1  # s
TURN_RATE = 1.6  # rad/s, of people who turn round
HARDEST_BRAKING = 6.0  # m/s^2
GREEN = 8.0  # s for each arm, while others wait
DEMAND = 45.0  # m before a junction at which a vehicle asks for green
ACCELERATION, BRAKING, HEADWAY, STANDSTILL = 1.6, 2.2, 1.2, 2.2  # IDM: m/s^2, m/s^2, s, m
SIGHT = 70.0  # m that drivers look ahead
EGO_PRIORITY = 60.0  # m before a junction at which the signals make way for the recording vehicle


Claim = tuple[int, int, int, int]  # junction, arm in, arm out, connector


@dataclass
class Vehicle:
    """A vehicle on its way; positions along its route in metres, measured at the front bumper."""

    length: float  # m, with its trailer
    desired: float  # m/s
    route: list[int]  # lanes and connectors
    front: float
    cautious: bool = False  # long: it avoids the tight turns
    speed: float = 0.0
    starts: list[float] = field(default_factory=lambda: [0.0])  # position where each lane of the route begins
    cursor: int = 0  # the lane under the front bumper
    claimed: int = -1  # the last connector of the route that it may enter
    fronts: list[float] = field(default_factory=list)  # recorded


@dataclass
class Crosser:
    """A person who goes to and fro over a crossing."""

    crossing: Crossing
    lane: float  # m beside the middle of the crossing
    speed: float  # m/s
    wait: float  # s left before the next attempt
    side: int  # the end where the person stands, or comes from
    progress: float = -1.0  # m walked; negative while waiting
    turned: float = 0.0  # rad that the person, who came from the other side, has still to turn round
    recorded: list[tuple[float, float, float]] = field(default_factory=list)  # x, y, heading


class Traffic:
    """Vehicles (the first is the recording vehicle) and crossing people, advanced together."""

    def __init__(
        self, city: City, vehicles: list[Vehicle], crossers: list[Crosser], closed: set[int], rng: np.random.Generator
    ) -> None:
        self.lanes: list[Lane] = city.graph.lanes
        self.vehicles, self.crossers, self.closed, self.rng = vehicles, crossers, closed, rng
        self.arms = [
            [arm for arm in range(4) if city.plan.neighbour(i, j, arm) is not None] for i, j in city.graph.junctions
        ]
        self.far_turn = 3 if city.plan.style.right_hand else 1  # from the arm in to the arm out, across the other side
        self.green = [arms[int(rng.integers(len(arms)))] for arms in self.arms]
        self.green_since = [0.0] * len(self.arms)
        self.members: dict[int, list[int]] = {j: [] for j in range(len(self.arms))}
        self.on_crossing: dict[tuple[int, int], int] = {}
        self.time = 0.0
        for vehicle in vehicles:
            self._extend(vehicle)

    def run(self, warm_up: float, duration: float) -> None:
        """Advance; what happens after the warm-up (s) is recorded every DT, ends included."""
        steps = round(warm_up / DT)
        for step in range(steps + round(duration / DT) + 1):
            if step >= steps:
                self._record()
            self._step()

    def _extend(self, vehicle: Vehicle) -> None:
        """Lengthen the route until it is known beyond what a driver sees."""
        known = len(vehicle.starts)
        for k in range(known, len(vehicle.route) + 1):
            vehicle.starts.append(vehicle.starts[k - 1] + self.lanes[vehicle.route[k - 1]].length)
        while vehicle.starts[-1] < vehicle.front + 2 * SIGHT:
            last = self.lanes[vehicle.route[-1]]
            ways = [s for s in last.successors if last.connector or not self._shut(s)]
            if vehicle.cautious and not last.connector:
                wide = [s for s in ways if self.lanes[s].speed > 5.5]
                ways = wide or ways
            vehicle.route.append(ways[int(self.rng.integers(len(ways)))])
            vehicle.starts.append(vehicle.starts[-1] + self.lanes[vehicle.route[-1]].length)

    def _shut(self, connector: int) -> bool:
        return self.lanes[connector].successors[0] in self.closed

    def _step(self) -> None:
        occupied = self._occupancy()
        ego = self._ego_claim()
        self._switch_signals(ego)
        accelerations = [self._acceleration(n, occupied, ego) for n in range(len(self.vehicles))]
        for n, (acceleration, gap) in enumerate(accelerations):
            vehicle = self.vehicles[n]
            vehicle.speed = max(0.0, vehicle.speed + acceleration * DT)
            # Whatever the model says, nobody moves into the vehicle ahead.
            step = min(vehicle.speed * DT, max(0.0, gap - 0.8))
            vehicle.speed = step / DT
            vehicle.front += step
            while vehicle.front >= vehicle.starts[vehicle.cursor + 1]:
                vehicle.cursor += 1
            self._leave_junctions(n)
            self._extend(vehicle)
        for crosser in self.crossers:
            self._walk(crosser, ego)
        self.time += DT

    def _occupancy(self) -> dict[int, list[tuple[float, float, int]]]:
        """Lane -> (rear, front, vehicle) in metres along it, also of those that still stick out of a sibling lane."""
        occupied: dict[int, list[tuple[float, float, int]]] = {}
        for n, vehicle in enumerate(self.vehicles):
            rear, k = vehicle.front - vehicle.length, vehicle.cursor
            while k >= 0:
                lane, base = vehicle.route[k], vehicle.starts[k]
                entry = (rear - base, vehicle.front - base, n)
                occupied.setdefault(lane, []).append(entry)
                for sibling, apart in self.lanes[lane].siblings:
                    if rear - base < apart:
                        occupied.setdefault(sibling, []).append(entry)
                if base <= rear:
                    break
                k -= 1
        return occupied

    def _ahead(self, n: int, occupied: dict[int, list[tuple[float, float, int]]]) -> tuple[float, int, int]:
        """Gap (m) to the next vehicle on the route, that vehicle, and the route index of the lane it was found on."""
        vehicle = self.vehicles[n]
        for k in range(vehicle.cursor, len(vehicle.route)):
            base = vehicle.starts[k]
            if base - vehicle.front > SIGHT:
                break
            best = (np.inf, -1, k)
            for rear, front, other in occupied.get(vehicle.route[k], ()):
                if other != n and front + base > vehicle.front:
                    best = min(best, (base + rear - vehicle.front, other, k))
            if best[1] >= 0:
                return best
        return np.inf, -1, -1

    def _acceleration(
        self, n: int, occupied: dict[int, list[tuple[float, float, int]]], ego: Claim | None
    ) -> tuple[float, float]:
        """Acceleration (m/s^2) and the gap (m) that must not be closed."""
        vehicle = self.vehicles[n]
        gap, leader, found = self._ahead(n, occupied)
        obstacles = [(gap, self.vehicles[leader].speed if leader >= 0 else 0.0)]
        allowed = min(vehicle.desired, self.lanes[vehicle.route[vehicle.cursor]].speed)
        for k in range(vehicle.cursor + 1, len(vehicle.route)):
            distance = vehicle.starts[k] - vehicle.front
            if distance > SIGHT:
                break
            lane = self.lanes[vehicle.route[k]]
            allowed = min(allowed, math.sqrt(lane.speed**2 + 2 * 1.6 * max(0.0, distance - 2.0)))
            if lane.connector and k > vehicle.claimed:
                if distance < vehicle.speed**2 / (2 * BRAKING) + 8.0:
                    behind = found == vehicle.cursor and self.vehicles[leader].claimed < self.vehicles[leader].cursor
                    if not behind and self._may_enter(n, k, occupied, ego):
                        vehicle.claimed = k
                        self.members[lane.junction].append(n)
                        continue
                obstacles.append((distance - 0.5 + STANDSTILL, 0.0))
                gap = min(gap, distance + 0.3)
                break
        speed = vehicle.speed
        acceleration = ACCELERATION * (1 - (speed / max(allowed, 0.1)) ** 4)
        for distance, other_speed in obstacles:
            if distance < SIGHT:
                closing = speed * (speed - other_speed) / (2 * math.sqrt(ACCELERATION * BRAKING))
                wanted = STANDSTILL + max(0.0, speed * HEADWAY + closing)
                free = 1 - (speed / max(allowed, 0.1)) ** 4
                acceleration = min(acceleration, ACCELERATION * (free - (wanted / max(distance, 0.1)) ** 2))
        return max(-HARDEST_BRAKING, acceleration), gap

    def _may_enter(
        self, n: int, k: int, occupied: dict[int, list[tuple[float, float, int]]], ego: Claim | None
    ) -> bool:
        vehicle = self.vehicles[n]
        way, target = self.lanes[vehicle.route[k]], self.lanes[vehicle.route[k]].successors[0]
        junction, green = way.junction, self.green[way.junction]
        alone = ego is not None and ego[0] == junction and self._crosses(self.lanes[ego[3]])
        shared = not alone and not self._crosses(way)
        if way.arm_in != green and not (shared and way.arm_in == (green + 2) % 4):
            return False
        if any(self.on_crossing.get((junction, arm), 0) for arm in (way.arm_in, way.arm_out)):
            return False
        needed = vehicle.length + STANDSTILL
        for m in self.members[junction]:
            other = self.vehicles[m]
            claim = self.lanes[other.route[other.claimed]]
            if claim.arm_in != way.arm_in and (
                claim.arm_in != (way.arm_in + 2) % 4 or self._crosses(claim) or self._crosses(way)
            ):
                return False
            abreast = claim.arm_in == way.arm_in and claim.predecessor != way.predecessor
            straight, long = (way.arm_in + 2) % 4, vehicle.cautious + other.cautious
            turning = (way.arm_out, claim.arm_out) != (straight, straight)
            if abreast and turning and (long == 2 or (long and claim.arm_out == way.arm_out)):
                return False  # a long one needs the room beside it to turn
            if claim.successors[0] == target:
                needed += other.length + STANDSTILL
        queue = [(rear, other) for rear, _, other in occupied.get(target, ()) if other not in self.members[junction]]
        if not queue:
            return True
        rear, last = min(queue)
        return rear + 2.0 * self.vehicles[last].speed > needed

    def _crosses(self, way: Lane) -> bool:
        """Whether this way through a junction crosses the path of those who come from the opposite arm."""
        return way.arm_out == (way.arm_in + self.far_turn) % 4

    def _switch_signals(self, ego: Claim | None) -> None:
        """Green goes round the arms where somebody waits; the recording vehicle finds it green."""
        waiting: dict[int, set[int]] = {}
        for vehicle in self.vehicles:
            k = vehicle.cursor + 1 + self.lanes[vehicle.route[vehicle.cursor]].connector
            way = self.lanes[vehicle.route[k]]
            if k > vehicle.claimed and vehicle.starts[k] - vehicle.front < DEMAND:
                waiting.setdefault(way.junction, set()).add(way.arm_in)
        for junction, arms in waiting.items():
            if self.green[junction] not in arms or self.time - self.green_since[junction] > GREEN:
                turn = self.green[junction]
                self.green[junction] = min(arms, key=lambda arm: (arm - turn - 1) % 4)
                self.green_since[junction] = self.time
        if ego is not None:
            self.green[ego[0]] = ego[1]

    def _leave_junctions(self, n: int) -> None:
        vehicle = self.vehicles[n]
        if vehicle.claimed >= 0 and vehicle.front - vehicle.length > vehicle.starts[vehicle.claimed + 1]:
            members = self.members[self.lanes[vehicle.route[vehicle.claimed]].junction]
            if n in members:
                members.remove(n)

    def _ego_claim(self) -> Claim | None:
        """What the recording vehicle is driving through, or will soon."""
        vehicle = self.vehicles[0]
        for k in range(vehicle.cursor, len(vehicle.route)):
            lane = self.lanes[vehicle.route[k]]
            if vehicle.starts[k] - vehicle.front > EGO_PRIORITY:
                return None
            if lane.connector:
                return lane.junction, lane.arm_in, lane.arm_out, vehicle.route[k]
        return None

    def _walk(self, crosser: Crosser, ego: Claim | None) -> None:
        crossing = crosser.crossing
        key = (crossing.junction, crossing.arm)
        width = float(np.linalg.norm(crossing.ends[1] - crossing.ends[0]))
        if crosser.progress < 0:
            crosser.wait -= DT
            crosser.turned = max(0.0, crosser.turned - TURN_RATE * DT)
            if crosser.wait <= 0 and self._may_walk(key, ego):
                crosser.progress = 0.0
                self.on_crossing[key] = self.on_crossing.get(key, 0) + 1
            return
        crosser.progress += crosser.speed * DT
        if crosser.progress >= width:
            crosser.side, crosser.progress = 1 - crosser.side, -1.0
            crosser.wait, crosser.turned = float(self.rng.uniform(4, 15)), math.pi
            self.on_crossing[key] -= 1

    def _may_walk(self, key: tuple[int, int], ego: Claim | None) -> bool:
        junction, arm = key
        if ego is not None and ego[0] == junction and arm in ego[1:3]:
            return False
        for n in self.members[junction]:
            vehicle = self.vehicles[n]
            way = self.lanes[vehicle.route[vehicle.claimed]]
            if arm in (way.arm_in, way.arm_out):
                return False
        return True

    def _record(self) -> None:
        for vehicle in self.vehicles:
            vehicle.fronts.append(vehicle.front)
        for crosser in self.crossers:
            start, end = crosser.crossing.ends[crosser.side], crosser.crossing.ends[1 - crosser.side]
            ahead = (end - start) / np.linalg.norm(end - start)
            here = start + max(crosser.progress, 0.0) * ahead + crosser.lane * crosser.crossing.along
            crosser.recorded.append((here[0], here[1], math.atan2(ahead[1], ahead[0]) + crosser.turned))
