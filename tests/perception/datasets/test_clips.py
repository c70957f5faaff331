"""Clips: which frames a drive has, what each is read from, and those before a frame at chosen spacings."""

import json
import shutil
from collections.abc import Collection, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from commands import one_line_error
from damage import in_json
from hypothesis import assume, given
from hypothesis import strategies as st
from nuscenes.nuscenes import NuScenes
from pyquaternion import Quaternion
from simulated import in_town
from tiny import write_scenes, write_tiny
from vocabulary import NUSCENES, RIG

from perception.datasets.keyframes import Keyframes, Reads, Recording
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.datasets.nuscenes.recordings import FramesBetween
from perception.datasets.pandaset import PandaSet
from perception.datasets.sources import JoinedTables
from perception.frame import Conditions
from perception.rig import Lens, Rig, load_rig
from perception.simulate import scenario
from perception.simulate.conditions import Extras
from perception.simulate.simulate import simulate
from perception.training.clips import draw_spacings, find_clip, frame_period

TINY, SIMULATED, MINI = "v1.0-tiny", "v1.0-sim", "v1.0-mini"
SAMPLES, RATE, SWEEPS = 3, 10, 1
LIDARS_ALONE = RIG.model_copy(update={"cameras": ()})


def _shuttle() -> Rig:
    """Two LiDARs and two cameras, one of which takes its picture after the sweep; with small pictures."""
    rig = load_rig("shuttle")
    lens = Lens(focal=(50.0, 50.0))
    small = [c.model_copy(update={"size": (64, 40), "lens": lens}) for c in (rig.cameras[0], rig.cameras[-1])]
    return rig.model_copy(update={"cameras": tuple(small)})


@pytest.fixture(scope="module")
def driven(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Rig]:
    """A drive of three keyframes with frames at 10 Hz and a sweep before each, in which rain begins after 0.75 s."""
    root, rig = tmp_path_factory.mktemp("drive"), _shuttle()
    course = replace(in_town("clear-day-boston/rain-day-boston")[0], extras=Extras(rate=RATE))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenario, "MAX_CANDIDATES", 1)
        simulate(root, 1, SAMPLES, 0, [course], SWEEPS, rig)
    return root, rig


def rows_by_channel(devkit: NuScenes) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(devkit.sample_data, key=lambda row: row["timestamp"]):
        found.setdefault(row["channel"], []).append(row)
    return found


def require_rows(recording: Recording, rows: Mapping[str, dict[str, Any]], devkit: NuScenes, rig: Rig) -> None:
    """The recording has the files, times and poses of these rows of sample_data, by channel, and no others."""
    sweeps = {rig.sensors.lidars[i]: files[0] for i, files in recording.lidars.items()}  # type: ignore[union-attr]
    found = {**sweeps, **recording.pictures}
    assert found.keys() == rows.keys()
    reference = rows[rig.sensors.lidars[0]]
    assert recording.timestamp == reference["timestamp"]
    for name, row in rows.items():
        pose = devkit.get("ego_pose", row["ego_pose_token"])
        mount, each = devkit.get("calibrated_sensor", row["calibrated_sensor_token"]), found[name]
        assert each.timestamp == row["timestamp"] == pose["timestamp"]
        assert each.path == Path(devkit.dataroot) / row["filename"]
        mounted = each.ego_from_camera if name in recording.pictures else each.ego_from_lidar
        for ours, theirs in ((each.global_from_ego, pose), (mounted, mount)):
            np.testing.assert_allclose(ours[:3, 3], theirs["translation"], atol=1e-9)
            np.testing.assert_allclose(ours[:3, :3], Quaternion(theirs["rotation"]).rotation_matrix, atol=1e-9)
        if name == rig.sensors.lidars[0]:
            np.testing.assert_array_equal(each.global_from_ego, recording.global_from_ego)


