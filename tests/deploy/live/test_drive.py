"""Driving in real time: the bytes of a replay where nothing is late; an outcome, or a reason, for every frame."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import refuses
from exported import bundle, remembering
from live import PATIENT, RATE, RESULTS, Watch, after, driving, driving_process, log, network, recorded, replayed
from recordings import Sent, assemble, edit, message, nuscenes_topics

from deploy.live import intake as module
from deploy.live.intake import Intake
from deploy.live.outputs import Output
from deploy.live.policy import Delay, Policy
from deploy.live.process import Systemd
from deploy.live.source import Damage, Playback, Receive
from deploy.live.state import Reason, Status
from deploy.live.zenoh import Zenoh, republish
from deploy.recordings import assembler
from deploy.recordings.drives import RecordedDrive, open_recording
from deploy.recordings.ros_types import header, make
from deploy.runtime import Runtime
from perception.frame import Prediction

FRONT, BACK, AUTOWARE = "/cam_front/", "/cam_back/", "autoware_sensing_msgs/msg"
EMPTY = {"idx_begin": 0, "length": 0}  # points of a LiDAR in a joined cloud


def test_a_recording_at_its_own_pace_gives_the_bytes_of_its_replay(tmp_path: Path) -> None:
    """Of sweeps, by a network with a memory in one thread. Of keyframes, by one without: test_outputs.py and below."""
    topics, yaml = nuscenes_topics(keyframes=None, wait=PATIENT), tmp_path / "topics.yaml"
    yaml.write_text("keyframes: null\n")
    path, policy = remembering().path, Policy(lateness=PATIENT)
    runtime = Runtime(path, checks=False, threads=1)
    sessions: list[Any] = [each.engine for each in runtime._networks]
    assert [each._session.get_session_options().intra_op_num_threads for each in sessions] == [1]
    drive = driving(log(), tmp_path / "live", runtime, topics, policy, rate=1.0)
    drive.require_outcomes()
    assert set(drive.driven.outcomes) == {"perceived"}  # else it was not fast enough here
    replay = replayed(tmp_path / "live" / "drive.mcap", tmp_path / "replay", yaml, path)
    for name in RESULTS:
        assert (tmp_path / "live" / name).read_bytes() == (replay / name).read_bytes()


@pytest.mark.slow("a driving process")
def test_a_process_that_listens_gives_the_bytes_of_a_replay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recording, options = recorded(tmp_path, log(3.0)), []
    for name, content in (("topics", f"wait: {PATIENT}"), ("policy", f"lateness: {PATIENT}")):
        (tmp_path / f"{name}.yaml").write_text(f"{content}\n")
        options += [f"--{name}", str(tmp_path / f"{name}.yaml")]
    here, there = network(tmp_path)
    driver = driving_process(tmp_path / "live", here, *options)
    for name, value in there.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("deploy.live.zenoh._DISCOVERY", 60.0)  # s; a loaded machine takes long to start a process
    republish(Playback(recording), Zenoh())
    driver.send_signal(signal.SIGTERM)
    said, errors = driver.communicate(timeout=30)
    assert driver.returncode == 0, errors
    replay = replayed(recording, tmp_path / "replay")
    for name in RESULTS:
        assert (tmp_path / "live" / name).read_bytes() == (replay / name).read_bytes(), said


def test_of_frames_that_became_ready_meanwhile_only_the_newest_is_assembled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the first is assembled all others arrive; the last ones, which are not ready, end when the source does."""
    assembled, sources, join = list[int](), list[Any](), assembler.join_lidars

    def slowly(sweeps: Any, timestamp: int, *rest: Any) -> Any:
        while not assembled and not sources[0].ended:
            time.sleep(0.01)
        assembled.append(timestamp)
        return join(sweeps, timestamp, *rest)

    monkeypatch.setattr(assembler, "join_lidars", slowly)
    drive = driving(log(), tmp_path, more=lambda _, intake: sources.append(intake.source) or [])
    drive.require_outcomes()
    first, *others = assembled
    assert drive.driven.outcomes["superseded"] > len(others) > 0
    perceived = {int(token.split("@")[1]) for token in drive.tokens}
    assert perceived | {first} == {first, *others}


