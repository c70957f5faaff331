"""No content of a frame stops a vehicle: what cannot be used is missing, health says so, and the drive recovers."""

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from exported import bundle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vocabulary import CAMERAS, RIG, SENSORS, sensors

from deploy.golden import synthetic_frame
from deploy.runtime import Runtime
from perception.frame import PER_POINT, Camera, Conditions, Frame, Reading, reduce_intrinsics
from perception.rig import Sensors
from perception.scene.admission import admit
from perception.scene.scene import SceneFrame

LIDAR, FRONT = SENSORS.lidars[0], "CAM_FRONT"
START, PERIOD, STEP = 1_500_000_000_000_000, 500_000, 15.0  # us, us, m: after 8 frames the map shows other ground
# Frames: by then the map is of other ground, and all tracks of before have ended, which takes 3 s without a detection.
RECOVERY, MOST = 24, 12
NAN = float("nan")

Damage = Callable[[Frame], Frame]


@cache
def seen(seed: int) -> Frame:
    """A frame with fewer points and smaller pictures."""
    frame = synthetic_frame("ego", RIG, seed)
    small = {
        name: replace(each, image=each.image[::6, ::6], intrinsics=reduce_intrinsics(each.intrinsics, 6))
        for name, each in frame.cameras.items()
    }
    fewer = frame.select_points(slice(None, None, 4))
    return replace(fewer.select_points(np.argsort(fewer.points[:, 4], kind="stable")), cameras=small)


def frame_at(i: int) -> Frame:
    """Of a straight drive; what is seen repeats after three frames."""
    pose, now = np.eye(4), START + PERIOD * i
    pose[:2, 3] = 1000 + STEP * i, 2000
    frame = seen(i % 3)
    cameras = {name: replace(each, global_from_ego=pose, timestamp=now) for name, each in frame.cameras.items()}
    return replace(
        frame, token=f"token-{i}", timestamp=now, global_from_ego=pose, global_from_reference=pose, cameras=cameras,
        conditions=Conditions(weather="rain", light="night"), scene="drive", position=(48.1, 11.5),
        signals={"wipers": [Reading(now, 1.0)]}, lidar_of_point=np.zeros(len(frame.points), np.uint8),
    )  # fmt: skip


@cache
def runtime() -> Runtime:
    return Runtime(bundle().path)


def drive(frames: list[Frame]) -> Iterator[SceneFrame]:
    runtime().scene.restart()
    return map(runtime().step, frames)


def found(seen: SceneFrame) -> dict[str, str]:
    """What is wrong of the sensors, and of the vehicle."""
    return {name: f"{each.words}: {each.reasons}" for name, each in seen.health.items() if each.status != "ok"}


def put(**values: Any) -> Damage:
    return lambda frame: replace(frame, **values)


def of_camera(**values: Any) -> Damage:
    def damage(frame: Frame) -> Frame:
        return replace(frame, cameras={**frame.cameras, FRONT: replace(frame.cameras[FRONT], **values)})

    return damage


def of_points(rows: slice, column: int, value: float) -> Damage:
    def damage(frame: Frame) -> Frame:
        points = frame.points.copy()
        points[rows, column] = value
        return replace(frame, points=points)

    return damage


def pose(row: int, column: int, value: float) -> np.ndarray:
    matrix = np.eye(4)
    matrix[row, column] = value
    return matrix


def posed(matrix: Any) -> Damage:
    return put(global_from_ego=matrix, global_from_reference=matrix)


MIRRORED, TWICE = np.diag([1.0, -1, 1, 1]), np.diag([2.0, 2, 2, 1])
LENS = np.array([[210.0, 0, 133], [0, 210, 75], [0, 0, 1]])
PICTURE = np.zeros((150, 267, 3), np.uint8)
ALL = slice(None)