@pytest.mark.slow("its fixture simulates a drive at 10 Hz")
def test_frames_of_a_simulated_drive_have_the_files_times_and_poses_of_its_tables(driven: tuple[Path, Rig]) -> None:
    """Between keyframes nothing is annotated but conditions and the map."""
    root, rig = driven
    devkit, tables = NuScenes(SIMULATED, str(root), verbose=False), NuScenesTables(root, SIMULATED, rig)
    by_channel, samples = rows_by_channel(devkit), tables.samples()
    sweeps = by_channel[rig.sensors.lidars[0]]
    moments = tables.moments(samples[0])
    # The sweep before each frame is none: the cameras took no picture at its time.
    with_pictures = sweeps[SWEEPS :: SWEEPS + 1]
    assert [*moments.values()] == [row["timestamp"] for row in with_pictures]
    assert [token for token in moments if token in samples] == samples
    for (token, time), sweep in zip(moments.items(), with_pictures, strict=True):
        near = {  # the latest of each sensor; those of the rig expose up to 4 ms after the sweep
            name: next(row for row in reversed(rows) if row["timestamp"] <= time + 5000)
            for name, rows in by_channel.items()
        }
        recording = tables.recording(token, Reads(sweeps=3))
        require_rows(recording, near, devkit, rig)
        assert all(time - row["timestamp"] < 50_000 for row in near.values())
        assert sweep["is_key_frame"] == (token in samples)
        earlier = [each.timestamp for each in recording.lidars[0][1:]]  # type: ignore[index]
        assert earlier == [row["timestamp"] for row in reversed(sweeps) if row["timestamp"] < time][:3]
        assert recording.scene == tables.scene(token) == "scene-0001"
        frame = tables.frame(token, Reads("lidar", truth=("map", "boxes", "points", "lidar_path")))
        assert (frame.token, frame.timestamp, len(frame.cameras)) == (token, time, 2)
        assert frame.truth.keys() == ({"map", "boxes", "points", "lidar_path"} if token in samples else {"map"})
        assert (frame.boxes is None) == (token not in samples)
        weather = "rain" if time - moments[samples[0]] >= 750_000 else "clear"
        assert frame.conditions == tables.conditions(token) == Conditions(city="boston", light="day", weather=weather)


def test_joined_tables_give_the_frames_of_the_drive_of_a_frame(driven: tuple[Path, Rig], tmp_path: Path) -> None:
    root, rig = driven
    tables = NuScenesTables(root, SIMULATED, rig)
    moments = tables.moments(tables.samples()[0])
    between = next(token for token in moments if token not in tables.samples())
    (tmp_path / "drives").mkdir()
    (tmp_path / "drives" / "first").symlink_to(root)
    joined = JoinedTables(tmp_path / "drives", SIMULATED, rig, NUSCENES)
    assert joined.moments(between) == moments
    assert joined.scene(between) == tables.scene(between)
    assert joined.conditions(between) == tables.conditions(between)
    assert joined.frame(between).timestamp == moments[between]


def test_real_keyframes_are_frames(nuscenes_root: Path) -> None:
    """The sweeps between keyframes 0 and 1 are no frames: there are no pictures of their times."""
    devkit, tables = NuScenes(MINI, str(nuscenes_root), verbose=False), NuScenesTables(nuscenes_root, MINI)
    for scene in tables.scenes():
        samples = tables.samples(None, [scene])
        moments = tables.moments(samples[5])
        assert [*moments] == samples
        for token in samples:
            names = devkit.get("sample", token)["data"]
            rows = {name: devkit.get("sample_data", row) for name, row in names.items()}
            require_rows(tables.recording(token, Reads()), rows, devkit, RIG)
        assert find_clip(moments, samples[5], [0.5, 1.0]) == [samples[2], samples[3]]


