"""Clips: the frames of a drive before one of its frames, at chosen spacings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from perception.errors import InputError


def find_clip(moments: Mapping[str, int], token: str, spacings: Sequence[float]) -> list[str]:
    """The tokens of frames before a frame of a drive, the oldest first: `Keyframes.frame` reads each.

    Each is the frame nearest to the asked time before the one after it, if it is within half of the drive's frame
    period, the median of times between frames. Where there is none, at the drive's beginning or in a gap, the clip
    has fewer frames.

    Args:
        moments: the drive's frames, as of `Keyframes.moments`.
        spacings: s from each frame of the clip to the next; the last is to the frame of the token.

    Raises:
        InputError: a spacing is less than half of the frame period: no frame of the drive has one so near before it.
    """
    tokens, times = [*moments], np.array([*moments.values()], np.int64)
    place, found = tokens.index(token), list[str]()
    if place == 0:
        return found
    half = float(np.median(np.diff(times))) / 2
    if (shortest := 1e6 * min(spacings, default=np.inf)) < half:
        raise InputError(
            f"frame {token}: its drive has a frame every {2e-6 * half:g} s, so none is {1e-6 * shortest:g} s before "
            f"another; give spacings from {1e-6 * half:g} s, or drives with more frames (perception simulate --rate 10)"
        )
    for spacing in reversed(spacings):
        if place == 0:
            break
        off = np.abs(times[:place] - (times[place] - 1e6 * spacing))
        place = int(off.argmin())
        if off[place] > half:
            break
        found.insert(0, tokens[place])
    return found


def draw_spacings(
    rng: np.random.Generator, frames: int = 4, shortest: float = 0.1, longest: float = 0.5
) -> list[float]:
    """Random spacings (s) of a clip for training, as `find_clip` takes them; it has 1 to `frames` frames in all.

    They are not those of the data set, so that a memory does not learn a single one.
    """
    return rng.uniform(shortest, longest, int(rng.integers(frames))).tolist()
