"""The belief about conditions: against a hidden Markov model by enumeration, and what it promises at any frame rate."""

import itertools
import math
import pickle
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vocabulary import CONDITIONS

from perception.frame import Conditions
from perception.scene.belief import TIMEOUT, ConditionBelief, Origin, tagged
from perception.tasks.task import Evidence

KINDS = list(CONDITIONS)
# Irregular frames at 2 to 20 Hz.
intervals = st.lists(st.integers(50_000, 500_000), min_size=60, max_size=60)


def tag(kind: str, value: str) -> Conditions:
    return Conditions(**{kind: value})


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
    assert belief.update(0, [tagged(Conditions(light="night"), CONDITIONS)]) == Conditions(light="night")
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
        named = tag(kind, wrong if i == outlier else true)
        assert belief.update(moment, [tagged(named, CONDITIONS)])[kind] == true


@settings(max_examples=200, deadline=None)
@given(a_switch(), intervals, st.integers(5, 40))
def test_a_burst_of_half_a_second_switches_nothing(switch: tuple[str, str, str], spaces: list[int], first: int) -> None:
    kind, true, wrong = switch
    moments = times(spaces)
    belief = ConditionBelief(CONDITIONS)
    for moment in moments:
        burst = 0 <= moment - moments[first] <= 500_000
        assert belief.update(moment, [tagged(tag(kind, wrong if burst else true), CONDITIONS)])[kind] == true


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
    belief.update(0, [tagged(Conditions(weather="rain", light="day", city="boston"), CONDITIONS)])
    for second in range(1, 300):
        conditions = belief.update(second * 1_000_000, [tagged(Conditions(light="day"), CONDITIONS)])
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
    belief.update(5_000_000, [tagged(Conditions(weather="clear"), CONDITIONS)])
    before = belief.beliefs
    for earlier in (5_000_000, 4_000_000, 0):
        assert belief.update(earlier, [tagged(Conditions(weather="rain"), CONDITIONS)]) == Conditions(weather="clear")
    assert belief.beliefs == before
    for i in range(1, 4):
        belief.update(5_000_000 + i * 500_000, [tagged(Conditions(weather="rain"), CONDITIONS)])
    assert belief.beliefs["weather"].why == "rain since 1.0 s: 2 of 3 frames"


def test_reasons() -> None:
    belief = ConditionBelief(CONDITIONS)
    assert belief.beliefs["weather"].why == "nothing observed"
    belief.update(0, [{"weather": [0.4, 0.4, 0.2]}])
    assert belief.beliefs["weather"].why == "unsure: clear 0.40, rain 0.40, fog 0.20"
    for i in range(1, 11):
        belief.update(i * 500_000, [tagged(Conditions(weather="clear"), CONDITIONS)])
    assert belief.beliefs["weather"].why == "clear since 0.5 s: 1 of 1 frames"
    for i in range(11, 15):
        belief.update(i * 500_000, [tagged(Conditions(weather="rain"), CONDITIONS)])
    assert belief.beliefs["weather"].why == "rain since 6.5 s: 3 of 4 frames"
    assert belief.conditions == Conditions(weather="rain")


@pytest.mark.parametrize(
    "wrong", [[0.5, 0.5], [1.0, -0.1, 0.1], [math.nan, 0.5, 0.5], [0.0, 0.0, 0.0], [math.inf, 0, 0]]
)
def test_what_is_no_distribution_is_refused(wrong: list[float]) -> None:
    with pytest.raises(ValueError, match="no probability distribution over clear, rain, fog"):
        ConditionBelief(CONDITIONS).update(0, [{"weather": wrong}])