def test_a_late_camera_is_missing_in_exactly_the_frames_that_the_log_names(tmp_path: Path) -> None:
    """One is later than frames wait, another one is in time."""

    def late(each: Sent) -> Sent:
        milliseconds = 230 * each.topic.startswith(FRONT) + 50 * each.topic.startswith(BACK)
        return each._replace(time=each.time + 1000 * milliseconds)

    drive = driving([late(each) for each in log()], tmp_path, policy=Policy(lateness=0.2))
    drive.require_outcomes()
    assert drive.tokens == [line["token"] for line in drive.frames if "CAM_FRONT" not in line["cameras"]]
    assert all("CAM_BACK" in line["cameras"] for line in drive.frames)
    assert drive.driven.counts["late"] == {"/cam_front/image_rect_compressed": len(drive.frames)}
    assert drive.watch.first("DEGRADED", "sensor", "CAM_FRONT", "missing") < float("inf")
    assert drive.watch.first("DEGRADED", "sensor", "CAM_BACK", "missing") == float("inf")


def test_a_recording_without_its_lidar_gives_the_frames_of_its_replay(tmp_path: Path) -> None:
    """Those of its pictures from the first one on, which wait for no LiDAR."""
    topics, blind = (
        nuscenes_topics(keyframes=None, wait=PATIENT),
        [each for each in log(2.0) if "lidar" not in each.topic],
    )
    drive = driving(blind, tmp_path, topics=topics, policy=Policy(lateness=PATIENT))
    replay = RecordedDrive(tmp_path / "drive.mcap", topics, bundle().spec)
    assert sorted(line["token"] for line in drive.frames) == [frame.token for frame in replay.frames()]


@pytest.mark.slow("may be the first to export")
def test_without_any_sensor_the_state_is_down(tmp_path: Path) -> None:
    killed = [each for each in log() if each.time < after(1.6) or each.topic.startswith("/tf")]
    drive = driving(killed, tmp_path)
    drive.require_outcomes()
    silent = drive.watch.first("DOWN", "silent") - drive.watch.times[-1]
    assert 1.5 <= silent < float("inf")  # three frames of 0.5 s are missing
    assert drive.driven.status.state == "DOWN"


def test_a_frame_without_any_sensor_is_not_published(tmp_path: Path) -> None:
    """Keyframes go on where neither sweeps nor pictures come any more."""
    killed = [each for each in log() if each.time < after(1.6) or each.topic.startswith(("/tf", "/keyframe"))]
    drive = driving(killed, tmp_path, topics=nuscenes_topics())
    drive.require_outcomes()
    assert drive.driven.outcomes["blind"] > 0
    assert len(drive.watch.seen) == drive.driven.outcomes["perceived"]
    assert drive.watch.first("DOWN", "blind") < float("inf")
    assert drive.driven.status.state == "DOWN"


@pytest.mark.slow("may be the first to export")
@pytest.mark.parametrize("topic", ["/cam_front/mistyped", nuscenes_topics().cameras["CAM_FRONT"].image])
def test_a_topic_that_never_sends_is_named(topic: str, tmp_path: Path) -> None:
    """Mistyped in the file, or of a camera that is silent."""
    cameras = nuscenes_topics().cameras
    sent = [each for each in log() if each.topic != cameras["CAM_FRONT"].image]
    front = cameras["CAM_FRONT"].model_copy(update={"image": topic})
    drive = driving(sent, tmp_path, topics=nuscenes_topics(keyframes=None, cameras=cameras | {"CAM_FRONT": front}))
    assert drive.watch.first("DEGRADED", "unheard", topic) < float("inf")
    assert [each.subject for each in drive.driven.status.reasons if each.code == "unheard"] == [topic]


