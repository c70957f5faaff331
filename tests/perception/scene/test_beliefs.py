"""What is believed of conditions, and from which source: a hidden Markov model by enumeration, the sun, and areas."""

import itertools
import json
import math
import pickle
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from geofences import box, feature, polygon, written
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import one_line_error
from repository import ROOT
from vocabulary import CONDITIONS
from vocabulary import sensors as sensors_of

from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.errors import InputError
from perception.frame import Conditions, Frame, Prediction
from perception.scene.belief import TIMEOUT, ConditionBelief, Origin, tagged
from perception.scene.daylight import Band, Daylight
from perception.scene.geofence import load_geofences
from perception.scene.scene import Scene, SceneFrame
from perception.scene.sources import Sources, default_sources, load_sources
from perception.scene.sun import elevation
from perception.tasks.task import Evidence

KINDS = list(CONDITIONS)
# Irregular frames at 2 to 20 Hz.
intervals = st.lists(st.integers(50_000, 500_000), min_size=60, max_size=60)


def tags(**values: str | None) -> Evidence:
    return tagged(Conditions(**values), CONDITIONS)


def times(spaces: list[int], start: int = 1_500_000_000_000_000) -> list[int]:
    return list(itertools.accumulate(spaces, initial=start))


@st.composite
def a_switch(draw: st.DrawFn) -> tuple[str, str, str]:
    """A kind of condition and two different values of it."""
    kind = draw(st.sampled_from(KINDS))
    before, after = draw(st.permutations(CONDITIONS[kind]))[:2]
    return kind, before, after


@st.composite
def evidence(draw: st.DrawFn, kind: str) -> list[float]:
    n = len(CONDITIONS[kind])
    if draw(st.booleans()):
        named = draw(st.integers(0, n - 1))
        return [float(i == named) for i in range(n)]
    return draw(st.lists(st.floats(0.01, 1), min_size=n, max_size=n))


def posterior_by_enumeration(n: int, wrong: float, observed: list[tuple[float, list[float] | None]]) -> list[float]:
    """Of a hidden Markov model, summed over every sequence of states: (s, probabilities named or None) per moment.

    A condition switches to any value alike 1 / 500 times a second; a share `wrong` of the observations is; frames
    within 0.5 s of the observation before them count for their share of 0.5 s.
    """
    total = [0.0] * n
    for path in itertools.product(range(n), repeat=len(observed)):
        probability, last, before = 1 / n, None, None
        for state, (time, named) in zip(path, observed, strict=True):
            if before is not None:
                stay = math.exp(-(time - before[0]) / 500)
                probability *= (stay if state == before[1] else 0.0) + (1 - stay) / n
            if named is not None:
                share = 1.0 if last is None else min(1.0, (time - last) / 0.5)
                seen = sum((1 - wrong if state == other else wrong / (n - 1)) * p for other, p in enumerate(named))
                probability *= (seen / sum(named)) ** share
                last = time
            before = (time, state)
        total[path[-1]] += probability
    return [p / sum(total) for p in total]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_filter_is_the_hidden_markov_models(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(KINDS))
    count = data.draw(st.integers(1, 6))
    moments = times(data.draw(st.lists(st.integers(1_000, 5_000_000), min_size=count - 1, max_size=count - 1)))
    said = [data.draw(st.none() | evidence(kind)) for _ in moments]
    wrong, belief = data.draw(st.sampled_from([None, 0.001, 0.02, 0.3])), ConditionBelief(CONDITIONS)
    origins = None if wrong is None else {kind: Origin("sun", wrong)}
    for moment, each in zip(moments, said, strict=True):
        belief.update(moment, [] if each is None else [{kind: each}], origins)
    observed = [(1e-6 * (moment - moments[0]), each) for moment, each in zip(moments, said, strict=True)]
    expected = posterior_by_enumeration(len(CONDITIONS[kind]), wrong or 0.02, observed)
    assert belief.beliefs[kind].probabilities == pytest.approx(expected, abs=1e-12)


def test_known_numbers() -> None:
    """One tag: 0.98 of an even prior; then 100 s of nothing: exp(-0.2) of what it is above even."""
    belief = ConditionBelief(CONDITIONS)
    assert belief.update(0, [tags(light="night")]) == Conditions(light="night")
    assert belief.beliefs["light"].probabilities == pytest.approx((0.02, 0.98))
    belief.update(100_000_000, [])
    assert belief.beliefs["light"].probabilities[1] == pytest.approx(0.5 + 0.48 * math.exp(-0.2))


