"""Checked access to values of unknown content; errors name the file and the path of keys to the value."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from perception.errors import InputError

_MAX_MAGNITUDE = 1e16  # above any time in us
_ROTATION_TOLERANCE = 1e-3  # deviation of a rotation from orthonormal; float32 has 1e-7


class Field:
    """A value in a file, with its path of keys. Reading it as a type that it has not raises InputError.

    Args:
        value: dicts, lists, tuples, numbers, text, arrays.
        name: key of the value in `parent`; without a parent the file.
    """

    def __init__(self, value: Any, name: str, parent: Field | None = None) -> None:
        self.value, self.name, self.parent = value, name, parent

    def error(self, what: str) -> InputError:
        """The error "PATH OF KEYS `what`"."""
        names, field = [], self
        while field.parent is not None:
            names.append(field.name)
            field = field.parent
        place = re.sub(r"[^ -~]", "?", ".".join(reversed(names)).replace(".[", "["))[:200]
        return InputError(
            f"{field.name}: {place or 'the content'} {what}; make the infos again with mmdet3d's converter"
        )

    def __contains__(self, key: str) -> bool:
        return isinstance(self.value, dict) and self.value.get(key) is not None

    def __getitem__(self, key: str) -> Field:
        if not isinstance(self.value, dict):
            raise self.error("is no dict")
        if self.value.get(key) is None:
            raise self.error(f"has no {key}")
        return Field(self.value[key], key, self)

    def optional(self, key: str, default: Any) -> Field:
        """field[key], or the default where it is absent."""
        return self[key] if key in self else Field(default, key, self)

    def items(self) -> Iterator[tuple[str, Field]]:
        """Keys and values of a dict."""
        if not isinstance(self.value, dict):
            raise self.error("is no dict")
        for key, value in self.value.items():
            yield str(key), Field(value, str(key), self)

    def __iter__(self) -> Iterator[Field]:
        """Entries of a list."""
        if not isinstance(self.value, list | tuple):
            raise self.error("is no list")
        for i, value in enumerate(self.value):
            yield Field(value, f"[{i}]", self)

    @property
    def text(self) -> str:
        if not isinstance(self.value, str) or not self.value.isprintable():
            raise self.error("is no text")
        return str(self.value)

    @property
    def integer(self) -> int:
        if not isinstance(self.value, int) or abs(self.value) >= 1 << 62:
            raise self.error("is no whole number")
        return int(self.value)

    def numbers(self, *shape: int, unknown: bool = False) -> np.ndarray:
        """A float64 array of this shape; NaN only if numbers may be unknown."""
        value = self.value
        if isinstance(value, np.ndarray):
            fits = value.dtype.kind in "biuf" and (value.shape == shape or value.size == 0 == np.prod(shape))
        else:
            fits = _has_shape(value, shape) or (len(shape) > 0 and shape[0] == 0 and _has_shape(value, (0,)))
        if not fits:
            raise self.error(f"is not {' x '.join(map(str, shape))} numbers" if shape else "is no number")
        try:
            array = np.array(value, np.float64).reshape(shape)
        except OverflowError:
            array = np.array(np.inf)
        if not ((np.abs(array) < _MAX_MAGNITUDE) | (unknown & np.isnan(array))).all():
            raise self.error("holds NaN, infinity or a number without sense")
        return array

    def names(self) -> list[str]:
        """The entries of a list or an array of text."""
        value = self.value
        if isinstance(value, np.ndarray) and (value.dtype.kind == "U" or value.size == 0) and value.ndim == 1:
            value = value.tolist()
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise self.error("is no list of names")
        return value

    def pose(self) -> np.ndarray:
        """(4, 4) rigid transformation."""
        matrix = self.numbers(4, 4)
        rotation = matrix[:3, :3]
        if not np.allclose(rotation @ rotation.T, np.eye(3), atol=_ROTATION_TOLERANCE) or not np.array_equal(
            matrix[3], [0, 0, 0, 1]
        ):
            raise self.error("is no rotation and translation")
        return matrix

    def quaternion(self) -> np.ndarray:
        """(4,) unit quaternion w x y z."""
        value = self.numbers(4)
        if abs(value @ value - 1) > _ROTATION_TOLERANCE:
            raise self.error("is no rotation: the quaternion's length is not 1")
        return value


def _has_shape(value: Any, shape: tuple[int, ...]) -> bool:
    """Whether the value is nested lists of numbers of this shape.

    Checked before an array is made of it: a pickle may repeat a list so often that the array would exceed the memory.
    """
    if not shape:
        return isinstance(value, int | float)
    return (
        isinstance(value, list | tuple)
        and len(value) == shape[0]
        and all(_has_shape(each, shape[1:]) for each in value)
    )
