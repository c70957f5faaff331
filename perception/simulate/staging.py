"""Setting the stage of a drive: a route, traffic round it and a construction site, drawn until the drive is lively."""

from __future__ import annotations

import numpy as np

from perception.simulate import cast
from perception.simulate.agents import MOVING, Agent, build_parts, draw_size
from perception.simulate.city import City, build_city
from perception.simulate.lanes import Lane
from perception.simulate.scenery import Weather
from perception.simulate.traffic import DT, Crosser, Traffic, Vehicle
from perception.simulate.world import LEAD_IN, World

WARM_UP = 14.0  # s of traffic before anything is recorded
EGO_LENGTH, EGO_REAR = 4.1, 0.8  # m; EGO_REAR: from the rear bumper to the rear axle, ego's origin
HITCH = 1.0  # m between a truck and its trailer
CANDIDATES = 9  # drives to choose from
LIVELY = 5.0  # score at which to stop looking, see build_world
TURNING = 0.4  # share of drives in which the vehicle should turn at a junction

# Vehicles a metre of lane, and the shares of the classes among them.
DENSITY = {"boston": 0.026, "singapore": 0.034}
MIX = {
    "boston": {
        "vehicle.car": 0.74,
        "vehicle.truck": 0.09,
        "vehicle.bus.rigid": 0.04,
        "vehicle.trailer": 0.03,
        "vehicle.motorcycle": 0.04,
        "vehicle.bicycle": 0.06,
    },
    "singapore": {
        "vehicle.car": 0.6,
        "vehicle.truck": 0.08,
        "vehicle.bus.rigid": 0.11,
        "vehicle.trailer": 0.02,
        "vehicle.motorcycle": 0.13,
        "vehicle.bicycle": 0.06,
    },
}


def build_world(city_name: str, weather: Weather, duration: float, rng: np.random.Generator) -> World:
    """A world that is recorded from LEAD_IN before the first keyframe until `duration` seconds after it.

    Of several random drives it is the liveliest: nuScenes' scenes were picked for what happens in them, too.
    """
    turning = rng.random() < TURNING
    best, best_score = None, -np.inf
    for _ in range(CANDIDATES):
        world = _draw_world(build_city(city_name), weather, duration, 0.9 if turning else 0.15, rng)
        score = _liveliness(world, duration) + (_turns(world, duration) == turning)
        if score > best_score:
            best, best_score = world, score
        if score > LIVELY:
            break
    assert best is not None
    return best


def _liveliness(world: World, duration: float) -> float:
    """0 to 4.5: how much the vehicle moves, how many cars it meets, how many move, and how many classes come near."""
    recorded = np.flatnonzero((world.times >= 0) & (world.times <= duration))[::5]
    path = world.ego_xy[recorded]
    speed = np.linalg.norm(np.diff(path, axis=0), axis=1).sum() / (DT * 5 * max(1, len(recorded) - 1))
    gaps = np.linalg.norm(world.xy[recorded] - path[:, None], axis=2)
    categories = np.array([agent.category for agent in world.agents])
    cars = (gaps[:, categories == "vehicle.car"] < 50.0).sum(axis=1).mean()
    near = {".".join(c.split(".")[:2]) for c in categories[gaps.min(axis=0) < 28.0]}
    traffic = np.array([agent.behaviour in ("traffic", "ridden") for agent in world.agents])
    moves = np.linalg.norm(np.diff(world.xy[recorded], axis=0), axis=2) > MOVING * DT * 5
    moving = (moves & traffic & (gaps[1:] < 50.0)).sum(axis=1).mean() if len(moves) else 0.0
    return 1.5 * min(speed / 6.0, 1.0) + min(cars / 13.0, 1.0) + min(moving / 6.0, 1.0) + len(near) / 10


def _turns(world: World, duration: float) -> bool:
    recorded = world.ego_yaw[(world.times >= 0) & (world.times <= duration)]
    return bool(np.ptp(recorded) > np.radians(50))


def _draw_world(city: City, weather: Weather, duration: float, turns: float, rng: np.random.Generator) -> World:
    lanes = city.graph.lanes
    route = _ego_route(city, turns, rng)
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
    middle, ego_yaw = _poses(lanes, ego, 0.0, EGO_LENGTH)
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