@settings(max_examples=200, deadline=None)
@given(a_switch(), intervals, st.integers(1, 60), st.integers(0, int(TIMEOUT) - 1))
def test_one_contradicting_frame_switches_nothing(
    switch: tuple[str, str, str], spaces: list[int], outlier: int, silence: int
) -> None:
    """Wherever it is, and even if nothing was heard for up to two minutes before it."""
    kind, true, wrong = switch
    spaces[outlier - 1] += silence * 1_000_000
    belief = ConditionBelief(CONDITIONS)
    for i, moment in enumerate(times(spaces)):
        assert belief.update(moment, [tags(**{kind: wrong if i == outlier else true})])[kind] == true


@settings(max_examples=200, deadline=None)
@given(a_switch(), intervals, st.integers(5, 40))
def test_a_burst_of_half_a_second_switches_nothing(switch: tuple[str, str, str], spaces: list[int], first: int) -> None:
    kind, true, wrong = switch
    moments, belief = times(spaces), ConditionBelief(CONDITIONS)
    for moment in moments:
        burst = 0 <= moment - moments[first] <= 500_000
        assert belief.update(moment, [tags(**{kind: wrong if burst else true})])[kind] == true


def believed_around(
    switch: tuple[str, str, str], moments: list[int], change: int, sure: float = 1.0
) -> list[tuple[int, str]]:
    """What is believed at each moment, where observations switch at the time `change`."""
    kind, before, after = switch
    rest = (1 - sure) / (len(CONDITIONS[kind]) - 1)
    belief, believed = ConditionBelief(CONDITIONS), []
    for moment in moments:
        true = after if moment >= change else before
        conditions = belief.update(moment, [{kind: [sure if v == true else rest for v in CONDITIONS[kind]]}])
        believed.append((moment, conditions.get(kind)))
    return believed


@settings(max_examples=300, deadline=None)
@given(a_switch(), intervals, st.integers(1, 30), st.integers(0, 499_999))
def test_a_lasting_change_switches_once_and_within_two_seconds(
    switch: tuple[str, str, str], spaces: list[int], last: int, after_it: int
) -> None:
    """The change comes at any time between two frames, and may come early in the drive."""
    moments = times(spaces)
    change = moments[last] + 1 + after_it % spaces[last]
    believed = believed_around(switch, [*moments, *times([500_000] * 6, moments[-1])[1:]], change)
    assert all(value == switch[2] for moment, value in believed if moment >= change + 2_000_000)
    assert len(list(itertools.groupby(value for _, value in believed))) == 2


