"""What is believed of conditions, by enumeration of a hidden Markov model, and which source it comes from."""

import itertools
import math
import pickle
import random
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import one_line_error
from hypothesis import given, settings
from hypothesis import strategies as st
from maps import box, feature, polygon, write_map
from repository import ROOT
from vocabulary import CONDITIONS, sensors

from perception.datasets.keyframes import Reads
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.frame import Conditions, Frame, Reading
from perception.scene.belief import TIMEOUT, ConditionBelief, Origin, evidence_of_tags
from perception.scene.scene import Scene
from perception.scene.sources import Sources, load_sources
from perception.tasks.task import Evidence

KINDS = list(CONDITIONS)
Switch = tuple[str, str, str]  # a kind of condition, and two values of it
# Irregular frames at 2 to 20 Hz.
intervals = st.lists(st.integers(50_000, 500_000), min_size=60, max_size=60)


def tags(**values: str | None) -> Evidence:
    return evidence_of_tags(Conditions(**values), CONDITIONS)


def times(spaces: list[int], start: int = 1_500_000_000_000_000) -> list[int]:
    return list(itertools.accumulate(spaces, initial=start))


@st.composite
def a_switch(draw: st.DrawFn) -> Switch:
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
    origins = None if wrong is None else {kind: Origin("tags", wrong)}
    for moment, each in zip(moments, said, strict=True):
        belief.update(moment, [] if each is None else [{kind: each}], origins)
    observed = [(1e-6 * (moment - moments[0]), each) for moment, each in zip(moments, said, strict=True)]
    expected = posterior_by_enumeration(len(CONDITIONS[kind]), wrong or 0.02, observed)
    assert belief.beliefs[kind].probabilities == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("rate", [2, 10])
@pytest.mark.parametrize(("wrong", "same"), [(0.02, 0.0), (0.1, 0.5), (0.3, 0.5)])
def test_conditions_of_a_scene_are_true_more_often_than_those_of_a_frame(wrong: float, same: float, rate: int) -> None:
    """Of weather that changes every 250 s on average, and a calibrated recogniser that repeats the frame before.

    Args:
        wrong: share of frames that are recognised as another weather.
        same: probability that a frame has the error, or none, of the frame before.
    """
    rng, belief, values = np.random.default_rng(0), ConditionBelief(CONDITIONS), CONDITIONS["weather"]
    rest, true, offset = wrong / (len(values) - 1), 0, 0
    right, brier, changes, before = np.zeros(2), np.zeros(2), np.zeros(3, int), [0] * 3
    frames = 8000 * rate
    for i in range(frames):
        true = (true + 1) % len(values) if rng.random() < 1 / (250 * rate) else true
        if rng.random() >= same:
            offset = int(rng.integers(1, len(values))) if rng.random() < wrong else 0
        seen = (true + offset) % len(values)
        said = [1 - wrong if k == seen else rest for k in range(len(values))]
        found = belief.update(round(1e6 * i / rate), [{"weather": said}], {"weather": Origin("recognised", wrong)})
        now = [true, seen, values.index(found["weather"]) if "weather" in found else -1]
        right += [each == true for each in now[1:]]
        both = np.array([said, belief.beliefs["weather"].probabilities])
        brier += ((both - np.eye(len(values))[true]) ** 2).sum(axis=1)
        changes += [a != b for a, b in zip(now, before, strict=True)]
        before = now
    assert right[1] > right[0], (right / frames, brier / frames, changes)
    assert brier[1] < brier[0], (right / frames, brier / frames, changes)
    assert changes[2] <= max(2 * changes[0], 0.2 * changes[1]), (right / frames, brier / frames, changes)


@settings(max_examples=300, deadline=None)
@given(a_switch(), intervals, st.integers(1, 60), st.integers(0, int(TIMEOUT) - 1), st.booleans())
def test_a_frame_or_burst_switches_nothing(switch, spaces, first, silence, burst):
    """A frame anywhere, even after two minutes without any; after the first seconds all frames of half a second."""
    kind, true, wrong = switch
    if burst:
        first = 5 + first % 36
    else:
        spaces[first - 1] += silence * 1_000_000
    belief, moments = ConditionBelief(CONDITIONS), times(spaces)
    for i, moment in enumerate(moments):
        outlying = 0 <= moment - moments[first] <= 500_000 if burst else i == first
        assert belief.update(moment, [tags(**{kind: wrong if outlying else true})])[kind] == true


