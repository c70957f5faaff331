"""Simulated drive logs as the devkit reads them, and their bytes."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import one_line_error
from hypothesis import given
from hypothesis import strategies as st
from nuscenes.nuscenes import NuScenes
from nuscenes.utils.data_classes import LidarPointCloud
from nuscenes.utils.geometry_utils import points_in_box
from pyquaternion import Quaternion
from simulated import courses, hashes, in_town, with_pictures
from vocabulary import CONDITIONS, RIG

from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.errors import InputError
from perception.frame import Conditions
from perception.simulate import scenario
from perception.simulate.conditions import Extras, split
from perception.simulate.drive import KEYFRAME_PERIOD, Drive
from perception.simulate.nuscenes_writer import VERSION, token
from perception.simulate.scenario import build_world
from perception.simulate.simulate import Run, simulate
from perception.simulate.world import World

SAMPLES, SWEEPS = 3, 2  # of the fixture sim_root
RECORDED = courses("clear-day-boston", "rain-night-singapore")  # of the fixture sim_root
EVERY = courses("all")
SMALL = with_pictures(10, cameras=2)
Drives = list[tuple[Drive, World]]


@pytest.fixture
def first_scenario(monkeypatch: pytest.MonkeyPatch) -> None:
    """A drive of this process takes the first scenario that is drawn, which need not be the most active of several."""
    monkeypatch.setattr(scenario, "MAX_CANDIDATES", 1)


@pytest.fixture(scope="module")
def nusc(sim_root: Path) -> NuScenes:
    return NuScenes(VERSION, str(sim_root), verbose=False)


@pytest.fixture(scope="module")
def drives() -> Drives:
    """What the fixture sim_root recorded, built again."""
    built = []
    for number, course in enumerate(RECORDED):
        drive = Drive(0, number, course, SAMPLES, SWEEPS, RIG)
        weather = course.phases[0].surroundings.draw(drive.rng(0))
        world = build_world(course.place, weather, SAMPLES * KEYFRAME_PERIOD, drive.rng(1))
        built.append((drive, world))
    return built


def test_descriptions_tell_conditions_and_masks_the_ground(nusc: NuScenes) -> None:
    for log in nusc.log:
        mask = nusc.get("map", log["map_token"])["mask"]
        poses = [nusc.get("ego_pose", r["ego_pose_token"]) for r in nusc.sample_data if log["logfile"] in r["filename"]]
        x, y = np.array([pose["translation"][:2] for pose in poses]).T
        assert mask.is_on_mask(x, y).all()
    clear, wet = ({word.strip(",").lower() for word in scene["description"].split()} for scene in nusc.scene)
    assert {"rain", "night"} <= wet
    assert not {"rain", "night", "fog"} & clear
    assert [log["location"] for log in nusc.log] == ["boston-seaport", "singapore-onenorth"]


def test_annotations_are_the_agents_boxes_motion_behaviour_and_points(nusc: NuScenes, drives: Drives) -> None:
    moving, points, seen = 0, 0, set[str]()
    for drive, world in drives:
        agents = {token(drive.token(), "instance", n): n for n in range(len(world.agents))}
        samples = [nusc.get("sample", drive.token("sample", k)) for k in range(SAMPLES)]
        seconds = {sample["token"]: (sample["timestamp"] - samples[0]["timestamp"]) / 1e6 for sample in samples}
        for sample, box in ((s, box) for s in samples for box in nusc.get_sample_data(s["data"]["LIDAR_TOP"])[1]):
            annotation = nusc.get("sample_annotation", box.token)
            cloud = LidarPointCloud.from_file(nusc.get_sample_data_path(sample["data"]["LIDAR_TOP"]))
            assert points_in_box(box, cloud.points[:3]).sum() == annotation["num_lidar_pts"]
            points += annotation["num_lidar_pts"]
            n, now = agents[annotation["instance_token"]], annotation["sample_token"]
            xy, yaw, _ = world.agents_at(seconds[now])
            np.testing.assert_allclose(annotation["translation"][:2], xy[n], atol=6e-4)
            turned = Quaternion(annotation["rotation"]).yaw_pitch_roll[0]
            assert turned == pytest.approx(np.arctan2(np.sin(yaw[n]), np.cos(yaw[n])), abs=1e-9)
            assert annotation["translation"][2] == pytest.approx(annotation["size"][2] / 2, abs=6e-4)
            ways = [annotation[way] for way in ("prev", "next")]
            t0, t1 = (seconds[nusc.get("sample_annotation", w)["sample_token"] if w else now] for w in ways)
            velocity = nusc.box_velocity(box.token)[:2]
            if t0 < t1:
                moved = (world.agents_at(t1)[0][n] - world.agents_at(t0)[0][n]) / (t1 - t0)
                np.testing.assert_allclose(velocity, moved, atol=3e-3)
                moving += 1
            names, category = ([nusc.get("attribute", t)["name"] for t in annotation["attribute_tokens"]], box.name)
            if category.startswith("movable_object"):
                assert names == []
                continue
            (name,) = names
            kind = "pedestrian" if category.startswith("human") else "vehicle"
            assert name.startswith("cycle." if category.endswith(("bicycle", "motorcycle")) else f"{kind}.")
            if name in ("vehicle.parked", "cycle.without_rider", "pedestrian.sitting_lying_down"):
                assert np.isnan(velocity).any() or np.linalg.norm(velocity) < 1e-6
            seen.add(name)
    assert moving > 50
    assert points > 1000
    assert {"vehicle.moving", "vehicle.parked", "pedestrian.moving"} <= seen


@pytest.mark.slow("two processes start, which import the simulator and draw their own scenarios")
def test_same_seed_same_bytes_whatever_runs_beside(tmp_path: Path) -> None:
    """The first drive alone, in this process, equals the first of two that worker processes record."""
    first, second = in_town("clear-day-boston", "rain-night-singapore")
    simulate(tmp_path / "together", 2, 2, 0, [first, second], sweeps=1, rig=SMALL, run=Run(2))
    simulate(tmp_path / "alone", 1, 2, 0, [first], sweeps=1, rig=SMALL)
    alone, together = (hashes(tmp_path / name, "s*/**/*") for name in ("alone", "together"))
    assert len(alone) == 2 * (1 + 2) + 2
    assert alone == {name: value for name, value in together.items() if "boston" in name}
    files = (tmp_path / name / VERSION / "sample_annotation.json" for name in ("alone", "together"))
    own, rows = ({row["token"]: row for row in json.loads(file.read_text())} for file in files)
    assert own.items() <= rows.items()


def test_another_seed_is_another_drive(drives: Drives, first_scenario: None) -> None:
    drive, world = drives[0]
    rngs = (replace(drive, seed=seed).rng(1) for seed in (0, 1))
    one, other = (build_world(drive.course.place, world.weather, 0.5, rng) for rng in rngs)
    assert not np.allclose(one.ego_xy[0], other.ego_xy[0], atol=1.0)


@pytest.mark.slow("simulates a drive four times")
def test_under_each_part_a_changing_drive_is_that_of_the_part_alone(tmp_path: Path, first_scenario: None) -> None:
    """The same streets and traffic, bit for bit, also between keyframes; and the devkit reads it."""
    names = ["clear-day-boston", "rain-day-boston", "rain-night-boston"]
    folders = [tmp_path / str(i) for i in range(4)]
    for folder, course in zip(folders, in_town(*names, "/".join(names)), strict=True):
        simulate(folder, 1, 4, 3, [replace(course, extras=Extras(rate=4))], sweeps=1, rig=SMALL)
    *alone, root = (hashes(folder, "s*/**/*") for folder in folders)
    assert root.keys() == alone[0].keys()
    tables, found = NuScenesTables(folders[-1], VERSION, SMALL), NuScenes(VERSION, str(folders[-1]), verbose=False)
    (scene,) = found.scene
    assert scene["description"].endswith("; from 0.75 s: Rain; from 1.25 s: Rain, Night")
    tags = [tables.conditions(token) for token in tables.samples()]
    clear, rain, night = (Conditions(**dict(zip(CONDITIONS, name.split("-"), strict=True))) for name in names)
    assert tags == [clear, clear, rain, night]
    assert [tables.frame(token).conditions for token in tables.samples()] == tags
    start = found.get("sample", scene["first_sample_token"])["timestamp"]
    for row in found.sample_data:
        part, file = np.searchsorted([750_000, 1_250_000], row["timestamp"] - start), row["filename"]
        assert root[file] == alone[part][file]  # a sweep that ends with a part is of it
        assert alone[0][file] != alone[1][file]
    assert len(found.sample_data) == 7 * 4  # frames at 4 Hz: a sweep, another one before it, two pictures


def test_an_existing_log_is_not_overwritten(sim_root: Path) -> None:
    before = hashes(sim_root, f"{VERSION}/*")
    with pytest.raises(InputError, match="already holds"):
        simulate(sim_root, 1, 1, seed=0, condition_names=["all"])
    assert hashes(sim_root, f"{VERSION}/*") == before


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"condition_names": []}, "no conditions"),
        *(
            ({"condition_names": [name]}, "'")
            for name in ("clear", "snow-day-boston", "clear-day-boston-x", "day-clear-boston", "clear-day-boston/",
                         "clear-day-boston/clear-day-singapore")
        ),
        ({"condition_names": ["clear-day-boston/rain-day-boston"]}, "samples is 1"),
        *(({field: -1}, field) for field in ("scenes", "samples", "sweeps", "seed")),
    ],
)  # fmt: skip
def test_unknown_conditions_and_numbers_out_of_range_are_named(wrong: dict, says: str, tmp_path: Path) -> None:
    given = {"scenes": 1, "samples": 1, "sweeps": 0, "seed": 0, "condition_names": ["all"]} | wrong
    with one_line_error(says=says):
        simulate(tmp_path, **given)
    assert not list(tmp_path.iterdir())


@given(st.integers(2, 60), st.integers(1, 12))
def test_splits_share_out_the_conditions(scenes: int, kinds: int) -> None:
    listed = EVERY[:kinds]
    conditions = [listed[n % kinds] for n in range(scenes)]
    training, validation = split(conditions)
    assert sorted(training + validation) == list(range(scenes))
    assert len(validation) == max(1, round(scenes / 4))
    assert training
    counts = Counter(conditions)
    for condition in {conditions[n] for n in validation}:
        if counts[condition] > 1 and all(c > 1 for c in counts.values()):
            assert condition in {conditions[n] for n in training}
    if len(validation) >= len(counts) and min(counts.values()) > 1:
        assert {conditions[n] for n in validation} == set(counts)