@pytest.mark.parametrize("rate", [2, 5, 10, 20, 100])
def test_a_recogniser_that_is_less_sure_takes_a_second_more(rate: int) -> None:
    """A millisecond after a frame the weather changes: the longest that the first new frame can take."""
    moments = times([1_000_000 // rate] * 20 * rate)
    change = moments[10 * rate] + 1_000
    for kind in KINDS:
        switch = (kind, CONDITIONS[kind][0], CONDITIONS[kind][1])
        for sure, limit in ((1.0, 2_000_000), (0.9, 3_000_000)):
            believed = believed_around(switch, moments, change, sure)
            switched = next(moment for moment, value in believed if moment >= change and value == switch[2])
            assert 500_000 < switched - change <= limit
            assert len({value for moment, value in believed if moment >= switched}) == 1


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_order_of_observations_at_a_moment_is_of_no_consequence(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(KINDS))
    seen: list[list[Evidence]] = [
        [{kind: each} for each in data.draw(st.lists(evidence(kind), max_size=4))] for _ in range(5)
    ]
    moments = times(data.draw(st.lists(st.integers(10_000, 900_000), min_size=4, max_size=4)))
    one, other = ConditionBelief(CONDITIONS), ConditionBelief(CONDITIONS)
    for moment, observations in zip(moments, seen, strict=True):
        shuffled = random.Random(len(observations)).sample(observations, len(observations))
        assert one.update(moment, observations) == other.update(moment, shuffled)
        assert one.beliefs == other.beliefs  # to the last bit


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_belief_stays_a_distribution_and_small(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(KINDS))
    said = data.draw(st.lists(evidence(kind), min_size=1, max_size=5))
    belief, moment = ConditionBelief(CONDITIONS), 0
    for i in range(400):
        moment += data.draw(st.sampled_from([0, 1, 1_000, 50_000, 10**9])) if i % 20 == 0 else 10_000
        belief.update(moment, [{kind: said[i % len(said)]}])
        probabilities = belief.beliefs[kind].probabilities
        assert sum(probabilities) == pytest.approx(1, abs=1e-12)
        assert all(0 < p < 1 for p in probabilities)
    assert len(pickle.dumps(belief)) < 5_000


def test_what_is_not_observed_is_held_and_then_unknown() -> None:
    belief = ConditionBelief(CONDITIONS)
    belief.update(0, [tags(weather="rain", light="day", city="boston")])
    for second in range(1, 300):
        conditions = belief.update(second * 1_000_000, [tags(light="day")])
        held = second <= TIMEOUT
        assert conditions == Conditions(weather="rain" if held else None, light="day", city="boston" if held else None)
    assert belief.beliefs["weather"].why == "nothing has spoken for rain since 0.0 s"


def test_the_source_of_a_belief_is_that_of_the_switch() -> None:
    belief = ConditionBelief(CONDITIONS)
    for second, (source, rain) in enumerate([("tags", 0.0), ("geofences", 0.0), *[("sun", 1.0)] * 4]):
        belief.update(second * 1_000_000, [{"weather": [1 - rain, rain, 0.0]}], {"weather": Origin(source)})
        found = belief.beliefs["weather"]
        assert found.source == ("tags" if found.value == "clear" else "sun")
    assert found.why == "rain since 4.0 s by sun: 2 of 2 frames"
    belief.update(500_000_000, [])
    assert belief.beliefs["weather"].source == ""


def test_a_moment_that_is_not_later_tells_nothing_new() -> None:
    belief = ConditionBelief(CONDITIONS)
    belief.update(5_000_000, [tags(weather="clear")])
    before = belief.beliefs
    for earlier in (5_000_000, 4_000_000, 0):
        assert belief.update(earlier, [tags(weather="rain")]) == Conditions(weather="clear")
    assert belief.beliefs == before
    for i in range(1, 4):
        belief.update(5_000_000 + i * 500_000, [tags(weather="rain")])
    assert belief.beliefs["weather"].why == "rain since 1.0 s: 2 of 3 frames"


def test_reasons() -> None:
    belief = ConditionBelief(CONDITIONS)
    assert belief.beliefs["weather"].why == "nothing observed"
    belief.update(0, [{"weather": [0.4, 0.4, 0.2]}])
    assert belief.beliefs["weather"].why == "unsure: clear 0.40, rain 0.40, fog 0.20"
    for begin, end, value, why in (
        (1, 11, "clear", "clear since 0.5 s: 1 of 1 frames"),
        (11, 15, "rain", "rain since 6.5 s: 3 of 4 frames"),
    ):
        for i in range(begin, end):
            belief.update(i * 500_000, [tags(weather=value)])
        assert belief.beliefs["weather"].why == why
    assert belief.conditions == Conditions(weather="rain")


@pytest.mark.parametrize(
    "wrong", [[0.5, 0.5], [1.0, -0.1, 0.1], [math.nan, 0.5, 0.5], [0.0, 0.0, 0.0], [math.inf, 0, 0]]
)
def test_what_is_no_distribution_is_refused(wrong: list[float]) -> None:
    with pytest.raises(ValueError, match="no probability distribution over clear, rain, fog"):
        ConditionBelief(CONDITIONS).update(0, [{"weather": wrong}])


MUNICH = (48.1374, 11.5755)
NOON = round(datetime(2026, 3, 20, 11, 20, tzinfo=timezone.utc).timestamp()) * 1_000_000
HOUR = 3_600_000_000
DAY, NIGHT, EVEN = [1.0, 0.0], [0.0, 1.0], [0.5, 0.5]


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
    expected = ((30, True, "noon"), (5, True, "morning"), (5, False, "evening"), (-7, True, "night"))
    for limit, rising, name in expected:
        assert light(values, when_at(limit, rising), bands) == {value: float(value == name) for value in values}
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
        ("[{source: moon}]", "sources.0: .*'moon'"),
        ("[]", "sources: "),
        ("[{source: tags, error_rate: 0.5}]", "sources.0.tags.error_rate: .*less than 0.5"),
        ("[{source: sun, kind: season}]", "sources.0: season is no kind of condition; there are"),
        ("[{source: sun, kind: city}]", "sources.0: city is .*the sun's bands name none of these"),
        (
            "[{source: sun, bands: [{value: night}, {value: day, above: 0}]}]",
            "bands: name the bands from the highest",
        ),
        ("[{source: geofences, file: none.json}]", "sources.0: .*none.json: cannot read"),
    ],
)
def test_a_wrong_configuration_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    with one_line_error(f"evidence.yaml: .*{message}"):
        load_sources(sources(tmp_path, f"sources: {text}"), CONDITIONS)


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
    drive = zip(seconds, longitudes, strict=True)
    frames = [frame_at(begin + round(at * 1e6), (MUNICH[0], longitude), str(at)) for at, longitude in drive]
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
    """Without a position the city is told by the name of the map, and the light is not."""
    tables = NuScenesTables(nuscenes_root, "v1.0-mini")
    frames = [tables.frame(token, lidar=False, cameras=False) for token in tables.samples(selectors=[scene])]
    untagged = [replace(frame, conditions=Conditions()) for frame in frames]
    nowhere = [replace(frame, position=None) for frame in untagged]
    for given_frames, light in ((untagged, "day"), (nowhere, None)):
        found = load_sources(ROOT / "configs" / "evidence" / "nuscenes.yaml", CONDITIONS)
        assert {seen.conditions for seen in driven(found, given_frames)} == {Conditions(light=light, city=city)}


