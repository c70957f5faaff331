"""Values of unknown content, taken out with the place where each is, so that an error can say it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from perception.errors import InputError

_LARGEST = 1e16  # a time in us is less
_SKEW = 1e-3  # how far a rotation may be from orthonormal; float32 is 1e-7 off


class Field:
    """A value in a file. Whoever takes what it does not hold gets an InputError with file, place and remedy.

    Args:
        value: dicts, lists, tuples, numbers, text, arrays.
        name: of the value in `parent`, or the file.
    """

    def __init__(self, value: Any, name: str, parent: Field | None = None) -> None:
        self.value, self.name, self.parent = value, name, parent

    def wrong(self, what: str) -> InputError:
        """The error that this value is `what`."""
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
            raise self.wrong("is no dict")
        if self.value.get(key) is None:
            raise self.wrong(f"has no {key}")
        return Field(self.value[key], key, self)

    def optional(self, key: str, default: Any) -> Field:
        """As field[key], with a default where there is none."""
        return self[key] if key in self else Field(default, key, self)

    def items(self) -> Iterator[tuple[str, Field]]:
        """Keys and values of a dict."""
        if not isinstance(self.value, dict):
            raise self.wrong("is no dict")
        for key, value in self.value.items():
            yield str(key), Field(value, str(key), self)

    def __iter__(self) -> Iterator[Field]:
        """Entries of a list."""
        if not isinstance(self.value, list | tuple):
            raise self.wrong("is no list")
        for i, value in enumerate(self.value):
            yield Field(value, f"[{i}]", self)

    @property
    def text(self) -> str:
        if not isinstance(self.value, str) or not self.value.isprintable():
            raise self.wrong("is no text")
        return str(self.value)

    @property
    def whole(self) -> int:
        if not isinstance(self.value, int) or abs(self.value) >= 1 << 62:
            raise self.wrong("is no whole number")
        return int(self.value)

    def numbers(self, *shape: int, unknown: bool = False) -> np.ndarray:
        """A float64 array of this shape; NaN only where a number may be unknown."""
        value = self.value
        if isinstance(value, np.ndarray):
            right = value.dtype.kind in "biuf" and (value.shape == shape or value.size == 0 == np.prod(shape))
        else:
            right = _fits(value, shape) or (len(shape) > 0 and shape[0] == 0 and _fits(value, (0,)))
        if not right:
            raise self.wrong(f"is not {' x '.join(map(str, shape))} numbers" if shape else "is no number")
        try:
            array = np.array(value, np.float64).reshape(shape)
        except OverflowError:
            array = np.array(np.inf)
        if not ((np.abs(array) < _LARGEST) | (unknown & np.isnan(array))).all():
            raise self.wrong("holds NaN, infinity or a number without sense")
        return array

    def names(self) -> list[str]:
        """The entries of a list or an array of text."""
        value = self.value
        if isinstance(value, np.ndarray) and (value.dtype.kind == "U" or value.size == 0) and value.ndim == 1:
            value = value.tolist()
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise self.wrong("is no list of names")
        return value

    def pose(self) -> np.ndarray:
        """(4, 4) rigid transformation."""
        matrix = self.numbers(4, 4)
        rotation = matrix[:3, :3]
        if not np.allclose(rotation @ rotation.T, np.eye(3), atol=_SKEW) or not np.array_equal(matrix[3], [0, 0, 0, 1]):
            raise self.wrong("is no rotation and translation")
        return matrix

    def quaternion(self) -> np.ndarray:
        """(4,) w x y z, of length 1."""
        value = self.numbers(4)
        if abs(value @ value - 1) > _SKEW:
            raise self.wrong("is no rotation: the quaternion's length is not 1")
        return value


def _fits(value: Any, shape: tuple[int, ...]) -> bool:
    """Whether these are numbers in lists of this shape. Lists in lists may be larger than their file."""
    if not shape:
        return isinstance(value, int | float)
    return isinstance(value, list | tuple) and len(value) == shape[0] and all(_fits(each, shape[1:]) for each in value)
