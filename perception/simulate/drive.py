"""Records one drive: simulates the world, renders the sensors, writes their files and annotates what they saw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from perception.datasets.nuscenes.labels import GRID, occ3d_arrays, occ3d_file
from perception.datasets.nuscenes.labels import TABLE as LIDARSEG
from perception.geometry import quaternion
from perception.grid import Occupancy, occupancy_classes
from perception.io.files import make_folder
from perception.rig import Rig, RigCamera, RigSensor
from perception.simulate import camera, lidar
from perception.simulate.annotate import (
    Observation,
    Seen,
    annotate,
    find_crossed,
    find_pictured,
    observe,
    pixel_rays,
    voxel_classes,
)
from perception.simulate.conditions import Course, Phase, describe
from perception.simulate.nuscenes_writer import (
    VERSION,
    Row,
    Tables,
    layout_of,
    link,
    list_calibrated_sensors,
    motion_row,
    token,
)
from perception.simulate.obstacles import with_obstacles
from perception.simulate.scenario import build_world
from perception.simulate.world import World

KEYFRAME_PERIOD = 0.5  # s between keyframes
SWEEP_RATE = 20  # Hz, of LiDAR sweeps
SWEEP_PERIOD = 1 / SWEEP_RATE  # s
RATES = (2, 4, 10, 20)  # Hz of frames, such that keyframes and LiDAR sweeps are among their times
JPEG_QUALITY = 92
EPOCH = 1_700_000_000_000_000  # us, first keyframe of the first drive
DRIVE_INTERVAL = 3_600_000_000  # us between the starts of two drives


@dataclass(frozen=True)
class Drive:
    """The specification of a drive to record."""

    seed: int
    number: int
    course: Course  # its phases take the same share of the keyframes each
    samples: int  # keyframes
    sweeps: int  # LiDAR sweeps before each frame
    rig: Rig  # calibrated

    @property
    def name(self) -> str:
        return f"scene-{self.number + 1:04d}"

    @property
    def location(self) -> str:
        return self.course.place.location

    @property
    def changes(self) -> list[tuple[float, Phase]]:
        """(start, phase) of each phase but the first; s from the first keyframe, half-way between keyframes."""
        phases = self.course.phases
        firsts = [-(-k * self.samples // len(phases)) for k in range(1, len(phases))]
        return [(KEYFRAME_PERIOD * (first - 0.5), phase) for first, phase in zip(firsts, phases[1:], strict=True)]

    @property
    def logfile(self) -> str:
        return f"sim-{self.location}-{self.seed}-{self.number + 1:04d}"

    @property
    def rate(self) -> int:
        return self.course.extras.rate

    def has_pictures(self, back: int) -> bool:
        """Whether the cameras record, too, when the LiDARs do so many sweeps before a keyframe."""
        return back % (SWEEP_RATE // self.rate) == 0

    def sweeps_back(self, k: int) -> list[int]:
        """When LiDARs record after the keyframe before the k-th, up to it: numbers of sweeps before it, 0 the last.

        The drive's first frame is a keyframe, so that only sweeps are before it.
        """
        if k == 0:
            return list(range(self.sweeps, -1, -1))
        between = round(KEYFRAME_PERIOD / SWEEP_PERIOD)
        frames = [back for back in range(between) if self.has_pictures(back)]
        found = {frame + back for frame in frames for back in range(self.sweeps + 1)}
        return sorted((back for back in found if back < between), reverse=True)

    def token(self, *parts: object) -> str:
        return token(self.seed, self.name, *parts)

    def rng(self, *stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.number, *stream])


class _Recorder:
    """Writes the sensor files of one drive and collects their table rows."""

    def __init__(self, drive: Drive, world: World, out: Path) -> None:
        self.drive, self.world, self.out = drive, world, out
        self.layout = layout_of(drive.course.taxonomy)
        further = (*self.layout.motion, *((LIDARSEG,) if self.layout.lidarseg else ()))
        self.tables: Tables = {"sample_data": [], "ego_pose": [], **{name: [] for name in further}}
        self.start = EPOCH + drive.number * DRIVE_INTERVAL

    def make_folders(self) -> None:
        sensors = self.drive.rig.sensors
        folders = [f"samples/{name}" for name in sensors.names]
        between = self.drive.rate > min(RATES)
        folders += [f"sweeps/{name}" for name in sensors.lidars] if self.drive.sweeps or between else []
        folders += [f"sweeps/{name}" for name in sensors.cameras] if between else []
        folders += [f"{LIDARSEG}/{VERSION}"] if self.layout.lidarseg else []
        for folder in folders:
            make_folder(self.out / folder)

    def microseconds(self, time: float) -> int:
        return self.start + round(time * 1e6)

    def add(self, sensor: RigSensor, time: float, sample: str, keyframe: bool, content: bytes) -> str:
        """Write one sensor file and add its rows; returns the token of sample_data."""
        timestamp, channel = self.microseconds(time), sensor.name
        width, height = sensor.size if isinstance(sensor, RigCamera) else (0, 0)
        is_camera = isinstance(sensor, RigCamera)
        folder = f"{'samples' if keyframe else 'sweeps'}/{channel}"
        suffix = "jpg" if is_camera else self.layout.suffix
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
        for table in self.layout.motion:
            self.tables[table].append(motion_row(name, timestamp, self.world.global_from_ego_at, time))
        self.tables["sample_data"].append(
            {
                "token": name,
                "sample_token": sample,
                "ego_pose_token": name,
                "calibrated_sensor_token": token("calibrated_sensor", self.drive.token(), channel),
                "timestamp": timestamp,
                "fileformat": "jpg" if is_camera else "pcd",
                "is_key_frame": keyframe,
                "height": height,
                "width": width,
                "filename": filename,
                "prev": "",
            }
        )
        return name

    def add_classes(self, sample_data: str, categories: np.ndarray) -> None:
        """Write the categories (N,) uint8 of the points of a sweep, where the layout has them, and add their row."""
        if self.layout.lidarseg:
            file = f"{LIDARSEG}/{VERSION}/{sample_data}_{LIDARSEG}.bin"
            (self.out / file).write_bytes(categories.tobytes())
            row = {"token": sample_data, "sample_data_token": sample_data, "filename": file}
            self.tables[LIDARSEG].append(row)


def record(out: Path, drive: Drive, progress: Callable[[], None] = lambda: None) -> Tables:
    """Write the sensor files of a drive below `out` and return its tables; calls `progress` after each keyframe."""
    weather = drive.course.phases[0].surroundings.draw(drive.rng(0))
    world = build_world(drive.course.place, weather, drive.samples * KEYFRAME_PERIOD, drive.rng(1))
    # Each phase draws from the same stream, so that rain is equally strong before and after a phase without it.
    changes = [(start, phase.surroundings.draw(drive.rng(0))) for start, phase in drive.changes]
    world = replace(world, weather_changes=tuple(changes))
    if drive.course.extras.obstacles:
        world = with_obstacles(world, KEYFRAME_PERIOD * np.arange(drive.samples), drive.rng(4))
    recorder = _Recorder(drive, world, out)
    recorder.make_folders()
    samples: list[Row] = []
    observations: list[list[Observation]] = []
    for k in range(drive.samples):
        time, sample = k * KEYFRAME_PERIOD, drive.token("sample", k)
        earlier = _record_between(recorder, k, sample)
        swept = [_record_sweep(recorder, number, time, sample, True) for number in range(len(drive.rig.lidars))]
        visible_share = np.full(len(world.agents), np.nan)
        for number in range(len(drive.rig.cameras)):
            visible_share = np.fmax(visible_share, _record_image(recorder, number, time, sample, True))
        samples.append(
            {
                "token": sample,
                "timestamp": recorder.microseconds(time),
                "prev": "",
                "scene_token": drive.token("scene"),
            }
        )
        observations.append(observe(world, time, np.concatenate([each.ends for each in swept]), visible_share))
        if drive.course.extras.occupancy:
            _write_voxels(recorder, time, sample, [*earlier, *swept])
        progress()
    link(samples)
    for channel in drive.rig.sensors.names:
        calibration = token("calibrated_sensor", drive.token(), channel)
        link([row for row in recorder.tables["sample_data"] if row["calibrated_sensor_token"] == calibration])
    annotations, instances = annotate(drive.token(), [s["token"] for s in samples], observations)
    return {
        **recorder.tables,
        "sample": samples,
        "sample_annotation": annotations,
        "instance": instances,
        "calibrated_sensor": list_calibrated_sensors(drive.token(), drive.rig),
        **({"log": [_log_row(drive)]} if recorder.layout.logs else {}),
        "scene": [
            _scene_row(drive, samples)
            | {"description": describe(drive.course, drive.changes, _scenery(drive, world, observations))}
            | ({} if recorder.layout.logs else {"log_token": ""})
        ],
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


def _record_between(recorder: _Recorder, k: int, sample: str) -> list[Seen]:
    """Record what is between the keyframe before the k-th and this; returns the rays of the sweeps that belong to it.

    What the keyframe sees does not depend on the rate: sweeps of frames long before it are left out.
    """
    drive, seen = recorder.drive, list[Seen]()
    for back in drive.sweeps_back(k)[:-1]:
        time = k * KEYFRAME_PERIOD - back * SWEEP_PERIOD
        swept = [_record_sweep(recorder, number, time, sample, False) for number in range(len(drive.rig.lidars))]
        seen += swept if back <= drive.sweeps else []
        if k > 0 and drive.has_pictures(back):
            for number in range(len(drive.rig.cameras)):
                _record_image(recorder, number, time, sample, False)
    return seen


def _record_sweep(recorder: _Recorder, number: int, time: float, sample: str, keyframe: bool) -> Seen:
    """Write a sweep of one LiDAR at the reference LiDAR's `time` (s); returns the rays to its points."""
    drive, world, sensor = recorder.drive, recorder.world, recorder.drive.rig.lidars[number]
    others = (number,) if number else ()  # the first LiDAR's noise is that of a rig with a single one
    rng = drive.rng(2, round((time + 1.0) / SWEEP_PERIOD), *others)
    own_time = time + sensor.delay
    swept = lidar.sweep(world.snapshot_at, world.global_from_ego_at, own_time, sensor, drive.rig.body, rng)
    points = swept.points
    content = recorder.layout.cloud(points, recorder.microseconds(own_time))
    sample_data = recorder.add(sensor, own_time, sample, keyframe, content)
    if keyframe:
        recorder.add_classes(sample_data, swept.categories)
    global_from_lidar = world.global_from_ego_at(own_time) @ sensor.ego_from_sensor
    ends = points[:, :3].astype(np.float64) @ global_from_lidar[:3, :3].T + global_from_lidar[:3, 3]
    return Seen(global_from_lidar[:3, 3], ends)