def test_every_frame_has_an_outcome(tmp_path: Path) -> None:
    """The LiDAR at half of its rate; then the clock of the sensors, which is no longer that of the poses, is set."""

    def changed(each: Sent) -> Sent:
        forward = each.time >= after(3) and each.topic.startswith(("/lidar", "/cam"))
        return edit(each, stamp=each.time + 100_000_000) if forward else each

    left = [each.time for each in log() if each.topic == "/lidar_top"][::4]
    messages = [changed(each) for each in log() if each.topic != "/lidar_top" or each.time in left]
    drive = driving(messages, tmp_path)
    drive.require_outcomes()
    assert drive.watch.first("DEGRADED", "rate", says="1.00 s after the one before, expected 0.50 s") < float("inf")
    assert drive.driven.outcomes["unposed"] > 0
    assert drive.watch.first("DEGRADED", "unposed") < float("inf")


def test_a_lidar_that_a_joined_cloud_lacks_is_named(tmp_path: Path) -> None:
    def joined(time: int, *statuses: int) -> Sent:
        sources = [
            make(
                f"{AUTOWARE}/SourcePointCloudInfo", topic=topic, status=status, **{**EMPTY, "header": header(time, "")}
            )
            for topic, status in zip(("/left", "/right"), statuses, strict=True)
        ]
        known = {"concatenation_success": not any(statuses), "matching_strategy": 0}
        whole = make(
            f"{AUTOWARE}/ConcatenatedPointCloudInfo", header=header(time, ""), source_info=sources,
            matching_strategy_config=np.zeros(0, np.uint8), **known,
        )  # fmt: skip
        return message("/joined", time, whole)

    topics = nuscenes_topics(keyframes=None, concatenation="/joined")
    drive = driving([*log(4.0), joined(after(1), 0, 1), joined(after(3), 2, 0)], tmp_path, topics=topics)
    drive.require_outcomes()
    right = drive.watch.first("DEGRADED", "joined", "/right", "timeout")
    assert right < drive.watch.first("DEGRADED", "joined", "/left", "invalid") < float("inf")
    last = drive.driven.status.reasons
    assert [each.subject for each in last if each.code == "joined"] == ["/left"]


def test_a_defect_in_the_intake_ends_the_drive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("deploy.recordings.assembler.Assembler.add", broken)
    with pytest.raises(ZeroDivisionError):
        driving(log(), tmp_path)


def test_what_cannot_be_read_of_a_recording_is_counted_as_in_its_replay(tmp_path: Path) -> None:
    path = recorded(tmp_path, log())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    drive = driving(path, tmp_path / "live")
    drive.require_outcomes()
    topics = tmp_path / "topics.yaml"
    topics.write_text("keyframes: null\n")
    (counts,) = json.loads((replayed(path, tmp_path / "replay", topics) / "sources.json").read_text())
    assert drive.driven.counts["damage"] == counts["damage"]
    assert counts["damaged_places"] == 1


def test_outputs_that_are_late_for_long_are_no_use(tmp_path: Path) -> None:
    """A millisecond is too short for any network."""
    policy = Policy(delay=Delay(allowed=0.001, consecutive=0.5))
    drive = driving(log(3.0), tmp_path, policy=policy)
    drive.require_outcomes()
    warned, down = drive.watch.first("DEGRADED", "late"), drive.watch.first("DOWN", "late")
    assert warned + 0.5 - policy.delay.check <= down < float("inf")


def test_the_state_at_the_end_is_reported_however_short_the_drive(tmp_path: Path) -> None:
    drive = driving(log(1.0), tmp_path, policy=Policy(delay=Delay(check=10.0)))
    ((_, status),) = drive.watch.states
    assert (status.state, status.reasons) == (drive.driven.status.state, drive.driven.status.reasons)


class Late(Output):
    """Says of each report whether the source was closed before, which may be the middleware that sends the report."""

    def __init__(self, source: Any, said: list[bool]) -> None:
        self._source, self._said = source, said

    def report(self, status: Status) -> None:
        self._said.append(self._source._stop.is_set())


