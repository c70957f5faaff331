"""Recording one drive: the world advances, the sensors look at it, files are written, what they saw is annotated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from perception.frame import CAMERAS, LIDAR, Conditions
from perception.rotations import quaternion
from perception.simulate import camera, lidar
from perception.simulate.agents import attribute
from perception.simulate.annotate import Sighting, annotate, points_in_boxes
from perception.simulate.city import build_city
from perception.simulate.conditions import Parts, draw_weather
from perception.simulate.nuscenes_writer import Row, Tables, calibrated_sensors, link, token
from perception.simulate.rig import IMAGE_SIZE, RIG
from perception.simulate.staging import build_world
from perception.simulate.world import World

PERIOD = 0.5  # s between keyframes
SWEEP = 0.05  # s between LiDAR sweeps
ANNOTATED = 80.0  # m around the vehicle
JPEG_QUALITY = 92
EPOCH = 1_700_000_000_000_000  # us
APART = 3_600_000_000  # us between the starts of two drives


@dataclass(frozen=True)
class Drive:
    """What to record."""

    seed: int
    number: int
    parts: Parts  # that follow each other, each for the same share of the keyframes
    samples: int  # keyframes
    sweeps: int  # LiDAR sweeps before each keyframe

    @property
    def name(self) -> str:
        return f"scene-{self.number + 1:04d}"

    @property
    def location(self) -> str:
        return build_city(self.city).plan.style.location

    @property
    def city(self) -> str:
        return str(self.parts[0].city)

    @property
    def changes(self) -> list[tuple[float, Conditions]]:
        """When each part but the first begins, s from the first keyframe, half-way between two keyframes."""
        firsts = [-(-k * self.samples // len(self.parts)) for k in range(1, len(self.parts))]
        return [(PERIOD * (first - 0.5), part) for first, part in zip(firsts, self.parts[1:], strict=True)]

    @property
    def logfile(self) -> str:
        return f"sim-{self.location}-{self.seed}-{self.number + 1:04d}"

    def token(self, *parts: object) -> str:
        return token(self.seed, self.name, *parts)

    def rng(self, *stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.number, *stream])


class _Recorder:
    """Collects the tables of one drive while its files are written."""

    def __init__(self, drive: Drive, world: World, out: Path) -> None:
        self.drive, self.world, self.out = drive, world, out
        self.tables: Tables = {"sample_data": [], "ego_pose": []}
        self.start = EPOCH + drive.number * APART
        self.pending: list[tuple[Path, bytes]] = []

    def microseconds(self, time: float) -> int:
        return self.start + round(time * 1e6)

    def add(self, channel: str, time: float, sample: str, keyframe: bool, content: bytes) -> None:
        """Write one sensor file, and its rows."""
        timestamp, camera_like = self.microseconds(time), channel != LIDAR
        folder = f"{'samples' if keyframe else 'sweeps'}/{channel}"
        suffix = "jpg" if camera_like else "pcd.bin"
        filename = f"{folder}/{self.drive.logfile}__{channel}__{timestamp}.{suffix}"
        (self.out / filename).write_bytes(content)
        name = self.drive.token("sample_data", channel, timestamp)
        pose = self.world.global_from_ego_at(time)
        self.tables["ego_pose"].append(
            {
                "token": name,
                "timestamp": timestamp,
                "rotation": quaternion(pose[:3, :3]),
                "translation": pose[:3, 3].tolist(),
            }
        )
        self.tables["sample_data"].append(
            {
                "token": name,
                "sample_token": sample,
                "ego_pose_token": name,
                "calibrated_sensor_token": token("calibrated_sensor", self.drive.token(), channel),
                "timestamp": timestamp,
                "fileformat": "jpg" if camera_like else "pcd",
                "is_key_frame": keyframe,
                "height": IMAGE_SIZE[1] if camera_like else 0,
                "width": IMAGE_SIZE[0] if camera_like else 0,
                "filename": filename,
                "prev": "",
            }
        )


def record(drive: Drive, out: Path, progress: Callable[[], None]) -> Tables:
    """Write a drive's sensor files below `out` and return its rows; `progress` is called after each keyframe."""
    weather = draw_weather(drive.parts[0], drive.rng(0))
    world = build_world(drive.city, weather, drive.samples * PERIOD, drive.rng(1))
    # The same random numbers: what rains before and behind the mouth of a tunnel is the same rain.
    later = [(start, draw_weather(part, drive.rng(0))) for start, part in drive.changes]
    world = replace(world, later=tuple(later))
    recorder = _Recorder(drive, world, out)
    samples: list[Row] = []
    sightings: list[list[Sighting]] = []
    for k in range(drive.samples):
        time, sample = k * PERIOD, drive.token("sample", k)
        for back in range(drive.sweeps, 0, -1):
            earlier = time - back * SWEEP
            if k > 0 and earlier < (k - 1) * PERIOD + SWEEP / 2:
                continue  # that one is the keyframe before, or has been written with it
            points = _sweep(drive, world, earlier).points
            recorder.add(LIDAR, earlier, sample, False, points.astype(np.float32).tobytes())
        points = _sweep(drive, world, time).points.astype(np.float32)
        recorder.add(LIDAR, time, sample, True, points.tobytes())
        visible = np.full(len(world.agents), np.nan)
        for channel in CAMERAS:
            visible = np.fmax(visible, _photograph(drive, recorder, channel, time, sample))
        samples.append(
            {
                "token": sample,
                "timestamp": recorder.microseconds(time),
                "prev": "",
                "scene_token": drive.token("scene"),
            }
        )
        sightings.append(_look(world, time, points, visible))
        progress()
    link(samples)
    for channel in RIG:
        calibration = token("calibrated_sensor", drive.token(), channel)
        link([row for row in recorder.tables["sample_data"] if row["calibrated_sensor_token"] == calibration])
    annotations, instances = annotate(drive.token(), [s["token"] for s in samples], sightings)
    return {
        **recorder.tables,
        "sample": samples,
        "sample_annotation": annotations,
        "instance": instances,
        "calibrated_sensor": calibrated_sensors(drive.token()),
        "log": [_log_row(drive)],
        "scene": [_scene_row(drive, samples) | {"description": _description(drive, world, sightings)}],
    }


