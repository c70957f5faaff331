"""Draws the scenario of a drive: route, traffic and construction site, chosen for activity."""

from __future__ import annotations

import numpy as np

from perception.simulate.agents import MOVING, Agent, build_parts, draw_size
from perception.simulate.city import City, build_city
from perception.simulate.lanes import Lane
from perception.simulate.parameters import Place
from perception.simulate.placed_agents import construction_site, is_near, kerbside_agents, parked_vehicles, walkers
from perception.simulate.snapshot import Weather
from perception.simulate.traffic import DT, CrossingPedestrian, Traffic, Vehicle
from perception.simulate.world import LEAD_IN, World

WARM_UP = 14.0  # s of traffic before the recording starts
EGO_LENGTH, EGO_REAR = 4.1, 0.8  # m; EGO_REAR: from the rear bumper to the rear axle, the origin of the ego frame
HITCH_GAP = 1.0  # m between a truck and its trailer
MAX_CANDIDATES = 9  # scenarios drawn for a drive
ENOUGH_ACTIVITY = 5.0  # score of `build_world` at which no more scenarios are drawn
TURNING_SHARE = 0.4  # of drives, in which the ego vehicle should turn at a junction

# The categories of the classes in a `Mix`.
CATEGORIES = {
    "car": "vehicle.car",
    "truck": "vehicle.truck",
    "bus": "vehicle.bus.rigid",
    "trailer": "vehicle.trailer",
    "motorcycle": "vehicle.motorcycle",
    "bicycle": "vehicle.bicycle",
}


def build_world(place: Place, weather: Weather, duration: float, rng: np.random.Generator) -> World:
    """A world from LEAD_IN before the first keyframe until `duration` seconds after it.

    The most active of several random scenarios, as the scenes of nuScenes were selected for activity, too.
    """
    should_turn = rng.random() < TURNING_SHARE
    best, best_score = None, -np.inf
    for _ in range(MAX_CANDIDATES):
        world = _draw_world(build_city(place), weather, duration, 0.9 if should_turn else 0.15, rng)
        score = _activity_score(world, duration) + (_ego_turns(world, duration) == should_turn)
        if score > best_score:
            best, best_score = world, score
        if score > ENOUGH_ACTIVITY:
            break
    assert best is not None
    return best


def _activity_score(world: World, duration: float) -> float:
    """0 to 4.5, from the ego speed, the number of cars nearby, of moving vehicles, and of classes that come near."""
    recorded = np.flatnonzero((world.times >= 0) & (world.times <= duration))[::5]
    path = world.ego_xy[recorded]
    speed = np.linalg.norm(np.diff(path, axis=0), axis=1).sum() / (DT * 5 * max(1, len(recorded) - 1))
    gaps = np.linalg.norm(world.xy[recorded] - path[:, None], axis=2)
    categories = np.array([agent.category for agent in world.agents])
    cars = (gaps[:, categories == "vehicle.car"] < 50.0).sum(axis=1).mean()
    near = {".".join(c.split(".")[:2]) for c in categories[gaps.min(axis=0) < 28.0]}
    traffic = np.array([agent.behaviour in ("traffic", "ridden") for agent in world.agents])
    is_moving = np.linalg.norm(np.diff(world.xy[recorded], axis=0), axis=2) > MOVING * DT * 5
    moving = (is_moving & traffic & (gaps[1:] < 50.0)).sum(axis=1).mean() if len(is_moving) else 0.0
    return 1.5 * min(speed / 6.0, 1.0) + min(cars / 13.0, 1.0) + min(moving / 6.0, 1.0) + len(near) / 10


def _ego_turns(world: World, duration: float) -> bool:
    recorded = world.ego_yaw[(world.times >= 0) & (world.times <= duration)]
    return bool(np.ptp(recorded) > np.radians(50))


def _draw_world(
    city: City, weather: Weather, duration: float, turn_probability: float, rng: np.random.Generator
) -> World:
    lanes = city.graph.lanes
    route = _ego_route(city, turn_probability, rng)
    ego = Vehicle(EGO_LENGTH, float(rng.uniform(8.0, 11.5)), route, float(rng.uniform(6, 30)), speed=7.0)
    route_path = np.concatenate([lanes[k].path for k in route])
    drive_path = route_path[: int((WARM_UP + LEAD_IN + duration) * 11.0 / 0.5)]  # at 11 m/s, an upper bound
    site = _construction_lane(city, route, ego, rng)
    closed = {site} if site is not None else set()
    vehicles, bodies = _spawn(city, ego, drive_path, closed, rng)
    pedestrians = _draw_pedestrians(city, drive_path, rng)
    traffic = Traffic(city, vehicles, pedestrians, closed, rng)
    traffic.run(WARM_UP, LEAD_IN + duration + 3 * DT)
    times = np.arange(len(ego.fronts)) * DT - LEAD_IN
    middle, ego_yaw = _body_poses(lanes, ego, 0.0, EGO_LENGTH)
    ego_xy = middle - (EGO_LENGTH / 2 - EGO_REAR) * np.stack([np.cos(ego_yaw), np.sin(ego_yaw)], axis=1)
    agents = []
    for vehicle, body in zip(vehicles[1:], bodies, strict=True):
        agents += _vehicle_agents(lanes, vehicle, body, rng)
    for pedestrian in pedestrians:
        agents.append(_pedestrian_agent(pedestrian, rng))
    agents += walkers(city, ego_xy, times, rng)
    agents += parked_vehicles(city, ego_xy, lanes[site] if site is not None else None, rng)
    agents += kerbside_agents(city, ego_xy, rng)
    if site is not None:
        agents += construction_site(city, lanes[site], rng)
    agents = [agent for agent in agents if is_near(agent.xy[::5], ego_xy)]
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


