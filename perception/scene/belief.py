"""Bayes filter for the conditions of a drive, from irregular and sometimes wrong observations.

For each kind (weather, light, city) a discrete Bayes filter, the forward step of a hidden Markov model (Rabiner, "A
tutorial on hidden Markov models", Proc. IEEE 77, 1989) with a switching rate and an observation error. Observations
within CORRELATION are correlated (the same wiper stroke, the same tunnel lamp) and share the weight of one, so that the
belief does not depend on the frame rate.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from perception.frame import Conditions
from perception.tasks.task import Evidence

# Chosen such that two contradicting frames at 2 Hz do not switch the belief and three do.
SWITCHING_RATE = 1 / 500  # 1/s
ERROR_RATE = 0.02  # share of observations of another value
CORRELATION = 0.5  # s between independent observations
SURE = 0.9  # probability above which a value is believed
TIMEOUT = 120.0  # s without supporting observations after which a value is no longer believed
WINDOW = 2.0  # s of observations that reasons count
CLOCK_SET = 3.0  # s; an earlier time by more is of a clock that was set back
MAX_COUNTED = 64  # observations that reasons count


@dataclass(frozen=True)
class Belief:
    value: str | None  # None while unsure
    probabilities: tuple[float, ...]  # of each value, in the order of the taxonomy
    why: str  # such as 'rain since 12.5 s by tags: 3 of 4 frames'
    source: str = ""  # of the observations that made the value believed; "" while unsure


@dataclass(frozen=True)
class Origin:
    source: str
    error_rate: float = ERROR_RATE  # share of observations of another value


_UNNAMED = Origin("")


Vocabulary = Mapping[str, Sequence[str]]  # kind of condition -> values


def evidence_of_tags(conditions: Mapping[str, str], vocabulary: Vocabulary) -> Evidence:
    """Recorded tags as certain evidence; none for kinds without a tag, and for values that the vocabulary lacks."""
    return {
        kind: [float(value == conditions[kind]) for value in values]
        for kind, values in vocabulary.items()
        if conditions.get(kind) in values
    }


class ConditionBelief:
    """The conditions of one drive, filtered over time with hysteresis.

    The first sure observation is believed. Later a single contradicting frame does not switch a belief and, after the
    first seconds, nor does a burst of up to 0.5 s. A lasting change switches it once, at 2 Hz or more: within 2 s by
    tags, within 3 s by a recogniser with probability 0.9 (2 s with 0.99). A value is believed until another one is, or
    without support for TIMEOUT.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._filters = {kind: _Filter(tuple(values)) for kind, values in vocabulary.items()}
        self._elapsed = 0  # us since the first update
        self._latest: int | None = None  # us, time of the latest update

    def update(
        self, timestamp: int, observations: Sequence[Evidence], origins: Mapping[str, Origin] | None = None
    ) -> Conditions:
        """Add the observations at one time; returns the conditions believed now.

        Args:
            timestamp: us; ignored unless later than the last one, or CLOCK_SET earlier: then the clock was set back.
        """
        passed = 0 if self._latest is None else timestamp - self._latest
        if self._latest is None or passed > 0 or passed < -1e6 * CLOCK_SET:
            self._elapsed, self._latest = self._elapsed + max(0, passed), timestamp
        seconds = 1e-6 * self._elapsed
        for kind, belief in self._filters.items():
            found = [each[kind] for each in observations if kind in each]
            belief.update(seconds, found, (origins or {}).get(kind, _UNNAMED))
        return self.conditions

    @property
    def conditions(self) -> Conditions:
        """The conditions believed now, without unsure kinds."""
        return Conditions(**{kind: belief.value for kind, belief in self._filters.items()})

    @property
    def beliefs(self) -> dict[str, Belief]:
        return {kind: belief.belief() for kind, belief in self._filters.items()}


class _Filter:
    def __init__(self, values: tuple[str, ...]) -> None:
        self.values = values
        self.value: str | None = None
        self.why, self.source = "nothing observed", ""
        self.probabilities = [1 / len(values)] * len(values)
        self.time: float | None = None  # s, of the last update
        self.observed: float | None = None  # s, of the last observation
        self.supported = 0.0  # s, of the last observation that supports the value
        self.recent: deque[tuple[float, str]] = deque(maxlen=MAX_COUNTED)  # s and likeliest value of observations

    def update(self, time: float, observations: Sequence[Sequence[float]], origin: Origin) -> None:
        if self.time is not None and time <= self.time:
            return
        if self.time is not None:
            self._predict(time - self.time)
        self.time = time
        if observations:
            self._correct(time, observations, origin.error_rate)
        likeliest = max(self.probabilities)
        value = self.values[self.probabilities.index(likeliest)]
        if value != self.value and likeliest >= SURE:
            self.value, self.supported, self.source = value, time, origin.source
            self.why = self._reason(value, time)
        elif self.value is not None and time - self.supported > TIMEOUT:
            self.why = f"no support for {self.value} since {self.supported:.1f} s"
            self.value, self.source = None, ""
        elif self.value is None and observations:
            each = (f"{value} {p:.2f}" for value, p in zip(self.values, self.probabilities, strict=True))
            self.why = f"unsure: {', '.join(each)}"

    def _predict(self, seconds: float) -> None:
        """Prediction step: the condition may have switched to any value with equal probability."""
        stayed = math.exp(-SWITCHING_RATE * seconds)
        self.probabilities = [stayed * p + (1 - stayed) / len(self.values) for p in self.probabilities]

    def _correct(self, time: float, observations: Sequence[Sequence[float]], error_rate: float) -> None:
        """Correction step: Bayes' rule with the geometric mean of the likelihoods to the power of their weight."""
        weight = 1.0 if self.observed is None else min(1.0, (time - self.observed) / CORRELATION)
        # fsum is exact, so the result does not depend on the order of the observations.
        likelihoods = [self._likelihoods(each, error_rate) for each in observations]
        logs = [math.fsum(map(math.log, each)) for each in zip(*likelihoods, strict=True)]
        mean = [log / len(observations) for log in logs]
        posterior = [p * math.exp(weight * log) for p, log in zip(self.probabilities, mean, strict=True)]
        total = math.fsum(posterior)
        self.probabilities = [p / total for p in posterior]
        self.observed = time
        if mean.count(max(mean)) == 1:
            likeliest = self.values[mean.index(max(mean))]
            self.recent.append((time, likeliest))
            if likeliest == self.value:
                self.supported = time

    def _likelihoods(self, observed: Sequence[float], error_rate: float) -> list[float]:
        """The likelihood of an observation for each value; a share of `error_rate` is of another value."""
        n = len(self.values)
        if len(observed) != n or not all(0 <= p < math.inf for p in observed) or not sum(observed) > 0:
            raise ValueError(f"{list(observed)} is no probability distribution over {', '.join(self.values)}")
        total = math.fsum(observed)
        return [(1 - error_rate) * p / total + error_rate / max(1, n - 1) * (1 - p / total) for p in observed]

    def _reason(self, value: str, time: float) -> str:
        recent = [observed for moment, observed in self.recent if moment > time - WINDOW]
        by = f" by {self.source}" if self.source else ""
        return f"{value} since {time:.1f} s{by}: {recent.count(value)} of {len(recent)} frames"

    def belief(self) -> Belief:
        return Belief(self.value, tuple(self.probabilities), self.why, self.source)
