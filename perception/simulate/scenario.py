"""Draws what happens on a drive: the ego vehicle's route, traffic, pedestrians, parked vehicles and roadworks."""

from __future__ import annotations

import numpy as np

from perception.simulate.agents import MOVING, Agent, build_parts, draw_size
from perception.simulate.city import City, build_city
from perception.simulate.snapshot import Weather
from perception.simulate.streets import DIRECTIONS, Lane
from perception.simulate.traffic import DT, CrossingPedestrian, Traffic, Vehicle
from perception.simulate.world import LEAD_IN, World
from perception.simulate.worlds import Place

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


def park_vehicles(city: City, drive: np.ndarray, site: Lane | None, rng: np.random.Generator) -> list[Agent]:
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
    agents += park_vehicles(city, ego_xy, lanes[site] if site is not None else None, rng)
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
