"""What a drive leaves and shows: recordings, what Prometheus reads, and what Foxglove draws."""

import asyncio
import pickle
import re
import resource
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import numpy as np
import psutil
import pytest
from commands import one_line_error
from exported import apart, bundle
from live import PATIENT, RESULTS, Watch, driving, free_port, log, replayed
from mcap.reader import make_reader
from prometheus_client.parser import text_string_to_metric_families
from recordings import Sent, nuscenes_topics, write_raw_mcap
from repository import ROOT
from vocabulary import SENSORS

from deploy.live import record
from deploy.live.intake import Intake
from deploy.live.metrics import BUCKETS, Metrics
from deploy.live.outputs import Output, Outputs
from deploy.live.policy import Policy
from deploy.live.process import Driven
from deploy.live.record import Recorder
from deploy.live.state import WORST_LAST, Status, Supervisor
from deploy.live.view import View
from deploy.live.zenoh import Zenoh
from deploy.recordings import ros
from deploy.recordings.counts import Counts
from deploy.recordings.mcap import McapRecording
from deploy.recordings.messages import RawMessage, RecordingInfo
from deploy.replay.foxglove_results import FoxgloveWriter
from deploy.runtime import Runtime
from perception.datasets.keyframes import Reads
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.frame import Frame

MEGABYTE = 1 << 20
INFO = RecordingInfo({}, 0, "monday", "boston-seaport", "Rain")


def raw(message: Sent) -> RawMessage:
    decode: Any = partial(ros.decode, message.type_name)
    return RawMessage(message.topic, message.time, message.data, decode, decode, message.type_name)


def recorded(path: Path) -> list[Sent]:
    recording, damage = McapRecording(path), list[str]()
    found = recording.read(recording.info.counts, damage.append)
    return [Sent(each.topic, each.type_name, each.time, each.data) for each in found]


def drive_recorded(log: list[Sent] | Path, out: Path, path: Path) -> Driven:
    """Drive at the recorded pace, and record it."""

    def record_it(stack: ExitStack, intake: Intake) -> list[Output]:
        recorder = Recorder(path, intake.source.info, print)
        stack.callback(recorder.close)
        intake.tap = recorder.tap
        return [recorder]

    return driving(log, out, None, nuscenes_topics(wait=PATIENT), Policy(lateness=PATIENT), 1.0, more=record_it).driven


def test_the_replay_of_a_recording_gives_the_bytes_of_the_drive(log: list[Sent], tmp_path: Path) -> None:
    path = tmp_path / "monday.mcap"
    driven = drive_recorded(log, tmp_path / "live", path)
    assert driven.outcomes == {"perceived": driven.announced}  # else it was not fast enough here
    replay = replayed(path, tmp_path / "replay")
    for name in RESULTS:
        assert (tmp_path / "live" / name).read_bytes() == (replay / name).read_bytes()
    assert recorded(path) == [each for each in log if each.topic in driven.counts["messages"]]
    assert McapRecording(path).info.scene == "drive"  # the name of the drive, not of the file


def test_what_goes_out_is_recorded_and_what_cannot_be_is_named(log: list[Sent], tmp_path: Path) -> None:
    said = list[str]()
    recorder = Recorder(tmp_path / "a.mcap", INFO, said.append)
    for each in log:
        recorder.tap(raw(each))
        recorder.tap(raw(each)._replace(topic="/json", type_name=""))
        recorder.out("/tessera" + each.topic, each.type_name, each.data, each.time)
    recorder.close()
    assert recorded(tmp_path / "a.mcap") == [
        same for each in log for same in (each, each._replace(topic="/tessera" + each.topic))
    ]
    assert said == ["--record: /json is not recorded, because it has no messages of ROS 2's own types in CDR"]
    info = McapRecording(tmp_path / "a.mcap").info
    assert (info.scene, info.location, info.description) == ("monday", "boston-seaport", "Rain")


KILLED = """
import os, pickle, sys, time
from deploy.live.record import Recorder
from deploy.recordings.mcap import McapRecording
path, info, log = pickle.load(sys.stdin.buffer)
recorder = Recorder(path, info, print)
for each in log[:-1]:
    recorder.out(*each)
while not path.stat().st_size or sum(McapRecording(path).info.counts.values()) < len(log) - 1:
    time.sleep(0.1)
recorder.out(*log[-1])
os.kill(os.getpid(), 9)
"""


