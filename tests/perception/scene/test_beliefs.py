"""What is believed of conditions, by enumeration of a hidden Markov model, and which source it comes from."""

import itertools
import math
import pickle
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest
from commands import one_line_error
from hypothesis import given, settings
from hypothesis import strategies as st
from maps import box, feature, polygon, written
from repository import ROOT
from vocabulary import CONDITIONS
from vocabulary import sensors as sensors_of

from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.frame import Conditions, Frame, Prediction
from perception.scene.belief import TIMEOUT, ConditionBelief, Origin, tagged
from perception.scene.daylight import Band, Daylight
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