@pytest.mark.parametrize("silent", ["none", BACK], ids=["for the engine", "for a picture"])
def test_a_frame_that_waits_when_the_drive_is_stopped_has_an_outcome(tmp_path: Path, silent: str) -> None:
    def stop() -> None:
        if len(watch.lines) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1.0 / RATE)  # while two frames are announced

    watch, late, policy = Watch(stop), list[bool](), Policy(lateness=PATIENT)
    topics = nuscenes_topics(keyframes=None, wait=PATIENT)
    messages = [each for each in log() if not each.topic.startswith(silent) or each.time < after(0.6)]
    drive = driving(
        messages, tmp_path, topics=topics, policy=policy, watch=watch, more=lambda _, i: [Late(i.source, late)]
    )
    drive.require_outcomes()
    assert drive.driven.outcomes["stopped"] > 0
    assert late
    assert not any(late)


class Faulty:
    """An engine that does something before some of its frames."""

    def __init__(self, engine: Any, frames: range, act: Callable[[], object]) -> None:
        self._engine, self._frames, self._act, self._count = engine, frames, act, 0

    def run(self, inputs: Any, state: Any = None) -> Any:
        self._count += 1
        if self._count in self._frames:
            self._act()
        return self._engine.run(inputs, state)

    def new_state(self) -> Any:
        return self._engine.new_state()


def with_engine(monkeypatch: pytest.MonkeyPatch, frames: range, act: Callable[[], object]) -> Runtime:
    runtime = Runtime(bundle().path, checks=False)
    network = runtime._networks[0]
    monkeypatch.setattr(runtime, "_networks", [replace(network, engine=Faulty(network.engine, frames, act))])
    return runtime


def test_an_engine_that_raises_loses_these_frames_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("out of memory")

    drive = driving(log(), tmp_path, with_engine(monkeypatch, range(4, 7), fail))
    drive.require_outcomes()
    failed = [line["outcome"] == "failed" for line in drive.frames]
    assert failed == [3 <= i < 6 for i in range(len(failed))]
    assert drive.watch.first("DOWN", "failed", says="RuntimeError: out of memory") < float("inf")
    assert not any(each.code == "failed" for each in drive.driven.status.reasons)


def test_an_engine_that_hangs_is_reported_while_it_does_and_systemd_hears_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(address)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        runtime = with_engine(monkeypatch, range(3, 4), partial(time.sleep, 1.5))
        drive = driving(log(), tmp_path / "out", runtime, policy=Policy(hang=0.5))
        systemd.setblocking(False)
        said = received(systemd)
    drive.require_outcomes()
    assert drive.watch.first("DOWN", "hang") < float("inf")
    assert drive.driven.outcomes["superseded"] >= 2  # of the frames every 0.25 s while it hung
    assert drive.watch.first("DEGRADED", "superseded") < float("inf")
    assert sum("READY=1" in each for each in said) == 1
    assert said[-1] == "STOPPING=1"
    hanging = [each for each in said if "has worked on one frame" in each]
    assert hanging
    assert not any("WATCHDOG=1" in each for each in hanging)
    assert any("WATCHDOG=1" in each for each in said)