def test_a_killed_process_leaves_what_came_before(log: list[Sent], tmp_path: Path) -> None:
    path, few = tmp_path / "a.mcap", log[:40]
    given = pickle.dumps((path, INFO, [(each.topic, each.type_name, each.data, each.time) for each in few]))
    done = subprocess.run([sys.executable, "-c", KILLED], input=given, check=False, timeout=100)
    assert done.returncode == -9
    assert recorded(path) in (few[:-1], few)
    assert McapRecording(path).info.scene == "monday"


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes; writing more fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_ends_the_recording_and_not_the_drive(log: list[Sent], tmp_path: Path) -> None:
    path = tmp_path / "a.mcap"
    front = next(each for each in log if each.topic == "/cam_front/image_rect_compressed")
    damaged = front._replace(data=np.random.default_rng(0).bytes(MEGABYTE))  # nothing compresses it
    drive = write_raw_mcap(tmp_path / "drive.mcap", [*log[:20], damaged, damaged, damaged, *log[20:]])
    with disk_of(5 * MEGABYTE // 2):
        driven = drive_recorded(drive, tmp_path / "live", path)
    assert driven.counts["corrupt"][front.topic] == 3
    assert sum(driven.outcomes.values()) == driven.announced > 0
    assert (tmp_path / "live" / "tracks.json").exists()
    (reason,) = (each for each in driven.status.reasons if each.code == "output")
    assert (reason.state, reason.subject) == ("DEGRADED", "record")
    assert reason.text == "is used no more ([Errno 27] File too large)"
    read = recorded(path)
    assert read == [*(each for each in log[:20] if each.topic != "/odometry"), damaged, damaged][: len(read)]
    assert damaged in read


def test_a_recording_may_be_larger_than_what_may_wait(
    log: list[Sent], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    front = next(each for each in log if each.topic == "/cam_front/image_rect_compressed")
    large = front._replace(data=np.random.default_rng(0).bytes(MEGABYTE))
    monkeypatch.setattr(record, "MOST_WAITING", 2 * MEGABYTE)
    said, path = list[str](), tmp_path / "a.mcap"
    recorder = Recorder(path, INFO, said.append)
    for number in range(4):
        recorder.tap(raw(large))
        end = time.monotonic() + SECONDS
        while path.stat().st_size <= number * MEGABYTE and time.monotonic() < end:  # it is not written yet
            time.sleep(0.01)
    recorder.close()
    assert (recorded(path), said) == ([large] * 4, [])


def test_a_disk_that_is_too_slow_ends_the_recording_with_what_was_in_time(
    log: list[Sent], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = list[str]()
    recorder = Recorder(tmp_path / "a.mcap", INFO, said.append)
    recorder.tap(raw(log[0]))
    monkeypatch.setattr(record, "MOST_WAITING", 0)
    recorder.tap(raw(log[1]))
    monkeypatch.undo()
    recorder.tap(raw(log[2]))
    recorder.close()
    assert recorded(tmp_path / "a.mcap") == log[:1]
    assert said == [f"--record {tmp_path}/a.mcap: is not complete (the disk is too slow: 0 MiB waited to be written)"]


Scrape = dict[str, dict[tuple[str, ...], float]]  # name -> values of the labels, by their names -> value


def scrape(port: int) -> Scrape:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        found: Scrape = {}
        for family in text_string_to_metric_families(answer.read().decode()):
            for sample in family.samples:
                found.setdefault(sample.name, {})[tuple(value for _, value in sorted(sample.labels.items()))] = (
                    sample.value
                )
        return found


@pytest.mark.slow("drives, and may be the first to export")
def test_metrics_are_what_became_of_the_drive(log: list[Sent], tmp_path: Path) -> None:
    port, scrapes, ends = free_port(), list[Scrape](), list[Scrape]()
    heard = Watch(lambda: scrapes.append(scrape(port)))
    twice = [each for each in log if each.topic == "/lidar_top"][-1]
    blind = [each for each in log if not each.topic.startswith("/cam_back/")]
    path = write_raw_mcap(tmp_path / "drive.mcap", [*blind, twice])

    def serve(stack: ExitStack, intake: Intake) -> list[Output]:
        served = Metrics(str(port), intake)
        stack.callback(served.close)
        stack.callback(lambda: ends.append(scrape(port)))
        return [served]

    topics, policy = nuscenes_topics(wait=PATIENT), Policy(lateness=PATIENT, sensors={"CAM_BACK": {"missing": "mask"}})
    driven = driving(
        path, tmp_path / "out", Runtime(apart()[0].path, checks=False), topics, policy, 1.0, heard, serve
    ).driven
    for each in (*scrapes, *ends):
        outcomes = sum(each["tessera_frames_total"].values()) + each["tessera_frames_waiting"][()]
        assert outcomes == each["tessera_frames_announced_total"][()]
        assert sum(each["tessera_state"].values()) == 1
    (last,) = ends
    assert last["tessera_frames_total"] == {
        (outcome,): driven.outcomes.get(outcome, 0) for outcome in ("perceived", "superseded", "unposed")
    }
    assert {topic: count for (topic,), count in last["tessera_messages_total"].items()} == driven.counts["messages"]
    assert last["tessera_message_problems_total"] == {("duplicated", "/lidar_top"): 1}
    assert last["tessera_frames_missing_total"] == {("CAM_BACK",): driven.announced}

    perceived = [line["ms"] for line in heard.lines if line["outcome"] == "perceived"]
    assert last["tessera_latency_seconds_count"][()] == len(perceived) == driven.announced
    assert last["tessera_latency_seconds_sum"][()] == pytest.approx(1e-3 * sum(perceived))
    masked = Counter(name for line in heard.lines for name in line["masked"])
    assert last["tessera_frames_masked_total"] == {(name,): count for name, count in masked.items()}
    assert masked["CAM_BACK"] > 0
    for bound in BUCKETS:
        counted = last["tessera_latency_seconds_bucket"][str(bound),]
        assert counted == sum(each <= 1e3 * bound for each in perceived)
    for stage in heard.seen[0].seconds:
        spent = [seen.seconds[stage] for seen in heard.seen]
        assert last["tessera_stage_seconds_sum"][stage,] == pytest.approx(sum(spent))
    require_latest(last, heard)
    plain = {name for name in last if not re.search("_(created|bucket|count|sum)$", name)}
    assert documented() == plain | {"tessera_stage_seconds", "tessera_latency_seconds"}


def require_latest(last: Scrape, heard: Watch) -> None:
    """The state, the sensors, conditions and modules are those that were told last."""
    status, seen = heard.states[-1][1], heard.seen[-1]
    assert [state for (state,), value in last["tessera_state"].items() if value] == [status.state]
    assert {*last["tessera_state"]} == {(state,) for state in WORST_LAST}
    assert {*last["tessera_reason"]} == {(each.code, each.state, each.subject) for each in status.reasons}
    assert ("sensor", "DEGRADED", "CAM_BACK") in last["tessera_reason"]
    began = [{(each.code, each.subject) for each in status.reasons} for _, status in heard.states]
    for (code,), count in last["tessera_reasons_total"].items():
        new = (now - before for before, now in pairwise([set[Any](), *began]))
        assert count == sum(each == code for found in new for each, _ in found)
    unwell = {key for key, value in last["tessera_sensor_status"].items() if value and key[1] != "ok"}
    assert unwell == {(name, each.status) for name, found in seen.health.items() for each in found.findings}
    assert ("CAM_BACK", "missing") in unwell
    assert last["tessera_condition"] == {(kind, each.value or "unknown"): 1 for kind, each in seen.beliefs.items()}
    assert last["tessera_module_weight"] == {(name,): each.weight for name, each in seen.route.items()}
    assert last["tessera_module_weight"]


def documented() -> set[str]:
    """The names in the table of docs/drive.md."""
    return set(re.findall(r"^\| `(tessera_\w+)", (ROOT / "docs/drive.md").read_text(), re.MULTILINE))


@pytest.mark.slow("may be the first to export")
def test_what_cannot_be_opened_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest: Any = bundle().manifest
    nobody: Any = None
    view = View(0, manifest)
    with one_line_error(at=f"--view {view.port}: cannot listen there", says="Address already in use"):
        View(view.port, manifest)
    with one_line_error(at=f"--metrics {view.port}: cannot listen there (Address already in use); choose another"):
        Metrics(str(view.port), nobody)
    view.close()
    (tmp_path / "drive.mcap").touch()
    with one_line_error(at=f"--record {tmp_path}/drive.mcap: exists already; choose another file"):
        Recorder(tmp_path / "drive.mcap", RecordingInfo({}, 0, "drive"), print)
    with one_line_error(at=f"--record {tmp_path}/none/drive.mcap: cannot be written (No such file or directory)"):
        Recorder(tmp_path / "none" / "drive.mcap", RecordingInfo({}, 0, "drive"), print)
    monkeypatch.setitem(sys.modules, "foxglove", None)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with one_line_error(at="--view: foxglove-sdk is not installed; ", says="pip install '.[live]'"):
        View(0, manifest)
    with one_line_error(at="--metrics: prometheus_client is not installed; ", says="pip install '.[live]'"):
        Metrics(str(free_port()), nobody)


Messages = dict[str, list[tuple[int, bytes]]]  # topic -> time (ns), bytes
SECONDS = 60  # after which a client that waits has failed


class Client:
    """Subscribes to every topic, as Foxglove does by its protocol, until `count` messages came."""

    def __init__(self, port: int, count: int) -> None:
        self.messages: Messages = defaultdict(list)
        self.schemas: dict[str, str] = {}
        self.subscribed = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._listen(port, count)))
        self._thread.start()

    async def _listen(self, port: int, count: int) -> None:
        url, topics = f"ws://127.0.0.1:{port}", dict[int, str]()
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(url, protocols=("foxglove.sdk.v1",), max_msg_size=0) as socket,
        ):
            while sum(map(len, self.messages.values())) < count:
                message = await socket.receive(SECONDS)
                if message.type == aiohttp.WSMsgType.BINARY:
                    kind, channel, time = struct.unpack_from("<BIQ", message.data)
                    assert kind == 1  # a message's data
                    self.messages[topics[channel]].append((time, message.data[13:]))
                    continue
                said = message.json()
                if said["op"] == "advertise":
                    topics |= {each["id"]: each["topic"] for each in said["channels"]}
                    self.schemas |= {each["topic"]: each["schemaName"] for each in said["channels"]}
                    wanted = [{"id": each["id"], "channelId": each["id"]} for each in said["channels"]]
                    await socket.send_json({"op": "subscribe", "subscriptions": wanted})
                    self.subscribed.set()

    def end(self) -> None:
        self._thread.join(SECONDS)
        assert not self._thread.is_alive()


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture(scope="module")
def steps(recorded_root: Path) -> list[Any]:
    tables = NuScenesTables(recorded_root, "v1.0-tiny")
    runtime = Runtime(bundle().path)
    frames = [tables.frame(sample, Reads(sweeps=runtime.bundle.spec.sweeps)) for sample in tables.samples()[:2]]
    return [(frame, runtime.step(frame)) for frame in frames]


