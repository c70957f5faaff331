"""Traffic simulation: vehicles that follow lanes and each other, signals at junctions, people on crossings.

Car following is the Intelligent Driver Model (Treiber, Hennecke, Helbing, Physical Review E 62, 2000, eq. 3-5).
A junction is open to one arm at a time, and to vehicles from the opposite arm that do not turn across oncoming
traffic. A vehicle claims a junction while it can still stop before it, and only when the crossings and the exit on its
connector are free, so that paths never conflict.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from perception.simulate.city import City, Crossing
from perception.simulate.streets import Lane

DT = 0.1  # s
TURN_RATE = 1.6  # rad/s, of pedestrians who turn round
MAX_BRAKING = 6.0  # m/s^2
GREEN = 8.0  # s for each arm while others wait
SIGNAL_DEMAND_DISTANCE = 45.0  # m before a junction at which a vehicle requests green
ACCELERATION, BRAKING, HEADWAY, STANDSTILL = 1.6, 2.2, 1.2, 2.2  # IDM: m/s^2, m/s^2, s, m
LOOK_AHEAD = 70.0  # m
EGO_PRIORITY_DISTANCE = 60.0  # m before a junction at which the ego vehicle gets green

Occupied = dict[int, list[tuple[float, float, int]]]  # lane -> (rear, front, vehicle), m along the lane


@dataclass
class Vehicle:
    """A vehicle on its route; positions are metres along the route, of the front bumper."""

    length: float  # m, with its trailer
    desired_speed: float  # m/s
    route: list[int]  # lanes and connectors
    front: float
    is_long: bool = False  # avoids tight turns
    speed: float = 0.0  # m/s
    starts: list[float] = field(default_factory=lambda: [0.0])  # position where each lane of the route begins
    cursor: int = 0  # index in the route of the lane under the front bumper
    claimed: int = -1  # index in the route of the last connector that it may enter
    fronts: list[float] = field(default_factory=list)  # recorded positions, every DT


@dataclass
class CrossingPedestrian:
    """A person who walks back and forth over a crossing."""

    crossing: Crossing
    lateral_offset: float  # m from the middle of the crossing
    speed: float  # m/s
    wait: float  # s left until the next attempt
    side: int  # the end where the person waits or started from
    progress: float = -1.0  # m walked; negative while waiting
    remaining_turn: float = 0.0  # rad left to turn towards the crossing after having crossed it
    recorded: list[tuple[float, float, float]] = field(default_factory=list)  # x, y, heading, every DT


class Traffic:
    """Vehicles (the first is the ego vehicle) and crossing pedestrians, advanced together."""

    def __init__(
        self,
        city: City,
        vehicles: list[Vehicle],
        pedestrians: list[CrossingPedestrian],
        closed: set[int],
        rng: np.random.Generator,
    ) -> None:
        self.lanes: list[Lane] = city.graph.lanes
        self.vehicles, self.pedestrians, self.closed, self.rng = vehicles, pedestrians, closed, rng
        self.arms = [city.plan.arms(i, j) for i, j in city.graph.junctions]
        # Arm out minus arm in (mod 4) of a turn across oncoming traffic.
        self.oncoming_turn = 3 if city.plan.style.right_hand else 1
        self.green = [arms[int(rng.integers(len(arms)))] for arms in self.arms]
        self.green_since = [0.0] * len(self.arms)
        self.claimants: dict[int, list[int]] = {j: [] for j in range(len(self.arms))}
        self.people_on_crossing: dict[tuple[int, int], int] = {}
        self.time = 0.0
        for vehicle in vehicles:
            self._extend_route(vehicle)

    def run(self, warm_up: float, duration: float) -> None:
        """Simulate warm-up and duration (s); the latter is recorded every DT, ends included."""
        steps = round(warm_up / DT)
        for step in range(steps + round(duration / DT) + 1):
            if step >= steps:
                self._record()
            self._step()

    def _extend_route(self, vehicle: Vehicle) -> None:
        """Append random successors to the route until it is longer than the look-ahead."""
        for k in range(len(vehicle.starts), len(vehicle.route) + 1):
            vehicle.starts.append(vehicle.starts[k - 1] + self.lanes[vehicle.route[k - 1]].length)
        # Its lane, and what follows the next junction, even where a lane is longer than it looks ahead.
        while vehicle.starts[-1] < vehicle.front + 2 * LOOK_AHEAD or len(vehicle.route) < vehicle.cursor + 3:
            last = self.lanes[vehicle.route[-1]]
            options = [s for s in last.successors if last.connector or self.lanes[s].successors[0] not in self.closed]
            if vehicle.is_long and not last.connector:
                options = [s for s in options if self.lanes[s].speed > 5.5] or options
            vehicle.route.append(options[int(self.rng.integers(len(options)))])
            vehicle.starts.append(vehicle.starts[-1] + self.lanes[vehicle.route[-1]].length)

    def _step(self) -> None:
        occupied = self._occupancy()
        ego = self._ego_connector()
        self._switch_signals(ego)
        accelerations = [self._acceleration(n, occupied, ego) for n in range(len(self.vehicles))]
        for n, (acceleration, gap) in enumerate(accelerations):
            vehicle = self.vehicles[n]
            vehicle.speed = max(0.0, vehicle.speed + acceleration * DT)
            # The model does not rule out collisions; this limit does.
            step = min(vehicle.speed * DT, max(0.0, gap - 0.8))
            vehicle.speed = step / DT
            vehicle.front += step
            while vehicle.front >= vehicle.starts[vehicle.cursor + 1]:
                vehicle.cursor += 1
            self._leave_junctions(n)
            self._extend_route(vehicle)
        for pedestrian in self.pedestrians:
            self._advance_pedestrian(pedestrian, ego)
        self.time += DT

    def _occupancy(self) -> Occupied:
        """Includes vehicles that still overlap a lane from a sibling."""
        occupied: Occupied = {}
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

    def _leader(self, n: int, occupied: Occupied) -> tuple[float, int, int]:
        """Gap (m) to the next vehicle on the route, that vehicle, and the route index of its lane; inf, -1, -1 for
        none within LOOK_AHEAD."""
        vehicle = self.vehicles[n]
        for k in range(vehicle.cursor, len(vehicle.route)):
            base = vehicle.starts[k]
            if base - vehicle.front > LOOK_AHEAD:
                break
            best = (np.inf, -1, k)
            for rear, front, other in occupied.get(vehicle.route[k], ()):
                if other != n and front + base > vehicle.front:
                    best = min(best, (base + rear - vehicle.front, other, k))
            if best[1] >= 0:
                return best
        return np.inf, -1, -1

    def _acceleration(self, n: int, occupied: Occupied, ego: Lane | None) -> tuple[float, float]:
        """Acceleration (m/s^2) and the gap (m) to the vehicle or stop line ahead."""
        vehicle = self.vehicles[n]
        gap, leader, found = self._leader(n, occupied)
        obstacles = [(gap, self.vehicles[leader].speed if leader >= 0 else 0.0)]
        allowed = min(vehicle.desired_speed, self.lanes[vehicle.route[vehicle.cursor]].speed)
        for k in range(vehicle.cursor + 1, len(vehicle.route)):
            distance = vehicle.starts[k] - vehicle.front
            if distance > LOOK_AHEAD:
                break
            lane = self.lanes[vehicle.route[k]]
            allowed = min(allowed, math.sqrt(lane.speed**2 + 2 * 1.6 * max(0.0, distance - 2.0)))
            if lane.connector and k > vehicle.claimed:
                if distance < vehicle.speed**2 / (2 * BRAKING) + 8.0:
                    behind = found == vehicle.cursor and self.vehicles[leader].claimed < self.vehicles[leader].cursor
                    if not behind and self._may_enter(n, k, occupied, ego):
                        vehicle.claimed = k
                        self.claimants[lane.junction].append(n)
                        continue
                obstacles.append((distance - 0.5 + STANDSTILL, 0.0))
                gap = min(gap, distance + 0.3)
                break
        speed = vehicle.speed
        acceleration = ACCELERATION * (1 - (speed / max(allowed, 0.1)) ** 4)
        for distance, other_speed in obstacles:
            if distance < LOOK_AHEAD:
                closing = speed * (speed - other_speed) / (2 * math.sqrt(ACCELERATION * BRAKING))
                wanted = STANDSTILL + max(0.0, speed * HEADWAY + closing)
                free = 1 - (speed / max(allowed, 0.1)) ** 4
                acceleration = min(acceleration, ACCELERATION * (free - (wanted / max(distance, 0.1)) ** 2))
        return max(-MAX_BRAKING, acceleration), gap

    def _may_enter(self, n: int, k: int, occupied: Occupied, ego: Lane | None) -> bool:
        vehicle, connector = self.vehicles[n], self.lanes[self.vehicles[n].route[k]]
        if not self._has_green(connector, ego) or self._has_people(connector):
            return False
        others = [self.vehicles[m] for m in self.claimants[connector.junction]]
        claims = [(other, self.lanes[other.route[other.claimed]]) for other in others]
        return (
            not any(self._may_collide(connector, claim) for _, claim in claims)
            and not any(_turn_abreast(vehicle, connector, other, claim) for other, claim in claims)
            and self._has_room(vehicle, connector, claims, occupied)
        )

    def _has_green(self, connector: Lane, ego: Lane | None) -> bool:
        green = self.green[connector.junction]
        ego_turns = ego is not None and ego.junction == connector.junction and self._crosses_oncoming(ego)
        shared = not ego_turns and not self._crosses_oncoming(connector)
        return connector.arm_in == green or (shared and connector.arm_in == (green + 2) % 4)

    def _has_people(self, connector: Lane) -> bool:
        arms = connector.arm_in, connector.arm_out
        return any(self.people_on_crossing.get((connector.junction, arm), 0) for arm in arms)

    def _may_collide(self, connector: Lane, claim: Lane) -> bool:
        """Whether they come from different arms, except opposite ones without a turn across oncoming traffic."""
        opposite = claim.arm_in == (connector.arm_in + 2) % 4
        across = self._crosses_oncoming(claim) or self._crosses_oncoming(connector)
        return claim.arm_in != connector.arm_in and (across or not opposite)

    def _has_room(
        self, vehicle: Vehicle, connector: Lane, claims: list[tuple[Vehicle, Lane]], occupied: Occupied
    ) -> bool:
        """Whether the lane behind the junction has room for a vehicle and those that claimed the junction before it."""
        target, claimants = connector.successors[0], self.claimants[connector.junction]
        needed = vehicle.length + STANDSTILL
        for other, claim in claims:
            if claim.successors[0] == target:
                needed += other.length + STANDSTILL
        queue = [(rear, n) for rear, _, n in occupied.get(target, ()) if n not in claimants]
        if not queue:
            return True
        rear, last = min(queue)
        return rear + 2.0 * self.vehicles[last].speed > needed

    def _crosses_oncoming(self, connector: Lane) -> bool:
        """Whether this connector turns across the traffic from the opposite arm."""
        return connector.arm_out == (connector.arm_in + self.oncoming_turn) % 4

    def _switch_signals(self, ego: Lane | None) -> None:
        """Give green to the arms with demand in turn; the ego vehicle has priority."""
        waiting: dict[int, set[int]] = {}
        for vehicle in self.vehicles:
            k = vehicle.cursor + 1 + self.lanes[vehicle.route[vehicle.cursor]].connector
            connector = self.lanes[vehicle.route[k]]
            if k > vehicle.claimed and vehicle.starts[k] - vehicle.front < SIGNAL_DEMAND_DISTANCE:
                waiting.setdefault(connector.junction, set()).add(connector.arm_in)
        for junction, arms in waiting.items():
            if self.green[junction] not in arms or self.time - self.green_since[junction] > GREEN:
                current = self.green[junction]
                self.green[junction] = min(arms, key=lambda arm: (arm - current - 1) % 4)
                self.green_since[junction] = self.time
        if ego is not None:
            self.green[ego.junction] = ego.arm_in

    def _leave_junctions(self, n: int) -> None:
        vehicle = self.vehicles[n]
        if vehicle.claimed >= 0 and vehicle.front - vehicle.length > vehicle.starts[vehicle.claimed + 1]:
            claimants = self.claimants[self.lanes[vehicle.route[vehicle.claimed]].junction]
            if n in claimants:
                claimants.remove(n)

    def _ego_connector(self) -> Lane | None:
        """The connector that the ego vehicle is on or will soon reach."""
        vehicle = self.vehicles[0]
        for k in range(vehicle.cursor, len(vehicle.route)):
            lane = self.lanes[vehicle.route[k]]
            if vehicle.starts[k] - vehicle.front > EGO_PRIORITY_DISTANCE:
                return None
            if lane.connector:
                return lane
        return None

    def _advance_pedestrian(self, pedestrian: CrossingPedestrian, ego: Lane | None) -> None:
        crossing = pedestrian.crossing
        key = (crossing.junction, crossing.arm)
        width = float(np.linalg.norm(crossing.ends[1] - crossing.ends[0]))
        if pedestrian.progress < 0:
            pedestrian.wait -= DT
            pedestrian.remaining_turn = max(0.0, pedestrian.remaining_turn - TURN_RATE * DT)
            if pedestrian.wait <= 0 and self._may_cross(key, ego):
                pedestrian.progress = 0.0
                self.people_on_crossing[key] = self.people_on_crossing.get(key, 0) + 1
            return
        pedestrian.progress += pedestrian.speed * DT
        if pedestrian.progress >= width:
            pedestrian.side, pedestrian.progress = 1 - pedestrian.side, -1.0
            pedestrian.wait, pedestrian.remaining_turn = float(self.rng.uniform(4, 15)), math.pi
            self.people_on_crossing[key] -= 1

    def _may_cross(self, key: tuple[int, int], ego: Lane | None) -> bool:
        junction, arm = key
        claimants = [self.vehicles[n] for n in self.claimants[junction]]
        claimed = [self.lanes[vehicle.route[vehicle.claimed]] for vehicle in claimants]
        claimed += [ego] if ego is not None and ego.junction == junction else []
        return all(arm not in (connector.arm_in, connector.arm_out) for connector in claimed)

    def _record(self) -> None:
        for vehicle in self.vehicles:
            vehicle.fronts.append(vehicle.front)
        for pedestrian in self.pedestrians:
            start, end = pedestrian.crossing.ends[pedestrian.side], pedestrian.crossing.ends[1 - pedestrian.side]
            ahead = (end - start) / np.linalg.norm(end - start)
            here = start + max(pedestrian.progress, 0.0) * ahead + pedestrian.lateral_offset * pedestrian.crossing.along
            heading = math.atan2(ahead[1], ahead[0]) + pedestrian.remaining_turn
            pedestrian.recorded.append((here[0], here[1], heading))


def _turn_abreast(vehicle: Vehicle, connector: Lane, other: Vehicle, claim: Lane) -> bool:
    """Whether they are side by side, and one is long and needs the lane beside it to turn."""
    abreast = claim.arm_in == connector.arm_in and claim.predecessor != connector.predecessor
    straight, long = (connector.arm_in + 2) % 4, vehicle.is_long + other.is_long
    turning = (connector.arm_out, claim.arm_out) != (straight, straight)
    return abreast and turning and (long == 2 or (long == 1 and claim.arm_out == connector.arm_out))
