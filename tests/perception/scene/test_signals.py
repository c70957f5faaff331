"""Signals of the vehicle as evidence: comparisons, holds and timeouts, and what recordings have of them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import one_line_error
from google.protobuf.wrappers_pb2 import DoubleValue
from hypothesis import given
from hypothesis import strategies as st
from mcap.writer import Writer
from mcap_protobuf.schema import build_file_descriptor_set
from recordings import SPEC, fix, message, nuscenes_topics, write_raw_mcap
from repository import ROOT
from rosbags.rosbag2 import Reader
from rosbags.rosbag2 import Writer as RosbagWriter
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from vocabulary import CONDITIONS, sensors

from deploy.log import STORAGES as WRITERS
from deploy.log import Message, header, make, transform
from deploy.recordings.drives import RecordedDrive
from deploy.recordings.latest import Readings
from deploy.recordings.mcap import McapRecording
from deploy.recordings.messages import CorruptMessage
from deploy.recordings.ros import cdr_parser
from deploy.recordings.rosbag import RosbagRecording
from perception.frame import Frame, Prediction, Reading
from perception.scene.scene import Scene
from perception.scene.signals import SignalConfig, Signals, SignalsConfig
from perception.scene.sources import Sources, load_sources

SECOND = 1_000_000  # us


def frame_at(timestamp: int, signals: Mapping[str, Sequence[Reading]] | None = None) -> Frame:
    return Frame(str(timestamp), timestamp, "ego", np.eye(4), np.eye(4), None, {}, scene="drive", signals=signals or {})


def ruled(when: str, hold: float = 0.0, **signal: Any) -> Signals:
    rule = {"when": when, "says": {"rain": 0.9}, "hold": hold}
    content = {"source": "signals", "signals": {"a": {"timeout": 5.0} | signal}, "rules": [rule]}
    return Signals(SignalsConfig.model_validate(content), CONDITIONS)


@given(
    st.sampled_from(["a >= {}", "a<={}", " a  == {} "]),
    st.sampled_from([-2.0, 0.0, 0.5, 1.0, 2e3]),
    st.sampled_from([-2.0, 0.0, 0.5, 1.0, 2e3, "R", "0.5"]),
)
def test_a_comparison_is_true_where_python_says_so(when: str, limit: float, value: float | str) -> None:
    """A number and a word are never equal."""
    truth = not isinstance(value, str) and bool(eval(when.strip().format(limit), {}, {"a": value}))
    assert bool(ruled(when.format(limit)).evidence(frame_at(0, {"a": [Reading(0, value)]}))) == truth


def test_words_are_equal_or_not() -> None:
    for value, speaks in (("R", True), ("r", False), (0.0, False)):
        assert bool(ruled("a == R").evidence(frame_at(0, {"a": [Reading(0, value)]}))) == speaks


def readings_of(values: Sequence[float]) -> st.SearchStrategy[list[Reading]]:
    """At 1 to 6 tenths of a second after each other."""
    steps = st.lists(st.tuples(st.integers(1, 6), st.sampled_from(values)), min_size=10, max_size=30)
    times = lambda each: np.cumsum([step for step, _ in each]).tolist()  # noqa: E731
    return steps.map(
        lambda each: [Reading(at * SECOND // 10, value) for at, (_, value) in zip(times(each), each, strict=True)]
    )


@given(
    readings_of([1.0, 1.0, 1.0, 1.0, 0.0, np.nan]),
    st.sampled_from([0.3, 1.0]),
    st.sampled_from([0.0, 0.5, 1.2]),
    st.integers(1, 9),
)
def test_a_rule_holds_where_a_fine_grid_says_so(a, timeout, hold, every):
    """At every tenth of a second the values are those of the latest readings, unless these have timed out."""
    tenth = SECOND // 10
    signals = ruled("a >= 1", hold, timeout=timeout)

    def true_at(moment: int) -> bool:
        latest = [each for each in a if each.timestamp <= moment][-1:]
        return bool(latest) and moment - latest[0].timestamp <= timeout * SECOND and latest[0].value >= 1

    for now in range(0, 61 * tenth, every * tenth):
        # Just before a reading, a value may have timed out; half a tenth later all times are between two readings.
        grid = [now - step * (tenth // 2) for step in range(round(20 * hold) + 1)]
        found = signals.evidence(frame_at(now, {"a": [x for x in a if x.timestamp <= now]}))
        assert bool(found) == all(true_at(moment) for moment in grid)
        assert not found or found == [{"weather": [pytest.approx(0.05), 0.9, pytest.approx(0.05)]}]


def test_the_latest_reading_alone_is_enough_and_nonsense_says_nothing() -> None:
    """And a clock that is set back does not freeze a signal."""
    signals, now = ruled("a >= 1", valid=(0, 3)), SECOND
    for value, speaks in ((1.0, True), (4.0, False), (2.0, True), (np.inf, False), (3.0, True), ("on", False)):
        signals.begin()
        assert bool(signals.evidence(frame_at(now, {"a": [Reading(now, value)]}))) == speaks
    signals.begin()
    for at, sent in ((100, True), (50, False), (51, True)):
        readings = {"a": [Reading(at * SECOND, 1.0)]} if sent else {}
        assert bool(signals.evidence(frame_at(at * SECOND, readings))) == sent


RULE = "{when: a >= 1, says: {rain: 0.99}}"


def loaded(folder: Path, *signals: str, rule: str = RULE) -> Sources:
    """A source for each of the signals."""
    each = (f"{{source: signals, signals: {{a: {{{signal}}}}}, rules: [{rule}]}}" for signal in signals)
    (folder / "evidence.yaml").write_text(f"sources: [{', '.join(each)}]")
    return load_sources(folder / "evidence.yaml", CONDITIONS)


def test_another_drive_begins_without_signals(tmp_path: Path) -> None:
    scene = Scene(sensors(), {}, CONDITIONS, {}, loaded(tmp_path, "timeout: 5"))
    for sent, value, why in (
        ({"a": [Reading(0, 2.0)]}, "rain", "rain since 0.0 s by signals: "),
        ({}, None, "nothing"),
    ):
        scene.restart()
        frame = frame_at(SECOND, sent)
        scene.observe(frame)
        belief = scene.update(frame, Prediction({})).beliefs["weather"]
        assert belief.value == value
        assert belief.why.startswith(why)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{when: a >= 1, says: {hail: 0.9}}", "rules.0.says: hail is no value of a condition; there are "),
        ("{when: a >= 1, says: {rain: 0.9, fog: 0.2}}", "rules.0.says: the probabilities of rain, fog are more"),
        ("{when: a >= 1, says: {rain: 1.2}}", "rules.0.says.rain: .*less than or equal to 1"),
        ("{when: b >= 1, says: {rain: 0.9}}", "rules.0.when: b is none of the signals a"),
        ("{when: a >= 1 and a <= 2, says: {rain: 0.9}}", "rules.0.when: 'a >= 1 and a <= 2' is no condition"),
        ("{when: a >= on, says: {rain: 0.9}}", "rules.0.when: on is no number, and a word has no order"),
        ("{when: a >= 1, says: {}}", "rules.0.says: "),
    ],
)
def test_a_wrong_rule_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    with one_line_error(f"sources.0.*{message}"):
        loaded(tmp_path, "timeout: 5", rule=text)


def test_a_signal_has_one_meaning_and_a_timeout(tmp_path: Path) -> None:
    assert set(loaded(tmp_path, "timeout: 5", "timeout: 5").signals) == {"a"}
    with one_line_error("sources.1: the signal a is another one in a source above"):
        loaded(tmp_path, "timeout: 5", "timeout: 6")
    with one_line_error("sources.0.signals.signals.a.timeout: field required"):
        loaded(tmp_path, "")
    shipped = load_sources(ROOT / "configs" / "evidence" / "signals.yaml", CONDITIONS)
    assert [about.split(" ")[0] for about in shipped.about] == ["tags", "signals", "recognised"]
    assert set(shipped.signals) == {"wipers", "rain_sensor", "fog_lamp"}


BODY = """
float32 OFF=0.0
std_msgs/Header header
Lamp[] lamps
Lamp main
string gear
================================================================================
MSG: car/Lamp
bool low_beam
float64[3] watts
================================================================================
MSG: std_msgs/Header
builtin_interfaces/Time stamp
string frame_id
================================================================================
MSG: builtin_interfaces/Time
int32 sec
uint32 nanosec
"""
AIR = {"header": header(7 * SECOND, ""), "temperature": -4.5, "variance": 0.0}
SENT = {
    "/bool": ("std_msgs/msg/Bool", {"data": True}, 1.0),
    "/float32": ("std_msgs/msg/Float32", {"data": 0.25}, 0.25),
    "/float64": ("std_msgs/msg/Float64", {"data": float("nan")}, float("nan")),
    "/int8": ("std_msgs/msg/Int8", {"data": -3}, -3.0),
    "/uint64": ("std_msgs/msg/UInt64", {"data": 1 << 40}, float(1 << 40)),
    "/text": ("std_msgs/msg/String", {"data": "heavy"}, "heavy"),
    "/air": ("sensor_msgs/msg/Temperature", AIR, -4.5),
}
WANTED = {name.strip("/"): SignalConfig(topic=name, timeout=5.0) for name in SENT}
BODY_FIELDS = {"beam": "lamps.1.low_beam", "watts": "main.watts.2", "gear": "gear"}
BODY_SIGNALS = {name: SignalConfig(topic="/body", field=field, timeout=5.0) for name, field in BODY_FIELDS.items()}
CAR = get_typestore(Stores.EMPTY)
CAR.register(get_types_from_msg(BODY, "car/msg/Body"))


def read(path: Path, wanted: Mapping[str, SignalConfig]) -> dict[str, Reading]:
    """The last reading of each signal of a recording without damage."""
    recording = McapRecording(path) if path.suffix == ".mcap" else RosbagRecording(path)
    readings, damage = Readings(wanted), list[str]()
    for raw in recording.read(readings.topics, damage.append):
        readings.add(raw.topic, raw.time, raw.parse(raw.data))
    assert not damage
    return {name: each[-1] for name, each in readings.at(1 << 53).items()}


@pytest.mark.parametrize("storage", WRITERS)
def test_standard_messages_are_read(tmp_path: Path, storage: str) -> None:
    """At their stamp, or at the time of recording."""
    path = tmp_path / ("drive.mcap" if storage == "file" else "drive")
    messages = [Message(topic, kind, 9 * SECOND, make(kind, **fields)) for topic, (kind, fields, _) in SENT.items()]
    WRITERS[storage](path, iter(messages), {topic: kind for topic, (kind, *_) in SENT.items()})
    found = read(path, WANTED)
    for topic, (_, _, value) in SENT.items():
        reading = found[topic.strip("/")]
        assert repr(reading.value) == repr(value)
        assert reading.timestamp == (7 if topic == "/air" else 9) * SECOND


def body_of_a_car() -> bytes:
    lamps = [CAR.types["car/msg/Lamp"](low_beam=bool(i), watts=np.arange(3.0) + i) for i in range(3)]
    stamp = CAR.types["builtin_interfaces/msg/Time"](sec=8, nanosec=500_000_000)
    head = CAR.types["std_msgs/msg/Header"](stamp=stamp, frame_id="")
    body = CAR.types["car/msg/Body"](header=head, lamps=lamps[:2], main=lamps[2], gear="R")
    return bytes(CAR.serialize_cdr(body, "car/msg/Body"))


def one_message(path: Path, topic: str, encoding: str, schema: tuple[str, str, bytes], data: bytes) -> Path:
    """An MCAP file with it, recorded at 9000 s."""
    with path.open("wb") as file:
        writer = Writer(file)
        writer.start(profile="ros2" if encoding == "cdr" else "")
        channel = writer.register_channel(topic, encoding, writer.register_schema(*schema))
        writer.add_message(channel, 9000 * SECOND, data, 9000 * SECOND)
        writer.finish()
    return path


def test_fields_of_any_message_are_read_by_the_schema_that_the_recording_carries(tmp_path: Path) -> None:
    data, bag = body_of_a_car(), tmp_path / "drive"
    mcap = one_message(tmp_path / "drive.mcap", "/body", "cdr", ("car/msg/Body", "ros2msg", BODY.encode()), data)
    with RosbagWriter(bag, version=9) as writer:
        writer.write(writer.add_connection("/body", "car/msg/Body", typestore=CAR), 9000 * SECOND, data)
    with Reader(bag) as reader:
        assert "Lamp" in reader.connections[0].msgdef.data
    for path in (mcap, bag):
        found = {name: (each.timestamp, each.value) for name, each in read(path, BODY_SIGNALS).items()}
        assert found == {"beam": (8_500_000, 1.0), "watts": (8_500_000, 4.0), "gear": (8_500_000, "R")}


def test_fields_in_json_and_protobuf_are_read(tmp_path: Path) -> None:
    described, rain = build_file_descriptor_set(DoubleValue).SerializeToString(), DoubleValue(value=2.5)
    for encoding, schema, data in (
        ("json", ("car.Rain", "jsonschema", b"{}"), b'{"value": 2.5}'),
        ("protobuf", ("google.protobuf.DoubleValue", "protobuf", described), rain.SerializeToString()),
    ):
        path = one_message(tmp_path / "drive.mcap", "/rain", encoding, schema, data)
        wanted = {"rain": SignalConfig(topic="/rain", field="value", timeout=5.0)}
        assert read(path, wanted) == {"rain": Reading(9 * SECOND, 2.5)}


@pytest.mark.parametrize(
    "schema",
    [
        "this is no schema", "car/Other other", "Body inner", "float32 data\n" * 50, "float32 __class__",
        "Lamp[900000] lamps\n" + "=" * 80 + "\nMSG: car/Lamp\nbool on", "float32 data" + " " * (1 << 20),
    ],
)  # fmt: skip
def test_a_damaged_schema_makes_its_messages_corrupt(schema: str) -> None:
    with pytest.raises(CorruptMessage):
        cdr_parser("car/msg/Body", schema, "msg")(b"\x00\x01\x00\x00" + bytes(8))


parse_body = cdr_parser("car/msg/Body", BODY, "msg")


@given(st.integers(0, 199), st.integers(0, 255), st.integers(0, 200))
def test_damaged_bytes_give_a_reading_or_are_corrupt(place: int, byte: int, length: int) -> None:
    data = bytearray(body_of_a_car())
    data[min(place, len(data) - 1)] = byte
    readings = Readings(BODY_SIGNALS)
    try:
        readings.add("/body", SECOND, parse_body(bytes(data[:length])))
    except CorruptMessage:
        return
    assert all(isinstance(each[-1].value, float | str) for each in readings.at(1 << 53).values())


def test_a_schema_in_idl_is_read_and_constants_are_not_run() -> None:
    idl, head = "module car { module msg { struct Rain { double share; uint8 level; }; }; };", b"\x00\x01\x00\x00"
    for schema in (idl, f"{'=' * 80}\nIDL: car/msg/Rain\n{idl}"):
        rain = cdr_parser("car/msg/Rain", schema, "idl")(head + np.float64(0.5).tobytes() + b"\x03")
        assert (rain.share, rain.level) == (0.5, 3)
    parse = cdr_parser("car/msg/Rain", "string X=\"__import__('os').abort()\"\nfloat32 data\n", "msg")
    assert parse(head + np.float32(1.5).tobytes()).data == 1.5
    assert not hasattr(parse(head + bytes(4)), "X")


def test_messages_without_the_field_are_counted(tmp_path: Path) -> None:
    """And what else their topic is read for, such as the pose, stays."""
    log = []
    for i in range(6):
        stamp, pose = (9 + i) * SECOND, np.array([10.0 * i, 0, 0, 1, 0, 0, 0])
        moved = make("tf2_msgs/msg/TFMessage", transforms=[transform(stamp, "map", "base_link", pose)])
        known = {"stamp": stamp, "token": f"frame-{i}", "scene": "drive", "sweeps": []}
        keyframe = make("std_msgs/msg/String", data=json.dumps(known))
        log += [message("/tf", stamp, moved), message("/keyframe", stamp, keyframe), fix(stamp + 9, 48.1, 11 + i)]
    path, place = write_raw_mcap(tmp_path / "drive.mcap", log), "transforms.0.transform.translation.x"
    topics = {"east": ("/gps", "longitude"), "elsewhere": ("/not/there", None), "place": ("/tf", place)}
    wanted = {name: SignalConfig(topic=topic, field=field, timeout=5.0) for name, (topic, field) in topics.items()}
    drive = RecordedDrive(path, nuscenes_topics(), SPEC, None, wanted | {"none": SignalConfig(timeout=5.0)})
    frames = list(drive.frames())
    assert all(frame.signals["place"][-1].value == 10.0 * i for i, frame in enumerate(frames))
    assert [frame.signals["east"][-1].value for frame in frames[1:]] == [11 + i for i in range(5)]
    assert "east" not in frames[0].signals  # 9 us later
    assert "none" not in frames[-1].signals
    assert "corrupt" not in drive.counts.summary()
    assert drive.counts.summary()["messages"]["/not/there"] == 0
    level = SignalConfig(topic="/tf", field="level", timeout=5.0)
    drive = RecordedDrive(path, nuscenes_topics(), SPEC, None, {"level": level})
    assert len(list(drive.frames())) == len(frames)
    assert drive.counts.summary()["reasons"] == {"/tf": {"a message without the signal's field": len(frames)}}