SUNRISE, CIVIL = -50 / 60, -6.0  # geometric elevations at which almanacs place sunrise and civil twilight
OSLO, QUITO, SYDNEY, REYKJAVIK = (59.9139, 10.7522), (-0.1807, -78.4678), (-33.8688, 151.2093), (64.1466, -21.9426)
LONDON, ARCTIC = (51.5074, -0.1278), (70.0, 0.0)
moments = st.integers(-631_152_000, 2_524_608_000).map(lambda seconds: seconds * 1_000_000)  # 1950 to 2050
latitudes, longitudes = st.floats(-90, 90), st.floats(-180, 180)


def utc(text: str) -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=timezone.utc).timestamp() * 1e6)


@pytest.mark.parametrize(
    ("place", "time", "published"),
    [
        (OSLO, "2025-06-21T10:00", 51.00185),
        (OSLO, "2025-12-21T11:00", 6.58999),
        (QUITO, "2025-03-20T17:00", 84.69836),
        (QUITO, "2025-06-21T17:00", 66.07338),
        (SYDNEY, "2025-12-21T02:00", 79.46084),
        (SYDNEY, "2025-06-21T01:00", 31.11522),
        (REYKJAVIK, "2025-09-22T13:00", 25.82978),
        (REYKJAVIK, "2025-06-21T13:00", 48.99850),
        ((39.742476, -105.1786), "2003-10-17T19:30:30", 90 - 50.11162 - 0.016),
        ((90.0, 0.0), "1992-10-13T00:00", -7.78507),
    ],
)
def test_published_altitudes(place: tuple[float, float], time: str, published: float) -> None:
    """Computed altitude (hc) of the sun by the Astronomical Applications API 4.0.1 of the U.S. Naval Observatory,
    service celnav: geometric.

    And Reda and Andreas, "Solar position algorithm for solar radiation applications", Solar Energy 76, 2004, table
    A5.1, where the refraction is 0.016 degrees; and Meeus' example 25.a, an apparent declination.
    """
    assert elevation(utc(time), *place) == pytest.approx(published, abs=0.001 if place[0] == 90 else 0.01)


@pytest.mark.parametrize(
    ("time", "latitude", "longitude"),
    [
        ("2000-01-01T12:00", -23.03243, 0.82128),
        ("2025-01-01T00:00", -22.99820, -179.13938),
        ("2025-03-20T09:01", -0.00028, 46.59935),
        ("2025-06-21T02:42", 23.43834, 139.94329),
        ("2025-09-22T18:19", 0.0, -96.61371),
        ("2025-12-21T15:03", -23.43824, -46.18804),
        ("2030-03-20T13:52", -0.00012, -26.14583),
    ],
)
def test_the_sun_is_overhead_where_the_almanac_has_it(time: str, latitude: float, longitude: float) -> None:
    """Declination and Greenwich hour angle by the Naval Observatory (celnav), equinoxes and solstices among them."""
    assert elevation(utc(time), latitude, longitude) > 90 - 0.1
    assert elevation(utc(time), 90, 0) == pytest.approx(latitude, abs=0.01)  # at the pole it is the declination
    assert elevation(utc(time), 0, longitude + 90) == pytest.approx(0, abs=0.03)