# What is done to a frame, and what health says of which sensor; "": nothing, since nothing is lost.
# Other values that cannot be used are in WRONG.
ROWS: list[tuple[str, Damage, str, str]] = [
    ("pose NaN", posed(np.full((4, 4), NAN)), "vehicle", "global_from_ego cannot be used"),
    ("points (N, 4)", lambda f: replace(f, points=f.points[:, :4]), LIDAR, "missing: points cannot be used: float32"),
    ("no points", put(points=np.zeros((0, 5), np.float32)), LIDAR, "missing"),
    ("some points NaN", of_points(slice(0, None, 7), 1, NAN), LIDAR, "572 of its points are not finite"),
    ("points far away", of_points(ALL, 0, 1e30), LIDAR, "corrupt"),
    ("sweeps of other points", put(sweep_of_point=np.zeros(3, np.uint8)), LIDAR, "missing: sweep_of_point cannot be"),
    ("LiDARs of another rig", lambda f: replace(f, lidar_of_point=f.lidar_of_point + np.uint8(7)), LIDAR, "missing"),
    ("classes of other points", put(class_of_point=np.zeros(3, np.int16)), LIDAR, "class_of_point cannot be used"),
    ("picture of one pixel", of_camera(image=PICTURE[:1, :1]), FRONT, "missing: intrinsics cannot be used"),
    ("picture float", of_camera(image=PICTURE.astype(np.float32)), FRONT, "missing: image cannot be used: float32"),
    ("picture too wide for OpenCV", of_camera(image=np.zeros((150, 40_000, 3), np.uint8)), FRONT, "missing: image"),
    ("intrinsics mirrored", of_camera(intrinsics=LENS * [[-1.0], [1], [1]]), FRONT, "missing: intrinsics"),
    ("a strange camera", lambda f: replace(f, cameras={**f.cameras, "X": f.cameras[FRONT]}), "vehicle", "cameras: 'X'"),
    ("time of the frame before", put(timestamp=START + PERIOD), "vehicle", "timestamp: +0.00 s from the frame before"),
    ("time set back", put(timestamp=START - 10**7), "vehicle", "timestamp: -10.50 s from the frame before"),
    ("conditions as numbers", put(conditions=Conditions(weather=5)), "vehicle", "conditions cannot be used"),
    ("conditions that nobody knows", put(conditions=Conditions(weather="hail", sky="red")), "", ""),
    ("position beyond the pole", put(position=(91.0, 11.0)), "vehicle", "position cannot be used: (91.0, 11.0)"),
    ("signal that is unknown", put(signals={"wipers": [Reading(START, NAN), Reading(5, 1.0)]}), "", ""),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "sensor", "words"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_what_cannot_be_used_is_missing_and_said(damage: Damage, sensor: str, words: str) -> None:
    before, now, after = frame_at(1), damage(frame_at(2)), frame_at(3)
    first, second, last = (found(each) for each in drive([before, now, after]))
    news = {name: why for name, why in second.items() if name not in first}
    assert {name for name in news if name != sensor} <= ({*CAMERAS} if words.startswith(("time", "cameras")) else set())
    assert not sensor or words in second[sensor]
    assert "missing" not in str(last)


WRONG: list[Any] = [
    None, "text", b"", -1, 7, NAN, np.inf, 10**30, [], (), {}, {"x": None}, [None], (NAN, NAN), object(), np.zeros(0),
    np.zeros((0, 5), np.float32), np.full((4, 4), NAN), np.full((3, 3), np.inf), np.full((9, 5), NAN, np.float32),
    np.full((4, 4), 1e300), np.zeros((4, 4)), np.zeros((3, 3)), np.eye(4, dtype=int), np.eye(4) * 2, MIRRORED, TWICE,
    np.eye(4)[:3], np.eye(4, dtype=np.float16), pose(0, 3, np.inf), np.array(None), np.array("text"),
    np.zeros((2, 2, 3), bool), PICTURE[..., :1], PICTURE[..., 0], PICTURE[:0], PICTURE[0],
    np.arange(4000) % 256, np.full(4000, 9, np.uint8), np.zeros(4000, np.float32), {"wipers": 5}, {"wipers": [7, None]},
    {"wipers": [Reading(None, 1.0)]}, {"wipers": [Reading(START, None)]}, {FRONT: None}, {FRONT: "x", 5: None},
]  # fmt: skip
# None or nothing says nothing, or is no matter of admission; another scene is another drive.
NOT_WRONG = {"position": [0], "lidar_of_point": [0], "class_of_point": [0], "file": [0], "ahead": [0], "signals": [10],
             "location": [1], "token": [1], "scene": [1], "points": [0], "cameras": [10], "scans": [10],
             "timestamp": [4],
             "nanoseconds": [4], "sweep_of_point": [38]}  # fmt: skip


def wrong_values(owner: type) -> list[tuple[str, Any]]:
    """The fields of a frame or a camera, each with every value that it cannot have."""
    names = [each.name for each in fields(owner) if each.name not in ("boxes", "truth", "pasted")]
    return [(name, value) for name in names for i, value in enumerate(WRONG) if i not in NOT_WRONG.get(name, ())]


@pytest.mark.parametrize(("owner", "change"), [(Frame, put), (Camera, of_camera)])
def test_a_value_that_a_field_cannot_have_is_named(owner: type, change: Callable[..., Damage]) -> None:
    """And no other, but for a vehicle in another frame of reference."""
    named = dict.fromkeys(PER_POINT, LIDAR) | {"global_from_reference": "global_from_ego"}
    for name, value in wrong_values(owner):
        _, findings = admit(change(**{name: value})(frame_at(2)), SENSORS, "ego", frame_at(1))
        where = FRONT if owner is Camera else named.get(name, name)
        if name == "cameras":
            assert {*findings} & {FRONT, "cameras"}
            continue
        assert [*findings] == [where] or name == "reference", (name, value)
        assert findings[where].startswith(f"{name} cannot be used") or name == "points"


TIMES = (0, 1, -1, -PERIOD, -(10**7), -(10**9), 10**9, 31_536_000 * 10**6, 2**61)  # us, from the frame before


KINDS = ("points", "camera", "time", "frame")  # in this order each finds what it damages


@st.composite
def one_damage(draw: st.DrawFn, kind: str) -> Damage:
    """A wrong value in some rows of the points, in a field of a camera or of the frame, or a wrong time."""
    if kind == "points":
        rows = slice(draw(st.integers(0, 3999)), None, draw(st.integers(1, 4000)))
        return of_points(rows, draw(st.integers(0, 4)), draw(st.sampled_from([NAN, np.inf, -np.inf])))
    if kind == "time":
        passed = draw(st.sampled_from(TIMES))
        return lambda frame: replace(frame, timestamp=frame.timestamp - PERIOD + passed)
    owner, changed = (Frame, put) if kind == "frame" else (Camera, of_camera)
    name, value = draw(st.sampled_from(wrong_values(owner)))
    return changed(**{name: value})


@st.composite
def damages(draw: st.DrawFn) -> list[Damage]:
    """Of one frame, which may have several."""
    kinds = draw(st.sets(st.sampled_from(KINDS), min_size=1, max_size=3))
    return [draw(one_damage(kind)) for kind in KINDS if kind in kinds]


def damaged(frame: Frame, wrong: list[Damage]) -> Frame:
    for each in wrong:
        frame = each(frame)
    return frame


@cache
def undamaged() -> list[SceneFrame]:
    return list(drive([frame_at(i) for i in range(1 + MOST + RECOVERY)]))


def assert_same_state(one: SceneFrame, other: SceneFrame) -> None:
    """All but the ids of the tracks, and since when things are so."""
    assert (one.token, one.timestamp, one.conditions, found(one)) == (
        other.token, other.timestamp, other.conditions, found(other)
    )  # fmt: skip
    np.testing.assert_array_equal(one.states["map"], other.states["map"])
    tracks, others = (each.states["detection"].boxes for each in (one, other))
    for name in ("centers", "sizes", "rotations", "velocities", "labels", "scores"):
        np.testing.assert_array_equal(getattr(tracks, name), getattr(others, name))


@pytest.mark.slow("drives of 40 frames, with everything that may be wrong in one")
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.lists(damages() | st.just([]), min_size=6, max_size=MOST))
def test_a_drive_with_damaged_frames_goes_on_and_recovers(wrong: list[list[Damage]]) -> None:
    """RECOVERY healthy frames later it is the drive without damage, to the last bit."""
    count = 1 + len(wrong) + RECOVERY
    frames = [frame_at(i) for i in range(count)]
    frames[1 : 1 + len(wrong)] = [damaged(frame, each) for frame, each in zip(frames[1:], wrong, strict=False)]
    scenes = list(drive(frames))
    for i, each in enumerate(wrong, start=1):
        assert not each or found(scenes[i]).items() - found(undamaged()[i]).items(), frames[i]
    assert_same_state(scenes[-1], undamaged()[count - 1])


