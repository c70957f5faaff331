"""Encodes maps for files: the quantised level of each cell as in the fused map, and on which side of 0.5 it is."""

from __future__ import annotations

import numpy as np

from perception.tasks.map.memory import LEVELS, levels_of

_HALF, _BELOW_HALF = np.float32(0.5), LEVELS + 2  # the level of probabilities below 0.5 that round to it


def pack_map(probabilities: np.ndarray) -> np.ndarray:
    """(2, layers, rows, columns) uint8 that compress well, from map probabilities (layers, rows, columns).

    Low and high bytes of the differences of levels along both axes, plus 128.
    """
    levels = levels_of(probabilities)
    levels[(levels == LEVELS // 2) & (probabilities < _HALF)] = _BELOW_HALF
    zero = np.uint16(0)
    changes = np.diff(np.diff(levels, axis=1, prepend=zero), axis=2, prepend=zero) + np.uint16(128)  # modulo 2^16
    return np.stack([changes & 255, changes >> 8]).astype(np.uint8)


def unpack_map(changes: np.ndarray) -> np.ndarray:
    """(layers, rows, columns) float32 probabilities with the levels of the packed ones, and on the same side of 0.5."""
    low, high = changes.astype(np.uint16)
    levels = (low + 256 * high - np.uint16(128)).cumsum(axis=2, dtype=np.uint16).cumsum(axis=1, dtype=np.uint16)
    probabilities = levels / np.float32(LEVELS)
    probabilities[levels == _BELOW_HALF] = np.nextafter(_HALF, np.float32(0))
    probabilities[levels == LEVELS + 1] = np.nan
    return np.asarray(probabilities)
