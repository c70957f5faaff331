"""The simulated LiDAR, cameras and weather against closed forms and brute force."""

import itertools
import math
from dataclasses import replace
from functools import cache

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr
from simulated import boxes, pave
from vocabulary import RIG

from perception.simulate import lidar, weather_effects
from perception.simulate.camera import Rendering, render
from perception.simulate.lidar import NOTHING, Rays, cast
from perception.simulate.snapshot import CATEGORIES, Ground, GroundRaster, Snapshot, Solids, Weather

TOP = RIG.lidars[0]
ELEVATIONS = np.deg2rad(np.linspace(-30.67, 10.67, 32))  # of the HDL-32E's rings
FIRST_AZIMUTH = np.deg2rad(188.0)
INTRINSICS = np.array([[160.0, 0, 99.5], [0, 160.0, 59.5], [0, 0, 1]])
SIZE = (200, 120)

CLEAR = Weather()
WALL = (30, 0, 5, 1, 80, 10, 0)  # ahead


def moment(solids: Solids, circumstances: Weather = CLEAR, velocity: tuple = (0, 0, 0)) -> Snapshot:
    agents = int(solids.owners.max(initial=-1)) + 1
    return Snapshot(solids, pave(), np.tile(np.array(velocity, np.float64), (agents, 1)), circumstances)


def turn(snapshot: Snapshot, speed: float = 0.0, seed: int = 0) -> lidar.LidarSweep:
    """A sweep that ends at time 0, from a vehicle that drives along x and is at the origin then."""

    def pose(time: float) -> np.ndarray:
        matrix = np.eye(4)
        matrix[0, 3] = speed * time
        return matrix

    return lidar.sweep(lambda _: snapshot, pose, 0.0, TOP, RIG.body, np.random.default_rng(seed))


def looking(yaw: float = 0.0, pitch: float = 0.0, position: tuple = (0, 0, 1.5)) -> np.ndarray:
    """(4, 4) pose of a camera that looks along the yaw, and down by the pitch, rad."""
    forward = np.array([math.cos(yaw) * math.cos(pitch), math.sin(yaw) * math.cos(pitch), -math.sin(pitch)])
    right = np.array([math.sin(yaw), -math.cos(yaw), 0])
    pose = np.eye(4)
    pose[:3, 0], pose[:3, 1], pose[:3, 2], pose[:3, 3] = right, np.cross(forward, right), forward, position
    return pose


def picture(snapshot: Snapshot, pose: np.ndarray, seed: int = 0) -> Rendering:
    return render(snapshot, INTRINSICS, pose, SIZE, np.random.default_rng(seed))


def linear(image: np.ndarray) -> np.ndarray:
    """The light that the pixels stand for, up to the gain: the sensor encodes with gamma 2."""
    return (image.astype(np.float64) / 255) ** 2


def enter_box(origin: np.ndarray, direction: np.ndarray, box: np.ndarray) -> tuple[float, float]:
    """Oracle: the range at which a ray enters a box, face by face, and the cosine of its incidence there."""
    cos, sin = math.cos(box[6]), math.sin(box[6])
    rotation = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    start, slope, half = rotation.T @ (origin - box[:3]), rotation.T @ direction, box[3:6] / 2
    for axis in range(3):
        for side in (1, -1):
            if slope[axis] * side >= 0:
                continue  # leaves through this face
            distance = (side * half[axis] - start[axis]) / slope[axis]
            inside = np.abs(start + distance * slope)[[a for a in range(3) if a != axis]]
            if distance > 0 and (inside <= half[[a for a in range(3) if a != axis]]).all():
                return distance, abs(slope[axis])
    return math.inf, 0.0


coordinate = st.floats(-20, 20, allow_nan=False)
row = st.tuples(coordinate, coordinate, st.floats(0, 6), *[st.floats(0.1, 12)] * 3, st.floats(-7, 7))
box_rows = st.lists(row, max_size=6)


