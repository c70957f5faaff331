"""What the vehicle's own signals say about conditions: rain sensor, wipers, lights, outside temperature, any others.

- source: signals
  signals:
    wipers: {topic: /vehicle/wipers, timeout: 5}
    outside: {topic: /vehicle/air, field: temperature, timeout: 60, valid: [-60, 60]}
  rules:
    - {when: wipers >= 1 and outside > 2, says: {rain: 0.9}, hold: 1}
    - {when: wipers >= 1 and outside < -2, says: {snow: 0.9}, hold: 1}
"""

from __future__ import annotations

import ast
import hashlib
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby, pairwise
from typing import Annotated, Any, Literal

from pydantic import Field

from perception.errors import InputError
from perception.frame import Frame, Reading
from perception.io.section import Section
from perception.scene.belief import ERROR_RATE, Vocabulary
from perception.tasks.task import Evidence

# Conditions on the signals of a vehicle, such as `outside < 0 and wipers >= 1`, whose truth may be unknown.

Value = float | str
Values = Mapping[str, Value | None]  # signal -> value; None: unknown

_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}


class Expression:
    """Comparisons of signals with numbers and texts, joined by `and`, `or` and `not`; a signal alone holds unless 0.

    A comparison with an unknown value, or of a number with a text, is unknown. What follows from it is Kleene's logic:
    `and` is false if any part is, `or` true if any part is, whatever the unknown ones are.

    Attributes:
        names: the signals that it needs.

    Raises:
        InputError: it is anything else.
    """

    def __init__(self, text: str) -> None:
        self.text = " ".join(text.split())
        try:
            self._tree = ast.parse(self.text, mode="eval").body
            self.holds({})  # visits every part
        except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
            raise InputError(
                f"{self.text!r} is no condition; write one such as `wipers >= 1 and temperature < 0`"
            ) from None
        self.names = frozenset(each.id for each in ast.walk(self._tree) if isinstance(each, ast.Name))

    def holds(self, values: Values) -> bool | None:
        """Whether it is true of these values; None if they do not tell."""
        return self._truth(self._tree, values)

    def _truth(self, node: ast.expr, values: Values) -> bool | None:
        match node:
            case ast.BoolOp(op=op, values=parts):
                found = [self._truth(part, values) for part in parts]
                decisive = isinstance(op, ast.Or)
                if decisive in found:
                    return decisive
                return None if None in found else not decisive
            case ast.UnaryOp(op=ast.Not(), operand=part):
                truth = self._truth(part, values)
                return None if truth is None else not truth
            case ast.Compare(left=left, ops=ops, comparators=others) if all(type(op) in _COMPARISONS for op in ops):
                sides = [self._side(each, values) for each in (left, *others)]
                each = [_compare(op, *pair) for op, pair in zip(ops, pairwise(sides), strict=True)]
                return False if False in each else None if None in each else True
            case ast.Name(id=name):
                value = values.get(name)
                return bool(value) if isinstance(value, float) else None
        raise self._refused(node)

    def _side(self, node: ast.expr, values: Values) -> Value | None:
        """The value of one side of a comparison; None if it is not known."""
        match node:
            case ast.Name(id=name):
                return values.get(name)
            case ast.Constant(value=bool() | int() | float() as number):
                return float(number)
            case ast.Constant(value=str() as text):
                return text
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
                return -float(number)
        raise self._refused(node)

    def _refused(self, node: ast.expr) -> InputError:
        part = ast.get_source_segment(self.text, node)
        return InputError(
            f"{self.text!r}: {part!r} is not understood; compare signals with numbers or texts, join by and, or, not"
        )


def _compare(op: ast.cmpop, left: Value | None, right: Value | None) -> bool | None:
    if left is None or right is None or isinstance(left, str) != isinstance(right, str):
        return None
    return _COMPARISONS[type(op)](left, right)


Finite = Annotated[float, Field(allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$", max_length=60)]


class SignalConfig(Section):
    topic: Annotated[str, Field(min_length=1)] | None = None  # in recordings; a vehicle fills `Frame.signals` itself
    field: str | None = None  # of the message, such as body.lamps.0; None: `data` or, without it, `temperature`
    timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)]  # s after which a value says nothing any more
    valid: tuple[Finite, Finite] | None = Field(default=None, strict=False)  # numbers outside say nothing


class RuleConfig(Section):
    when: Annotated[str, Field(min_length=1, max_length=500)]
    # Value of a condition -> probability; the rest is shared evenly by the other values of its kind.
    says: dict[str, Annotated[float, Field(gt=0, le=1)]] = Field(min_length=1)
    hold: Seconds = 0.0  # s for which it must have been so without a break