def write_scans(root: Path, pictures: Collection[int]) -> None:
    """Two keyframes, ten scans of a LiDAR at 20 Hz apart, and pictures in some scans, as late in them as nuScenes'."""
    write_tiny(root, 2)
    delays = {"CAM_FRONT_LEFT": -43, "CAM_FRONT": -35, "CAM_FRONT_RIGHT": -27, "CAM_BACK_RIGHT": -20, "CAM_BACK": -10}
    recordings, poses = [], []
    for channel, delay in {**delays, "CAM_BACK_LEFT": 0, "LIDAR_TOP": 0}.items():
        previous = ""
        for scan in range(11) if channel == "LIDAR_TOP" else pictures:
            own, timestamp = tiny.token("data", channel, scan), 1_500_000_000_000_000 + 50_000 * scan + 1000 * delay
            recordings.append({
                "token": own, "sample_token": tiny.token("sample", int(scan > 0)), "ego_pose_token": own,
                "calibrated_sensor_token": tiny.token("calibration", channel), "timestamp": timestamp, "prev": previous,
                "is_key_frame": scan % 10 == 0, "filename": f"{scan}", "width": 80, "height": 50,
            })  # fmt: skip
            poses.append({"token": own, "translation": [0.0, 0.0, 0.0], "rotation": [1.0, 0.0, 0.0, 0.0]})
            previous = own
    for name, rows in {"sample_data": recordings, "ego_pose": poses}.items():
        (root / TINY / f"{name}.json").write_text(json.dumps(rows))


@pytest.mark.parametrize(
    "between",
    [
        pytest.param([], id="keyframes alone have pictures, as of `simulate --sweeps 9`"),
        pytest.param([2, 4, 6, 8], id="a sweep before each frame, as of `simulate --rate 10 --sweeps 1`"),
        pytest.param([1, 3, 5, 6, 8], id="cameras at 12 Hz, as nuScenes"),
        pytest.param([1, 2, 3, 4, 5, 6, 7, 8, 9], id="cameras at 20 Hz"),
    ],
)
def test_frames_between_have_the_pictures_of_their_scan_and_no_other_frames(tmp_path: Path, between: list[int]) -> None:
    """Not the latest pictures, which at 12 Hz are of the scan before, or of the next one."""
    write_scans(tmp_path, [0, *between, 10])
    found = FramesBetween(tmp_path / TINY, RIG).before(tiny.token("sample", 1))
    assert [{row.file for row in frame.values()} for frame in found.values()] == [{str(scan)} for scan in between]
    assert all(frame.keys() == {*RIG.sensors.names} for frame in found.values())


@pytest.fixture
def changeable(driven: tuple[Path, Rig], tmp_path: Path) -> tuple[Path, Rig]:
    """The drive with tables that a test may change."""
    root, rig = driven
    shutil.copytree(root / SIMULATED, tmp_path / "drive" / SIMULATED)
    for name in ("samples", "sweeps", "maps", "lidarseg"):
        (tmp_path / "drive" / name).symlink_to(root / name)
    return tmp_path / "drive", rig


def test_a_picture_that_is_not_valid_is_left_out_and_those_before_it_stay(changeable: tuple[Path, Rig]) -> None:
    root, rig = changeable
    whole = NuScenesTables(root, SIMULATED, rig)
    first, second = whole.samples()[:2]
    camera = rig.sensors.cameras[0]
    left_out = whole.moments(first)[first] + 200_000 + round(1e6 * rig.cameras[0].delay)

    def invalidate(rows: list[dict[str, Any]]) -> None:
        (wrong,) = [row for row in rows if row["timestamp"] == left_out and camera in row["filename"]]
        wrong["is_valid"] = False

    in_json(invalidate)(root / SIMULATED / "sample_data.json")
    tables = NuScenesTables(root, SIMULATED, rig)
    missing = {*whole.moments(first).values()} - {*tables.moments(first).values()}
    assert [time - whole.moments(first)[first] for time in missing] == [200_000]
    assert find_clip(tables.moments(second), second, [0.4]) == find_clip(whole.moments(second), second, [0.4])


