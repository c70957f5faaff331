"""Judges the maps of a finished replay: IoU by class, and agreement with another replay. numpy only."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from perception.tasks.judging import GateMetric, RingJudge, Subject, Unmeasured, mean_shares
from perception.tasks.map.iou import ious
from perception.tasks.rings import RING


def pack(cells: np.ndarray) -> dict[str, Any]:
    """Cells (layers, rows, columns) bool for JSON."""
    bits = zlib.compress(np.packbits(cells).tobytes(), 9)
    return {"shape": cells.shape, "bits": base64.b64encode(bits).decode()}


def unpack(packed: Mapping[str, Any]) -> np.ndarray:
    """The inverse of `pack`."""
    bits = np.frombuffer(zlib.decompress(base64.b64decode(packed["bits"])), np.uint8)
    count = int(np.prod(packed["shape"]))
    return np.unpackbits(bits, count=count).reshape(packed["shape"]).astype(bool)


class MapJudge(RingJudge):
    """Judges cells at a probability of 0.5."""

    without: ClassVar[str] = "there is no map of the drive, or the network has none"
    metrics: ClassVar[Mapping[str, GateMetric]] = {"IoU": GateMetric("map_names", step=RING)}
    agreements: ClassVar[Mapping[str, GateMetric]] = {"map": GateMetric("map_names", ranged=False)}

    def score(self, subject: Subject, draws: np.ndarray | None = None) -> np.ndarray:
        """(R,) IoU of a class, or the mean over the classes that occur."""
        per_scene = self.by_scene(subject)
        draws = np.ones((1, len(per_scene))) if draws is None else draws
        found = ious(np.tensordot(draws.astype(np.float64), per_scene, 1))
        if subject.class_ is None:
            present = ~np.isnan(found)
            if not present[0].any() and len(found) == 1:
                raise Unmeasured(f"the map shows nothing{subject.where}")
            sums, number = np.nansum(found, axis=1), present.sum(axis=1)
            return np.divide(sums, number, out=np.zeros_like(sums), where=number > 0)
        own = self._of_class(found, subject)[:, 0]
        if np.isnan(own).all():
            raise Unmeasured(f"the map shows no {subject.class_}{subject.where}")
        return np.nan_to_num(own)

    def sizes(self, subject: Subject) -> np.ndarray:
        """(S,) share of each scene in the cells, averaged over the classes."""
        return mean_shares(self._of_class(self.by_scene(subject)[:, 2], subject))

    def same_results(self, other: MapJudge, subject: Subject) -> bool:
        return not self._of_class(self.by_scene(subject) != other.by_scene(subject), subject).any()

    def agreement(self, other: MapJudge, subject: Subject, score: float, metres: float) -> tuple[float, str]:
        """IoU between the cells of both replays, of a class or the mean over the classes in either."""
        names = np.array(self.frames.taxonomy.map_names)
        both = either = np.zeros(len(names))
        for i in np.flatnonzero(self.frames.known(subject.condition)):
            parts = [judge.frames.statistics[i] for judge in (self, other)]
            if parts[0] is not None and parts[1] is not None:
                cells, others = (unpack(part["cells"]) for part in parts if part is not None)
                if cells.shape != others.shape:
                    raise Unmeasured("the networks' maps have different grids")
                both, either = both + (cells & others).sum(axis=(1, 2)), either + (cells | others).sum(axis=(1, 2))
        chosen = either > 0 if subject.class_ is None else names == subject.class_
        if not either[chosen].any():
            what = f" of {subject.class_}" if subject.class_ else ""
            raise Unmeasured(f"neither replay shows a map{what}{subject.where}")
        return float((both[chosen] / either[chosen]).mean()), ""

    def _of_class(self, values: np.ndarray, subject: Subject) -> np.ndarray:
        """(..., 1) of the subject's class from (..., layers); unchanged without a class."""
        names = self.frames.taxonomy.map_names
        return values if subject.class_ is None else values[..., [names.index(subject.class_)]]