@settings(max_examples=150, deadline=None)
@given(rows=box_rows, seed=st.integers(0, 10_000), speed=st.floats(-40, 40))
def test_cast_equals_brute_force(rows: list[tuple], seed: int, speed: float) -> None:
    rng = np.random.default_rng(seed)
    solids, columns, beams = boxes(rows), 7, 5
    rays = Rays(
        origins=np.array([0, 0, 2.0]) + rng.normal(0, 0.5, (columns, 3)).clip(-1, 1),
        directions=(d := rng.normal(size=(columns, beams, 3))) / np.linalg.norm(d, axis=-1, keepdims=True),
        times=rng.uniform(-0.03, 0.03, columns),
    )
    velocities = rng.normal(size=(len(rows), 3)) * speed
    hits = cast(rays, solids, velocities)
    for c, r in np.ndindex(columns, beams):
        origin, ray = rays.origins[c], rays.directions[c, r]
        met = [enter_box(origin - velocities[i] * rays.times[c], ray, np.array(row)) for i, row in enumerate(rows)]
        met.append((-origin[2] / ray[2], -ray[2]) if ray[2] < 0 else (math.inf, 0.0))
        expected, found = min(distance for distance, _ in met), (hits.ranges[c, r], hits.cosines[c, r])
        if math.isinf(expected):
            assert (hits.solids[c, r], hits.ranges[c, r]) == (NOTHING, math.inf)
        else:
            assert found[0] == pytest.approx(expected, abs=1e-9)
            assert met[hits.solids[c, r]] == pytest.approx(found, abs=1e-9)  # GROUND, -1, is the last


def test_rings_and_ranges_of_the_ground_and_of_a_wall() -> None:
    """The sensor's elevations; noise of 2 cm around the exact distances; no return from the vehicle's own body or from
    nearer than 1 m."""
    sweep = turn(moment(boxes([(15, 0, 5, 1, 60, 20, 0)])))
    assert sweep.points.dtype == np.float32
    xyz, owners = sweep.points[:, :3].astype(np.float64), sweep.owners
    elevation = np.degrees(np.arctan2(xyz[:, 2], np.hypot(xyz[:, 0], xyz[:, 1])))
    assert set(sweep.points[:, 4]) == set(range(32))
    np.testing.assert_allclose(elevation, -30.67 + sweep.points[:, 4] * 41.34 / 31, atol=1e-4)
    ranges = np.linalg.norm(xyz, axis=1)
    wall, ground = owners == 0, owners == -1
    off_wall = ranges[wall] * (1 - (14.5 - 0.94) / xyz[wall, 1])
    off_ground = ranges[ground] * (1 + 1.84 / xyz[ground, 2])
    for off in (off_wall, off_ground):
        assert off.mean() == pytest.approx(0, abs=5 * 0.02 / math.sqrt(len(off)))
        assert off.std() == pytest.approx(0.02, rel=0.1)
    x, y = xyz[:, 1] + 0.94, -xyz[:, 0]  # in the ego frame
    assert not ((x > -0.6) & (x < 3.4) & (np.abs(y) < 0.85)).any()
    assert len(sweep.points) > 20_000


def assert_flat(off: np.ndarray) -> None:
    """Distances (m) from a wall, up to the noise of a range."""
    assert np.abs(off).max() < 6 * 0.02
    assert off.mean() == pytest.approx(0, abs=5 * 0.02 / math.sqrt(len(off)))


def test_motion_within_the_sweep() -> None:
    """A wall ahead is flat where it stands at the sweep's end, though each beam left from where the vehicle was; one
    that drives away at 20 m/s is in the middle of its way at the middle of the sweep."""
    speed, sweep = 20.0, turn(moment(boxes([WALL])), speed=20.0)
    xyz, ring = sweep.points[sweep.owners == 0, :3].astype(np.float64), sweep.points[sweep.owners == 0, 4]
    assert_flat(xyz[:, 1] - (29.5 - 0.94))
    fired = np.zeros(len(xyz))
    for _ in range(5):  # the beam's azimuth tells its time, its time tells where it left from
        x, y = xyz[:, 0], xyz[:, 1] - speed * fired
        fired = 0.05 * (np.mod(FIRST_AZIMUTH - np.arctan2(y, x), 2 * np.pi) / (2 * np.pi) - 1)
    assert fired.max() - fired.min() > 0.01  # 20 cm of driving between the wall's first point and its last
    elevations = np.arctan2(xyz[:, 2], np.hypot(x, y))
    np.testing.assert_allclose(elevations, ELEVATIONS[ring.astype(int)], atol=1e-6)

    sweep = turn(moment(boxes([WALL]), velocity=(speed, 0, 0)))
    xyz = sweep.points[sweep.owners == 0, :3].astype(np.float64)
    turned = np.mod(FIRST_AZIMUTH - np.arctan2(xyz[:, 1], xyz[:, 0]), 2 * np.pi)
    assert_flat(xyz[:, 1] - (29.5 - 0.94 + speed * 0.05 * (turned / (2 * np.pi) - 0.5)))