@pytest.mark.parametrize("kind", ["lidars", "cameras"])
def test_what_was_not_copied_is_no_frame(changeable: tuple[Path, Rig], kind: str) -> None:
    """As where a user has no sweeps of LiDARs, or no pictures between keyframes."""
    root, rig = changeable
    tables = NuScenesTables(root, SIMULATED, rig)
    whole = tables.moments(tables.samples()[0])
    recorded = (root / "sweeps").resolve()
    (root / "sweeps").unlink()
    (root / "sweeps").mkdir()
    for name in {*rig.sensors.names} - {*getattr(rig.sensors, kind)}:
        (root / "sweeps" / name).symlink_to(recorded / name)
    found = NuScenesTables(root, SIMULATED, rig).moments(tables.samples()[0])
    for token in whole:
        recording = tables.recording(token, Reads())
        files = [*(sweeps[0] for sweeps in recording.lidars.values()), *recording.pictures.values()]  # type: ignore[index]
        assert (token in found) == all(each.path.exists() for each in files)
    assert {*tables.samples()} <= found.keys() < whole.keys()


def test_a_lost_row_is_one_line(changeable: tuple[Path, Rig]) -> None:
    root, rig = changeable
    camera = rig.sensors.cameras[0]
    lost = f"sweeps/{camera}/"

    def lose(rows: list[dict[str, Any]]) -> None:
        rows.remove(max((row for row in rows if row["filename"].startswith(lost)), key=lambda row: row["timestamp"]))

    in_json(lose)(root / SIMULATED / "sample_data.json")
    tables = NuScenesTables(root, SIMULATED, rig)
    assert tables.frame(tables.samples()[-1]).cameras  # keyframes are read all the same
    for _ in range(2):  # what was found before the error is not taken for the drive's frames
        with one_line_error("sample_data.json", says="copy the tables again"):
            tables.moments(tables.samples()[0])


def test_unknown_frames_are_one_line(driven: tuple[Path, Rig]) -> None:
    root, rig = driven
    tables = NuScenesTables(root, SIMULATED, rig)
    for wrong in (f"{tables.samples()[1]}@17", "nothing@1700000000000000"):
        with one_line_error(says=wrong):
            tables.recording(wrong)


def test_a_frame_between_is_known_where_moments_was_not_called(driven: tuple[Path, Rig]) -> None:
    root, rig = driven
    tables = NuScenesTables(root, SIMULATED, rig)
    moments = tables.moments(tables.samples()[0])
    between = next(token for token in moments if token not in tables.samples())
    assert NuScenesTables(root, SIMULATED, rig).recording(between).timestamp == moments[between]


def test_frames_are_of_one_drive(tmp_path: Path) -> None:
    """Also where a row of sample_data names one of the drive before as the row before it."""
    write_scenes(tmp_path / "root", 3, 2)
    for rig, sweeps in ((RIG, 0), (LIDARS_ALONE, 1)):
        tables = NuScenesTables(tmp_path / "root", TINY, rig)
        found = [tables.moments(tables.samples(None, [scene])[0]) for scene in tables.scenes()]
        assert [len(moments) for moments in found] == 3 * [2 * (1 + sweeps)]
        every = [time for moments in found for time in moments.values()]
        assert every == sorted(every)
        for scene, moments in zip(tables.scenes(), found, strict=True):
            assert {tables.scene(token) for token in moments} == {scene}
            first = next(token for token in moments if token in tables.samples())
            assert len(find_clip(moments, first, [0.25] if sweeps else [0.5])) == sweeps


