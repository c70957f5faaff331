"""nuScenes detection scores: mAP, NDS, true-positive errors, AP per class."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from perception.datasets.keyframes import Keyframes
from perception.errors import InputError
from perception.frame import Boxes, Frame
from perception.grid import BevGrid
from perception.strict_json import shown, strict
from perception.tasks.detection.columns import BoxColumns
from perception.tasks.detection.insight import precision_recall, worst_samples
from perception.tasks.detection.scores import ERRORS, THRESHOLDS, DetectionScores
from perception.tasks.detection.submission import submitted
from perception.tasks.judging import mean_shares
from perception.tasks.metric import Curve, LeftOut, Metric, Sample

if TYPE_CHECKING:
    from rich.table import Table

Bounds = tuple[float, float] | None  # m from the vehicle


class DetectionMetric(Metric[Boxes]):
    """The devkit's metrics (detection_cvpr_2019), equal to the devkit's own within 1e-9."""

    main = "NDS"

    def __init__(self, source: Keyframes, grid: BevGrid) -> None:
        super().__init__(source, grid)
        self._tokens: list[str] = []
        self._poses: list[np.ndarray] = []
        self._found: list[BoxColumns] = []

    def add(self, frame: Frame, result: Boxes) -> None:
        self._found.append(BoxColumns.of_frame(submitted(frame, result, self.source.taxonomy), len(self._tokens)))
        self._tokens.append(frame.token)
        self._poses.append(frame.global_from_ego)

    @property
    def egos(self) -> np.ndarray:
        """(F, 2) m, position of the vehicle in the global frame."""
        return self.poses[:, :2, 3]

    @property
    def poses(self) -> np.ndarray:
        """(F, 4, 4) of the vehicle in the global frame."""
        return np.array(self._poses, np.float64).reshape(-1, 4, 4)

    @cached_property
    def bicycle_racks(self) -> np.ndarray:
        """(K, 11) frame, then centre, size and rotation of the annotated bicycle racks."""
        truths = enumerate(map(self.source.truth, self._tokens))
        rows = [[i, *rack] for i, truth in truths for rack in truth.bicycle_racks()]
        return np.array(rows, np.float64).reshape(-1, 11)

    @cached_property
    def truth(self) -> BoxColumns:
        """Scored annotations; raises InputError if the version has none."""
        parts = []
        for i, token in enumerate(self._tokens):
            boxes = self.source.truth(token).boxes()
            if boxes is None:
                raise InputError(f"{self.source.dataroot}: {self.source.version} has no annotations to score with")
            parts.append(BoxColumns.of_frame(boxes, i))
        return BoxColumns.joined(parts).counted(self.egos, self.bicycle_racks, self.source.taxonomy)

    @cached_property
    def detections(self) -> BoxColumns:
        """Scored detections."""
        return BoxColumns.joined(self._found).counted(self.egos, self.bicycle_racks, self.source.taxonomy)

    @cached_property
    def _matched(self) -> DetectionScores:
        """All frames, as one scene."""
        return self._matched_scenes(np.zeros(len(self._tokens), np.int64), np.ones(len(self._tokens), bool), None)

    def _matched_scenes(self, scenes: np.ndarray, frames: np.ndarray, bounds: Bounds) -> DetectionScores:
        """Some frames (F,) bool in a range, with the scene (F,) of each frame."""
        truth, found = (boxes.select(frames[boxes.frames]) for boxes in (self.truth, self.detections))
        if bounds is not None:
            truth, found = (boxes.select(boxes.within(bounds, self.egos)) for boxes in (truth, found))
        return DetectionScores(truth, found, scenes, self.source.taxonomy)

    def scores(self) -> dict[str, Any]:
        """`mAP`, `NDS`; `mAP_present`, mean AP over the annotated classes; `ground_truth`, number of boxes by class.

        And under the devkit's names `label_aps` (per class and matching distance), `mean_dist_aps` (AP per class),
        `label_tp_errors`, `tp_errors`, `tp_scores`. Errors are metres, 1 - IoU, radians, m/s and 1 - accuracy; None if
        undefined, such as a cone's velocity error. Without annotated attributes, as in infos, the attribute error is 1.
        """
        matched, names = self._matched, self.source.taxonomy.class_names
        scores = matched.scored()
        present = matched.annotated.sum(axis=0) > 0
        aps, errors, mean_errors = scores.class_aps[0], scores.errors[0], scores.mean_errors[0]
        return strict(
            {
                "mAP": scores.mean_ap[0],
                "NDS": scores.nds[0],
                "mAP_present": aps[present].mean() if present.any() else None,
                "ground_truth": {name: int(n) for name, n in zip(names, matched.annotated.sum(axis=0), strict=True)},
                "label_aps": {
                    name: dict(zip(THRESHOLDS, each, strict=True))
                    for name, each in zip(names, scores.aps[0], strict=True)
                },
                "mean_dist_aps": dict(zip(names, aps, strict=True)),
                "label_tp_errors": {
                    name: dict(zip(ERRORS, each, strict=True)) for name, each in zip(names, errors, strict=True)
                },
                "tp_errors": dict(zip(ERRORS, mean_errors, strict=True)),
                "tp_scores": dict(zip(ERRORS, np.maximum(0, 1 - mean_errors), strict=True)),
            }
        )

    def part(self, frames: np.ndarray, bounds: Bounds = None) -> dict[str, Any]:
        """`boxes` (scored annotations), `mAP`, `NDS`, `mAP_present`, and `AP` by class."""
        matched = self._matched_scenes(np.zeros(len(frames), np.int64), frames, bounds)
        scored, present = matched.scored(), matched.annotated.any(axis=0)
        aps, names = scored.class_aps[0], self.source.taxonomy.class_names
        return {
            "boxes": int(matched.annotated.sum()),
            "mAP": float(scored.mean_ap[0]) if present.any() else None,
            "NDS": float(scored.nds[0]) if present.any() else None,
            "mAP_present": float(aps[present].mean()) if present.any() else None,
            "AP": {name: float(ap) if there else None for name, ap, there in zip(names, aps, present, strict=True)},
        }

    def left_out(self, frames: np.ndarray, scenes: np.ndarray, bounds: Bounds = None) -> LeftOut:
        """As in the base class, but matched once; sizes are shares of the annotated boxes, averaged over classes."""
        own, number = np.unique(np.where(frames, scenes, scenes[frames].min()), return_inverse=True)
        matched = self._matched_scenes(number, frames, bounds)
        draws = np.vstack([np.ones(len(own)), 1 - np.eye(len(own))])
        scored, present = matched.scored(draws), draws @ matched.annotated > 0
        some = present.any(axis=1)
        sums = (scored.class_aps * present).sum(axis=1)
        scores = {
            "mAP": np.where(some, scored.mean_ap, np.nan),
            "NDS": np.where(some, scored.nds, np.nan),
            "mAP_present": np.divide(sums, present.sum(axis=1), out=np.full(len(draws), np.nan), where=some),
        }
        return LeftOut(scores, dict.fromkeys(scores, mean_shares(matched.annotated)))

    def curves(self) -> list[Curve]:
        """Precision by recall of each annotated class at each matching distance, as in the devkit."""
        return precision_recall(self._matched, self.source.taxonomy)

    def worst(self, count: int) -> list[Sample]:
        """See `worst_samples`."""
        return worst_samples(self.truth, self.detections, self.poses, self.source.taxonomy, count)

    def tables(self, scores: Mapping[str, Any]) -> list[Table]:
        """AP and true-positive errors per class, with mAP, NDS and mAP_present in the title."""
        from rich.table import Table

        summary = "  ".join(f"{key} {shown(scores[key])}" for key in ("mAP", "NDS", "mAP_present"))
        table = Table(title=summary, show_footer=True)
        table.add_column("class", footer="mean")
        table.add_column("boxes", str(sum(scores["ground_truth"].values())), justify="right")
        table.add_column("AP", shown(scores["mAP"]), justify="right")
        for error, short in zip(ERRORS, ("ATE", "ASE", "AOE", "AVE", "AAE"), strict=True):
            table.add_column(short, shown(scores["tp_errors"][error]), justify="right")
        for name in self.source.taxonomy.class_names:
            errors = scores["label_tp_errors"][name]
            table.add_row(
                name,
                str(scores["ground_truth"][name]),
                shown(scores["mean_dist_aps"][name]),
                *(shown(errors[error]) for error in ERRORS),
            )
        return [table]
