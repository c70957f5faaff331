"""The belief in the conditions of a drive, from observations that are irregular and sometimes wrong.

For each kind (weather, light, city) a discrete Bayes filter, the forward step of a hidden Markov model (Rabiner, "A
tutorial on hidden Markov models", Proc. IEEE 77, 1989): between observations the condition switches now and then,
and an observation is wrong now and then. Frames within CORRELATION see the same wiper stroke or the same lamp of a
tunnel, so they share the weight of one observation: what is believed depends on time, not on the frame rate.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from perception.frame import CONDITIONS, Conditions
from perception.tasks.task import Evidence

# Together they decide that two contradicting frames at 2 Hz switch nothing and three do.
SWITCHES = 1 / 500  # per s: how often a condition changes
WRONG = 0.02  # share of the observations that name another value
CORRELATION = 0.5  # s between observations that are independent
SURE = 0.9  # probability from which a value is believed
SILENCE = 120.0  # s after which a value that nothing speaks for is no longer believed
WINDOW = 2.0  # s of observations that the reasons count
COUNTED = 64  # observations at most that they count


@dataclass(frozen=True)
class Belief:
    """The belief in one kind of condition."""

    value: str | None  # None while unsure
    probabilities: tuple[float, ...]  # of each value, in the order of CONDITIONS
    why: str  # such as 'rain since 12.5 s: 3 of 4 frames'


def tagged(conditions: Conditions) -> Evidence:
    """Recorded tags as evidence: certain where they say something, and nothing where they do not."""
    return {
        kind: [float(value == tag) for value in values]
        for kind, values in CONDITIONS.items()
        if (tag := getattr(conditions, kind)) is not None
    }


class ConditionBelief:
    """The conditions of one drive, smoothed over time, with hysteresis.

    At first one sure observation is enough. Then one frame that contradicts switches nothing and, after the first
    seconds, nor does a burst of at most half a second. A change that lasts switches once, at frame rates from 2 Hz on:
    within 2 s where tags say so, within 3 s where a recogniser is 0.9 sure. What is recognised in a frame is evidence
    from the next one on; at 2 Hz that is still within 2 s where the recogniser is 0.99 sure. A value is believed until
    another one is, or until nothing has spoken for it for SILENCE.
    """

    def __init__(self) -> None:
        self._filters = {kind: _Filter(values) for kind, values in CONDITIONS.items()}
        self._start: int | None = None

    def update(self, timestamp: int, observations: Sequence[Evidence]) -> Conditions:
        """Take in the observations of a moment, and return the conditions believed now.

        Args:
            timestamp: us; a moment that is not after the last one is ignored.
            observations: in any order; those of the same kind count as their mean.

        Raises:
            ValueError: an observation is no probability distribution over the values of its kind.
        """
        if self._start is None:
            self._start = timestamp
        seconds = 1e-6 * (timestamp - self._start)
        for kind, belief in self._filters.items():
            belief.update(seconds, [each[kind] for each in observations if kind in each])
        return self.conditions

    @property
    def conditions(self) -> Conditions:
        """The conditions believed now; None for each kind that is not sure."""
        return Conditions(**{kind: belief.value for kind, belief in self._filters.items()})

    @property
    def beliefs(self) -> dict[str, Belief]:
        """The belief in each kind of condition, with the reason."""
        return {kind: belief.belief() for kind, belief in self._filters.items()}


class _Filter:
    """The belief about one kind of condition."""

    def __init__(self, values: tuple[str, ...]) -> None:
        self.values = values
        self.value: str | None = None
        self.why = "nothing observed"
        self.probabilities = [1 / len(values)] * len(values)
        self.time: float | None = None  # s, of the last update
        self.observed: float | None = None  # s, of the last observation
        self.supported = 0.0  # s, of the last observation that spoke for the value
        self.recent: deque[tuple[float, str]] = deque(maxlen=COUNTED)  # s and likeliest value of observations

    def update(self, time: float, observations: Sequence[Sequence[float]]) -> None:
        if self.time is not None and time <= self.time:
            return
        if self.time is not None:
            self._predict(time - self.time)
        self.time = time
        if observations:
            self._correct(time, observations)
        likeliest = max(self.probabilities)
        value = self.values[self.probabilities.index(likeliest)]
        if value != self.value and likeliest >= SURE:
            self.value, self.supported, self.why = value, time, self._reason(value, time)
        elif self.value is not None and time - self.supported > SILENCE:
            self.value, self.why = None, f"nothing has spoken for {self.value} since {self.supported:.1f} s"
        elif self.value is None and observations:
            each = (f"{value} {p:.2f}" for value, p in zip(self.values, self.probabilities, strict=True))
            self.why = f"unsure: {', '.join(each)}"

    def _predict(self, seconds: float) -> None:
        """The condition may have switched, to any value alike."""
        stayed = math.exp(-SWITCHES * seconds)
        self.probabilities = [stayed * p + (1 - stayed) / len(self.values) for p in self.probabilities]

    def _correct(self, time: float, observations: Sequence[Sequence[float]]) -> None:
        """Bayes' rule with the geometric mean of the likelihoods, to the power of the observations' weight."""
        weight = 1.0 if self.observed is None else min(1.0, (time - self.observed) / CORRELATION)
        # fsum is exact, so the order of the observations is of no consequence.
        logs = [math.fsum(map(math.log, each)) for each in zip(*map(self._likelihoods, observations), strict=True)]
        mean = [log / len(observations) for log in logs]
        posterior = [p * math.exp(weight * log) for p, log in zip(self.probabilities, mean, strict=True)]
        total = math.fsum(posterior)
        self.probabilities = [p / total for p in posterior]
        self.observed = time
        if mean.count(max(mean)) == 1:
            spoken = self.values[mean.index(max(mean))]
            self.recent.append((time, spoken))
            if spoken == self.value:
                self.supported = time

    def _likelihoods(self, observed: Sequence[float]) -> list[float]:
        """The likelihood of an observation under each value; a share of WRONG observations names another value."""
        n = len(self.values)
        if len(observed) != n or not all(0 <= p < math.inf for p in observed) or not sum(observed) > 0:
            raise ValueError(f"{list(observed)} is no probability distribution over {', '.join(self.values)}")
        total = math.fsum(observed)
        return [(1 - WRONG) * p / total + WRONG / (n - 1) * (1 - p / total) for p in observed]

    def _reason(self, value: str, time: float) -> str:
        recent = [named for moment, named in self.recent if moment > time - WINDOW]
        return f"{value} since {time:.1f} s: {recent.count(value)} of {len(recent)} frames"

    def belief(self) -> Belief:
        return Belief(self.value, tuple(self.probabilities), self.why)
