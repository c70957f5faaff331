"""What the vehicle's own signals say about conditions: rain sensor, wipers, lights, outside temperature, any others.

- source: signals
  signals:
    wipers: {topic: /vehicle/wipers, timeout: 5}
    fog_lamp: {topic: /vehicle/body, field: lamps.rear_fog, timeout: 5}
    outside: {topic: /vehicle/air, field: temperature, timeout: 60, valid: [-60, 60]}
  rules:
    - {when: wipers >= 1, says: {rain: 0.9}, hold: 1}
    - {when: outside <= -5, says: {snow: 0.6}, hold: 1}
    - {when: fog_lamp >= 1, says: {fog: 0.9}, hold: 5}
"""

from __future__ import annotations

import hashlib
import math
import operator
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any, Literal

from pydantic import Field

from perception.errors import InputError
from perception.frame import Frame, Reading
from perception.io.section import Section
from perception.rig import Finite, Name
from perception.scene.belief import ERROR_RATE, Vocabulary
from perception.tasks.task import Evidence

Value = float | str
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]

_COMPARISON = re.compile(r"\s*(\w+)\s*(>=|<=|==)\s*([\w.+-]+)\s*")  # of a signal with a number or a word
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {">=": operator.ge, "<=": operator.le, "==": operator.eq}


class SignalConfig(Section):
    topic: Annotated[str, Field(min_length=1)] | None = None  # in recordings; a vehicle fills `Frame.signals` itself
    field: str | None = None  # of the message, such as body.lamps.0; None: `data` or, without it, `temperature`
    timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)]  # s after which a value says nothing any more
    valid: tuple[Finite, Finite] | None = Field(default=None, strict=False)  # numbers outside say nothing


class RuleConfig(Section):
    when: Annotated[str, Field(min_length=1, max_length=500)]  # a signal, >=, <= or ==, and a number or a word
    # Value of a condition -> probability; the rest is shared evenly by the other values of its kind.
    says: dict[str, Annotated[float, Field(gt=0, le=1)]] = Field(min_length=1)
    hold: Seconds = 0.0  # s for which it must have been so without a break


class SourceConfig(Section):
    """What all sources of evidence have."""

    # Share of observations of another value: the larger it is, the more observations change a belief.
    error_rate: float = Field(default=ERROR_RATE, gt=0, lt=0.5)


class SignalsConfig(SourceConfig):
    source: Literal["signals"]  # the vehicle's own signals
    signals: dict[Name, SignalConfig] = Field(min_length=1)  # name -> where its values come from
    rules: tuple[RuleConfig, ...] = Field(min_length=1, strict=False)  # what the signals say about conditions

    @property
    def about(self) -> str:
        digest = hashlib.sha256(self.model_dump_json().encode()).hexdigest()
        return f"{'; '.join(' '.join(rule.when.split()) for rule in self.rules)[:80]} {digest[:16]}"


class Signals:
    """Applies rules to the signals of one drive.

    Between two readings a signal keeps its value until the timeout. Readings between two frames count, so that a signal
    that flaps faster than frames come does not fulfil a rule with `hold`. A number that is not finite or not valid
    makes its signal unknown.
    """

    def __init__(self, config: SignalsConfig, vocabulary: Vocabulary) -> None:
        self._signals = config.signals
        self._rules: list[_Rule] = []
        for i, rule in enumerate(config.rules):
            try:
                self._rules.append(_Rule(rule, config.signals, vocabulary))
            except InputError as error:
                raise InputError(f"rules.{i}.{error}") from None
        self.begin()

    def begin(self) -> None:
        """Forget the signals, before another drive."""
        self._latest: dict[str, Reading] = {}
        for rule in self._rules:
            rule.since = None

    def evidence(self, frame: Frame) -> Sequence[Evidence]:
        """What the rules say that hold at a frame."""
        now = frame.timestamp
        # A reading of later than now is of a clock that was set back.
        self._latest = {name: each for name, each in self._latest.items() if each.timestamp <= now}
        for name in self._signals:
            last = self._latest[name].timestamp if name in self._latest else -1
            news = {each.timestamp: each for each in frame.signals.get(name, ()) if last < each.timestamp <= now}
            for moment in sorted(news):
                self._judge(name, moment)  # the value before may have timed out
                self._latest[name] = news[moment]
                self._judge(name, moment)
            self._judge(name, now)
        return [rule.says for rule in self._rules if rule.since is not None and now - rule.since >= rule.hold]

    def _judge(self, name: str, moment: int) -> None:
        value = self._value(name, moment)
        for rule in self._rules:
            if rule.signal == name:
                rule.judge(value, moment)

    def _value(self, name: str, moment: int) -> Value | None:
        reading, signal = self._latest.get(name), self._signals[name]
        if reading is None or moment - reading.timestamp > 1e6 * signal.timeout:
            return None
        if isinstance(reading.value, str):
            return reading.value
        low, high = signal.valid or (-math.inf, math.inf)
        number = float(reading.value)
        return number if math.isfinite(number) and low <= number <= high else None


class _Rule:
    """A rule about a signal, and since when it has held."""

    def __init__(self, config: RuleConfig, signals: Collection[str], vocabulary: Vocabulary) -> None:
        comparison = _COMPARISON.fullmatch(config.when)
        if comparison is None:
            raise InputError(f"when: {config.when!r} is no condition; write one such as `wipers >= 1` or `gear == R`")
        self.signal, symbol, limit = comparison.groups()
        if self.signal not in signals:
            raise InputError(f"when: {self.signal} is none of the signals {', '.join(signals)}")
        self._limit: Value = limit
        self._compare = _OPERATORS[symbol]
        with suppress(ValueError):
            self._limit = float(limit) if math.isfinite(float(limit)) else limit
        if isinstance(self._limit, str) and symbol != "==":
            raise InputError(f"when: {limit} is no number, and a word has no order; compare it by ==")
        self.says, self.hold = _says(config.says, vocabulary), round(1e6 * config.hold)  # us
        self.since: int | None = None  # us; None while it does not hold

    def judge(self, value: Value | None, moment: int) -> None:
        """Note the value of the signal at a time (us); None: unknown."""
        alike = value is not None and isinstance(value, str) == isinstance(self._limit, str)
        if not alike or not self._compare(value, self._limit):
            self.since = None
        elif self.since is None or self.since > moment:
            self.since = moment


def _says(said: Mapping[str, float], vocabulary: Vocabulary) -> Evidence:
    """kind -> probabilities of its values."""
    known = {value for values in vocabulary.values() for value in values}
    if unknown := sorted(said.keys() - known):
        raise InputError(f"says: {unknown[0]} is no value of a condition; there are {', '.join(sorted(known))}")
    evidence = {}
    for kind, values in vocabulary.items():
        named = {value: said[value] for value in values if value in said}
        if not named:
            continue
        rest = 1 - math.fsum(named.values())
        if rest < -1e-9:
            raise InputError(f"says: the probabilities of {', '.join(named)} are more than 1 together")
        share = max(rest, 0) / max(1, len(values) - len(named))
        evidence[kind] = [named.get(value, share) for value in values]
    return evidence
