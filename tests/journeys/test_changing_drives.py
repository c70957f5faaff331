"""Drives whose conditions change: belief and route follow tags, pictures, or position and the vehicle's signals."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from commands import perception
from exported import QUIET, checkpoint_of
from maps import box, feature, polygon, write_map
from networks import small
from pages import page_data
from recordings import Sent, assemble, edit, fix, message, write_raw_mcap
from simulated import with_pictures

from deploy.export import export
from deploy.log import make, transform
from deploy.replay.run import replay
from deploy.replay.settings import Settings, Source
from perception.config import Data
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.errors import InputError
from perception.frame import Conditions
from perception.modules.computation.weight_delta import LowRank
from perception.simulate.simulate import simulate
from perception.training.adapt import add_task


def spans(report: Path, kind: str, name: str) -> list[tuple[str, float]]:
    """What was in force, and from when on (s)."""
    (lane,) = [lane for lane in page_data(report)["lanes"] if (lane["kind"], lane["name"]) == (kind, name)]
    return [(span["value"], 0.5 * span["from"]) for span in lane["spans"]]


# ---- from clear into rain and into a tunnel, by tags and by what is recognised

CHANGES = {"rain": 2.75, "night": 5.75}  # s
SAMPLES, VERSION = 18, "v1.0-sim"
ROUTES: list[list[str]] = [
    [],
    ["rain"],
    ["night"],
    ["rain", "night"],
    ["night", "singapore"],
    ["night", "singapore", "rain"],
]
# Lamps of the tunnel and wiper strokes: single frames, at 2 Hz.
OUTLIERS = ("blackout:cameras@1.4-1.6", "noise:cameras,levels=90@5.0-5.1", "blur:cameras,pixels=40@8.4-8.6")


class Changing(NamedTuple):
    tables: NuScenesTables
    finished: Path  # a base and modules with random weights
    recognising: Path  # with a recogniser that learned on these very drives: how well it generalises is not asked here
    bundle: Path


@pytest.fixture(scope="module")
def changing(tmp_path_factory: pytest.TempPathFactory) -> Changing:
    """Two drives alike, since a recogniser takes two that show a value; the first is replayed."""
    folder, rig = tmp_path_factory.mktemp("changing"), with_pictures(5)
    simulate(folder / "drives", 2, SAMPLES, 0, ["clear-day-boston/rain-day-boston/rain-night-boston"], rig=rig)
    modules = tuple(
        LowRank.Options(name=name, rank=2, slots=("fuse*", "trunk.*"), when=(condition,))
        for name, condition in (("wet_road", "rain"), ("dark", "night"), ("left", "singapore"))
    )
    own = {"name": "changing", "rig": rig, "modules": modules, "data": Data(augment=None)}
    finished, tables = checkpoint_of(small().model_copy(update=own)), NuScenesTables(folder / "drives", VERSION, rig)
    run = folder / "recognising"
    add_task(finished, "conditions", {}, tables, "all", (), run)
    return Changing(tables, finished, run, export(run, folder / "bundle", ROUTES, console=QUIET).path)


def replayed(changing: Changing, out: Path, **settings: Any) -> Path:
    """The report."""
    source = Source(changing.tables.dataroot, VERSION, ["scene-0001"])
    replay(source, changing.bundle, out, Settings(**settings), console=QUIET)
    return out / "report.html"


def require_following(report: Path, limit: int) -> None:
    """The route, and what is believed: once per change, within so many s."""
    for kind, module, values in (("weather", "wet_road", ["clear", "rain"]), ("light", "dark", ["day", "night"])):
        believed = [(value, start) for value, start in spans(report, "conditions", kind) if value]
        assert [value for value, _ in believed] == values, believed
        route = spans(report, "route", module)
        assert [value for value, _ in route] == ["0", "1"], route
        assert route[1][1] == believed[1][1]
        assert 0 < route[1][1] - CHANGES[values[1]] <= limit, route


TAGGED = {"weather": [("clear", 0.0), ("rain", 3.0)], "light": [("day", 0.0), ("night", 6.0)]}


@pytest.mark.slow("simulates 36 keyframes, fits a recogniser to them and exports it with six routes")
def test_the_route_follows_what_is_recognised_and_no_wiper_stroke(changing: Changing, tmp_path: Path) -> None:
    """The vehicle is told nothing."""
    report = replayed(changing, tmp_path, faults=OUTLIERS, conditions=Conditions())
    require_following(report, 3)  # it is less sure than a tag
    assert {kind: spans(report, "tags", kind) for kind in TAGGED} == TAGGED
    with pytest.raises(InputError, match="holds a trained run already"):
        add_task(changing.finished, "conditions", {}, changing.tables, "all", (), changing.recognising)


@pytest.mark.slow("replays by commands")
def test_the_route_follows_the_tags_unless_the_vehicle_is_told_others(changing: Changing, tmp_path: Path) -> None:
    """By tags three frames of another condition are believed; the third comes 1 s after the first."""
    told = Conditions(weather="clear", light="day", city="boston")
    report = replayed(changing, tmp_path / "tagged")
    require_following(report, 2)
    assert [spans(report, "route", module)[1][1] for module in ("wet_road", "dark")] == [4.0, 7.0]
    report = replayed(changing, tmp_path / "told", conditions=told)
    assert spans(report, "route", "wet_road") == spans(report, "route", "dark") == [("0", 0.0)]
    assert spans(report, "tags", "weather") == TAGGED["weather"]


# ---- a recording of positions and signals alone: across a border, into the dark and into a shower

LATITUDE, BORDER = 48.1, 11.6
DARK_AT, BORDER_AT, FRAMES = 4.75, 8.25, 24  # s, s, at 2 Hz
WIPED_AT = 8.05  # s; from 4 to 6.5 s the wipers flap
EVIDENCE = """
sources:
  - {source: tags}
  - {source: geofences, file: areas.geojson}
  - source: signals
    signals:
      lux: {topic: /vehicle/light, timeout: 0.5}
      wipers: {topic: /vehicle/wipers, timeout: 0.5}
    rules:
      - {when: lux >= 400, says: {day: 1.0}}
      - {when: lux <= 399, says: {night: 1.0}}
      - {when: wipers == 0, says: {clear: 0.98}, hold: 1}
      - {when: wipers >= 1, says: {rain: 0.98}, hold: 1}
  - {source: recognised}
