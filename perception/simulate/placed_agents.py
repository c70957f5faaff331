"""Agents that the traffic simulation does not move: walkers, parked vehicles and cycles, construction sites."""

from __future__ import annotations

import numpy as np

from perception.simulate.agents import Agent, build_parts, draw_size
from perception.simulate.city import City
from perception.simulate.lanes import Lane
from perception.simulate.street_plan import DIRECTIONS

NEAR = 95.0  # m from the drive; agents that do not come closer are not placed
KERB_GAP = 1.3  # m, minimum between vehicles parked in line


def static_agent(
    category: str, xy: np.ndarray, yaw: float, rng: np.random.Generator, size: np.ndarray | None = None
) -> Agent:
    """An agent that does not move, with its lamps off."""
    cycle = category in ("vehicle.motorcycle", "vehicle.bicycle")
    behaviour = "riderless" if cycle else "parked" if category.startswith("vehicle") else ""
    if category.startswith("human"):
        behaviour = "walking"
    size = draw_size(category, rng, ridden=False) if cycle else draw_size(category, rng) if size is None else size
    parts = build_parts(category, size, rng, ridden=False, lit=False)
    return Agent(category, size, behaviour, parts, xy[None], np.array([yaw]))


def is_near(xy: np.ndarray, drive: np.ndarray, radius: float = NEAR) -> bool:
    """Whether the point (2,) or any of the points (N, 2) is within the radius (m) of the path (M, 2) of the drive."""
    gaps = np.linalg.norm(np.atleast_2d(xy)[:, None] - drive[None], axis=-1)
    return bool(gaps.min() < radius)