@settings(max_examples=300, deadline=None)
@given(damages(), st.booleans(), st.sampled_from([SENSORS, sensors(LIDAR), sensors(*CAMERAS)]))
def test_what_is_admitted_is_admitted_again_and_as_it_is(wrong: list[Damage], first: bool, seeing: Sensors) -> None:
    before, frame = None if first else frame_at(1), damaged(frame_at(2), wrong)
    admitted, findings = admit(frame, seeing, "ego", before)
    again, more = admit(admitted, seeing, "ego", before)
    assert again is admitted or {*more} == {"timestamp"} <= {*findings}
    assert {*findings} <= {*SENSORS.names, *(each.name for each in fields(Frame))}
    assert (admitted is frame) == (not findings)


def test_a_frame_without_a_pose_is_perceived_where_the_vehicle_was() -> None:
    """The network sees the same points and pictures; map and tracks stay, as without sensors."""
    frames = [frame_at(i) for i in range(4)]
    blind = [*frames[:2], posed(None)(frames[2])]
    dark = [*frames[:2], replace(frames[2], points=None, cameras={}, global_from_ego=frames[1].global_from_ego,
                                 global_from_reference=frames[1].global_from_ego)]  # fmt: skip
    *_, seen = drive(blind)
    *_, unseen = drive(dark)
    np.testing.assert_array_equal(seen.states["map"], unseen.states["map"])
    for name in ("centers", "velocities", "scores"):
        one, other = (getattr(each.states["detection"].boxes, name) for each in (seen, unseen))
        np.testing.assert_array_equal(one, other)
    expected = runtime()(frames[2]).results["detection"]
    np.testing.assert_allclose(seen.prediction.results["detection"].scores, expected.scores, atol=1e-5)