@pytest.mark.parametrize(
    ("place", "day", "limit", "rises", "sets"),
    [
        # The Astronomical Almanac by Reda and Andreas, table A2.1, at the meridian of Greenwich.
        ((35.0, 0.0), "1994-01-02", SUNRISE, "07:08", "16:59"),
        ((-35.0, 0.0), "1996-07-05", SUNRISE, "07:08", "17:01"),
        ((-35.0, 0.0), "2004-12-04", SUNRISE, "04:38", "19:02"),
        # The Naval Observatory (rstt/oneday), UTC.
        (OSLO, "2025-06-21", SUNRISE, "01:54", "20:44"),
        (OSLO, "2025-06-21", CIVIL, "00:10", "22:28"),
        (OSLO, "2025-12-21", CIVIL, "07:21", "15:10"),
        (QUITO, "2025-03-20", SUNRISE, "11:18", "23:24"),
        (QUITO, "2025-03-20", CIVIL, "10:57", "23:45"),
        (SYDNEY, "2025-09-22", SUNRISE, "19:44", "07:51"),
        (REYKJAVIK, "2025-12-21", SUNRISE, "11:22", "15:30"),
        (REYKJAVIK, "2025-12-21", CIVIL, "10:03", "16:49"),
        (LONDON, "2025-06-21", SUNRISE, "03:43", "20:22"),
        (LONDON, "2025-06-21", CIVIL, "02:55", "21:09"),
        (ARCTIC, "2025-12-21", CIVIL, "09:55", "14:02"),
    ],
)
def test_published_sunrises_sunsets_and_twilights(
    place: tuple[float, float], day: str, limit: float, rises: str, sets: str
) -> None:
    """To the minute, as they are printed; rounded in some tables, truncated in others."""
    seconds = np.arange(0, 86_400, 10)
    above = elevation(utc(f"{day}T00:00") + seconds * 1_000_000, *place) > limit
    for change, printed in ((1, rises), (-1, sets)):
        (at,) = seconds[1:][np.diff(above.astype(int)) == change]
        hours, minutes = map(int, printed.split(":"))
        assert at == pytest.approx(3600 * hours + 60 * minutes, abs=70)


def test_midnight_sun_and_polar_night() -> None:
    """At 70 degrees north the lowest is 3.44 in June and the highest -3.44 in December: 23.44 - 20."""
    seconds = np.arange(0, 86_400, 60) * 1_000_000
    assert elevation(utc("2025-06-21T00:00") + seconds, *ARCTIC).min() == pytest.approx(3.44, abs=0.01)
    assert elevation(utc("2025-12-21T00:00") + seconds, *ARCTIC).max() == pytest.approx(-3.44, abs=0.01)


def almanac(timestamp: int, latitude: float, longitude: float) -> float:
    """The Astronomical Almanac, page C5, "Low-precision formulas for the Sun": 0.01 degrees from 1950 to 2050."""
    n = timestamp / 86_400e6 - 10957.5
    g = np.radians(357.528 + 0.9856003 * n)
    longitude_of_sun = np.radians(280.460 + 0.9856474 * n + 1.915 * np.sin(g) + 0.020 * np.sin(2 * g))
    obliquity = np.radians(23.439 - 0.0000004 * n)
    x, y = np.cos(longitude_of_sun), np.cos(obliquity) * np.sin(longitude_of_sun)
    sun = np.array([x, y, np.sin(obliquity) * np.sin(longitude_of_sun)])
    turned = np.radians(15 * (18.697374558 + 24.06570982441908 * n) + longitude)
    phi = np.radians(latitude)
    zenith = np.array([np.cos(phi) * np.cos(turned), np.cos(phi) * np.sin(turned), np.sin(phi)])
    return float(np.degrees(np.arctan2(zenith @ sun, np.linalg.norm(np.cross(zenith, sun)))))


