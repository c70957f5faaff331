"""`perception check` on real and simulated drives, healthy and damaged, and what it measures against closed forms."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import perception, refuses, succeeds
from damaged_drives import CAUSES, turn
from exported import bundle
from made_up import keyframe
from mmdet3d_networks import trained_kitti
from once import once
from repository import ROOT

from deploy.bundle import STATISTICS, Bundle, write_bundle
from deploy.check import LENGTH, RUNS, Runs, compare, measure, open_to_measure, spread_frames
from deploy.runtime import Runtime
from perception.datasets.keyframes import Reads
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.datasets.pandaset import PandaSet
from perception.frame import Frame
from perception.grid import BevGrid
from perception.mmdet3d.importing import import_pointpillars
from perception.rig import LidarLimits, load_rig
from perception.scene.health.monitor import HealthMonitor
from perception.scene.health.statistics import RANGES, SECTORS, Collector, Statistics, lidar_values
from perception.scene.health.turned import MIN_AGREEMENT, TurnedCloud

SIMULATED = ("scene-0001:0-2", "scene-0002:0-2")
REAL = ("scene-0103:0-2",)


def with_statistics(name: str, drives: Path, *scenes: str) -> Path:
    """`exported.bundle` with the statistics of these drives, as of an export; all processes of the tests share it."""

    def make(out: Path) -> None:
        old = bundle()
        opened = open_to_measure(drives, None, scenes, old.spec, None, old.manifest.taxonomy)
        statistics = measure(opened, old.spec).model_dump_json()
        more = {each: old.read(each).data for each in old.files if each.startswith("modules/")}
        golden = old.golden_frames()
        write_bundle(out, old.onnx.read_bytes(), golden, old.manifest, more | {STATISTICS: statistics.encode()})

    return once(f"check-{name}", make)


@pytest.fixture(scope="module")
def of_kitti(pandaset_root: Path) -> Path:
    """The network that was trained on KITTI, on a coarser grid, with statistics of PandaSet's frames 0 to 15."""
    text = (ROOT / "configs" / "kitti" / "pointpillars.yaml").read_text()
    for old, new in (("cell: 0.16", "cell: 0.64"), ("69.12", "71.68"), ("39.68", "40.96"), ("16000", "1000")):
        text = text.replace(old, new)

    def imported(out: Path) -> None:
        out.mkdir()
        (out / "coarse.yaml").write_text(text)
        import_pointpillars(out / "coarse.yaml", trained_kitti(), out / "run")

    run, training = once("check-kitti-run", imported) / "run", ("--calibrate", pandaset_root, "--scenes", "002:0-16")
    return once("check-kitti", lambda out: succeeds("export", run, "--out", out, *training))


@pytest.fixture(scope="module")
def of_real(nuscenes_root: Path) -> Path:
    return with_statistics("real", nuscenes_root, *REAL)


@pytest.fixture(scope="module")
def of_simulated(sim_root: Path) -> Path:
    return with_statistics("simulated", sim_root, *SIMULATED)


def findings(bundle: Path, drive: object, scenes: str, *options: object) -> list[str]:
    """The lines of the command; its exit code says whether there are any."""
    chosen = ("--scenes", scenes) if scenes else ()
    done = perception("check", drive, "--bundle", bundle, "--json", *chosen, *options)
    assert done.returncode in (0, 1), done.stderr
    found = json.loads(done.stdout)["findings"]
    assert done.returncode == bool(found)
    return found


def require_named(damage: str, found: list[str]) -> None:
    """The cause is in a line and, except where nothing of the cloud is right, in the first."""
    assert any(CAUSES[damage] in line for line in (found if damage == "SHIFTED" else found[:1])), found


@pytest.mark.slow("a full sweep has 100,000 points, and the network of KITTI is exported")
def test_pandaset_with_a_network_from_kitti(of_kitti: Path, pandaset_root: Path) -> None:
    assert findings(of_kitti, pandaset_root, "002:16-32") == []
    assert STATISTICS in Bundle.load(of_kitti).files


@pytest.mark.slow("a full sweep has 100,000 points")
@pytest.mark.parametrize("damage", ["LOW", "FEW_RINGS", "UNSCALED", "TURNED", "SWAPPED", "SHIFTED", "DEAD"])
def test_damage_of_pandaset_is_named(of_kitti: Path, pandaset_root: Path, damage: str) -> None:
    require_named(damage, findings(of_kitti, f"damaged_drives:{damage}={pandaset_root}", "002:16-18"))


@pytest.mark.slow("exports a network, which other tests use too")
def test_other_keyframes_of_nuscenes(of_real: Path, nuscenes_root: Path) -> None:
    assert findings(of_real, nuscenes_root, "scene-0103:2-4") == []


