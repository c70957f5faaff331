"""Which messages announce frames, at any spacing, jitter and lateness of the sensor that the network needs most."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import nuscenes_topics
from vocabulary import RIG, SENSORS

from deploy.recordings.assembler import Assembler, DriveInfo
from deploy.recordings.choice import FrameChoice
from deploy.recordings.counts import Counts
from deploy.recordings.latest import Readings
from deploy.recordings.messages import Cloud, Content, Picture, Transform
from perception.frame import Frame
from perception.grid import BevGrid
from perception.sensors.camera.config import CameraBranch
from perception.sensors.inputs import InputSpec
from perception.sensors.lidar.config import Lidar

PERIOD, START, SWEEPS = 100_000, 1_700_000_000_000_000, 40  # us, us, number of them
TOPICS = nuscenes_topics(keyframes=None, period=1e-6 * PERIOD)
LIDAR, FRONT = TOPICS.lidars["LIDAR_TOP"].topic, TOPICS.cameras["CAM_FRONT"].image
SPEC = InputSpec(BevGrid(reference="ego"), {"lidar": Lidar(sweeps=1), "camera": CameraBranch()}, RIG)
DELAY, PICTURE_DELAY = 55_000, 20_000  # us, from the stamp to the arrival of what is in time
PICTURES = PERIOD // 10  # us between pictures
UNTURNED = np.array([1.0, 0, 0, 0])
Message = tuple[int, str, Content]  # time of recording (us), topic, content


def drive(messages: list[Message]) -> tuple[list[Frame], Counts]:
    counts = Counts(SENSORS)
    assembler = Assembler(TOPICS, SPEC, counts, DriveInfo("log"), False, FrameChoice(), Readings({}))
    frames = list[Frame]()
    for time, topic, content in sorted(messages, key=lambda each: each[0]):
        frames += (each.assemble() for each in assembler.advance(time))
        assembler.add(topic, time, [content])
    return [*frames, *(each.assemble() for each in assembler.finish())], counts


def sweep(stamp: int, delay: int) -> Message:
    return stamp + delay, LIDAR, Cloud(stamp, "lidar_top", np.ones((1, 5), np.float32), lambda _: None)


def pictures(every: int, first: int, until: int) -> list[Message]:
    """Pictures of a camera without calibration, so that none is decoded. Each comes before the sweep of its time."""
    stamps = range(START + first, until, every)
    return [(stamp + PICTURE_DELAY, FRONT, Picture(stamp, "cam_front", np.zeros, (2, 2))) for stamp in stamps]


def poses(until: int) -> list[Message]:
    still = Transform(0, "base_link", "lidar_top", np.zeros(3), UNTURNED)
    moves = range(START - 200_000, until + 200_000, 20_000)
    there = [(stamp, "/tf", Transform(stamp, "map", "base_link", np.zeros(3), UNTURNED)) for stamp in moves]
    return [(START - 300_000, "/tf_static", still), *there]


@settings(deadline=None, max_examples=40)
@given(
    spacing=st.integers(PERIOD // 2, 2 * PERIOD),
    jitter=st.lists(st.floats(-0.08, 0.08), min_size=SWEEPS, max_size=SWEEPS),
    lateness=st.lists(st.integers(0, 60_000), min_size=SWEEPS, max_size=SWEEPS),
    lost=st.sets(st.integers(4, SWEEPS - 1), max_size=20),
    camera=st.tuples(st.integers(PERIOD // 3, 2 * PERIOD), st.integers(0, PERIOD)),
)
def test_no_frame_is_without_lidar_while_its_sweeps_arrive(
    spacing: int, jitter: list[float], lateness: list[int], lost: set[int], camera: tuple[int, int]
) -> None:
    """At most one frame for each sweep that is lost; a sweep makes none only if it is nearer than the period to one."""
    stamps = [START + round(spacing * (i + each)) for i, each in enumerate(jitter)]
    sent = {i: stamp for i, stamp in enumerate(stamps) if i not in lost}
    sweeps = [sweep(stamp, DELAY + lateness[i]) for i, stamp in sent.items()]
    until = max(sent.values())
    frames, counts = drive([*sweeps, *pictures(*camera, until), *poses(until)])
    seeing = [frame.timestamp for frame in frames if frame.has_lidar(0)]
    assert len(frames) - len(seeing) <= len([i for i in lost if stamps[i] < until])
    unused = set(sent.values()) - set(seeing)
    for stamp in unused:
        assert min(abs(stamp - each) for each in seeing) < PERIOD
    assert spacing < 0.95 * PERIOD or not unused
    assert len(unused) == counts.between[LIDAR]
    assert [each.timestamp for each in frames] == sorted(each.timestamp for each in frames)


def frames_of(delays: dict[int, int], *outages: range) -> tuple[list[int], list[int]]:
    """Stamps (us, from the start) of the frames with a sweep and of those without, at the wanted period.

    Args:
        delays: us by which sweeps are late, by their numbers.
        outages: numbers of sweeps that are lost.
    """
    stamps, lost = [START + PERIOD * i for i in range(SWEEPS)], {i for each in outages for i in each}
    sweeps = [sweep(stamp, DELAY + delays.get(i, 0)) for i, stamp in enumerate(stamps) if i not in lost]
    frames, _ = drive([*sweeps, *pictures(PICTURES, 0, stamps[-1]), *poses(stamps[-1])])
    seeing, blind = ([each.timestamp - START for each in frames if each.has_lidar(0) == has] for has in (True, False))
    return seeing, blind


def test_a_picture_stands_in_for_each_sweep_that_is_overdue_by_half_a_period() -> None:
    """By the time since the last sweep came. The last stand-in gives way to the sweep that comes again."""
    outages, expected = (range(10, 16), range(25, 28)), list[int]()
    for outage in outages:
        came = PERIOD * (outage[0] - 1) + DELAY
        overdue = [came + PERIOD * n + PERIOD // 2 for n in range(1, len(outage))]
        arrived = [-(-each // PICTURES) * PICTURES for each in overdue]  # pictures come at multiples of their period
        expected += [each - PICTURE_DELAY for each in arrived]
    seeing, blind = frames_of({}, *outages)
    assert seeing == [PERIOD * i for i in range(SWEEPS) if not any(i in each for each in outages)]
    assert blind == expected


def test_a_stand_in_gives_way_to_a_sweep_that_is_only_late() -> None:
    assert frames_of({20: 6 * PERIOD // 10}) == ([PERIOD * i for i in range(SWEEPS)], [])