def _ego_route(city: City, turns: float, rng: np.random.Generator) -> list[int]:
    """Lanes and connectors of a random drive that turns at that share of the junctions, where its lane can."""
    lanes = city.graph.lanes
    first = [n for n, lane in enumerate(lanes) if not lane.connector]
    route = [first[int(rng.integers(len(first)))]]
    while sum(lanes[k].length for k in route) < 700.0:
        ways = lanes[route[-1]].successors
        bends = [k for k in ways if lanes[k].connector and lanes[k].arm_out != (lanes[k].arm_in + 2) % 4]
        straight = [k for k in ways if k not in bends]
        pool = (bends or ways) if rng.random() < turns else (straight or ways)
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
    names, shares = list(MIX[city.name]), np.array(list(MIX[city.name].values()))
    vehicles, bodies = [ego], []
    for n, lane in enumerate(lanes):
        if lane.connector or n in closed or not cast.near(lane.path[::20], roam[::10], 110.0):
            continue
        at = lane.length - float(rng.uniform(1, 20))
        while at > 20.0:
            category = names[int(rng.choice(len(names), p=shares / shares.sum()))]
            if category == "vehicle.bicycle" and lane.index != 0:
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
            at -= length + 5.0 + float(rng.exponential(1 / DENSITY[city.name]))
    return vehicles, bodies


def _driven(lanes: list[Lane], vehicle: Vehicle, body: tuple[str, np.ndarray], rng: np.random.Generator) -> list[Agent]:
    """The agent, or truck and trailer, that this vehicle is."""
    category, sizes = body
    behaviour = "ridden" if category in ("vehicle.bicycle", "vehicle.motorcycle") else "traffic"
    names = ["vehicle.truck", "vehicle.trailer"] if category == "vehicle.trailer" else [category]
    agents, behind = [], 0.0
    for name, size in zip(names, np.atleast_2d(sizes), strict=True):
        xy, yaw = _poses(lanes, vehicle, behind, float(size[1]))
        parts = build_parts(name, size, rng, ridden=True, lit=True)
        agents.append(Agent(name, size, behaviour, parts, xy, yaw))
        behind += float(size[1]) + HITCH
    return agents


def _crossers(city: City, roam: np.ndarray, rng: np.random.Generator) -> list[Crosser]:
    crossers = []
    for crossing in city.crossings:
        if not cast.near(crossing.ends, roam[::10], 70.0):
            continue
        for lane in (-1.25, 0.0, 1.25):
            if rng.random() < 0.42:
                wait, side = float(rng.uniform(0, 14)), int(rng.integers(2))
                crossers.append(Crosser(crossing, lane, float(rng.uniform(1.0, 1.6)), wait, side))
    return crossers


def _crossing_person(crosser: Crosser, rng: np.random.Generator) -> Agent:
    category = "human.pedestrian.child" if rng.random() < 0.06 else "human.pedestrian.adult"
    size, record = draw_size(category, rng), np.array(crosser.recorded)
    parts = build_parts(category, size, rng, ridden=False, lit=False)
    return Agent(category, size, "walking", parts, record[:, :2], np.unwrap(record[:, 2]))


def _poses(lanes: list[Lane], vehicle: Vehicle, behind: float, length: float) -> tuple[np.ndarray, np.ndarray]:
    """Centres (T, 2) and unwrapped headings (T,) of a body whose front is `behind` metres behind the vehicle's.

    The body rests on its route with two axles, so that a long one swings out as it turns.
    """
    path = np.concatenate([lanes[k].path[:-1] for k in vehicle.route])
    arcs = [
        vehicle.starts[n] + np.linspace(0, lanes[k].length, len(lanes[k].path))[:-1]
        for n, k in enumerate(vehicle.route)
    ]
    arc = np.concatenate(arcs)
    middle = np.array(vehicle.fronts) - behind - length / 2
    axles = []
    for at in (middle + 0.3 * length, middle - 0.3 * length):
        axles.append(np.stack([np.interp(at, arc, path[:, 0]), np.interp(at, arc, path[:, 1])], axis=1))
    front, rear = axles
    along = front - rear
    return (front + rear) / 2, np.unwrap(np.arctan2(along[:, 1], along[:, 0]))