def _ego_route(city: City, turn_probability: float, rng: np.random.Generator) -> list[int]:
    """Lanes and connectors of a random route; it turns with this probability at junctions where its lane allows it."""
    lanes = city.graph.lanes
    first = [n for n, lane in enumerate(lanes) if not lane.connector]
    route = [first[int(rng.integers(len(first)))]]
    while sum(lanes[k].length for k in route) < 700.0:
        options = lanes[route[-1]].successors
        turns = [k for k in options if lanes[k].connector and lanes[k].arm_out != (lanes[k].arm_in + 2) % 4]
        straight = [k for k in options if k not in turns]
        pool = (turns or options) if rng.random() < turn_probability else (straight or options)
        route.append(pool[int(rng.integers(len(pool)))])
    return route


def _construction_lane(city: City, route: list[int], ego: Vehicle, rng: np.random.Generator) -> int | None:
    """A kerb lane beside the route to close for a construction site, which traffic can avoid; None for no such lane."""
    lanes = city.graph.lanes
    arc = np.cumsum([lanes[k].length for k in route])
    ahead = [k for k, end in zip(route, arc, strict=True) if 60.0 < end - ego.front < 330.0]
    path = np.concatenate([lanes[k].path[::8] for k in ahead])
    candidates = []
    for n, lane in enumerate(lanes):
        if lane.connector or lane.index != 0 or n in route or lane.length < 52.0:
            continue
        if city.plan.lanes(*lane.start) < 2 or not is_near(lane.path[len(lane.path) // 2], path, 14.0):
            continue
        feeders = [k for k, other in enumerate(lanes) if other.connector and other.successors[0] == n]
        if all(len(lanes[lanes[k].predecessor].successors) > 1 for k in feeders):
            candidates.append(n)
    return candidates[int(rng.integers(len(candidates)))] if candidates else None


def _spawn(
    city: City, ego: Vehicle, drive_path: np.ndarray, closed: set[int], rng: np.random.Generator
) -> tuple[list[Vehicle], list[tuple[str, np.ndarray]]]:
    """The ego vehicle followed by the traffic around its path, and category and size of each vehicle but the ego."""
    lanes, style = city.graph.lanes, city.plan.style
    agents = city.place.agents
    names, shares = list(CATEGORIES.values()), np.array([getattr(agents.mix, each) for each in CATEGORIES])
    vehicles, bodies = [ego], []
    for n, lane in enumerate(lanes):
        if lane.connector or n in closed or not is_near(lane.path[::20], drive_path[::10], 110.0):
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
                length += HITCH_GAP + float(trailer[1])
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
                vehicles.append(Vehicle(length, speed, [n], at, is_long=length > 6.5, speed=0.5 * speed))
                bodies.append((category, size))
            at -= length + 5.0 + float(rng.exponential(1 / agents.traffic))
    return vehicles, bodies


def _vehicle_agents(
    lanes: list[Lane], vehicle: Vehicle, body: tuple[str, np.ndarray], rng: np.random.Generator
) -> list[Agent]:
    """The agent of a vehicle, or the two agents of a truck with trailer."""
    category, sizes = body
    behaviour = "ridden" if category in ("vehicle.bicycle", "vehicle.motorcycle") else "traffic"
    names = ["vehicle.truck", "vehicle.trailer"] if category == "vehicle.trailer" else [category]
    agents, behind = [], 0.0
    for name, size in zip(names, np.atleast_2d(sizes), strict=True):
        xy, yaw = _body_poses(lanes, vehicle, behind, float(size[1]))
        parts = build_parts(name, size, rng, ridden=True, lit=True)
        agents.append(Agent(name, size, behaviour, parts, xy, yaw))
        behind += float(size[1]) + HITCH_GAP
    return agents


def _draw_pedestrians(city: City, drive_path: np.ndarray, rng: np.random.Generator) -> list[CrossingPedestrian]:
    pedestrians = []
    for crossing in city.crossings:
        if not is_near(crossing.ends, drive_path[::10], 70.0):
            continue
        for lateral_offset in (-1.25, 0.0, 1.25):
            if rng.random() < 0.42:
                wait, side = float(rng.uniform(0, 14)), int(rng.integers(2))
                speed = float(rng.uniform(1.0, 1.6))
                pedestrians.append(CrossingPedestrian(crossing, lateral_offset, speed, wait, side))
    return pedestrians


def _pedestrian_agent(pedestrian: CrossingPedestrian, rng: np.random.Generator) -> Agent:
    category = "human.pedestrian.child" if rng.random() < 0.06 else "human.pedestrian.adult"
    size, record = draw_size(category, rng), np.array(pedestrian.recorded)
    parts = build_parts(category, size, rng, ridden=False, lit=False)
    return Agent(category, size, "walking", parts, record[:, :2], np.unwrap(record[:, 2]))


def _body_poses(lanes: list[Lane], vehicle: Vehicle, behind: float, length: float) -> tuple[np.ndarray, np.ndarray]:
    """Centres (T, 2) m and unwrapped headings (T,) rad of a body whose front is `behind` m behind the vehicle's.

    Both axles of the body follow the route, so that a long one swings out in turns.
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
