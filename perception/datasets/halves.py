"""The drives of a data set in halves, for a network that looks ahead: what is ahead of the vehicle, and what is behind.

The rear half is turned by 180 degrees about z, so that it is a drive like any other. Halves are a format of data:
`--data perception.datasets.halves:Halves=PATH` opens the data set at PATH.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from perception.datasets.drives import Drives
from perception.datasets.keyframes import (
    NO_SENSORS,
    Annotation,
    Keyframes,
    Reads,
    Recording,
    assemble,
    keyframe_moments,
)
from perception.datasets.sources import open_source
from perception.errors import InputError
from perception.frame import Boxes, Conditions, Frame
from perception.rig import Rig
from perception.taxonomy import Taxonomy

# (4, 4) ego_from_half: x points ahead in the front half, and behind the vehicle in the rear half.
TURNS = {"front": np.eye(4), "rear": np.diag([-1.0, -1.0, 1.0, 1.0])}
TRUTH = ("boxes", "bicycle_racks")  # kinds of truth that halves have


class Halves:
    """The keyframes of each drive as two drives, DRIVE-front and DRIVE-rear.

    A half has the points and the annotated objects (by their centres) that are ahead in it, so nothing is counted
    twice. Truth of other tasks, such as voxels, is left out.

    Args:
        dataroot: path of the whole drives; all arguments as in `open_source`.
    """

    def __init__(self, dataroot: Path, version: str | None, rig: Rig | None, taxonomy: Taxonomy | None) -> None:
        self._source: Keyframes = open_source(dataroot, version, rig, taxonomy)
        self.dataroot, self.version = self._source.dataroot, f"{self._source.version} in halves"
        self.rig, self.taxonomy = self._source.rig, self._source.taxonomy
        self.has_attributes = self._source.has_attributes
        self._keyframes: dict[str, tuple[str, np.ndarray]] = {}  # token -> token of the whole keyframe, ego_from_half
        tokens: dict[str, list[str]] = {}
        for scene in self._source.scenes():
            whole = self._source.samples(selectors=[scene])
            for half, turn in TURNS.items():
                tokens[f"{scene}-{half}"] = [f"{token}-{half}" for token in whole]
                self._keyframes |= {f"{token}-{half}": (token, turn) for token in whole}
        drives = Drives(f"{dataroot} in halves", tokens)
        self.scenes, self.samples, self.scene = drives.scenes, drives.samples, drives.scene

    def moments(self, token: str) -> Mapping[str, int]:
        """The keyframes of the half; frames between them are left out."""
        return keyframe_moments(self, token)

    def conditions(self, token: str) -> Conditions:
        return self._source.conditions(self._locate(token)[0])

    def _locate(self, token: str) -> tuple[str, np.ndarray]:
        if token not in self._keyframes:
            raise InputError(f"{self.dataroot}: no frame {token}")
        return self._keyframes[token]

    def recording(self, token: str, reads: Reads = NO_SENSORS) -> Recording:
        """The recording of the keyframe, with x of the vehicle pointing to the half."""
        keyframe, turn = self._locate(token)
        whole = self._source.recording(keyframe, reads)
        pose = whole.global_from_ego @ turn
        truth = {kind: whole.truth[kind] for kind in TRUTH if kind in whole.truth}
        if boxes := truth.get("boxes"):
            truth["boxes"] = boxes._replace(read=partial(_read_ahead, boxes, pose))
        return replace(
            whole,
            token=token,
            scene=self.scene(token),
            global_from_ego=pose,
            ego_from_lidar=turn @ whole.ego_from_lidar @ turn,
            truth=truth,
        )

    def frame(self, token: str, reads: Reads = Reads()) -> Frame:  # noqa: B008 - it is immutable
        """The frame, as in `Keyframes`, with the points ahead."""
        reads = reads._replace(truth=tuple(kind for kind in reads.truth if kind in TRUTH))
        frame = assemble(self.recording(token, reads), reads)
        if frame.points is None:
            return frame
        ego_from_reference = np.linalg.inv(frame.global_from_ego) @ frame.global_from_reference
        return frame.select_points(frame.points[:, :3] @ ego_from_reference[0, :3] + ego_from_reference[0, 3] >= 0)


def _read_ahead(boxes: Annotation, global_from_ego: np.ndarray) -> Boxes | None:
    found: Boxes | None = boxes.read()
    if found is None:
        return None
    return found.select(found.transformed(np.linalg.inv(global_from_ego)).centers[:, 0] >= 0)