@cache
def mean_intensity(air: Weather) -> float:
    """Of the points on a wall 11 m away."""
    wall = boxes([(12.44, 0, 2, 1, 3, 4, 0)])
    sweeps = [turn(moment(wall, air), seed=seed) for seed in range(6)]
    return float(np.concatenate([s.points[s.owners == 0, 3] for s in sweeps]).mean())


@pytest.mark.parametrize(
    "circumstances", [Weather(visibility=60), Weather(visibility=150), Weather(rain=50), Weather(snow=3)]
)
def test_beer_lambert(circumstances: Weather) -> None:
    """Mean intensity of a wall is exp(-2 alpha R) of what it is in clear air."""
    alpha, (found, clear) = weather_effects.extinction(circumstances), map(mean_intensity, (circumstances, CLEAR))
    assert found / clear == pytest.approx(math.exp(-2 * alpha * 11.05), rel=0.03)


def test_extinction_integrates_the_drops_and_flakes() -> None:
    """Twice the cross-section of the drops that Marshall & Palmer count, summed numerically; and of the flakes that
    Gunn & Marshall count, each ten times as large as its water; and the limits of light and heavy snow, by rate and by
    visibility, of Rasmussen et al. (1999), within their spread."""
    extinction = weather_effects.extinction
    d = np.linspace(0, 30, 300_001)
    step, area = d[1] - d[0], np.pi / 4 * (d * 1e-3) ** 2
    for rain in (1.0, 10.0, 60.0):
        number = 8000 * np.exp(-4.1 * rain**-0.21 * d)
        assert extinction(Weather(rain=rain)) == pytest.approx(float((2 * area * number).sum() * step), rel=1e-4)
    for snow in (0.3, 1.0, 4.0):
        number = 3800 * snow**-0.87 * np.exp(-2.55 * snow**-0.48 * d)
        expected = float((2 * area * 10 ** (2 / 3) * number).sum() * step)
        assert extinction(Weather(snow=snow)) == pytest.approx(expected, rel=1e-4)
        water = float((np.pi / 6 * d**3 * number).sum() * step)  # mm^3 in a m^3
        assert 0.7 < snow * 1e6 / water / 3600 < 1.5  # m/s at which it falls: that of flakes
    for snow, visibility in ((1.0, 1000), (2.5, 500)):
        assert 0.5 < 3.912 / extinction(Weather(snow=snow)) / visibility < 2
    both = extinction(Weather(rain=2, snow=1))
    assert both == pytest.approx(extinction(Weather(rain=2)) + extinction(Weather(snow=1)))
    assert extinction(CLEAR) == 0
    assert extinction(Weather(visibility=100)) == pytest.approx(0.03912)