@settings(max_examples=400, deadline=None)
@given(a_switch(), intervals, st.integers(1, 30), st.integers(0, 499_999), st.sampled_from([(1.0, 2), (0.9, 3)]))
def test_a_lasting_change_switches_once_and_within_two_seconds(switch, spaces, last, after_it, sureness):
    """And within three by a recogniser that is less sure. It comes at any time between two frames, also early."""
    (kind, before, after), (sure, limit), moments = switch, sureness, times(spaces)
    change = moments[last] + 1 + after_it % spaces[last]
    rest, belief, believed = (1 - sure) / (len(CONDITIONS[kind]) - 1), ConditionBelief(CONDITIONS), []
    for moment in [*moments, *times([500_000] * 6, moments[-1])[1:]]:
        true = after if moment >= change else before
        conditions = belief.update(moment, [{kind: [sure if v == true else rest for v in CONDITIONS[kind]]}])
        believed.append(conditions.get(kind))
        assert believed[-1] == after or moment < change + limit * 1_000_000
    values = [value for value, _ in itertools.groupby(believed)]
    assert values == [before, after] if sure == 1 else [v for v in values if v] in ([before, after], [after])


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_order_of_observations_at_a_moment_is_of_no_consequence(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(KINDS))
    one, other = ConditionBelief(CONDITIONS), ConditionBelief(CONDITIONS)
    for moment in times(data.draw(st.lists(st.integers(10_000, 900_000), min_size=4, max_size=4))):
        observations = [{kind: each} for each in data.draw(st.lists(evidence(kind), max_size=4))]
        shuffled = random.Random(len(observations)).sample(observations, len(observations))
        assert one.update(moment, observations) == other.update(moment, shuffled)
        assert one.beliefs == other.beliefs  # to the last bit


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_belief_stays_a_distribution_and_small_and_hears_nothing_of_the_past(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(KINDS))
    said = data.draw(st.lists(evidence(kind), min_size=1, max_size=5))
    belief, undisturbed, moment = ConditionBelief(CONDITIONS), ConditionBelief(CONDITIONS), 0
    for i in range(400):
        moment += data.draw(st.sampled_from([0, 1, 1_000, 50_000, 10**9])) if i % 20 == 0 else 10_000
        observed, past = [{kind: said[i % len(said)]}], [{kind: said[i // 2 % len(said)]}]
        believed = undisturbed.update(moment, observed)
        assert believed == belief.update(moment, observed) == belief.update(moment - i, past)
        assert belief.beliefs == undisturbed.beliefs
        probabilities = belief.beliefs[kind].probabilities
        assert sum(probabilities) == pytest.approx(1, abs=1e-12)
        assert all(0 < p < 1 for p in probabilities)
    assert len(pickle.dumps(belief)) < 5_000


def test_what_is_not_observed_is_held_and_then_unknown() -> None:
    """Nor does evidence that finds all values alike keep a belief."""
    belief = ConditionBelief(CONDITIONS)
    belief.update(0, [tags(weather="rain", light="day", city="boston")])
    for second in range(1, 300):
        conditions = belief.update(second * 1_000_000, [tags(light="day"), {"city": EVEN}])
        held = second <= TIMEOUT
        assert conditions == Conditions(weather="rain" if held else None, light="day", city="boston" if held else None)
    assert belief.beliefs["weather"].why == "no support for rain since 0.0 s"


@pytest.mark.parametrize("wrong", [31_536_000 * 10**6, -3_600 * 10**6])
def test_a_clock_that_is_set_does_not_stop_the_belief(wrong: int) -> None:
    """For one frame a year ahead, or from then on an hour back: later the weather changes as ever."""
    belief, moments = ConditionBelief(CONDITIONS), times([500_000] * 8)
    moments[2:] = [moments[2] + wrong, *moments[3:]] if wrong > 0 else [moment + wrong for moment in moments[2:]]
    for i, moment in enumerate(moments):
        conditions = belief.update(moment, [tags(weather="rain" if i < 4 else "clear")])
    assert conditions == Conditions(weather="clear")


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
            for observed in (value, "fog"):  # the second one is not later and tells nothing
                belief.update(i * 500_000, [tags(weather=observed)])
        assert belief.beliefs["weather"].why == why
    assert belief.conditions == Conditions(weather="rain")


@pytest.mark.parametrize("wrong", [[0.5, 0.5], [1, -0.1, 0.1], [math.nan, 0.5, 0.5], [0, 0, 0], [math.inf, 0, 0]])
def test_what_is_no_distribution_is_refused(wrong: list[float]) -> None:
    with pytest.raises(ValueError, match="no probability distribution over clear, rain, fog"):
        ConditionBelief(CONDITIONS).update(0, [{"weather": wrong}])


MUNICH = (48.1374, 11.5755)
NOW = 1_774_000_000_000_000  # us
DAY, NIGHT, EVEN = [1.0, 0.0], [0.0, 1.0], [0.5, 0.5]


def frame_at(position: tuple[float, float] | None = MUNICH, **signals: float) -> Frame:
    readings = {name: [Reading(NOW, value)] for name, value in signals.items()}
    return Frame("", NOW, "ego", np.eye(4), np.eye(4), None, {}, scene="drive", position=position, signals=readings)


def loaded(folder: Path, text: str) -> Sources:
    path = folder / "evidence.yaml"
    path.write_text(f"sources: [{text}]")
    return load_sources(path, CONDITIONS)


@pytest.fixture
def all_sources(tmp_path: Path) -> Sources:
    write_map(tmp_path, feature(polygon(box(11, 48, 12, 49)), city="boston"))
    rules = "{when: lamps == 0, says: {day: 1.0}}, {when: lamps == 1, says: {day: 0.5, night: 0.5}}"
    lamps = f"{{source: signals, signals: {{lamps: {{timeout: 1}}}}, rules: [{rules}], error_rate: 0.01}}"
    rest = "{source: geofences, file: areas.geojson}, {source: recognised, error_rate: 0.1}"
    return loaded(tmp_path, f"{{source: tags}}, {lamps}, {rest}")


def test_the_first_source_with_evidence_counts(all_sources: Sources) -> None:
    recognised: list[Evidence] = [{"light": NIGHT, "weather": [0.1, 0.9, 0.0]}, {"light": DAY}]
    by_pictures, by_day = Origin("recognised", 0.1), frame_at(lamps=0)
    observations, origins = all_sources.observe(by_day, recognised)
    assert observations == [{"light": DAY}, {"city": [1.0, 0.0]}, {"weather": [0.1, 0.9, 0.0]}]
    assert origins == {"light": Origin("signals", 0.01), "city": Origin("geofences"), "weather": by_pictures}
    tagged = replace(by_day, conditions=Conditions(light="night", city="singapore"))
    observations, origins = all_sources.observe(tagged, recognised)
    assert observations == [{"light": NIGHT}, {"city": [0.0, 1.0]}, {"weather": [0.1, 0.9, 0.0]}]
    assert origins["light"] == origins["city"] == Origin("tags")
    all_sources.begin()
    observations, origins = all_sources.observe(frame_at(None), recognised)
    assert observations == [{"light": NIGHT}, {"light": DAY}, {"weather": [0.1, 0.9, 0.0]}]
    assert origins["light"] == by_pictures
    # One that cannot decide leaves it to the next.
    for recognised, light, source in (([NIGHT], NIGHT, "recognised"), ([EVEN], EVEN, "signals"), ([], EVEN, "signals")):
        all_sources.begin()
        observations, origins = all_sources.observe(frame_at(lamps=1), [{"light": each} for each in recognised])
        assert observations[0] == {"light": light}
        assert origins["light"].source == source


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{source: moon}", "sources.0: .*'moon'"),
        ("", "sources: "),
        ("{source: tags, error_rate: 0.5}", "sources.0.tags.error_rate: .*less than 0.5"),
        ("{source: geofences, file: none.json}", "sources.0: .*none.json: cannot read"),
    ],
)
def test_a_wrong_configuration_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    with one_line_error(f"evidence.yaml: .*{message}"):
        loaded(tmp_path, text)


def test_what_a_replay_depends_on_is_told(tmp_path: Path, all_sources: Sources) -> None:
    assert load_sources(None, CONDITIONS).about == ("tags", "recognised")
    tags, lamps, areas, recognised = all_sources.about
    assert (tags, recognised) == ("tags", "recognised (wrong in 0.1)")
    assert re.fullmatch(r"signals \(lamps == 0; lamps == 1 [0-9a-f]{16}, wrong in 0.01\)", lamps)
    assert re.fullmatch(r"geofences \(areas.geojson [0-9a-f]{16}\)", areas)
    write_map(tmp_path, feature(polygon(box(11, 48, 12, 50)), city="boston"))
    again = load_sources(tmp_path / "evidence.yaml", CONDITIONS).about
    assert [old == new for old, new in zip(all_sources.about, again, strict=True)] == [True, True, False, True]


@pytest.mark.parametrize(("scene", "city"), [("scene-0103", "boston"), ("scene-0916", "singapore")])
def test_real_keyframes_by_position(nuscenes_root: Path, scene: str, city: str) -> None:
    """Without a position the city is told by the name of the map."""
    tables = NuScenesTables(nuscenes_root, "v1.0-mini")
    frames = [tables.frame(token, Reads(lidar=False, cameras=False)) for token in tables.samples(selectors=[scene])]
    untagged = [replace(frame, conditions=Conditions()) for frame in frames]
    nowhere = [replace(frame, position=None) for frame in untagged]
    for given_frames in (untagged, nowhere):
        found = load_sources(ROOT / "configs" / "evidence" / "nuscenes.yaml", CONDITIONS)
        drive = Scene(sensors(), {}, CONDITIONS, {}, found)
        assert {drive.observe(frame) for frame in given_frames} == {Conditions(city=city)}