def _log_row(drive: Drive) -> Row:
    return {
        "token": drive.token("log"),
        "logfile": drive.logfile,
        "vehicle": "sim",
        "date_captured": "2023-11-14",
        "location": drive.location,
    }


def _scene_row(drive: Drive, samples: list[Row]) -> Row:
    return {
        "token": drive.token("scene"),
        "log_token": drive.token("log"),
        "nbr_samples": len(samples),
        "first_sample_token": samples[0]["token"],
        "last_sample_token": samples[-1]["token"],
        "name": drive.name,
    }


def _sweep(drive: Drive, world: World, time: float) -> lidar.LidarSweep:
    rng = drive.rng(2, round((time + 1.0) / SWEEP))
    pose = RIG[LIDAR].ego_from_sensor
    return lidar.sweep(world.snapshot_at, world.global_from_ego_at, time, pose, rng)


def _photograph(drive: Drive, recorder: _Recorder, channel: str, time: float, sample: str) -> np.ndarray:
    """Write one camera's picture; return (A,) the visible share of each agent in it, NaN where it is not in it."""
    sensor, world = RIG[channel], recorder.world
    moment = time + sensor.delay
    assert sensor.intrinsics is not None
    pose = world.global_from_ego_at(moment)
    rng = drive.rng(3, round(time / PERIOD), CAMERAS.index(channel))
    picture = camera.render(
        world.snapshot_at(moment), sensor.intrinsics, pose @ sensor.ego_from_sensor, IMAGE_SIZE, rng, pose
    )
    bgr = np.ascontiguousarray(picture.image[..., ::-1])
    content = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()
    recorder.add(channel, moment, sample, True, content)
    return picture.visible_share


def _look(world: World, time: float, points: np.ndarray, visible: np.ndarray) -> list[Sighting]:
    """What is around the vehicle at a keyframe. points (N, 5) in the LiDAR's frame, visible (A,)."""
    pose = world.global_from_ego_at(time)
    xy, yaw, velocity = world.agents_at(time)
    near = np.flatnonzero(np.linalg.norm(xy - pose[:2, 3], axis=1) < ANNOTATED)
    sizes = np.array([world.agents[n].size for n in near]).reshape(-1, 3)
    centers = np.concatenate([xy[near], sizes[:, 2:3] / 2], axis=1).round(3)
    global_from_lidar = pose @ RIG[LIDAR].ego_from_sensor
    there = points[:, :3].astype(np.float64) @ global_from_lidar[:3, :3].T + global_from_lidar[:3, 3]
    counts = points_in_boxes(there, centers, sizes, yaw[near])
    return [
        Sighting(
            agent=int(n),
            category=world.agents[n].category,
            center=centers[k],
            size=sizes[k],
            yaw=float(yaw[n]),
            attribute=attribute(world.agents[n], float(np.linalg.norm(velocity[n]))),
            points=int(counts[k]),
            visible=float(visible[n]),
        )
        for k, n in enumerate(near)
    ]


def _description(drive: Drive, world: World, sightings: list[list[Sighting]]) -> str:
    """What nuScenes would say of the scene; its first words tell weather and light, its last ones how they change."""
    words = _told(drive.parts[0])
    recorded = (world.times >= 0) & (world.times <= drive.samples * PERIOD)
    turn = np.degrees(world.ego_yaw[recorded][-1] - world.ego_yaw[recorded][0])
    words += ["turn left"] if turn > 50 else ["turn right"] if turn < -50 else []
    seen = [s for keyframe in sightings for s in keyframe if s.points > 4]
    for category, word in (
        ("vehicle.construction", "construction site"),
        ("vehicle.bus.rigid", "bus"),
        ("vehicle.trailer", "truck with trailer"),
        ("vehicle.motorcycle", "motorcycle"),
        ("vehicle.bicycle", "bicycle"),
    ):
        words += [word] if any(s.category == category for s in seen) else []
    words += ["parked cars"] if any(s.attribute == "vehicle.parked" for s in seen) else []
    people = {s.agent for s in seen if s.category.startswith("human")}
    words += ["many peds"] if len(people) > 12 else ["peds"] if people else []
    changes = [f"; from {start:g} s: {', '.join(_told(part)) or 'Clear'}" for start, part in drive.changes]
    return (", ".join(words) if words else "Quiet street") + "".join(changes)


def _told(conditions: Conditions) -> list[str]:
    words = {"rain": ["Rain"], "fog": ["Fog"]}.get(str(conditions.weather), [])
    return words + (["Night"] if conditions.light == "night" else [])