def strongest_particles(falling: Weather) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Oracle: range (1, R) m and power (P, 1) of the strongest drop or flake in a beam, and the probability (P, R) of
    each, by quadrature. The number of those above a power follows from the size distribution, and a beam has none of
    them with exp(-number)."""
    r, power = np.linspace(2.5, 60, 1151)[None, 1:], np.geomspace(1e-7, 1, 1201)[:, None]
    seen, beam = np.minimum((r - 2.5) / 7.5, 1), 0.011 + 0.0019 * r  # share that the receiver sees, and m, diameter
    back = 0.0201 * (1 + (1 - 0.0201) ** 2 * (1.33 / 0.67) ** 2) / 4
    number, slope, wider = 8000, 4.1 * falling.rain**-0.21 if falling.rain else 0, 1.0
    if falling.snow:
        number, slope = 3800 * falling.snow**-0.87, 2.55 * falling.snow**-0.48
        back, wider = 2 * np.pi / 25, 0.1 ** (-1 / 3)
    widest = back * seen * np.exp(-2 * weather_effects.extinction(falling) * r) / r**2  # of one as wide as the beam
    water = beam * np.sqrt(power / widest) * 1e3 / wider  # mm
    above = np.pi / 4 * beam**2 * number / slope * np.exp(-slope * water) * (power <= widest) * (r[0, 1] - r[0, 0])
    none = np.exp(-above.sum(axis=1, keepdims=True))
    middle = np.sqrt(power[1:] * power[:-1])
    return r, middle, (above[:-1] - above[1:]) * np.sqrt(none[1:] * none[:-1])


@pytest.mark.parametrize("falling", [Weather(snow=1), Weather(snow=4), Weather(rain=30)])
def test_drops_and_flakes_in_sweeps(falling: Weather) -> None:
    """Beams into the sky: the share with a return, how near these are, and the share with intensity 0. A return is
    detected where its power, times a lognormal of mean 1, exceeds the sensitivity."""
    sweeps = [turn(moment(boxes([]), falling), seed=seed) for seed in range(4)]
    points = np.concatenate([each.points[each.points[:, 4] >= 24] for each in sweeps])  # of the rings that look up
    assert all((each.categories[each.points[:, 4] >= 24] == CATEGORIES.index("noise")).all() for each in sweeps)
    ranges, beams = np.linalg.norm(points[:, :3], axis=1), 4 * 1090 * 8
    r, power, probability = strongest_particles(falling)
    spread = lidar.SIGNAL_SPREAD
    for within in (5.0, 7.0, 12.0, 60.0):
        expected = float((probability * seen_share(power) * (r < within)).sum())
        found = np.count_nonzero(ranges < within) / beams
        assert found == pytest.approx(expected, abs=5 * math.sqrt(expected * (1 - expected) / beams) + 5e-4)
    dim = ndtr(np.log(0.005 / (power * r**2)) / spread + spread / 2) - (1 - seen_share(power))
    expected = float((probability * dim.clip(0)).sum())
    found = np.count_nonzero(points[:, 3] == 0) / beams
    assert found == pytest.approx(expected, abs=5 * math.sqrt(expected * (1 - expected) / beams) + 5e-4)


def test_fog_sends_back_by_the_inverse_square() -> None:
    """Ranges of fog echoes follow exp(-2 alpha r) / r^2, and their mean power that of Hahner et al."""
    ranges, echoes = weather_effects.volume_echo(Weather(visibility=50), 0.0, 200_000, np.random.default_rng(0))
    alpha, r = weather_effects.extinction(Weather(visibility=50)), np.linspace(1, 40, 40_001)
    density = np.exp(-2 * alpha * r) / r**2
    for limit in (1.5, 2.0, 4.0, 8.0):
        assert (ranges < limit).mean() == pytest.approx(density[r < limit].sum() / density.sum(), abs=0.02)
    near = (ranges > 2) & (ranges < 2.2)
    expected = np.pi * 0.046 / 50 * weather_effects.PULSE_LENGTH * math.exp(-2 * alpha * 2.1)
    assert echoes[near].mean() == pytest.approx(expected, rel=0.05)


def seen_share(signal: np.ndarray | float) -> np.ndarray:
    """P(signal * lognormal of mean 1 > sensitivity) = Phi((log(signal / sensitivity) - s^2 / 2) / s)."""
    spread = lidar.SIGNAL_SPREAD
    return ndtr(np.log(np.asarray(signal) / lidar.SENSITIVITY) / spread - spread / 2)


@pytest.mark.parametrize("rain", [0.0, 1.0, 3.0])
def test_wet_road_loses_grazing_returns(rain: float) -> None:
    """Ring by ring, beyond the vehicle's body: Oren-Nayar, the film of water and Beer-Lambert make the drop-out."""
    steep = np.sin(-ELEVATIONS[16:23])  # cosines of incidence on flat ground
    ranges = 1.84 / steep
    wet = weather_effects.wet_albedo(np.array(0.17)) * weather_effects.film_transmission(steep) ** 2
    reflectance = 0.17 + min(rain / 2, 1) * (wet - 0.17)
    alpha = weather_effects.extinction(Weather(rain=rain))
    signal = reflectance * lidar.oren_nayar(steep) * np.exp(-2 * alpha * ranges) / ranges**2

    sweeps = [turn(moment(boxes([]), Weather(rain=rain)), seed=seed).points for seed in range(4)]
    points = np.concatenate(sweeps)
    on_ground = np.abs(points[:, 2] + 1.84) < 0.1
    ground, drops = (np.bincount(points[own, 4].astype(int), minlength=32)[16:23] for own in (on_ground, ~on_ground))
    np.testing.assert_allclose(ground / (4 * 1090 - drops), seen_share(signal), atol=0.03)


