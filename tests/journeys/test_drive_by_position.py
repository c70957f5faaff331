"""A recording of time, position and wipers alone, replayed: belief and route cross a border, a sunset and a shower."""

import json
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from commands import refuses, succeeds
from exported import QUIET, checkpoint_of
from fixes import fix, message
from foxglove_schemas_protobuf.LocationFix_pb2 import LocationFix
from geofences import box, feature, polygon, written
from make_log import make, transform
from pages import page_data
from recordings import Sent, assembled, edited, write_raw_mcap
from training_runs import small

from deploy.export import export
from deploy.replay.sources import foxglove
from deploy.replay.sources.messages import CorruptMessage, Fix
from perception.config import Data
from perception.modules.spec import LowRank
from perception.scene.sun import elevation

LATITUDE, BORDER = 48.1, 11.6
SUNSET_AT, BORDER_AT, FRAMES = 4.75, 8.25, 24  # s, s, at 2 Hz
WIPED_AT = 8.05  # s; from 4 to 6.5 s the wipers flap
EVIDENCE = """
sources:
  - {source: tags}
  - {source: sun, bands: [{value: day, above: -0.8333}, {value: night}]}
  - {source: geofences, file: areas.geojson}
  - source: signals
    signals:
      wipers: {topic: /vehicle/wipers, timeout: 0.5}
    rules:
      - {when: wipers < 1, says: {clear: 0.98}, hold: 1}
      - {when: wipers >= 1, says: {rain: 0.98}, hold: 1}
  - {source: recognised}
"""


@cache
def begin() -> int:
    """So many us since 1970 that the sun sets after SUNSET_AT."""
    noon = round(datetime(2026, 3, 20, 11, 20, tzinfo=timezone.utc).timestamp()) * 1_000_000
    moments = noon + np.arange(0, 43_200_000_000, 10_000)
    return int(moments[np.argmax(elevation(moments, LATITUDE, BORDER) < -0.8333)]) - round(SUNSET_AT * 1e6)


def wipers() -> list[Sent]:
    """At 10 Hz: off, flapping, off, and on from WIPED_AT."""
    moments = [0.1 * i for i in range(5 * FRAMES)]
    states = [(4 <= moment < 6.5 and i % 2 == 0) or moment > WIPED_AT for i, moment in enumerate(moments)]
    made = [make("std_msgs/msg/UInt8", data=2 * state) for state in states]
    return [message("/vehicle/wipers", begin() + round(1e6 * at), each) for at, each in zip(moments, made, strict=True)]


def log() -> list[Sent]:
    """Poses, keyframes without tags, and fixes 0.1 s after them."""
    sent = []
    for i in range(FRAMES):
        stamp = begin() + 500_000 * i
        pose = np.array([10.0 * i, 0, 0, 1, 0, 0, 0])
        moved = make("tf2_msgs/msg/TFMessage", transforms=[transform(stamp, "map", "base_link", pose)])
        known = {"stamp": stamp, "token": f"frame-{i}", "scene": "drive", "sweeps": []}
        # The sun of the border's meridian: 0.001 degrees are a quarter of a second.
        longitude = BORDER + 1e-5 * (0.5 * i - BORDER_AT)
        sent += [
            message("/tf", stamp, moved),
            message("/keyframe", stamp, make("std_msgs/msg/String", data=json.dumps(known))),
            fix(stamp + 100_000, LATITUDE, longitude),
        ]
    return sent


@dataclass(frozen=True)
class Replayed:
    recording: Path
    bundle: Path
    folder: Path  # of the evidence
    out: Path


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory) -> Replayed:
    """By the command, through a bundle with a route for the night and for one of the cities."""
    modules = tuple(
        LowRank(name=name, rank=2, slots=("trunk.*",), when=(condition,))
        for name, condition in (("dark", "night"), ("left", "singapore"), ("wet", "rain"))
    )
    run = checkpoint_of(small().model_copy(update={"name": "position", "modules": modules, "data": Data(augment=None)}))
    folder = tmp_path_factory.mktemp("position")
    routes = [[], ["night"], ["night", "singapore"], ["night", "singapore", "rain"]]
    bundle = export(run, folder / "bundle", routes, console=QUIET).path
    west, east = polygon(box(11, 48, BORDER, 49)), polygon(box(BORDER, 48, 12, 49))
    written(folder, feature(west, city="boston"), feature(east, city="singapore"))
    (folder / "evidence.yaml").write_text(EVIDENCE)
    recording = write_raw_mcap(folder / "drive.mcap", sorted(log() + wipers(), key=lambda each: each.time))
    evidence = folder / "evidence.yaml"
    succeeds("replay", recording, "--bundle", bundle, "--evidence", evidence, "--out", folder / "out", "--json")
    return Replayed(recording, bundle, folder, folder / "out")


def test_belief_and_route_follow_time_and_position(replayed: Replayed) -> None:
    """Within 2 s; and the report says why."""
    lanes = {(lane["kind"], lane["name"]): lane["spans"] for lane in page_data(replayed.out / "report.html")["lanes"]}
    for kind, values, at, source, module in (
        ("light", ["day", "night"], SUNSET_AT, "sun", "dark"),
        ("city", ["boston", "singapore"], BORDER_AT, "geofences", "left"),
    ):
        believed = lanes["conditions", kind]
        assert [span["value"] for span in believed] == values
        assert believed[0]["why"] == f"{values[0]} since 0.0 s by {source}: 1 of 1 frames"
        assert 0 < 0.5 * believed[1]["from"] - at <= 2
        assert f" by {source}: 3 of 4 frames" in believed[1]["why"]
        assert [(span["value"], span["from"]) for span in lanes["route", module]] == [
            ("0", 0), ("1", believed[1]["from"])
        ]  # fmt: skip
        assert f" by {source}: " in lanes["route", module][1]["why"]