@st.composite
def drives(draw: st.DrawFn) -> tuple[dict[str, int], float]:
    """Frames of a drive, some of them lost; and their period in s."""
    period = draw(st.integers(50_000, 600_000))
    count = draw(st.integers(2, 40))
    jitter = draw(st.lists(st.integers(-period // 10, period // 10), min_size=count, max_size=count))
    kept = draw(st.sets(st.integers(0, count - 1), min_size=2))
    times = [1_500_000_000_000_000 + i * period + jitter[i] for i in sorted(kept)]
    gaps = [after - before for before, after in pairwise(times)]
    most = min(gap for gap in gaps if 10 * sum(each for each in gaps if each <= gap) >= 9 * sum(gaps))
    return {f"frame-{i}": time for i, time in enumerate(times)}, 1e-6 * most


@given(drives(), st.lists(st.floats(0.5, 6.0), min_size=1, max_size=4), st.data())
def test_a_clip_has_the_nearest_frames_at_its_spacings(drive, factors, data):
    moments, period = drive
    assume(min(factors) * period > 0.5 * period)
    spacings = [factor * period for factor in factors]
    token = data.draw(st.sampled_from([*moments]))
    clip = find_clip(moments, token, spacings)
    times = [moments[each] for each in (*clip, token)]
    assert times == sorted({*times})
    assert len(clip) <= len(spacings)
    asked = spacings[len(spacings) - len(clip) :]
    for (before, after), spacing in zip(pairwise(times), asked, strict=True):
        off = abs(1e-6 * (after - before) - spacing)
        assert off <= period / 2 + 1e-9
        assert off <= min(abs(1e-6 * (after - t) - spacing) for t in moments.values() if t < after) + 1e-9
    if len(clip) < len(spacings):
        wanted = times[0] - 1e6 * spacings[-1 - len(clip)]
        assert not any(abs(t - wanted) < 0.5e6 * period - 1 for t in moments.values() if t < times[0])


@pytest.mark.parametrize("sweeps", range(10))
def test_the_period_is_that_of_most_of_a_drive_however_many_sweeps_follow_a_keyframe(sweeps: int) -> None:
    """At 20 Hz behind keyframes of 2 Hz, as `simulate --sweeps` has them without cameras."""
    times = [500_000 * keyframe + 50_000 * sweep for keyframe in range(20) for sweep in range(sweeps + 1)]
    moments = {f"frame-{time}": time for time in times}
    longest = 0.5 - 0.05 * sweeps
    assert frame_period(moments) == pytest.approx(longest)
    assert find_clip(moments, "frame-5000000", [longest]) == [f"frame-{5_000_000 - round(1e6 * longest)}"]


def test_a_spacing_that_no_frames_have_is_one_line(tmp_path: Path) -> None:
    write_tiny(tmp_path, 3)
    source: Keyframes = NuScenesTables(tmp_path, TINY)
    last = source.samples()[-1]
    with one_line_error(last, says="a frame every 0.5 s"):
        find_clip(source.moments(last), last, [0.5, 0.1])
    assert find_clip(source.moments(last), source.samples()[0], [0.1]) == []


def test_a_recorded_drive_of_pandaset_has_a_frame_every_tenth_of_a_second(pandaset_root: Path) -> None:
    drives = PandaSet(pandaset_root)
    moments = drives.moments("002-20")
    assert len(moments) == 32
    assert frame_period(moments) == pytest.approx(0.1, abs=1e-3)
    clip = find_clip(moments, "002-20", [0.3, 0.2, 0.1])
    assert clip == ["002-14", "002-17", "002-19"]
    assert [moments[token] for token in clip] == [drives.recording(token).timestamp for token in clip]


def test_random_spacings_fill_their_range() -> None:
    drawn = [draw_spacings(np.random.default_rng([0, i]), 4, (0.1, 0.5)) for i in range(2000)]
    every = np.array([spacing for spacings in drawn for spacing in spacings])
    assert [len(spacings) for spacings in drawn].count(0) > 400
    assert max(map(len, drawn)) == 3
    counts, _ = np.histogram(every, 8, (0.1, 0.5))
    assert counts.sum() == len(every)
    assert counts.min() > 0.8 * counts.mean()
