"""Conditions on the signals of a vehicle, such as `outside < 0 and wipers >= 1`, whose truth may be unknown."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

from perception.errors import InputError

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
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise InputError(
                f"{self.text!r} is no condition; write one such as `wipers >= 1 and temperature < 0`"
            ) from None
        self._check(self._tree)
        self.names = frozenset(each.id for each in ast.walk(self._tree) if isinstance(each, ast.Name))

    def holds(self, values: Values) -> bool | None:
        """Whether it is true of these values; None if they do not tell."""
        return _truth(self._tree, values)

    def _check(self, node: ast.expr) -> None:
        match node:
            case ast.BoolOp(values=parts):
                for part in parts:
                    self._check(part)
            case ast.UnaryOp(op=ast.Not(), operand=part):
                self._check(part)
            case ast.Compare(left=left, ops=ops, comparators=others) if all(type(op) in _COMPARISONS for op in ops):
                for part in (left, *others):
                    if not isinstance(part, ast.Name) and _constant(part) is None:
                        self._refuse(part)
            case ast.Name():
                pass
            case _:
                self._refuse(node)

    def _refuse(self, node: ast.expr) -> None:
        part = ast.get_source_segment(self.text, node)
        raise InputError(
            f"{self.text!r}: {part!r} is not understood; compare signals with numbers or texts, join by and, or, not"
        )


def _constant(node: ast.expr) -> Value | None:
    """The number or text that is written here; None if there is none."""
    match node:
        case ast.Constant(value=bool() | int() | float() as number):
            return float(number)
        case ast.Constant(value=str() as text):
            return text
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -float(number)
    return None


def _truth(node: ast.expr, values: Values) -> bool | None:
    match node:
        case ast.BoolOp(op=op, values=parts):
            found = [_truth(part, values) for part in parts]
            decisive = isinstance(op, ast.Or)
            if decisive in found:
                return decisive
            return None if None in found else not decisive
        case ast.UnaryOp(operand=part):
            truth = _truth(part, values)
            return None if truth is None else not truth
        case ast.Compare(left=left, ops=ops, comparators=others):
            sides = [_side(each, values) for each in (left, *others)]
            each = [_compared(op, *pair) for op, pair in zip(ops, pairwise(sides), strict=True)]
            return False if False in each else None if None in each else True
        case ast.Name(id=name):
            value = values.get(name)
            return bool(value) if isinstance(value, float) else None
    raise AssertionError(node)


def _side(node: ast.expr, values: Values) -> Value | None:
    return values.get(node.id) if isinstance(node, ast.Name) else _constant(node)


def _compared(op: ast.cmpop, left: Value | None, right: Value | None) -> bool | None:
    if left is None or right is None or isinstance(left, str) != isinstance(right, str):
        return None
    return _COMPARISONS[type(op)](left, right)
