"""Frames between keyframes: the devkit's chains, their times, poses and world; the keyframes stay as without them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
from commands import one_line_error
from nuscenes.nuscenes import NuScenes
from nuscenes.utils.data_classes import LidarPointCloud
from pyquaternion import Quaternion
from simulated import hashes, in_town, with_pictures

from perception.geometry import points_in_boxes
from perception.simulate import camera, scenario
from perception.simulate.conditions import Course, Extras
from perception.simulate.drive import KEYFRAME_PERIOD, Drive
from perception.simulate.nuscenes_writer import VERSION
from perception.simulate.scenario import build_world
from perception.simulate.simulate import simulate
from perception.simulate.world import World

RIG = with_pictures(10, cameras=2)
SAMPLES, RATE, SEED = 3, 10, 5  # a scenario with traffic in sight
CHANNELS = {each.name: each for each in (*RIG.lidars, *RIG.cameras)}
LINKS = ("prev", "next")  # of sample_data, which differ with what is between


class Recorded(NamedTuple):
    root: Path
    drive: Drive
    world: World
    devkit: NuScenes

    def rows(self, channel: str) -> list[dict[str, Any]]:
        """Those of sample_data along their links, from the first one."""
        (row,) = (r for r in self.devkit.sample_data if r["channel"] == channel and not r["prev"])
        found = [row]
        while found[-1]["next"]:
            found.append(self.devkit.get("sample_data", found[-1]["next"]))
            assert found[-1]["prev"] == found[-2]["token"]
        return found

    def time(self, row: dict[str, Any]) -> float:
        """s from the first keyframe."""
        (scene,) = self.devkit.scene
        return 1e-6 * (row["timestamp"] - self.devkit.get("sample", scene["first_sample_token"])["timestamp"])


def course(name: str, **extras: Any) -> Course:
    return replace(in_town(name)[0], extras=Extras(**extras))


@pytest.fixture(scope="module", autouse=True)
def first_scenario() -> Any:
    """Drives take the first scenario that is drawn, which need not be the most active of several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenario, "MAX_CANDIDATES", 1)
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same drive as keyframes alone, and with the frames between them; a sweep before each."""
    found = tmp_path_factory.mktemp("rate")
    for name, rate in (("alone", 2), ("between", RATE)):
        given = course("clear-day-boston", obstacles=True, occupancy=True, rate=rate)
        simulate(found / name, 1, SAMPLES, SEED, [given], sweeps=1, rig=RIG)
    return found / "alone", found / "between"


@pytest.fixture(scope="module")
def recorded(folders: tuple[Path, Path]) -> Recorded:
    root, given = folders[1], course("clear-day-boston", rate=RATE)
    drive = Drive(SEED, 0, given, SAMPLES, 1, RIG)
    weather = given.phases[0].surroundings.draw(drive.rng(0))
    world = build_world(given.place, weather, SAMPLES * KEYFRAME_PERIOD, drive.rng(1))
    return Recorded(root, drive, world, NuScenes(VERSION, str(root), verbose=False))


@pytest.mark.slow("its fixture simulates a drive twice")
def test_what_a_keyframe_has_does_not_depend_on_the_frames_before_it(folders: tuple[Path, Path]) -> None:
    alone, between = folders
    assert hashes(alone, "[!v]*/**/*").items() < hashes(between, "[!v]*/**/*").items()
    for file in sorted((alone / VERSION).glob("*.json")):
        own, more = (json.loads((root / VERSION / file.name).read_text()) for root in folders)
        if file.stem in ("sample_data", "ego_pose"):
            named = [{r["token"]: {k: v for k, v in r.items() if k not in LINKS} for r in rows} for rows in (own, more)]
            assert named[0].items() < named[1].items()
        else:
            assert own == more


def test_the_devkit_reads_a_chain_of_frames_with_times_poses_and_mounts_of_their_own(recorded: Recorded) -> None:
    samples = [row["token"] for row in sorted(recorded.devkit.sample, key=lambda row: row["timestamp"])]
    for name, sensor in CHANNELS.items():
        rows, last = recorded.rows(name), SAMPLES - 1
        step = RATE if name in RIG.sensors.cameras else 20  # a sweep before each frame makes 20 Hz
        first = 0 if name in RIG.sensors.cameras else -1
        times = [i / step for i in range(first, last * step // 2 + 1)]
        assert len(rows) == sum(row["channel"] == name for row in recorded.devkit.sample_data)
        assert [recorded.time(row) for row in rows] == pytest.approx([t + sensor.delay for t in times], abs=1.5e-6)
        for row, time in zip(rows, times, strict=True):
            assert row["is_key_frame"] == (time % KEYFRAME_PERIOD == 0)
            assert row["sample_token"] == samples[int(np.ceil(time / KEYFRAME_PERIOD))]
            assert row["filename"].startswith(f"{'samples' if row['is_key_frame'] else 'sweeps'}/{name}/")
            pose = recorded.devkit.get("ego_pose", row["ego_pose_token"])
            truth = recorded.world.global_from_ego_at(recorded.time(row))
            mount = recorded.devkit.get("calibrated_sensor", row["calibrated_sensor_token"])
            assert pose["timestamp"] == row["timestamp"]
            for found, expected in ((pose, truth), (mount, sensor.ego_from_sensor)):
                np.testing.assert_allclose(found["translation"], expected[:3, 3], atol=1e-4)
                np.testing.assert_allclose(Quaternion(found["rotation"]).rotation_matrix, expected[:3, :3], atol=1e-4)
    assert {row["sample_token"] for row in recorded.devkit.sample_annotation} == {*samples}


def test_the_devkit_joins_the_sweeps_of_the_frames_between(recorded: Recorded) -> None:
    sample = recorded.devkit.get("sample", recorded.devkit.scene[0]["last_sample_token"])
    cloud, lags = LidarPointCloud.from_file_multisweep(recorded.devkit, sample, "LIDAR_TOP", "LIDAR_TOP", nsweeps=11)
    assert sorted({round(float(lag), 6) for lag in lags[0]}) == pytest.approx([0.05 * i for i in range(11)], abs=2e-6)
    assert cloud.points.shape[1] > 11 * 5000


def test_objects_are_where_the_motion_of_the_world_has_them(recorded: Recorded) -> None:
    """The boxes of moving objects hold most points of a sweep at its own time, fewer a moment before and after."""
    hits = np.zeros(3, int)
    for row in recorded.rows("LIDAR_TOP"):
        time = recorded.time(row)
        if row["is_key_frame"] or time < 0:
            continue
        pose = recorded.world.global_from_ego_at(time) @ RIG.lidars[0].ego_from_sensor
        points = np.fromfile(recorded.root / row["filename"], np.float32).reshape(-1, 5)[:, :3]
        points = points @ pose[:3, :3].T + pose[:3, 3]
        _, _, velocity = recorded.world.agents_at(time)
        moving = np.flatnonzero(np.linalg.norm(velocity, axis=1) > 4)
        sizes = np.array([recorded.world.agents[n].size for n in moving])
        for i, shift in enumerate((-0.3, 0.0, 0.3)):
            xy, yaw, _ = recorded.world.agents_at(time - 0.025 + shift)  # in the middle of the revolution
            centers = np.concatenate([xy[moving], sizes[:, 2:] / 2 + 0.1], axis=1)  # above the ground
            hits[i] += points_in_boxes(points, centers, sizes + 0.1, yaw[moving]).sum()
    assert hits[1] > 5000
    assert hits[1] > 1.5 * max(hits[0], hits[2])


def test_pictures_between_show_the_world_at_their_own_time(recorded: Recorded) -> None:
    world = recorded.world

    def differs(row: dict[str, Any], time: float) -> float:
        sensor, pose = CHANNELS[row["channel"]], world.global_from_ego_at(time)
        rng = np.random.default_rng(0)
        at = pose @ sensor.ego_from_sensor
        seen = camera.render(world.snapshot_at(time), sensor.intrinsics, at, sensor.size, rng, pose)
        picture = cv2.imread(str(recorded.root / row["filename"]))[..., ::-1]
        return float(np.abs(picture.astype(float) - seen.image).mean())

    between = [row for row in recorded.rows("CAM_FRONT") if not row["is_key_frame"]]
    assert len(between) == (SAMPLES - 1) * 4
    for row in between:
        time = recorded.time(row)
        assert differs(row, time) < 0.7 * min(differs(row, time - 0.1), differs(row, time + 0.1))


def test_a_rate_that_keyframes_and_sweeps_do_not_fit_is_one_line(tmp_path: Path) -> None:
    for rate in (0, 1, 3, 5, 40):
        with one_line_error(says="2, 4, 10, 20"):
            simulate(tmp_path / "out", 1, 1, 0, [course("clear-day-boston", rate=rate)], rig=RIG)
    assert not list(tmp_path.iterdir())