def test_systemd_hears_again_what_it_could_not_hear_and_of_files_with_any_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a process that lives would be killed, as an output that fails is used no more.

    The socket's name is abstract: written with @ where it has a zero (sd_notify(3)).
    """
    name = f"drive of {os.getpid()}"
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
    told = Systemd()
    told.report(Status(()))  # nobody is there
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(f"\0{name}")
        told.report(Status((Reason("DEGRADED", "output", "record", "is used no more (a\udcff.mcap)"),)))
        systemd.setblocking(False)
        assert received(systemd) == ["STATUS=DEGRADED record is used no more (a?.mcap)\nREADY=1\nWATCHDOG=1"]


def received(server: socket.socket) -> list[str]:
    found = []
    while True:
        try:
            found.append(server.recv(4096).decode())
        except BlockingIOError:
            return found


@pytest.mark.slow("may be the first to export")
def test_a_drive_whose_engine_fails_for_too_long_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A drive whose engine fails every second frame goes on; the outputs learn why the drive ends."""

    def fail() -> None:
        raise RuntimeError("the GPU is gone")

    policy = Policy(failing=0.6)
    always = driving(log(), tmp_path / "always", with_engine(monkeypatch, range(3, 99), fail), policy=policy)
    always.require_outcomes()
    assert always.driven.dead
    assert "dead" in {each.code for each in always.watch.states[-1][1].reasons}
    again = driving(log(), tmp_path / "now and then", with_engine(monkeypatch, range(3, 99, 2), fail), policy=policy)
    assert not again.driven.dead
    assert always.driven.announced < again.driven.announced


DYING = """
import sys
from deploy.cli import main
from deploy.runtime import Runtime
def fail(*_):
    raise RuntimeError("the GPU is gone")
Runtime.perceive = fail
main()
"""


@pytest.mark.slow("a driving process")
def test_the_process_of_a_dead_engine_has_an_exit_code_of_its_own(tmp_path: Path) -> None:
    """No other end of the command has exit code 4, so that systemd and a person know what happened."""
    (tmp_path / "policy.yaml").write_text("failing: 0.5")
    recording = recorded(tmp_path, log())
    options = ["--from", recording, "--policy", tmp_path / "policy.yaml", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", DYING, "drive", bundle().path, *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 4, done.stderr
    assert "dead" in {each["code"] for each in json.loads(done.stdout)["last"]["reasons"]}


@pytest.mark.parametrize("publish", [False, True])
@pytest.mark.parametrize("changes", [{}, {"inputs": {}}], ids=["it differs", "it cannot run"])
def test_an_engine_that_fails_its_golden_frame_while_driving_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], publish: bool
) -> None:
    runtime = Runtime(bundle().path, checks=False)
    network = runtime._networks[0]
    golden = [
        replace(frame, outputs={name: value + 1 for name, value in frame.outputs.items()}, **changes)
        for frame in network.golden
    ]
    monkeypatch.setattr("deploy.runtime.CHECK_EVERY", 2)  # the runtime itself would stop the drive
    monkeypatch.setattr(runtime, "_checks", cycle([(network, frame) for frame in golden]))
    drive = driving(log(3.0), tmp_path, runtime, policy=Policy(golden=0.3, publish_untrusted=publish))
    drive.require_outcomes()
    failed = drive.watch.first("UNTRUSTED", "golden")
    assert failed < float("inf")
    assert "golden" in {each.code for each in drive.driven.status.reasons}
    assert drive.frames[-1]["outcome"] == ("perceived" if publish else "untrusted")
    assert any(each > failed for each in drive.watch.times) == publish
    assert len(drive.watch.seen) == drive.driven.outcomes["perceived"]