def walkers(city: City, drive: np.ndarray, times: np.ndarray, rng: np.random.Generator) -> list[Agent]:
    """People on the walkways. All people on a path have the same velocity, so that they do not collide."""
    density, people = city.place.agents.walkers, []
    for block in city.walking_paths:
        for number, (path, length) in enumerate(block):
            speed, sense = float(rng.uniform(0.9, 1.7)), 1 if number % 2 == 0 else -1
            count = int(rng.poisson(density * length))
            starts = np.sort(rng.uniform(0, length, count))
            starts = starts[np.diff(starts, prepend=-9.0) > 1.2]  # m, minimum distance between two
            if len(starts) and starts[0] + length - starts[-1] < 1.2:
                starts = starts[:-1]
            arc = np.linspace(0, length, len(path))
            for start in starts:
                at = start + sense * speed * times
                xy = _on_ring(path, arc, at)
                ahead = _on_ring(path, arc, at + 0.3 * sense) - _on_ring(path, arc, at - 0.3 * sense)
                child = rng.random() < 0.08
                category = f"human.pedestrian.{'child' if child else 'adult'}"
                size = draw_size(category, rng)
                parts = build_parts(category, size, rng, ridden=False, lit=False)
                if is_near(xy[:: max(1, len(xy) // 8)], drive):
                    yaw = np.unwrap(np.arctan2(ahead[:, 1], ahead[:, 0]))
                    people.append(Agent(category, size, "walking", parts, xy, yaw))
    return people


def _on_ring(path: np.ndarray, arc: np.ndarray, at: np.ndarray) -> np.ndarray:
    at = np.mod(at, arc[-1])
    return np.stack([np.interp(at, arc, path[:, 0]), np.interp(at, arc, path[:, 1])], axis=1)


def kerbside_agents(city: City, drive: np.ndarray, rng: np.random.Generator) -> list[Agent]:
    """Parked cycles, and standing or sitting people, on the free spots of the furniture strip."""
    densities, agents = city.place.agents, []
    for uv, direction in city.free_spots:
        draw, yaw_noise = rng.random(), float(rng.normal(0, 0.02))
        xy = city.plan.to_global(uv)
        if draw > densities.cycles + densities.people or not is_near(xy, drive):
            continue
        along = city.plan.heading(uv, np.array([np.cos(direction), np.sin(direction)]))
        if draw < densities.cycles:
            category = "vehicle.motorcycle" if rng.random() < densities.motorcycles else "vehicle.bicycle"
            agents.append(static_agent(category, xy, float(along) + yaw_noise + np.pi * rng.integers(2), rng))
        elif rng.random() < 0.25:
            size = draw_size("human.pedestrian.adult", rng)
            size[2] = round(size[2] * 0.74, 3)
            parts = build_parts("human.pedestrian.adult", size, rng, ridden=False, lit=False)
            yaw = np.array([float(along) + np.pi * rng.integers(2)])
            agents.append(Agent("human.pedestrian.adult", size, "sitting", parts, xy[None], yaw))
        else:
            agents.append(static_agent("human.pedestrian.adult", xy, float(rng.uniform(-np.pi, np.pi)), rng))
    return agents


def parked_vehicles(city: City, drive: np.ndarray, site: Lane | None, rng: np.random.Generator) -> list[Agent]:
    """Vehicles in the parking strips at the kerb and in the parking lots, clear of the construction site's lane."""
    plan, occupied = city.plan, city.place.agents.parked
    agents = []
    for i, j, arm, side in plan.kerb_sides() if plan.style.parking else ():
        start, end = plan.stretch(i, j, arm)
        left = side * (plan.half_width(i, j, arm) - plan.style.parking / 2)
        # Right-hand traffic on the right-hand kerb faces along the arm.
        direction = DIRECTIONS[arm] * (1.0 if (side < 0) == plan.style.right_hand else -1.0)
        at = start + float(rng.uniform(1, 6))
        while at < end - 8.0:
            draw = rng.random()
            category = "vehicle.car" if draw < 0.9 else "vehicle.truck" if draw < 0.97 else "vehicle.trailer"
            size = draw_size(category, rng)
            size[0] = min(size[0], 2.15)  # fits into the strip
            size[1] = min(size[1], 7.5)
            uv = plan.on_arm(i, j, arm, np.array(at + size[1] / 2), np.array(left + rng.normal(0, 0.03)))
            at += float(size[1]) + KERB_GAP + float(rng.exponential(0.8))
            xy = plan.to_global(uv)
            if rng.random() > occupied or not is_near(xy, drive):
                continue
            if site is not None and is_near(xy, site.path, 6.0):
                continue
            yaw = float(plan.heading(uv, direction)) + float(rng.normal(0, 0.006))
            agents.append(static_agent(category, xy, yaw, rng, size.round(3)))
    for lot in city.lots:
        for u, v, heading in lot.spaces:
            uv = np.array([u, v])
            xy = plan.to_global(uv)
            if rng.random() > occupied or not is_near(xy, drive):
                continue
            heading += np.pi * rng.integers(2)
            yaw = float(plan.heading(uv, np.array([np.cos(heading), np.sin(heading)])))
            agents.append(static_agent("vehicle.car", xy, yaw + float(rng.normal(0, 0.02)), rng))
    return agents


def construction_site(city: City, lane: Lane, rng: np.random.Generator) -> list[Agent]:
    """A closed kerb lane: a taper of cones and a row of barriers, with a machine and workers behind them."""
    plan = city.plan
    width, kerb = plan.style.lane_width, -1.0 if plan.style.right_hand else 1.0  # kerb: left positive
    arc = np.linspace(0, lane.length, len(lane.path))
    agents = []

    def place(category: str, s: float, left: float, rotation: float = 0.0) -> None:
        here, ahead = (
            np.array([np.interp(at, arc, lane.path[:, k]) for k in (0, 1)]) for at in (s, min(s + 1.0, lane.length))
        )
        yaw = float(np.arctan2(*(ahead - here)[::-1]))
        xy = here + left * np.array([-np.sin(yaw), np.cos(yaw)])
        agents.append(static_agent(category, xy, yaw + rotation, rng))

    inner = -kerb * (width / 2 - 0.3)
    first, last = 12.0, min(lane.length - 8.0, 12.0 + float(rng.uniform(30, 42)))
    for n in range(6):  # the taper, at the end where traffic arrives
        place("movable_object.trafficcone", first - 9.0 + 1.8 * n, kerb * (width / 2 - 0.4) * (1 - 2 * n / 5))
    for s in np.arange(first + 2.0, last - 1.5, 3.0):
        place("movable_object.barrier", float(s), inner, np.pi / 2 + float(rng.normal(0, 0.03)))
    for s in (last + 1.0, last + 2.5, last + 4.0):
        place("movable_object.trafficcone", s, inner)
    middle = float(rng.uniform(first + 8, last - 8))
    machine = kerb * (0.9 if plan.style.parking else 0.35)
    place("vehicle.construction", middle, machine, np.pi * rng.integers(2))
    for s in (middle - 6.5, middle + 6.0):
        place("human.pedestrian.construction_worker", s, kerb * 0.4, float(rng.uniform(-np.pi, np.pi)))
    for s in (middle - 8.0, middle + 7.5):
        place("movable_object.trafficcone", s, kerb * 0.9)
    return agents
