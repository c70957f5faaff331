"""Conditions from what a vehicle knows: which source counts, and drives that have only time and position."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest
from geofences import box, feature, polygon, written
from hypothesis import given
from hypothesis import strategies as st
from refusals import one_line_error
from repository import ROOT
from vocabulary import CONDITIONS
from vocabulary import sensors as sensors_of

from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.frame import Conditions, Frame, Prediction
from perception.scene.belief import ConditionBelief, Origin
from perception.scene.daylight import Band, Daylight
from perception.scene.scene import Scene, SceneFrame
from perception.scene.sources import Sources, default_sources, load_sources
from perception.scene.sun import elevation
from perception.tasks.task import Evidence

CITIES = ROOT / "configs" / "evidence" / "nuscenes.yaml"
MUNICH = (48.1374, 11.5755)
NOON = round(datetime(2026, 3, 20, 11, 20, tzinfo=timezone.utc).timestamp()) * 1_000_000
HOUR = 3_600_000_000


def frame_at(timestamp: int, position: tuple[float, float] | None = MUNICH, token: str = "") -> Frame:
    return Frame(token, timestamp, "ego", np.eye(4), np.eye(4), None, {}, scene="drive", position=position)


def light(values: Sequence[str], timestamp: int, bands: Sequence[Band] | None = None) -> dict[str, float] | None:
    daylight = Daylight("light", values) if bands is None else Daylight("light", values, bands)
    found = daylight.evidence(frame_at(timestamp))
    return dict(zip(values, found["light"], strict=True)) if found else None


def when_at(limit: float, rising: bool) -> int:
    """When the sun is at this elevation in Munich on that day, us."""
    moments = NOON + np.arange(0, 12 * HOUR, 10_000_000) * (-1 if rising else 1)
    return int(moments[np.argmax(elevation(moments, *MUNICH) < limit)])


@pytest.mark.parametrize("rising", [True, False])
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (("day", "night"), [("day",), ("day", "night"), ("night",)]),
        (("night", "tunnel", "day"), [("day",), ("day", "night"), ("night",)]),
        (("day", "dusk", "night"), [("day",), ("dusk",), ("night",)]),
        (("day", "dusk", "dawn", "night"), [("day",), ("dusk", "dawn"), ("night",)]),
        (("dusk", "night"), [("dusk",), ("dusk",), ("night",)]),
        (("night",), [("night",), ("night",), ("night",)]),
    ],
)
def test_light_by_civil_twilight(values: tuple[str, ...], expected: list[tuple[str, ...]], rising: bool) -> None:
    for above, likely in zip((-0.8, -3.0, -6.1), expected, strict=True):
        if "dawn" in likely:
            likely = ("dawn",) if rising else ("dusk",)
        found = light(values, when_at(above, rising))
        assert found == {value: (value in likely) / len(likely) for value in values}


def test_bands_of_another_vocabulary() -> None:
    """Such as that of MAN TruckScenes: morning, noon, evening, night."""
    bands = (Band(value="noon", above=20), Band(value="evening", above=-6, rising="morning"), Band(value="night"))
    values = ("morning", "noon", "evening", "night")
    for limit, rising, expected in (
        (30, True, "noon"),
        (5, True, "morning"),
        (5, False, "evening"),
        (-7, True, "night"),
    ):
        assert light(values, when_at(limit, rising), bands) == {value: float(value == expected) for value in values}
    assert light(values, when_at(-7, False), bands[:2]) is None


def test_the_sun_says_nothing_without_position_or_utc() -> None:
    daylight = Daylight("light", ("day", "night"))
    assert daylight.evidence(frame_at(NOON, None)) == daylight.evidence(frame_at(12 * HOUR)) == {}
    with one_line_error("season is summer, winter, and the sun's bands name none"):
        Daylight("season", ("summer", "winter"))


def sources(folder: Path, text: str) -> Path:
    path = folder / "evidence.yaml"
    path.write_text(text)
    return path


DAY, NIGHT, EVEN = [1.0, 0.0], [0.0, 1.0], [0.5, 0.5]


@pytest.fixture
def all_sources(tmp_path: Path) -> Sources:
    written(tmp_path, feature(polygon(box(11, 48, 12, 49)), city="boston"))
    first = "{source: tags}, {source: sun, error_rate: 0.01}"
    text = f"sources: [{first}, {{source: geofences, file: areas.geojson}}, {{source: recognised}}]"
    return load_sources(sources(tmp_path, text), CONDITIONS)


def test_the_first_source_with_evidence_counts(all_sources: Sources) -> None:
    recognised: list[Evidence] = [{"light": NIGHT, "weather": [0.1, 0.9, 0.0]}, {"light": DAY}]
    observations, origins = all_sources.observe(frame_at(NOON), recognised)
    assert observations == [{"light": DAY}, {"city": [1.0, 0.0]}, {"weather": [0.1, 0.9, 0.0]}]
    assert origins == {"light": Origin("sun", 0.01), "city": Origin("geofences"), "weather": Origin("recognised")}
    tagged = replace(frame_at(NOON), conditions=Conditions(light="night", city="singapore"))
    observations, origins = all_sources.observe(tagged, recognised)
    assert observations == [{"light": NIGHT}, {"city": [0.0, 1.0]}, {"weather": [0.1, 0.9, 0.0]}]
    assert origins["light"] == origins["city"] == Origin("tags")
    observations, origins = all_sources.observe(frame_at(NOON, None), recognised)
    assert observations == [{"light": NIGHT}, {"light": DAY}, {"weather": [0.1, 0.9, 0.0]}]
    assert origins["light"] == Origin("recognised")


def test_a_source_that_cannot_decide_leaves_it_to_the_next(all_sources: Sources) -> None:
    twilight = frame_at(when_at(-3, rising=False))
    for recognised, light, source in (([NIGHT], NIGHT, "recognised"), ([EVEN], EVEN, "sun"), ([], EVEN, "sun")):
        observations, origins = all_sources.observe(twilight, [{"light": each} for each in recognised])
        assert observations[0] == {"light": light}
        assert origins["light"].source == source


@given(st.data())
def test_the_default_is_tags_then_all_that_is_recognised(data: st.DataObject) -> None:
    tags = Conditions(**{kind: data.draw(st.sampled_from([None, *values])) for kind, values in CONDITIONS.items()})
    some = st.dictionaries(st.sampled_from(list(CONDITIONS)), st.lists(st.floats(0.1, 1), min_size=2, max_size=2))
    recognised = data.draw(st.lists(some, max_size=3))
    observations, origins = default_sources(CONDITIONS).observe(replace(frame_at(NOON), conditions=tags), recognised)
    for kind, values in CONDITIONS.items():
        tag, found = tags.get(kind), [each[kind] for each in observations if kind in each]
        if tag is None:
            assert found == [each[kind] for each in recognised if kind in each]
        else:
            assert found == [[float(value == tag) for value in values]]
            assert origins[kind] == Origin("tags")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sources: [{source: moon}]", "evidence.yaml: sources.0: .*'moon'"),
        ("sources: []", "evidence.yaml: sources: "),
        ("sources: [{source: tags, error_rate: 0.5}]", "evidence.yaml: sources.0.tags.error_rate: .*less than 0.5"),
        ("sources: [{source: tags, kind: light}]", "evidence.yaml: sources.0.tags.kind: is not a known key"),
        (
            "sources: [{source: sun, kind: season}]",
            "evidence.yaml: sources.0: season is no kind of condition; there are",
        ),
        (
            "sources: [{source: sun, kind: city}]",
            "evidence.yaml: sources.0: city is .*the sun's bands name none of these",
        ),
        (
            "sources: [{source: sun, bands: [{value: night}, {value: day, above: 0}]}]",
            "evidence.yaml: sources.0.sun.bands: name the bands from the highest to the lowest",
        ),
        ("sources: [{source: geofences, file: none.json}]", "evidence.yaml: sources.0: .*none.json: cannot read"),
        ("sources: [{source: geofences}]", "evidence.yaml: sources.0.geofences.file: field required"),
    ],
)
def test_a_wrong_configuration_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    with one_line_error(message):
        load_sources(sources(tmp_path, text), CONDITIONS)


def test_what_a_replay_depends_on_is_told(tmp_path: Path, all_sources: Sources) -> None:
    assert default_sources(CONDITIONS).about == ("tags", "recognised")
    assert all_sources.about[:2] == ("tags", "sun (wrong in 0.01)")
    assert all_sources.about[2].startswith("geofences (areas.geojson ")
    written(tmp_path, feature(polygon(box(11, 48, 12, 50)), city="boston"))
    again = load_sources(tmp_path / "evidence.yaml", CONDITIONS)
    assert again.about[2] != all_sources.about[2]
    bands = "sources: [{source: sun, bands: [{value: day, above: 1}, {value: night}]}]"
    assert load_sources(sources(tmp_path, bands), CONDITIONS).about == ("sun (light: day 1, night -90)",)


def driven(sources: Sources, frames: Sequence[Frame]) -> Iterator[SceneFrame]:
    """What the scene believes while a drive without tags and sensors goes on."""
    scene = Scene(sensors_of(), {}, CONDITIONS, {}, sources)
    for frame in frames:
        scene.observe(frame)
        yield scene.update(frame, Prediction({}))


def test_a_drive_across_a_border_and_a_sunset(tmp_path: Path) -> None:
    """An hour from one area into the next, and from day through twilight into night, with time and position alone.

    What is believed follows within 2 s; in twilight, for which the vocabulary has no value, light is held for two
    minutes and then unknown.
    """
    west, east = polygon(box(11, 48, 11.6, 49)), polygon(box(11.6, 48, 12, 49))
    written(tmp_path, feature(west, city="boston"), feature(east, city="singapore"))
    text = "[{source: tags}, {source: sun}, {source: geofences, file: areas.geojson}, {source: recognised}]"
    found, begin = load_sources(sources(tmp_path, f"sources: {text}"), CONDITIONS), when_at(1.0, rising=False)
    seconds, longitudes = np.arange(0, 3600, 0.5), np.linspace(11.5, 11.7, 7200)
    sun = elevation(begin + (seconds * 1e6).astype(int), MUNICH[0], longitudes)
    sunset, night = (float(seconds[np.argmax(sun < limit)]) for limit in (-50 / 60, -6))
    border = float(seconds[np.argmax(longitudes > 11.6)])
    assert 0 < sunset < border < night < 3500
    frames = [
        frame_at(begin + round(second * 1e6), (MUNICH[0], longitude), str(second))
        for second, longitude in zip(seconds, longitudes, strict=True)
    ]
    for second, seen in zip(seconds, driven(found, frames), strict=True):
        believed, beliefs = seen.conditions, seen.beliefs
        if not border <= second < border + 2:
            assert believed.get("city") == ("boston" if second < border else "singapore")
            assert beliefs["city"].source == "geofences"
        if not (sunset <= second < sunset + 125 or night <= second < night + 2):
            assert believed.get("light") == ("day" if second < sunset else None if second < night else "night")
            assert beliefs["light"].source == ("" if believed.get("light") is None else "sun")
        assert believed.get("weather") is None
    assert beliefs["city"].why == f"singapore since {border + 1:.1f} s by geofences: 3 of 4 frames"
    assert beliefs["light"].why.startswith(f"night since {night:.1f} s by sun: ")


def test_a_recogniser_that_says_night_by_day_is_not_heard(all_sources: Sources) -> None:
    """Not even one that is sure, as one was on every real keyframe; for the weather it is still heard."""
    belief, recognised = ConditionBelief(CONDITIONS), [{"light": NIGHT, "weather": [0.0, 1.0, 0.0]}]
    for i in range(20):
        frame = frame_at(NOON + 500_000 * i)
        found = belief.update(frame.timestamp, *all_sources.observe(frame, recognised))
        assert found == Conditions(weather="rain", light="day", city="boston")


@pytest.mark.parametrize(("scene", "city"), [("scene-0103", "boston"), ("scene-0916", "singapore")])
def test_real_keyframes_by_time_and_position(nuscenes_root: Path, scene: str, city: str) -> None:
    tables = NuScenesTables(nuscenes_root, "v1.0-mini")
    frames = [tables.frame(token, lidar=False, cameras=False) for token in tables.samples(selectors=[scene])]
    untagged = [replace(frame, conditions=Conditions()) for frame in frames]
    for seen in driven(load_sources(CITIES, CONDITIONS), untagged):
        assert seen.conditions == Conditions(light="day", city=city)
    nowhere = [replace(frame, position=None) for frame in untagged]
    for seen in driven(load_sources(CITIES, CONDITIONS), nowhere):
        assert seen.conditions == Conditions(city=city)  # by the name of the map


def test_a_real_drive_of_another_car_is_by_day() -> None:
    """PandaSet's scene 002, recorded in San Francisco; its position is that of its receiver."""
    given = os.environ.get("PERCEPTION_PANDASET")
    root = Path(given) if given else ROOT.parent / "shared" / "data" / "pandaset"
    meta = root / "002" / "meta"
    if not (meta / "gps.json").exists():
        pytest.skip(f"PandaSet not found at {root} (set PERCEPTION_PANDASET)")
    fixes, stamps = (json.loads((meta / f"{name}.json").read_text()) for name in ("gps", "timestamps"))
    frames = [
        frame_at(round(stamp * 1e6), (fix["lat"], fix["long"]), str(i))
        for i, (stamp, fix) in enumerate(zip(stamps, fixes, strict=True))
    ]
    for seen in driven(load_sources(CITIES, CONDITIONS), frames):
        assert seen.conditions == Conditions(light="day")