@given(moments, latitudes, longitudes)
def test_another_published_formula_says_the_same(timestamp: int, latitude: float, longitude: float) -> None:
    assert elevation(timestamp, latitude, longitude) == pytest.approx(almanac(timestamp, latitude, longitude), abs=0.03)


@given(moments, latitudes, longitudes)
def test_the_antipode_sees_the_other_side(timestamp: int, latitude: float, longitude: float) -> None:
    here = elevation(timestamp, latitude, longitude)
    assert -90 <= here <= 90
    assert elevation(timestamp, -latitude, longitude + 180) == pytest.approx(-here, abs=1e-5)
    assert elevation(timestamp, latitude, longitude - 360) == pytest.approx(here, abs=1e-5)
    later = elevation(timestamp + 60_000_000, latitude, longitude)
    assert abs(later - here) <= 15.05 / 60  # degrees that the earth turns in a minute


AREAS = {"city": ("munich", "suva"), "road": ("urban", "highway")}
SQUARE = polygon(box(11, 48, 12, 49))


def test_areas_holes_and_the_smallest_area(tmp_path: Path) -> None:
    city = feature(polygon(box(11, 48, 12, 49), box(11.4, 48.4, 11.6, 48.6)), city="munich", road="urban", name="M")
    road = feature(polygon(box(11.9, 48, 12.2, 48.1)), road="highway")
    for order in ((city, road), (road, city)):
        fences = load_geofences(written(tmp_path, *order), AREAS)
        assert fences.at((48.2, 11.2)) == {"city": "munich", "road": "urban"}
        assert fences.at((48.5, 11.5)) == {}  # in the hole
        assert fences.at((48.05, 11.95)) == {"city": "munich", "road": "highway"}
        assert fences.at((48.05, 12.1)) == {"road": "highway"}
        assert fences.at((48.0, 11.0)) == {"city": "munich", "road": "urban"}  # the corner
        assert fences.at((11.2, 48.2)) == {}  # latitude first
        assert fences.at(None) == {}
        assert pickle.loads(pickle.dumps(fences)).at((48.2, 11.2)) == {"city": "munich", "road": "urban"}


def test_an_area_across_the_antimeridian_is_two(tmp_path: Path) -> None:
    parts = {"type": "MultiPolygon", "coordinates": [[box(177, -19, 180, -16)], [box(-180, -19, -179, -16)]]}
    fences = load_geofences(written(tmp_path, feature(parts, city="suva")), AREAS)
    for longitude, there in ((178, True), (180, True), (-180, True), (-179.5, True), (-178, False), (0, False)):
        assert fences.at((-18, longitude)) == ({"city": "suva"} if there else {})
    (tmp_path / "areas.geojson").write_text(json.dumps(feature(polygon(box(177, -19, 180, -16)), city="suva")))
    assert load_geofences(tmp_path / "areas.geojson", AREAS).at((-18, -180)) == {
        "city": "suva"
    }  # one feature is a file


def test_the_name_of_the_map_stands_in_for_the_position(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        feature(SQUARE, city="munich", location=["munich-north", "munich-south"]),
        feature(None, road="highway", location="A9"),
        feature({"type": "Point", "coordinates": [1, 2]}, name="of no condition"),
    )
    fences = load_geofences(path, AREAS)
    assert fences.at(None, "munich-south") == {"city": "munich"}
    assert fences.at((0, 0), "munich-south") == {}  # known to be elsewhere
    assert fences.at((48.5, 11.5), "A9") == {"city": "munich", "road": "highway"}
    assert fences.at(None, "") == fences.at(None, "paris") == {}


def inside(ring: np.ndarray, x: float, y: float) -> bool:
    """By the number of edges that a ray to the east crosses."""
    (x0, y0), (x1, y1) = ring[:-1].T, ring[1:].T
    crosses = (y0 > y) != (y1 > y)
    at = x0 + (y - y0) / np.where(crosses, y1 - y0, 1) * (x1 - x0)
    return bool(np.count_nonzero(crosses & (at > x)) % 2)


