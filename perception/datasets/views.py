"""The views of a vehicle as keyframes of their own, for a network that looks one way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from perception.datasets.keyframes import NO_SENSORS, Keyframes, Reads, Recording
from perception.frame import TURNS, VIEWS, Boxes, Conditions, Frame, View
from perception.grid import BevGrid


def view_token(token: str, view: View) -> str:
    """The token of a view of a keyframe; that to the front has the keyframe's own."""
    return token if view == "front" else f"{token}-{view}"


class Views:
    """The keyframes of a data set, once for each view: see `Frame.facing`.

    What is annotated in the global frame, and the recordings, are those of the keyframe.

    Args:
        source: the data set.
        views: in the order of their keyframes.
    """

    def __init__(self, source: Keyframes, views: Sequence[View]) -> None:
        self.dataroot, self.version, self.taxonomy, self.rig = (
            source.dataroot, source.version, source.taxonomy, source.rig,
        )  # fmt: skip
        self.has_attributes, self.scenes = source.has_attributes, source.scenes
        self.source, self._views = source, tuple(views)

    def samples(self, split: str | None = None, selectors: Sequence[str] = ()) -> list[str]:
        """Tokens of all views of the selected keyframes, keyframe by keyframe."""
        return [view_token(token, view) for token in self.source.samples(split, selectors) for view in self._views]

    def scene(self, token: str) -> str:
        """Name of the drive."""
        return self.source.scene(_keyframe(token)[0])

    def moments(self, token: str) -> Mapping[str, int]:
        """The frames of the drive, in the view of this one."""
        keyframe, view = _keyframe(token)
        return {view_token(each, view): time for each, time in self.source.moments(keyframe).items()}

    def conditions(self, token: str) -> Conditions:
        """The known conditions of the keyframe."""
        return self.source.conditions(_keyframe(token)[0])

    def recording(self, token: str, reads: Reads = NO_SENSORS) -> Recording:
        """The recording of the keyframe."""
        return self.source.recording(_keyframe(token)[0], reads)

    def frame(self, token: str, reads: Reads = Reads()) -> Frame:  # noqa: B008 - it is immutable
        """The keyframe, turned to the view."""
        keyframe, view = _keyframe(token)
        return replace(self.source.frame(keyframe, reads).facing(view), token=token)


def see_views(source: Keyframes, tokens: Sequence[str], views: Sequence[View]) -> tuple[Keyframes, Sequence[str]]:
    """The data set with its keyframes once for each view, and the tokens of all views; without views as they are."""
    if not views:
        return source, tokens
    return Views(source, views), [view_token(token, view) for token in tokens for view in views]


def view_of(token: str) -> View:
    """The view that the token of a keyframe is of."""
    return _keyframe(token)[1]


def seen_area(grid: BevGrid, views: Sequence[View]) -> BevGrid:
    """The smallest area around what the grid covers in all views; without views the grid itself."""
    if not views:
        return grid
    corners = np.concatenate([np.array([grid.x, grid.y]).T @ TURNS[view][:2, :2] for view in views])
    (x, y), (x_high, y_high) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
    return replace(grid, x=(x, x_high), y=(y, y_high))


def leave_out_unseen(frame: Frame, grid: BevGrid, views: Sequence[View]) -> Frame:
    """The frame with annotated objects on the grid of no view as `boxes_left_out` of its truth, apart from `boxes`."""
    boxes: Boxes | None = frame.truth.get("boxes")
    if boxes is None or not views:
        return frame
    centers = boxes.transformed(np.linalg.inv(frame.global_from_reference)).centers * [1, 1, 0]
    covered = np.any([grid.inside(centers @ TURNS[view][:3, :3]) for view in views], axis=0)
    parts = {"boxes": boxes.select(covered), "boxes_left_out": boxes.select(~covered)}
    return replace(frame, truth={**frame.truth, **parts})


def _keyframe(token: str) -> tuple[str, View]:
    """The keyframe of a token, and the view."""
    for view in VIEWS[1:]:
        if token.endswith(f"-{view}"):
            return token.removesuffix(f"-{view}"), view
    return token, VIEWS[0]
