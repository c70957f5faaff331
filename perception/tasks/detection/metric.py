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
from perception.tasks.detection.scores import ERRORS, THRESHOLDS, DetectionScores
from perception.tasks.detection.submission import submitted
from perception.tasks.task import Metric

if TYPE_CHECKING:
    from rich.table import Table


class DetectionMetric(Metric[Boxes]):
    """The devkit's metrics (detection_cvpr_2019), equal to the devkit's own within 1e-9."""

    main = "NDS"

    def __init__(self, source: Keyframes, grid: BevGrid) -> None:
        super().__init__(source, grid)
        self._tokens: list[str] = []
        self._egos: list[np.ndarray] = []
        self._found: list[BoxColumns] = []

    def add(self, frame: Frame, result: Boxes) -> None:
        self._found.append(BoxColumns.of_frame(submitted(frame, result, self.source.taxonomy), len(self._tokens)))
        self._tokens.append(frame.token)
        self._egos.append(frame.global_from_ego[:2, 3])

    @property
    def egos(self) -> np.ndarray:
        """(F, 2) m, position of the vehicle in the global frame."""
        return np.array(self._egos, np.float64).reshape(-1, 2)

    @cached_property
    def bicycle_racks(self) -> np.ndarray:
        """(K, 11) frame, then centre, size and rotation of the annotated bicycle racks."""
        bicycle_racks = self.source.bicycle_racks()
        rows = [[i, *rack] for i, token in enumerate(self._tokens) for rack in bicycle_racks.get(token, [])]
        return np.array(rows, np.float64).reshape(-1, 11)

    @cached_property
    def truth(self) -> BoxColumns:
        """Scored annotations; raises InputError if the version has none."""
        parts = []
        for i, token in enumerate(self._tokens):
            boxes = self.source.boxes(token)
            if boxes is None:
                raise InputError(f"{self.source.dataroot}: {self.source.version} has no annotations to score with")
            parts.append(BoxColumns.of_frame(boxes, i))
        return BoxColumns.joined(parts).counted(self.egos, self.bicycle_racks, self.source.taxonomy)

    @cached_property
    def detections(self) -> BoxColumns:
        """Scored detections."""
        return BoxColumns.joined(self._found).counted(self.egos, self.bicycle_racks, self.source.taxonomy)

    def scores(self) -> dict[str, Any]:
        """`mAP`, `NDS`; `mAP_present`, mean AP over the annotated classes; `ground_truth`, number of boxes by class.

        And under the devkit's names `label_aps` (per class and matching distance), `mean_dist_aps` (AP per class),
        `label_tp_errors`, `tp_errors`, `tp_scores`. Errors are metres, 1 - IoU, radians, m/s and 1 - accuracy; None if
        undefined, such as a cone's velocity error. Without annotated attributes, as in infos, the attribute error is 1.
        """
        matched = DetectionScores(
            self.truth, self.detections, np.zeros(len(self._tokens), np.int64), self.source.taxonomy
        )
        names, scores = self.source.taxonomy.class_names, matched.scored()
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

    def part(self, frames: np.ndarray, bounds: tuple[float, float] | None = None) -> dict[str, Any]:
        """`boxes` (scored annotations), `mAP`, `NDS`, `mAP_present`, and `AP` by class."""
        truth, found = (boxes.select(frames[boxes.frames]) for boxes in (self.truth, self.detections))
        if bounds is not None:
            truth, found = (boxes.select(boxes.within(bounds, self.egos)) for boxes in (truth, found))
        matched = DetectionScores(truth, found, np.zeros(len(frames), np.int64), self.source.taxonomy)
        scored, present = matched.scored(), matched.annotated.any(axis=0)
        aps, names = scored.class_aps[0], self.source.taxonomy.class_names
        return {
            "boxes": len(truth),
            "mAP": float(scored.mean_ap[0]) if present.any() else None,
            "NDS": float(scored.nds[0]) if present.any() else None,
            "mAP_present": float(aps[present].mean()) if present.any() else None,
            "AP": {name: float(ap) if there else None for name, ap, there in zip(names, aps, present, strict=True)},
        }

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