def test_spray_is_behind_fast_vehicles_on_wet_roads() -> None:
    car = boxes([(20, 3, 1, 4, 1.8, 1.5, 0)])
    clusters = weather_effects.spray(moment(car, Weather(rain=20), (15, 0, 0)), np.random.default_rng(0))
    assert len(clusters.centers) > 20
    assert (clusters.centers[:, 0] <= 18).all()
    assert np.median(np.abs(clusters.centers[:, 1] - 3)) < 2
    assert (clusters.owners == -1).all()
    for still in (moment(car, Weather(), (15, 0, 0)), moment(car, Weather(rain=20), (3, 0, 0))):
        assert len(weather_effects.spray(still, np.random.default_rng(0)).centers) == 0


def pinhole(points: np.ndarray, pose: np.ndarray) -> np.ndarray:
    local = (points - pose[:3, 3]) @ pose[:3, :3]
    pixels = local @ INTRINSICS.T
    return pixels[:, :2] / pixels[:, 2:]


@settings(max_examples=60, deadline=None)
@given(rows=box_rows, yaw=st.floats(-3, 3), pitch=st.floats(-0.3, 0.6))
def test_owners_equal_ray_casting(rows: list[tuple], yaw: float, pitch: float) -> None:
    """Any boxes, around, behind and across the camera's plane too: a pixel shows what its ray meets first."""
    pose, (width, height) = looking(yaw, pitch, (0.3, -0.2, 2.0)), SIZE
    u, v = np.meshgrid(np.arange(width), np.arange(height))
    directions = np.stack([u, v, np.ones_like(u)], axis=-1) @ np.linalg.inv(INTRINSICS).T @ pose[:3, :3].T
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    rays = Rays(np.tile(pose[:3, 3], (height, 1)), directions, np.zeros(height))
    ranges = np.stack([cast(rays, boxes(r), np.zeros((len(r), 3))).ranges for r in ([], *([row] for row in rows))])
    nearest = ranges.min(axis=0)
    owners = picture(moment(boxes(rows)), pose).owners
    shown = np.take_along_axis(ranges, owners[None] + 1, axis=0)[0]
    with np.errstate(invalid="ignore"):
        wrong = ~((shown <= nearest * 1.0001) | (nearest < 0.2))  # within 20 cm the near plane may have cut
    assert wrong.sum() <= 5  # on edges, where rounding decides


def test_nearer_hides_farther_and_half_hides_half() -> None:
    far = (20, 0, 1.5, 0.2, 2, 2, 0)
    hidden, half, behind = (
        picture(moment(boxes([far, other])), looking())
        for other in ((10, 0, 1.5, 0.2, 2, 2, 0), (10, 1, 1.5, 0.2, 2, 2, 0), (-10, 0, 1, 2, 2, 2, 0))
    )
    assert set(np.unique(hidden.owners)) == {-1, 1}
    assert hidden.visible_share.tolist() == [0, 1]
    assert half.visible_share == pytest.approx([0.5, 1], abs=0.04)  # 16 pixels wide
    assert half.visible_share[1] == 1
    np.testing.assert_array_equal(behind.visible_share, [1, np.nan])


def test_ground_is_painted_where_it_lies() -> None:
    """A strip of yellow paint appears where the pinhole formula puts its corners."""
    kinds = np.full((400, 400), Ground.ROAD, np.uint8)
    kinds[180:220, 260:300] = Ground.YELLOW  # x 6 to 10 m, y -2 to 2 m
    snapshot = replace(moment(boxes([])), ground=GroundRaster(kinds, (-20.0, -20.0), 0.1))
    pose = looking(pitch=0.2)
    image = picture(snapshot, pose).image.astype(int)
    yellow = image[..., 0] - image[..., 2] > 60
    corners = pinhole(np.array([[6, -2, 0], [6, 2, 0], [10, 2, 0], [10, -2, 0.0]]), pose)
    expected = np.zeros(SIZE[::-1], np.uint8)
    cv2.fillConvexPoly(expected, np.rint(corners * 256).astype(np.int32), (1,), shift=8)
    cross = np.ones((3, 3), np.uint8)
    assert not (yellow & (cv2.dilate(expected, cross) == 0)).any()
    assert not (~yellow & (cv2.erode(expected, cross) == 1)).any()


