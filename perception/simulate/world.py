"""One drive's world: a city with its agents in motion, the vehicle that records them, and what is there at any time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from perception.simulate import cast
from perception.simulate.agents import Agent, build_parts, draw_size
from perception.simulate.city import City, build_city
from perception.simulate.lanes import Lane
from perception.simulate.scenery import Snapshot, Solids, Weather
from perception.simulate.traffic import DT, Crosser, Traffic, Vehicle, poses

LEAD_IN = 1.0  # s recorded before the first keyframe, for sweeps
WARM_UP = 14.0  # s of traffic before anything is recorded
SIGHT = 110.0  # m around the vehicle that a snapshot holds
EGO_LENGTH, EGO_WIDTH, EGO_REAR = 4.1, 1.75, 0.8  # m; EGO_REAR: from the rear bumper to the rear axle, ego's origin
HITCH = 1.0  # m between a truck and its trailer

# Shares of the classes in moving traffic, and vehicles a metre of lane.
MIX = {
    "boston": (0.026, {"vehicle.car": 0.74, "vehicle.truck": 0.09, "vehicle.bus.rigid": 0.04, "vehicle.trailer": 0.03,
                       "vehicle.motorcycle": 0.04, "vehicle.bicycle": 0.06}),
    "singapore": (0.028, {"vehicle.car": 0.56, "vehicle.truck": 0.08, "vehicle.bus.rigid": 0.12, "vehicle.trailer": 0.02,
                          "vehicle.motorcycle": 0.15, "vehicle.bicycle": 0.07}),
}  # fmt: skip


@dataclass(frozen=True)
class World:
    """Everything there is during one drive. Time runs in seconds from the first keyframe."""

    city: City
    weather: Weather
    agents: list[Agent]
    times: np.ndarray  # (T,) s
    ego_xy: np.ndarray  # (T, 2) m, the middle of the rear axle
    ego_yaw: np.ndarray  # (T,) rad
    xy: np.ndarray  # (T, A, 2) m
    yaw: np.ndarray  # (T, A) rad
    parts: np.ndarray  # (P, 11) of all agents, see Agent.parts
    owners: np.ndarray  # (P,) index of the agent

    def _between(self, time: float) -> tuple[int, float]:
        """The record before this time, and the share of the way to the next one."""
        at = float(np.clip((time - self.times[0]) / DT, 0, len(self.times) - 1.001))
        return int(at), at - int(at)

    def global_from_ego_at(self, time: float) -> np.ndarray:
        """(4, 4) pose of the recording vehicle."""
        k, share = self._between(time)
        x, y = self.ego_xy[k] + share * (self.ego_xy[k + 1] - self.ego_xy[k])
        yaw = self.ego_yaw[k] + share * (self.ego_yaw[k + 1] - self.ego_yaw[k])
        pose = np.eye(4)
        pose[:2, :2] = [[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]]
        pose[:2, 3] = x, y
        return pose

    def agents_at(self, time: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Positions (A, 2) m, headings (A,) rad and velocities (A, 2) m/s of all agents."""
        k, share = self._between(time)
        xy = self.xy[k] + share * (self.xy[k + 1] - self.xy[k])
        yaw = self.yaw[k] + share * (self.yaw[k + 1] - self.yaw[k])
        return xy, yaw, (self.xy[k + 1] - self.xy[k]) / DT

    def snapshot_at(self, time: float) -> Snapshot:
        """What surrounds the vehicle at this time; owners count all agents of the drive, near or not."""
        here = self.global_from_ego_at(time)[:2, 3]
        xy, yaw, velocity = self.agents_at(time)
        near = np.linalg.norm(xy - here, axis=1) < SIGHT
        parts, owners = self.parts[near[self.owners]], self.owners[near[self.owners]]
        cos, sin = np.cos(yaw[owners]), np.sin(yaw[owners])
        centers = parts[:, 0:3].copy()
        centers[:, 0] = xy[owners, 0] + cos * parts[:, 0] - sin * parts[:, 1]
        centers[:, 1] = xy[owners, 1] + sin * parts[:, 0] + cos * parts[:, 1]
        scenery = self.city.scenery
        close = np.linalg.norm(scenery.centers[:, :2] - here, axis=1) < SIGHT
        solids = Solids(
            centers=np.concatenate([scenery.centers[close], centers]),
            sizes=np.concatenate([scenery.sizes[close], parts[:, 3:6]]),
            yaws=np.concatenate([scenery.yaws[close], yaw[owners]]),
            colours=np.concatenate([scenery.colours[close], parts[:, 6:9].astype(np.uint8)]),
            reflectances=np.concatenate([scenery.reflectances[close], parts[:, 9]]),
            lamps=np.concatenate([scenery.lamps[close], parts[:, 10]]),
            owners=np.concatenate([scenery.owners[close], owners]),
        )
        flat = np.concatenate([velocity, np.zeros((len(velocity), 1))], axis=1)
        return Snapshot(solids, self.city.ground, flat, self.weather)