def test_a_client_gets_the_messages_that_a_replay_writes(steps: list[Any], tmp_path: Path) -> None:
    manifest = bundle().manifest
    with FoxgloveWriter.open(tmp_path / "a.mcap", manifest.heads, manifest.rig.sensors.lidars[0]) as writer:
        for frame, seen in steps:
            writer.add(frame, seen)
    expected, schemas = defaultdict(list), {}
    with (tmp_path / "a.mcap").open("rb") as file:
        for schema, channel, message in make_reader(file).iter_messages(log_time_order=False):
            expected[channel.topic].append((message.log_time, message.data))
            schemas[channel.topic] = schema.name if schema else ""
    view = View(0, manifest)
    view.add(*steps[0])  # so that the topics are known
    wait_until(lambda: "/log" in view._channels)
    client = Client(view.port, sum(map(len, expected.values())))
    assert client.subscribed.wait(SECONDS)
    while not all(channel.has_sinks() for channel in view._channels.values()):
        client._thread.join(0.01)
        assert client._thread.is_alive()
    for frame, seen in steps:
        view.add(frame, seen)
        wait_until(view._waiting.empty)
    client.end()
    view.close()
    assert client.schemas == schemas
    assert client.messages == expected  # /log too, which says all again to a new client


def test_nothing_is_drawn_for_nobody(steps: list[Any]) -> None:
    (frame, seen), unseen = steps[0], None
    view = View(0, bundle().manifest)
    view.add(frame, unseen)  # type: ignore[arg-type]
    wait_until(lambda: view._failure is not None)  # the first frame makes the topics known
    with pytest.raises(AttributeError):
        view.add(frame, unseen)  # type: ignore[arg-type]
    view.add(frame, unseen)  # type: ignore[arg-type]
    view.close()
    assert view._failure is None
    view = View(0, bundle().manifest)
    for _ in range(2):  # the second is taken when the first is drawn, and nothing is drawn of it
        view.add(frame.without({"CAM_FRONT"}, bundle().manifest.rig.sensors.lidars), seen)
        wait_until(view._waiting.empty)
    topics = {*view._channels}
    view.add(frame, seen)
    view.close()
    assert {*view._channels} - topics == {f"/cam_front/{name}" for name in ("image", "camera_info", "annotations")}