def test_a_loop_that_is_never_idle_runs_golden_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame takes longer than the next one needs to come."""
    runtime, checked = Runtime(bundle().path, checks=False), list[float]()
    perceive, began = runtime.perceive, list[float]()

    def perceive_slowly(*given: Any) -> Any:
        began.append(time.monotonic())
        time.sleep(1.0 / RATE)
        return perceive(*given)

    monkeypatch.setattr(runtime, "perceive", perceive_slowly)
    monkeypatch.setattr(runtime, "check", lambda: checked.append(time.monotonic()))
    driving(log(), tmp_path, runtime, policy=Policy(golden=0.5, lateness=PATIENT))
    assert [each for each in checked if began[0] < each < began[-1]]


def test_a_policy_says_what_follows_from_a_status(tmp_path: Path) -> None:
    """The status itself goes before `any`."""
    cameras = {"CAM_FRONT": {"any": "ignore"}, "CAM_*": {"any": "warn", "missing": "mask"}}
    policy = Policy(sensors={**cameras, "LIDAR_TOP": {"missing": "stop"}})
    gone = ("/lidar_top", FRONT, BACK)
    left = [each for each in log() if not each.topic.startswith(gone) or each.time < after(2.6)]
    drive = driving(left, tmp_path, policy=policy)
    drive.require_outcomes()
    for state, sensor in (("DOWN", "LIDAR_TOP"), ("DEGRADED", "CAM_BACK")):
        assert 2.6 / RATE <= drive.watch.first(state, "sensor", sensor, "missing") < float("inf")
    assert not any(each.subject == "CAM_FRONT" for _, status in drive.watch.states for each in status.reasons)
    perceived = [line for line in drive.frames if line["outcome"] == "perceived"]
    assert {name for line in perceived for name in line["masked"]} == {"CAM_BACK"}


def test_a_masked_sensor_is_as_one_that_is_missing() -> None:
    runtime = Runtime(bundle().path, checks=False)
    frame = assemble(log(), nuscenes_topics(keyframes=None), keyframed=False)[0][3]
    for sensor in ("CAM_FRONT", "LIDAR_TOP"):
        masked = predicted(runtime, frame, {sensor})
        missing = predicted(runtime, frame.without({sensor}, runtime.bundle.manifest.rig.sensors.lidars), set())
        seen = predicted(runtime, frame, set())
        assert (masked.results["detection"].scores == missing.results["detection"].scores).all()
        assert (
            len(seen.results["detection"].scores) != len(masked.results["detection"].scores)
            or (seen.results["detection"].scores != masked.results["detection"].scores).any()
        )


class Shown(Output):
    """Remembers of each frame that it receives the cameras, and whether it has points."""

    def __init__(self) -> None:
        self.frames = list[tuple[set[str], bool]]()

    def publish(self, frame: Any, prediction: Prediction) -> None:
        self.frames.append(({*frame.cameras}, frame.points is not None))

    add = publish


def test_outputs_receive_frames_as_the_network_saw_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the classes of points would be those of others; the log says what was there."""
    shown, masked = Shown(), {"CAM_FRONT", "LIDAR_TOP"}
    monkeypatch.setattr(Policy, "masked", lambda *_: masked)
    drive = driving(log(2.0), tmp_path, more=lambda *_: [shown])
    drive.require_outcomes()
    lines = [line for line in drive.frames if line["outcome"] == "perceived"]
    assert shown.frames == [({*line["cameras"]} - masked, False) for line in lines for _ in range(2)]
    assert any("CAM_FRONT" in line["cameras"] and line["lidar"] for line in lines)


def predicted(runtime: Runtime, frame: Any, masked: set[str]) -> Prediction:
    runtime.restart()
    return runtime.perceive(runtime.admit(frame), masked)[0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--from", "nowhere"], "--from nowhere: neither zenoh nor a recording (.mcap, .db3, rosbag2)"),
        (["--from", "zenoh", "--rate", "2"], "--rate: what comes over zenoh has its own pace"),
        (["--from", "{recording}", "--budget", "soon"], "--budget soon: give milliseconds, such as 100ms"),
        (["--from", "{recording}", "--topics", "{other}"], "none of the sensors' topics /velodyne"),
        (["--from", "{recording}", "--topics", "{odd}"], "/keyframe: has messages of type std_msgs/msg/String"),
        (["--from", "{recording}", "--policy", "{policy}"], "lateness: input should be greater than 0"),
        (["--from", "{recording}", "--policy", "{misspelt}"], "--policy: sensors.LIDAR_TPO: fits none of the bundle's"),
        (
            ["--from", "{recording}", "--policy", "{tram}"],
            "--policy: score_thresholds: 'tram' is not among the classes",
        ),
    ],
)
def test_a_mistake_is_told_in_one_line(tmp_path: Path, arguments: list[str], says: str) -> None:
    files = {
        "recording": recorded(tmp_path, log()[:200]),
        "other": tmp_path / "other.yaml",
        "odd": tmp_path / "odd.yaml",
        "policy": tmp_path / "policy.yaml",
        "misspelt": tmp_path / "misspelt.yaml",
        "tram": tmp_path / "tram.yaml",
    }
    files["other"].write_text("lidars: {LIDAR_TOP: {topic: /velodyne}}\ncameras: {}\n")
    files["odd"].write_text("keyframes: null\nlidars: {LIDAR_TOP: {topic: /keyframe}}\n")
    files["policy"].write_text("lateness: -1\n")
    files["misspelt"].write_text("sensors: {'CAM_*': {any: warn}, vehicle: {any: warn}, LIDAR_TPO: {missing: stop}}\n")
    files["tram"].write_text("score_thresholds: {thresholds: {tram: [0.5]}}\n")
    assert says in refuses("drive", bundle().path, *(each.format(**files) for each in arguments))