@pytest.mark.parametrize("damage", [name for name in CAUSES if name != "FEW_RINGS"])
def test_damage_of_nuscenes_is_named(of_real: Path, nuscenes_root: Path, damage: str) -> None:
    require_named(damage, findings(of_real, f"damaged_drives:{damage}={nuscenes_root}", "scene-0103:2-4"))


@pytest.mark.slow("the drives are simulated, and a network is exported")
def test_simulated_drives(of_simulated: Path, sim_root: Path) -> None:
    rest = "scene-0001:2-3,scene-0002:2-3"
    assert findings(of_simulated, sim_root, rest) == []
    for damage in ("LOW", "FEW_BEAMS", "UNSCALED", "TURNED", "DEAD"):
        require_named(damage, findings(of_simulated, f"damaged_drives:{damage}={sim_root}", rest))


def test_a_recording_and_what_it_lacks(of_simulated: Path, sim_root: Path, tmp_path: Path) -> None:
    drive, topics = tmp_path / "drive.mcap", tmp_path / "topics.yaml"
    succeeds("log", sim_root, "--scene", "scene-0001", "--out", drive)
    assert findings(of_simulated, drive, "") == []
    topics.write_text("cameras: {CAM_FRONT: {image: /cam_front/image_rect_compressed, info: /none}}")
    found = findings(of_simulated, drive, "", "--topics", topics)
    assert [line.split(":")[0] for line in found if "comes in 0 of" in line] == [*load_rig("nuscenes").sensors.cameras]
    done = perception("check", drive, "--bundle", of_simulated, "--topics", topics)
    assert (done.returncode, done.stdout.splitlines()[:-1]) == (1, found)
    topics.write_text("ego_frame: other")
    assert "no pose of other" in refuses("check", drive, "--bundle", of_simulated, "--topics", topics)


def test_bad_input_is_one_line(of_simulated: Path, sim_root: Path) -> None:
    assert "export it with --calibrate" in refuses("check", sim_root, "--bundle", bundle().path)
    assert "nowhere" in refuses("check", "nowhere", "--bundle", of_simulated)
    for option in ("--version", "--scenes"):
        said = refuses("check", "zenoh", "--bundle", of_simulated, option, "a")
        assert "zenoh: what sensors send now is one drive" in said
    assert "nowhere" in refuses("check", sim_root, "--bundle", "nowhere")


# What is measured, against a LiDAR that is made by hand.

BEAMS, STEPS = np.linspace(-25, -8, 32), 720


def flat_sweep(height: float = 0.0, keep: Callable[[np.ndarray], np.ndarray] = np.isfinite) -> Frame:
    """Rings on flat ground 1.8 m below a LiDAR over the vehicle's origin, with those azimuths (degrees) kept."""
    azimuth = np.tile(360 * np.arange(STEPS) / STEPS - 180 + 0.1, len(BEAMS))
    away = np.repeat(-1.8 / np.tan(np.radians(BEAMS)), STEPS)
    x, y = away * np.cos(np.radians(azimuth)), away * np.sin(np.radians(azimuth))
    points = np.column_stack([x, y, np.full_like(x, -1.8 + height), np.arange(len(x)) % 100, np.zeros_like(x)])
    lidar = np.eye(4)
    lidar[2, 3] = 1.8
    return Frame("t", 0, "lidar", lidar, np.eye(4), cameras={}, **keyframe(points[keep(azimuth)].astype(np.float32)))


@pytest.mark.parametrize("height", [-0.5, 0.0, 1.5])
def test_values_of_a_sweep_are_those_that_it_was_made_with(height: float) -> None:
    grid, frame = BevGrid(x=(-6, 6), y=(-6, 6)), flat_sweep(height)
    found = lidar_values(frame, LidarLimits(), grid)
    assert found["points"] == len(BEAMS) * STEPS
    assert found["ground"] == pytest.approx(height, abs=1e-3)
    assert found["tilt"] == pytest.approx(0, abs=0.05)
    # The ground at another height than the beams were made for keeps the rings, and their steps as angles.
    assert found["rings"] == pytest.approx(len(BEAMS), rel=0.02)
    x, y, _, intensity, _ = frame.points.T
    assert (found["intensity"], found["bright"]) == pytest.approx((np.median(intensity), np.quantile(intensity, 0.95)))
    inside = (x >= -6) & (x < 6) & (y >= -6) & (y < 6)
    assert found["cropped"] == pytest.approx(1 - inside.mean())
    near = np.hypot(x, y)
    edges = [*RANGES.values(), np.inf]
    counted = [np.mean((near >= low) & (near < high)) for low, high in pairwise(edges)]
    assert [found[name] for name in RANGES] == pytest.approx(counted)
    assert [found[name] for name in SECTORS] == pytest.approx([1 / len(SECTORS)] * len(SECTORS))