@pytest.mark.slow("may be the first to export")
def test_drawing_that_takes_long_lengthens_no_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest frame is drawn next; a drawing takes as long as several frames."""
    drawn = list[str]()

    def draw(_view: View, frame: Frame, _seen: Any) -> None:
        time.sleep(1.0)
        drawn.append(frame.token)

    def shown(stack: ExitStack, intake: Intake) -> list[Output]:
        stack.callback((view := View(0, bundle().manifest)).close)
        return [view]

    monkeypatch.setattr(View, "_draw_frame", draw)
    drive = driving(log(), tmp_path, more=shown)
    drive.require_outcomes()
    assert 1 < len(drawn) < 0.6 * len(drive.tokens)
    assert drawn == [token for token in drive.tokens if token in drawn]
    assert drawn[-1] == drive.tokens[-1]


def test_a_vehicle_without_lidar_is_shown(steps: list[Any], tmp_path: Path) -> None:
    manifest = bundle().manifest
    cameras = manifest.model_copy(update={"rig": manifest.rig.model_copy(update={"lidars": ()})})
    frame, seen = steps[0]
    view = View(0, cameras)
    view.add(frame.without_points(), seen)
    view.close()
    with FoxgloveWriter.open(tmp_path / "results.mcap", cameras.heads, "") as writer:
        writer.add(frame.without_points(), seen)
    with (tmp_path / "results.mcap").open("rb") as file:
        topics = {channel.topic for _, channel, _ in make_reader(file).iter_messages()}
    assert "/cam_front/image" in topics
    assert "/lidar_top" not in topics


class Failing(Output):
    """Fails until it is told not to."""

    def __init__(self, name: str, whole: bool) -> None:
        self.name, self.whole, self.fails, self.said = name, whole, True, 0

    def report(self, status: Status) -> None:
        if self.fails:
            raise OSError("gone")
        self.said += 1


def test_an_output_that_fails_is_tried_again_unless_it_would_lack_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.live.outputs.PAUSE", 0.05)  # s
    again, whole = Failing("publish", False), Failing("record", True)
    intake: Any = SimpleNamespace(period=0.1, outcomes=Counter(), counts=Counts(SENSORS), lacking={}, unheard=[])
    supervisor = Supervisor(Policy(), intake, None)

    def failed() -> set[str]:
        return {each.subject for each in supervisor.status().reasons if each.code == "output"}

    outputs = Outputs([again, whole], supervisor)
    outputs.report(Status(()))
    assert failed() == {"publish", "record"}
    again.fails = whole.fails = False
    time.sleep(0.06)
    outputs.report(Status(()))
    assert (again.said, whole.said) == (1, 0)
    assert failed() == {"record"}


def test_metrics_and_zenoh_listen_on_this_machine_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ZENOH_SESSION_CONFIG_URI", "ZENOH_CONFIG_OVERRIDE"):
        monkeypatch.delenv(name, raising=False)
    before = listening()
    intake: Any = None
    with closing(Metrics(str(free_port()), intake)), closing(Zenoh()):
        addresses = listening() - before
        assert {address for address, _ in addresses} <= {"127.0.0.1", "::1"}
        assert len(addresses) >= 2
    monkeypatch.setenv("ZENOH_CONFIG_OVERRIDE", 'listen/endpoints=["tcp/0.0.0.0:0"];mode="peer"')
    for told in (lambda: Metrics(f"0.0.0.0:{free_port()}", intake), Zenoh):
        with closing(told()):
            assert {address for address, _ in listening() - before} == {"0.0.0.0"}


def listening() -> set[tuple[str, int]]:
    """Addresses and ports at which this process listens."""
    return {each.laddr for each in psutil.Process().net_connections("tcp") if each.status == psutil.CONN_LISTEN}