class Before(Playback):
    """A recording all of whose messages were sent before."""

    def start(self, topics: Collection[str], receive: Receive, damage: Damage) -> None:
        self._end.set()


@pytest.mark.slow("may be the first to export")
def test_the_time_of_a_frame_is_that_of_its_last_message_however_long_it_waited(tmp_path: Path) -> None:
    """Else outputs of a process that cannot keep up would be in time, however old they are."""
    recording, policy = recorded(tmp_path, log(2.0)), Policy(lateness=PATIENT)
    topics = nuscenes_topics(keyframes=None, wait=PATIENT)
    waiting = Intake(Before(recording), topics, policy, Runtime(bundle().path, checks=False))
    began = time.monotonic()
    for raw in open_recording(recording).read(topics.names(), lambda _: None):
        waiting.receive(raw)
    came = time.monotonic()
    waiting.start()
    arrived = waiting.take(60.0)
    waiting.close()
    assert arrived is not None
    assert began <= arrived.time <= came


def test_messages_that_are_dropped_make_the_state_degraded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They come a thousand times as fast as they were recorded. The reason names the topic that loses some."""
    monkeypatch.setattr("deploy.live.backlog.MOST_MESSAGES", 2)
    drive = driving(log(2.0), tmp_path, rate=1000.0)
    dropped = drive.driven.counts["overrun"]
    assert dropped
    for topic, count in dropped.items():
        assert drive.watch.first("DEGRADED", "overrun", topic, f"{count} messages so far") < float("inf")


def test_a_message_that_no_recording_could_hold_is_dropped_alone(tmp_path: Path) -> None:
    messages = log(2.0)
    huge = Sent("/lidar_top", "sensor_msgs/msg/PointCloud2", after(1.0), bytes(1 << 17))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MOST_BYTES", max(len(each.data) for each in messages))
        assert len(huge.data) > module.MOST_BYTES
        drive = driving([*messages, huge], tmp_path)
    drive.require_outcomes()
    assert drive.driven.counts["overrun"] == {"/lidar_top": 1}
    assert "corrupt" not in drive.driven.counts
    assert drive.driven.outcomes == {"perceived": drive.driven.announced}


def test_frames_that_wait_at_the_end_of_a_recording_are_not_decoded_after_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All wait for a camera that sends nothing; the drive is stopped in the first one."""
    monkeypatch.setattr("deploy.recordings.stamps.SILENT", 10**9)  # us
    topics, policy = nuscenes_topics(keyframes=None, wait=PATIENT), Policy(lateness=PATIENT)
    watch = Watch(lambda: os.kill(os.getpid(), signal.SIGTERM) if len(watch.lines) == 1 else None)
    blind = [each for each in log(2.0) if not each.topic.startswith("/cam_back/")]
    drive = driving(blind, tmp_path, topics=topics, policy=policy, watch=watch)
    drive.require_outcomes()
    assert drive.driven.announced >= 3
    assert drive.driven.outcomes == {"perceived": 1, "stopped": drive.driven.announced - 1}