def build_world(city_name: str, weather: Weather, duration: float, rng: np.random.Generator) -> World:
    """A world that is recorded from LEAD_IN before the first keyframe until `duration` seconds after it."""
    city = build_city(city_name)
    lanes = city.graph.lanes
    route = _ego_route(city, rng)
    ego = Vehicle(EGO_LENGTH, float(rng.uniform(8.0, 11.5)), route, float(rng.uniform(6, 30)), speed=7.0)
    travelled = np.concatenate([lanes[k].path for k in route])
    roam = travelled[: int((WARM_UP + LEAD_IN + duration) * 11.0 / 0.5)]
    site = _site_lane(city, route, ego, rng)
    closed = {site} if site is not None else set()
    vehicles, bodies = _spawn(city, ego, roam, closed, rng)
    crossers = _crossers(city, roam, rng)
    traffic = Traffic(city, vehicles, crossers, closed, rng)
    traffic.run(WARM_UP, LEAD_IN + duration + 3 * DT)
    times = np.arange(len(ego.fronts)) * DT - LEAD_IN
    middle, ego_yaw = poses(lanes, ego, 0.0, EGO_LENGTH)
    ego_xy = middle - (EGO_LENGTH / 2 - EGO_REAR) * np.stack([np.cos(ego_yaw), np.sin(ego_yaw)], axis=1)
    agents = []
    for vehicle, body in zip(vehicles[1:], bodies, strict=True):
        agents += _driven(lanes, vehicle, body, rng)
    for crosser in crossers:
        agents.append(_crossing_person(crosser, rng))
    agents += cast.walkers(city, ego_xy, times, rng)
    agents += cast.parked_vehicles(city, ego_xy, lanes[site] if site is not None else None, rng)
    agents += cast.beside_the_kerb(city, ego_xy, rng)
    if site is not None:
        agents += cast.construction_site(city, lanes[site], rng)
    agents = [agent for agent in agents if cast.near(agent.xy[::5], ego_xy)]
    steps = len(times)
    return World(
        city=city,
        weather=weather,
        agents=agents,
        times=times,
        ego_xy=ego_xy,
        ego_yaw=ego_yaw,
        xy=np.stack([np.broadcast_to(agent.xy, (steps, 2)) for agent in agents], axis=1),
        yaw=np.stack([np.broadcast_to(agent.yaw, (steps,)) for agent in agents], axis=1),
        parts=np.concatenate([agent.parts for agent in agents]),
        owners=np.repeat(np.arange(len(agents)), [len(agent.parts) for agent in agents]),
    )


def _ego_route(city: City, rng: np.random.Generator) -> list[int]:
    """Lanes and connectors of a random drive that turns at about every other junction."""
    lanes = city.graph.lanes
    first = [n for n, lane in enumerate(lanes) if not lane.connector]
    route = [first[int(rng.integers(len(first)))]]
    while sum(lanes[k].length for k in route) < 700.0:
        ways = lanes[route[-1]].successors
        turns = [k for k in ways if lanes[k].connector and lanes[k].arm_out != (lanes[k].arm_in + 2) % 4]
        pool = turns if turns and rng.random() < 0.5 else ways
        route.append(pool[int(rng.integers(len(pool)))])
    return route