"""


BEGIN = 1_774_000_000_000_000  # us


def signals() -> list[Sent]:
    """At 10 Hz: light until DARK_AT; wipers that are off, flapping, off, and on from WIPED_AT."""
    sent = []
    for i, at in enumerate(0.1 * np.arange(5 * FRAMES)):
        on = (4 <= at < 6.5 and i % 2 == 0) or at > WIPED_AT
        light = make("std_msgs/msg/Float32", data=5000.0 if at < DARK_AT else 2.5)
        now = BEGIN + round(1e6 * at)
        sent.append(message("/vehicle/light", now, light))
        sent.append(message("/vehicle/wipers", now, make("std_msgs/msg/UInt8", data=2 * int(on))))
    return sent


def keyframe(number: int, **more: str) -> list[Sent]:
    """A pose and a keyframe without tags."""
    stamp = BEGIN + 500_000 * number
    pose = np.array([10.0 * number, 0, 0, 1, 0, 0, 0])
    moved = make("tf2_msgs/msg/TFMessage", transforms=[transform(stamp, "map", "base_link", pose)])
    known = json.dumps({"stamp": stamp, "token": f"frame-{number}", "scene": "drive", "sweeps": [], **more})
    return [message("/tf", stamp, moved), message("/keyframe", stamp, make("std_msgs/msg/String", data=known))]


def log(fixes: int = FRAMES) -> list[Sent]:
    """Keyframes, and 0.1 s after the first of them fixes."""
    sent = []
    for i in range(FRAMES):
        place = fix(BEGIN + 500_000 * i + 100_000, LATITUDE, BORDER + 1e-5 * (0.5 * i - BORDER_AT))
        sent += [*keyframe(i), *([place] if i < fixes else [])]
    return sent


def test_belief_and_route_follow_position_and_signals(changing: Changing, tmp_path: Path) -> None:
    """Within 2 s, but not when the wipers flap; and the report says why."""
    west, east = polygon(box(11, 48, BORDER, 49)), polygon(box(BORDER, 48, 12, 49))
    write_map(tmp_path, feature(west, city="boston"), feature(east, city="singapore"))
    config, out = tmp_path / "replay.yaml", tmp_path / "out"
    config.write_text("evidence: evidence.yaml\n")
    (tmp_path / "evidence.yaml").write_text(EVIDENCE)
    recording = write_raw_mcap(tmp_path / "drive.mcap", sorted(log() + signals(), key=lambda each: each.time))
    done = perception("replay", recording, "--bundle", changing.bundle, "--config", config, "--out", out)
    assert (done.returncode, "missing in all" in done.stderr) == (2, True), done.stderr  # it has no sensor's data
    page = page_data(out / "report.html")
    lanes = {(lane["kind"], lane["name"]): lane["spans"] for lane in page["lanes"]}
    for kind, values, at, source, module in (
        ("light", ["day", "night"], DARK_AT, "signals", "dark"),
        ("city", ["boston", "singapore"], BORDER_AT, "geofences", "left"),
        ("weather", ["", "clear", "rain"], WIPED_AT + 1, "signals", "wet_road"),  # the rule wants wipers for a second
    ):
        believed, route = lanes["conditions", kind], lanes["route", module]
        assert [span["value"] for span in believed] == values
        assert 0 < 0.5 * believed[-1]["from"] - at <= 2
        assert believed[-1]["why"].startswith(f"{values[-1]} since ")
        assert f" by {source}: " in believed[-1]["why"]
        if kind != "weather":
            assert believed[0]["why"] == f"{values[0]} since 0.0 s by {source}: 1 of 1 frames"
            assert f" by {source}: 3 of 4 frames" in believed[1]["why"]
        assert [(span["value"], span["from"]) for span in route] == [("0", 0), ("1", believed[-1]["from"])]
        assert f" by {source}: " in route[1]["why"]
    used = json.loads((out / "replay.json").read_text())["evidence"]
    assert used[0] == "tags"
    assert used[1].startswith("geofences (areas.geojson ")
    assert used[2].startswith("signals (lux >= 400; lux <= 399; wipers == 0; wipers >= 1 ")
    assert page["bundle"]["evidence"] == ", ".join(used)
    counts = json.loads((out / "sources.json").read_text())[0]
    assert (counts["messages"]["/gps"], counts["messages"]["/vehicle/wipers"]) == (FRAMES, 5 * FRAMES)
    assert not {"corrupt", "late", "duplicated"} & counts.keys()


def test_a_frame_has_the_position_of_a_fix_within_two_seconds_or_on_a_map_of_nuscenes() -> None:
    frames, counts = assemble(log(fixes=4))
    assert [frame.position is not None for frame in frames] == [i <= 7 for i in range(FRAMES)]
    assert frames[0].position == pytest.approx((LATITUDE, BORDER - 1e-5 * BORDER_AT))
    assert frames[2].position != frames[1].position
    assert "corrupt" not in counts.summary()
    stamp, nan, nowhere = BEGIN, float("nan"), "a position that is not on earth"
    for given, reasons in (
        (fix(stamp, nan, nan, status=-1), {}),  # the receiver has none
        (edit(fix(stamp, 1, 2), stamp=stamp - 3_000_000), {}),
        (fix(stamp, nan, 11), {"/gps": {nowhere: 1}}),
        (fix(stamp, 91, 11), {"/gps": {nowhere: 1}}),
        (fix(stamp, 48, 181), {"/gps": {nowhere: 1}}),
    ):
        (frame,), counts = assemble([given, *keyframe(0)])
        assert frame.position is None
        assert counts.summary().get("reasons", {}) == reasons
    (frame,), _ = assemble(keyframe(0, location="boston-seaport"))
    assert frame.position == pytest.approx((42.336849169438615, -71.05785369873047))