def test_belief_and_route_follow_the_wipers(replayed: Replayed) -> None:
    """Not when they flap; within 2 s after they have been on for the second that the rule wants."""
    lanes = {(lane["kind"], lane["name"]): lane["spans"] for lane in page_data(replayed.out / "report.html")["lanes"]}
    believed = lanes["conditions", "weather"]
    assert [span["value"] for span in believed] == ["", "clear", "rain"]
    assert 0 < 0.5 * believed[2]["from"] - WIPED_AT - 1 <= 2
    assert believed[2]["why"].startswith("rain since ")
    assert " by signals: " in believed[2]["why"]
    assert [(span["value"], span["from"]) for span in lanes["route", "wet"]] == [("0", 0), ("1", believed[2]["from"])]
    assert " by signals: " in lanes["route", "wet"][1]["why"]


def test_the_replay_says_by_which_sources(replayed: Replayed) -> None:
    used = json.loads((replayed.out / "replay.json").read_text())["evidence"]
    assert used[0] == "tags"
    assert used[1] == "sun (light: day -0.8333, night -90)"
    assert used[2].startswith("geofences (areas.geojson ")
    assert used[3].startswith("signals (wipers < 1; wipers >= 1 ")
    assert page_data(replayed.out / "report.html")["bundle"]["evidence"] == ", ".join(used)
    counts = json.loads((replayed.out / "sources.json").read_text())[0]
    assert counts["messages"]["/gps"] == FRAMES
    assert counts["messages"]["/vehicle/wipers"] == len(wipers())
    assert not {"corrupt", "late", "duplicated"} & counts.keys()


def test_another_evidence_is_another_replay(replayed: Replayed, tmp_path: Path) -> None:
    given = ("replay", replayed.recording, "--bundle", replayed.bundle, "--out", tmp_path / "out")
    assert "was replayed with evidence tags, sun" in refuses(*given, "--baseline", replayed.out)
    for text, says in (
        ("{source: moon}", "evidence.yaml: sources.1: "),
        (
            "{source: signals, signals: {fog_lamp: {timeout: 5}}, rules: [{when: fog_lamps, says: {rain: 0.9}}]}",
            "evidence.yaml: sources.1: rules.0.when: fog_lamps is none of the signals fog_lamp",
        ),
    ):
        (tmp_path / "evidence.yaml").write_text(f"sources: [{{source: sun}}, {text}]")
        assert says in refuses(*given, "--evidence", tmp_path / "evidence.yaml")


def test_a_fix_is_used_for_two_seconds() -> None:
    sent = [each for i, each in enumerate(log()) if each.topic != "/gps" or i // 3 < 4]
    frames, counts = assembled(sent)
    assert [frame.position is not None for frame in frames] == [i <= 7 for i in range(FRAMES)]
    assert frames[0].position == pytest.approx((LATITUDE, BORDER - 1e-5 * BORDER_AT))
    assert frames[2].position != frames[1].position
    assert "corrupt" not in counts.summary()


def test_a_receiver_without_a_fix_and_a_position_that_is_none() -> None:
    first = log()[:2]
    stamp = first[0].time
    for without in (
        fix(stamp, float("nan"), float("nan"), status=-1),
        edited(fix(stamp, 1, 2), stamp=stamp - 3_000_000),
    ):
        (frame,), counts = assembled([without, *first])
        assert frame.position is None
        assert "corrupt" not in counts.summary()
    for latitude, longitude in ((float("nan"), 11.0), (91.0, 11.0), (48.0, 181.0)):
        (frame,), counts = assembled([fix(stamp, latitude, longitude), *first])
        assert frame.position is None
        assert counts.summary()["reasons"] == {"/gps": {"a position that is not on earth": 1}}


def test_a_recorded_map_of_nuscenes_has_its_position() -> None:
    stamp, frames = begin(), log()[:1]
    known = {"stamp": stamp, "token": "a", "scene": "drive", "location": "boston-seaport", "sweeps": []}
    keyframe = message("/keyframe", stamp, make("std_msgs/msg/String", data=json.dumps(known)))
    (frame,), _ = assembled([*frames, keyframe])
    assert frame.position == pytest.approx((42.336849169438615, -71.05785369873047))


@pytest.mark.parametrize("stamped", [True, False])
def test_a_fix_in_foxgloves_schema(stamped: bool) -> None:
    message = LocationFix(latitude=1.5, longitude=103.8)
    if stamped:
        message.timestamp.FromMicroseconds(1_700_000_000_000_000)
    assert foxglove.CONVERTERS["foxglove.LocationFix"](message) == [Fix(stamped * 1_700_000_000_000_000, 1.5, 103.8)]
    message.latitude = 95
    with pytest.raises(CorruptMessage, match="a position that is not on earth"):
        foxglove.CONVERTERS["foxglove.LocationFix"](message)