class SourceConfig(Section):
    """What all sources of evidence have."""

    # Share of observations of another value: the larger it is, the more observations change a belief.
    error_rate: float = Field(default=ERROR_RATE, gt=0, lt=0.5)


class SignalsConfig(SourceConfig):
    source: Literal["signals"]
    signals: dict[Name, SignalConfig] = Field(min_length=1)
    rules: tuple[RuleConfig, ...] = Field(min_length=1, strict=False)

    @property
    def about(self) -> str:
        """All of it, briefly."""
        digest = hashlib.sha256(self.model_dump_json().encode()).hexdigest()
        return f"{'; '.join(' '.join(rule.when.split()) for rule in self.rules)[:80]} {digest[:16]}"


class Signals:
    """Applies rules to the signals of one drive.

    Between two readings a signal keeps its value until the timeout. Readings between two frames count, so that a signal
    that flaps faster than frames come does not fulfil a rule with `hold`. A number that is not finite or not valid
    makes its signal unknown.

    Args:
        vocabulary: of the conditions.

    Raises:
        InputError: a rule needs a signal, or says a value, that there is not.
    """

    def __init__(self, config: SignalsConfig, vocabulary: Vocabulary) -> None:
        self._signals = config.signals
        self._rules = [
            (_expression(f"rules.{i}.when", rule.when, config.signals), _says(f"rules.{i}.says", rule.says, vocabulary))
            for i, rule in enumerate(config.rules)
        ]
        self._holds = [round(1e6 * rule.hold) for rule in config.rules]
        self.begin()

    def begin(self) -> None:
        """Forget the signals, before another drive."""
        self._latest: dict[str, Reading] = {}
        self._since: list[int | None] = [None] * len(self._rules)  # us, from when on each rule has held

    def evidence(self, frame: Frame) -> Sequence[Evidence]:
        """What the rules say that hold at a frame."""
        now = frame.timestamp
        # A reading of later than now is of a clock that was set back.
        self._latest = {name: each for name, each in self._latest.items() if each.timestamp <= now}
        news = [
            (each.timestamp, name, each)
            for name in self._signals
            for each in frame.signals.get(name, ())
            if self._since_latest(name) < each.timestamp <= now
        ]
        for moment, same in groupby(sorted(news, key=lambda new: new[0]), key=lambda new: new[0]):
            self._judge(moment)  # a value may have timed out before
            self._latest.update((name, each) for _, name, each in same)
            self._judge(moment)
        self._judge(now)
        held = zip(self._rules, self._since, self._holds, strict=True)
        return [says for (_, says), since, hold in held if since is not None and now - since >= hold]

    def _since_latest(self, name: str) -> int:
        return self._latest[name].timestamp if name in self._latest else -1

    def _judge(self, moment: int) -> None:
        values = {name: self._value(name, moment) for name in self._signals}
        for i, (when, _) in enumerate(self._rules):
            since = self._since[i]
            if when.holds(values) is not True:
                self._since[i] = None
            elif since is None or since > moment:
                self._since[i] = moment

    def _value(self, name: str, moment: int) -> Value | None:
        """The value of a signal at a time (us); None if it is not known."""
        reading, signal = self._latest.get(name), self._signals[name]
        if reading is None or moment - reading.timestamp > 1e6 * signal.timeout:
            return None
        if isinstance(reading.value, str):
            return reading.value
        low, high = signal.valid or (-math.inf, math.inf)
        number = float(reading.value)
        return number if math.isfinite(number) and low <= number <= high else None


def _expression(where: str, text: str, signals: Mapping[str, SignalConfig]) -> Expression:
    try:
        expression = Expression(text)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    if unknown := sorted(expression.names - signals.keys()):
        raise InputError(f"{where}: {unknown[0]} is none of the signals {', '.join(signals)}")
    if not expression.names:
        raise InputError(f"{where}: {expression.text!r} depends on no signal")
    return expression


def _says(where: str, said: Mapping[str, float], vocabulary: Vocabulary) -> Evidence:
    """kind -> probabilities of its values."""
    known = {value for values in vocabulary.values() for value in values}
    if unknown := sorted(said.keys() - known):
        raise InputError(f"{where}: {unknown[0]} is no value of a condition; there are {', '.join(sorted(known))}")
    evidence = {}
    for kind, values in vocabulary.items():
        named = {value: said[value] for value in values if value in said}
        if not named:
            continue
        rest = 1 - math.fsum(named.values())
        if rest < -1e-9:
            raise InputError(f"{where}: the probabilities of {', '.join(named)} are more than 1 together")
        share = max(rest, 0) / max(1, len(values) - len(named))
        evidence[kind] = [named.get(value, share) for value in values]
    return evidence