@given(st.data())
def test_a_star_is_what_rays_say(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    radii = data.draw(st.lists(st.floats(1, 10), min_size=5, max_size=12))
    angles = np.linspace(0, 2 * np.pi, len(radii), endpoint=False)
    star = np.stack([20 + radii * np.cos(angles), 40 + radii * np.sin(angles)], axis=1)
    star = np.concatenate([star, star[:1]])
    path = written(tmp_path_factory.mktemp("star"), feature(polygon(star.tolist()), city="munich"))
    fences = load_geofences(path, AREAS)
    for x, y in data.draw(st.lists(st.tuples(st.floats(8, 32), st.floats(28, 52)), min_size=10, max_size=10)):
        edge = min(np.abs(np.hypot(*(star - [x, y]).T)).min(), 1)
        if edge > 1e-6:
            assert bool(fences.at((y, x))) == inside(star, x, y)


CROSSING = [[0, 0], [1, 1], [1, 0], [0, 1], [0, 0]]


def shaped(*ring: list[Any], **properties: Any) -> dict[str, Any]:
    return feature(polygon(list(ring)), **({"city": "munich"} | properties))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (feature(SQUARE, city="paris"), 'city "paris" is none of munich, suva'),
        (feature(SQUARE, city=["munich"]), r'city \["munich"\] is none of munich, suva'),
        (feature(SQUARE, city="munich", location=3), "location is neither a name nor a list of names"),
        (feature(None, city="munich"), "neither a geometry nor a location"),
        (feature({"type": "Point", "coordinates": [1, 2]}, city="munich"), "a Point, not a Polygon or MultiPolygon"),
        (feature([], city="munich"), "a None, not a Polygon or MultiPolygon"),
        (feature({"type": "Polygon"}, city="munich"), "not a list of rings"),
        (feature({"type": "MultiPolygon"}, city="munich"), "no coordinates"),
        (shaped([11, 48], [12, 48], [11, 48]), "at least four positions"),
        (shaped([11, 48], [12, "48"], [12, 49], [11, 48]), "at least four positions"),
        (shaped([11, 48], [12], [12, 49], [11, 48]), "at least four positions"),
        (shaped([11, 48], [12, 48], [12, 49], [11, 49]), "a ring is not closed"),
        (shaped(*box(48, 91, 49, 95)), "GeoJSON has the longitude first"),
        (shaped(*box(170, 0, 190, 5)), "beyond longitude 180"),
        (shaped([11, float("nan")], [12, 48], [12, 49], [11, 48]), "beyond longitude 180"),
        (shaped(*box(-179, -19, 179, -16), city="suva"), "cut an area that crosses the antimeridian"),
        (shaped(*CROSSING), "not a valid polygon .Self-intersection"),
        (shaped([0, 0], [1, 1], [0, 0], [0, 0]), "not a valid polygon"),
        (feature(polygon(), city="munich"), "not a list of rings"),
        ({"type": "Polygon"}, "not a Feature"),
        ("munich", "not a Feature"),
        ({"type": "Feature", "properties": [1], "geometry": SQUARE}, "properties are not an object"),
    ],
)
def test_a_wrong_feature_is_one_line(tmp_path: Path, wrong: Any, message: str) -> None:
    path = written(tmp_path, feature(SQUARE, city="munich"), wrong)
    with one_line_error(rf"areas.geojson: features.1: .*{message}"):
        load_geofences(path, AREAS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read the geofences"),
        ("{", "cannot read the geofences"),
        ("[" * 100_000, "cannot read the geofences"),
        ("\xff", "cannot read the geofences"),
        ("[]", "not a GeoJSON FeatureCollection"),
        ('{"type": "FeatureCollection"}', "not a GeoJSON FeatureCollection"),
        ('{"type": "FeatureCollection", "features": []}', "no feature has a property city, road"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "areas.geojson"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    with one_line_error(message):
        load_geofences(path, AREAS)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text() | st.integers(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=15,
)


@given(json_values, st.sampled_from(["features", "properties", "geometry", "coordinates", "ring"]))
def test_any_json_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, value: Any, where: str) -> None:
    good = feature(polygon(box(11, 48, 12, 49)), city="munich")
    content: dict[str, Any] = {"type": "FeatureCollection", "features": [good]}
    target: Any = {"features": content, "ring": good["geometry"]["coordinates"]}.get(where, good)
    target = good["geometry"] if where == "coordinates" else target
    target[0 if where == "ring" else where] = value
    path = tmp_path_factory.mktemp("any") / "areas.geojson"
    path.write_text(json.dumps(content))
    assert "\n" not in refusal(path)


def refusal(path: Path) -> str:
    try:
        load_geofences(path, AREAS)
    except InputError as error:
        return str(error)
    return ""