def measured(*frames: Frame) -> Statistics:
    collector = Collector(replace(load_rig("nuscenes").sensors, cameras=()), BevGrid())
    for frame in frames:
        collector.add(frame, None)
    return collector.statistics()


def test_the_same_is_no_finding_and_a_dead_sector_is_where_it_is() -> None:
    usual = measured(flat_sweep())
    assert max(each.load for each in compare(usual, usual)) <= 1
    cut = measured(flat_sweep(keep=lambda azimuth: (azimuth < 20) | (azimuth > 40)))
    found = [each for each in compare(cut, usual) if each.load > 1]
    assert [each.sign for each in found] == ["sectors"]
    assert "in 2 sectors of azimuth, such as 20 to 30 degrees, 30 to 40 degrees" in found[0].line


def test_runs_of_frames_are_spread_over_the_drive() -> None:
    for frames in (1, 3, 40, 1000):
        choice = Runs(frames, RUNS)
        chosen = np.flatnonzero([choice("drive", i) for i in range(frames)])
        starts = chosen[np.diff(chosen, prepend=-2) > 1]
        assert chosen[0] == 0
        assert len(chosen) == frames or RUNS * LENGTH <= len(chosen) <= 2 * RUNS * LENGTH
        assert len(chosen) == frames or set(np.diff(starts)) == {frames // RUNS}


class NumberedDrive:
    """A drive whose frames are their numbers."""

    def __len__(self) -> int:
        return 1000

    def frames(self, choice: Runs) -> Iterator[int]:
        return (number for number in range(len(self)) if choice("drive", number))


def test_the_first_frame_of_a_run_has_no_frame_before_it() -> None:
    """Else the time between two runs would count as the time between two frames."""
    drives: Any = [NumberedDrive()]
    pairs = list(spread_frames(drives))
    assert len(pairs) == RUNS * LENGTH
    for number, (frame, before) in enumerate(pairs):
        assert before == (None if number % LENGTH == 0 else frame - 1)


def test_a_standing_vehicle_whose_cloud_is_turned_by_some_degrees(nuscenes_root: Path) -> None:
    """The same frame again and again makes any chance agreement look certain; it is not turned by a right angle."""
    tables = NuScenesTables(nuscenes_root, "v1.0-mini")
    frame = tables.frame(tables.samples(selectors=["scene-0103:2-3"])[0], Reads("lidar", annotations=False))
    off, turned = replace(frame, points=turn(12, frame.points).astype(np.float32)), TurnedCloud(LidarLimits())
    for _ in range(25):
        turned.add(off)
    assert turned.agreement[1:].max() > MIN_AGREEMENT
    assert turned.load < 1


# Health by the statistics of the training.


@pytest.mark.slow("a full sweep has 100,000 points, and a frame six pictures of 1920 x 1080")
def test_a_healthy_foreign_vehicle_raises_no_alarm(of_kitti: Path, pandaset_root: Path) -> None:
    rig = load_rig("pandaset_64")
    foreign = replace(rig.sensors, lidar_limits={}, camera_limits={})
    own = Bundle.load(of_kitti).statistics.with_limits(foreign)
    drives = PandaSet(pandaset_root, rig)
    frames = [drives.frame(token, Reads(annotations=False)) for token in drives.samples()[16:22]]

    def statuses(sensors, low: float = 0.0) -> set[str]:
        monitor, found = HealthMonitor(sensors), set()
        for frame in frames:
            points = frame.points - np.float32([0, 0, low, 0, 0])
            found |= {health.status for health in monitor.update(replace(frame, points=points)).values()}
        return found

    assert statuses(foreign) == {"ok", "miscalibrated"}  # by limits of another LiDAR
    assert statuses(own) == {"ok"}
    assert statuses(own, low=0.5) == {"ok", "miscalibrated"}


def test_the_runtime_takes_the_limits_from_the_bundle(sim_root: Path, tables: NuScenesTables) -> None:
    """Of a network that was trained with the ground at -0.5 m, where the monitor's usual limit is 0.2 m."""
    low = with_statistics("low", Path(f"damaged_drives:LOW={sim_root}"), *SIMULATED)
    for path, status in ((bundle().path, "miscalibrated"), (low, "ok")):
        runtime = Runtime(path)
        for token in tables.samples(selectors=["scene-0001"]):
            frame = tables.frame(token, Reads())
            scene = runtime.step(replace(frame, points=frame.points - np.float32([0, 0, 0.5, 0, 0])))
        assert scene.health["LIDAR_TOP"].status == status