def _write_voxels(recorder: _Recorder, time: float, sample: str, seen: list[Seen]) -> None:
    """Write the voxels around the vehicle at a keyframe, as Occ3D lays them out, from the rays of the LiDARs."""
    drive, world = recorder.drive, recorder.world
    snapshot, pose = world.snapshot_at(time), world.global_from_ego_at(time)
    classes = voxel_classes(snapshot.solids, snapshot.ground, pose, drive.course.taxonomy, GRID)
    pixels = [
        pixel_rays(each.intrinsics, each.size, world.global_from_ego_at(time + each.delay) @ each.ego_from_sensor, GRID)
        for each in drive.rig.cameras
    ]
    filled = classes != len(occupancy_classes(drive.course.taxonomy)) - 1
    voxels = Occupancy(GRID, classes, find_crossed(seen, pose, GRID), find_pictured(pixels, pose, GRID, filled))
    path = occ3d_file(recorder.out, drive.name, sample)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **occ3d_arrays(voxels))


def _record_image(recorder: _Recorder, number: int, time: float, sample: str, keyframe: bool) -> np.ndarray:
    """Write a camera's image at the reference LiDAR's `time` (s); returns the visible share of each agent (A,)."""
    drive, world, sensor = recorder.drive, recorder.world, recorder.drive.rig.cameras[number]
    exposure_time = time + sensor.delay
    pose = world.global_from_ego_at(exposure_time)
    stream = (3, round(time / KEYFRAME_PERIOD)) if keyframe else (5, round(time / SWEEP_PERIOD))
    rng = drive.rng(*stream, number)
    rendering = camera.render(
        world.snapshot_at(exposure_time), sensor.intrinsics, pose @ sensor.ego_from_sensor, sensor.size, rng, pose
    )
    bgr = np.ascontiguousarray(rendering.image[..., ::-1])
    content = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()
    recorder.add(sensor, exposure_time, sample, keyframe, content)
    return rendering.visible_share


def _scenery(drive: Drive, world: World, observations: list[list[Observation]]) -> list[str]:
    """What a description says beside the conditions, in the manner of nuScenes."""
    recorded = (world.times >= 0) & (world.times <= drive.samples * KEYFRAME_PERIOD)
    rotation = np.degrees(world.ego_yaw[recorded][-1] - world.ego_yaw[recorded][0])
    words = ["turn left"] if rotation > 50 else ["turn right"] if rotation < -50 else []
    seen = [o for keyframe in observations for o in keyframe if o.points > 4]
    for category, word in (
        ("vehicle.construction", "construction site"),
        ("vehicle.bus.rigid", "bus"),
        ("vehicle.trailer", "truck with trailer"),
        ("vehicle.motorcycle", "motorcycle"),
        ("vehicle.bicycle", "bicycle"),
    ):
        words += [word] if any(o.category == category for o in seen) else []
    words += ["parked cars"] if any(o.attribute == "vehicle.parked" for o in seen) else []
    people = {o.agent for o in seen if o.category.startswith("human")}
    words += ["many peds"] if len(people) > 12 else ["peds"] if people else []
    return words
