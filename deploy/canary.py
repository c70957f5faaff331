"""A network of one GridSample, by which a memory moves its state, with outputs that follow from arithmetic.

An engine that computes it wrongly computes every memory wrongly: TensorRT 10.14 did, for networks with explicit types
(pytorch/TensorRT#4074). No torch, no onnx here.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from deploy.golden import WrongEngine
from deploy.state import Arrays

MAP, PLACES, MOVED = "map", "places", "moved"
MOST = 1e-4  # values are up to 1; places in single precision give 1e-6, in half precision 1e-3
_SHAPES = {MAP: (1, 4, 12, 16), PLACES: (1, 12, 16, 2), MOVED: (1, 4, 12, 16)}
_FLOAT, _INT, _STRING = 1, 2, 3  # of TensorProto.DataType and AttributeProto.AttributeType
_OPSET = 18  # as of `deploy.onnx_export`


def canary_inputs() -> dict[str, np.ndarray]:
    """A map of waves, and the places of a grid that is turned and wider than the map, some of them outside."""
    _, channels, rows, columns = _SHAPES[MAP]
    waves = np.sin(np.arange(channels * rows * columns) * 1.7).reshape(_SHAPES[MAP])
    y, x = np.meshgrid(np.linspace(-1.1, 1.1, rows), np.linspace(-1.1, 1.1, columns), indexing="ij")
    places = np.stack([0.98 * x - 0.2 * y + 0.05, 0.2 * x + 0.98 * y - 0.1], axis=-1)[None]
    return {MAP: waves.astype(np.float32), PLACES: places.astype(np.float32)}


def canary_outputs(inputs: Arrays) -> dict[str, np.ndarray]:
    """What a bilinear GridSample gives where what is outside of the map counts as zero, in double precision."""
    values, places = (inputs[name].astype(np.float64)[0] for name in (MAP, PLACES))
    rows, columns = values.shape[1:]
    x, y = ((places[..., i] + 1) * size / 2 - 0.5 for i, size in enumerate((columns, rows)))
    moved = np.zeros((len(values), *x.shape))
    for row, column in ((np.floor(y) + i, np.floor(x) + j) for i in (0, 1) for j in (0, 1)):
        weight = (1 - np.abs(y - row)) * (1 - np.abs(x - column))
        inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
        at = np.where(inside, row, 0).astype(int), np.where(inside, column, 0).astype(int)
        moved += values[:, at[0], at[1]] * (weight * inside)
    return {MOVED: moved[None]}


def require_canary(run: Callable[[Arrays], Arrays], engine: str) -> None:
    """Check that an engine computes the network.

    Args:
        run: runs `canary_graph` on the engine.
        engine: its name, for the message.

    Raises:
        WrongEngine: it gives other values.
    """
    inputs = canary_inputs()
    off = np.abs(run(inputs)[MOVED] - canary_outputs(inputs)[MOVED]).max()
    if not off <= MOST:  # NaN is no number that is small enough
        raise WrongEngine(
            f"{engine}: computes GridSample wrongly, by which a memory moves its state: off by {off:.2g} (at most "
            f"{MOST:g}); use another version of it"
        )


def canary_graph() -> bytes:
    """The network as an ONNX file."""
    attributes = (
        _attribute("mode", 4, b"bilinear", _STRING),
        _attribute("padding_mode", 4, b"zeros", _STRING),
        _attribute("align_corners", 3, 0, _INT),
    )
    node = _message((1, MAP), (1, PLACES), (2, MOVED), (3, "canary"), (4, "GridSample"), *((5, a) for a in attributes))
    inputs, output = (_value(MAP), _value(PLACES)), _value(MOVED)
    graph = _message((1, node), (2, "canary"), *((11, each) for each in inputs), (12, output))
    return _message((1, 8), (7, graph), (8, _message((2, _OPSET))))


# The encoding of Protocol Buffers; field numbers are from onnx.proto3, as in `deploy.onnx_file`.


def _message(*fields: tuple[int, int | str | bytes]) -> bytes:
    """A message of fields: their numbers, and an integer, or text, bytes or another message."""
    found = b""
    for number, value in fields:
        if isinstance(value, int):
            found += _varint(number << 3) + _varint(value)
        else:
            content = value.encode() if isinstance(value, str) else value
            found += _varint(number << 3 | 2) + _varint(len(content)) + content
    return found


def _varint(value: int) -> bytes:
    found = []
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def _attribute(name: str, field: int, value: int | bytes, kind: int) -> bytes:
    return _message((1, name), (field, value), (20, kind))


def _value(name: str) -> bytes:
    shape = _message(*((1, _message((1, size))) for size in _SHAPES[name]))
    return _message((1, name), (2, _message((1, _message((1, _FLOAT), (2, shape))))))