def _site_lane(city: City, route: list[int], ego: Vehicle, rng: np.random.Generator) -> int | None:
    """A kerb lane beside the drive to close for a construction site, such that traffic can go round it."""
    lanes = city.graph.lanes
    arc = np.cumsum([lanes[k].length for k in route])
    seen = [k for k, end in zip(route, arc, strict=True) if 60.0 < end - ego.front < 330.0]
    spots = np.concatenate([lanes[k].path[::8] for k in seen])
    candidates = []
    for n, lane in enumerate(lanes):
        if lane.connector or lane.index != 0 or n in route or lane.length < 52.0:
            continue
        if city.plan.lanes(*lane.start) < 2 or not cast.near(lane.path[len(lane.path) // 2], spots, 14.0):
            continue
        feeders = [k for k, other in enumerate(lanes) if other.connector and other.successors[0] == n]
        if all(len(lanes[lanes[k].predecessor].successors) > 1 for k in feeders):
            candidates.append(n)
    return candidates[int(rng.integers(len(candidates)))] if candidates else None


def _spawn(
    city: City, ego: Vehicle, roam: np.ndarray, closed: set[int], rng: np.random.Generator
) -> tuple[list[Vehicle], list[tuple[str, np.ndarray]]]:
    """The recording vehicle and the traffic around its drive; and of each other vehicle, category and size."""
    lanes, style = city.graph.lanes, city.plan.style
    density, mix = MIX[city.name]
    names, shares = list(mix), np.array(list(mix.values()))
    vehicles, bodies = [ego], []
    for n, lane in enumerate(lanes):
        if lane.connector or n in closed or not cast.near(lane.path[::20], roam[::10], 110.0):
            continue
        at = lane.length - float(rng.uniform(1, 20))
        while at > 20.0:
            category = names[int(rng.choice(len(names), p=shares / shares.sum()))]
            cyclist = category in ("vehicle.bicycle",)
            if cyclist and lane.index != 0:
                category = "vehicle.car"
            size = draw_size("vehicle.truck" if category == "vehicle.trailer" else category, rng)
            length = float(size[1])
            if category == "vehicle.trailer":
                trailer = draw_size("vehicle.trailer", rng)
                length += HITCH + float(trailer[1])
                size = np.stack([size, trailer])
            if at - length < 1.0:
                break
            speed = (
                float(rng.uniform(3.8, 5.5))
                if category == "vehicle.bicycle"
                else style.speed * float(rng.uniform(0.85, 1.12))
            )
            clear = n != ego.route[0] or at < ego.front - EGO_LENGTH - 4.0 or at - length > ego.front + 4.0
            if clear:
                vehicles.append(Vehicle(length, speed, [n], at, length > 6.5, 0.5 * speed))
                bodies.append((category, size))
            at -= length + 5.0 + float(rng.exponential(1 / density))
    return vehicles, bodies


def _driven(lanes: list[Lane], vehicle: Vehicle, body: tuple[str, np.ndarray], rng: np.random.Generator) -> list[Agent]:
    """The agent, or truck and trailer, that this vehicle is."""
    category, sizes = body
    behaviour = "ridden" if category in ("vehicle.bicycle", "vehicle.motorcycle") else "traffic"
    names = ["vehicle.truck", "vehicle.trailer"] if category == "vehicle.trailer" else [category]
    agents, behind = [], 0.0
    for name, size in zip(names, np.atleast_2d(sizes), strict=True):
        xy, yaw = poses(lanes, vehicle, behind, float(size[1]))
        parts = build_parts(name, size, rng, ridden=True, lit=True)
        agents.append(Agent(name, size, behaviour, parts, xy, yaw))
        behind += float(size[1]) + HITCH
    return agents


def _crossers(city: City, roam: np.ndarray, rng: np.random.Generator) -> list[Crosser]:
    crossers = []
    for crossing in city.crossings:
        if not cast.near(crossing.ends, roam[::10], 70.0):
            continue
        for lane in (-1.3, -0.45, 0.45, 1.3):
            if rng.random() < 0.32:
                wait, side = float(rng.uniform(0, 14)), int(rng.integers(2))
                crossers.append(Crosser(crossing, lane, float(rng.uniform(1.0, 1.6)), wait, side))
    return crossers


def _crossing_person(crosser: Crosser, rng: np.random.Generator) -> Agent:
    category = "human.pedestrian.child" if rng.random() < 0.06 else "human.pedestrian.adult"
    size, record = draw_size(category, rng), np.array(crosser.recorded)
    parts = build_parts(category, size, rng, ridden=False, lit=False)
    return Agent(category, size, "walking", parts, record[:, :2], np.unwrap(record[:, 2]))