def test_koschmieder_contrast() -> None:
    """The contrast of a black and a white wall side by side falls by exp(-alpha d), as fog alone makes it."""

    def contrast(distance: float, visibility: float) -> float:
        walls = boxes([(distance + 0.5, 2, 1.5, 1, 4, 3, 0), (distance + 0.5, -2, 1.5, 1, 4, 3, 0)])
        walls = replace(walls, colours=np.array([[200] * 3, [40] * 3], np.uint8))
        light = linear(picture(moment(walls, Weather(visibility=visibility)), looking()).image)
        left, right = (slice(55, 64), slice(85, 97), 1), (slice(55, 64), slice(103, 115), 1)
        return float(light[left].mean() - light[right].mean())

    for distance in (10.0, 18.0):
        alpha = 3.912 / 40 - 3.912 / 80
        assert contrast(distance, 40) / contrast(distance, 80) == pytest.approx(math.exp(-alpha * distance), rel=0.05)

    light, airlight = np.full((3, 1, 2), [[[0.2, 0.9]]]), np.array([0.7, 0.7, 0.7])
    far = weather_effects.koschmieder(light, np.full((1, 2), 50.0), 0.02, airlight)
    np.testing.assert_allclose(far[..., 1] - far[..., 0], 0.7 * math.exp(-1.0))
    np.testing.assert_allclose(weather_effects.koschmieder(light, np.full((1, 2), np.inf), 0.02, airlight), 0.7)


def test_snow_in_pictures() -> None:
    """Fresh snow reflects 95 % of the light. Flakes are as bright: invisible before snow, never brighter, more in more
    snow."""
    road, white = (
        linear(picture(moment(boxes([]), Weather(overcast=True, snow_cover=cover)), looking(pitch=0.3)).image)
        for cover in (0.0, 1.0)
    )
    asphalt = (np.array([92, 93, 97]) / 255) ** 2
    ratio = white[80:110].mean(axis=(0, 1)) / road[80:110].mean(axis=(0, 1))
    np.testing.assert_allclose(ratio, 0.95 / asphalt, rtol=0.05)

    light, shares = np.array([0.6, 0.7, 0.8], np.float32), {}
    for before, snow in itertools.product((0, 0.95), (0.0, 0.5, 3.0)):
        image = np.broadcast_to(before * light[:, None, None], (3, 200, 300))
        seen = weather_effects.falling_snow(image, snow, 250.0, light, np.random.default_rng(0))
        assert seen.max() <= 0.95 * light.max() + 1e-6
        shares[before, snow] = float((seen / light[:, None, None]).mean())
    np.testing.assert_allclose([shares[0.95, snow] for snow in (0.0, 0.5, 3.0)], 0.95, rtol=1e-6)
    assert shares[0, 0.0] == 0 < 2 * shares[0, 0.5] < shares[0, 3.0]


def test_lamps_shine_at_night_and_headlights_on_the_road_less_with_distance() -> None:
    lamp, weather = boxes([(10, 0, 1.5, 0.1, 0.5, 0.5, 0)]), Weather(night=True)
    off, on = (
        picture(moment(replace(lamp, lamps=np.full(1, each)), weather), looking()).image[58:62, 98:102]
        for each in (0.0, 1.0)
    )
    assert on.min() > 200
    assert off.mean() < 100
    night, pose = moment(boxes([]), weather), looking(pitch=0.1)
    dark = linear(picture(night, pose).image)
    lit = linear(render(night, INTRINSICS, pose, SIZE, np.random.default_rng(0), np.eye(4)).image)
    rows = pinhole(np.array([[x, 0, 0] for x in (10.0, 20.0, 40.0)]), pose)[:, 1].astype(int)
    near, middle, far = ((lit - dark)[row - 1 : row + 2, 80:120].mean() for row in rows)
    assert near > 2 * middle > 4 * far > 0
    assert near > 4 * dark[rows[0], 80:120].mean()
    day = linear(picture(moment(boxes([])), pose).image)
    assert day[rows].mean() > 4 * dark[rows].mean()
