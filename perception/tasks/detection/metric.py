"""nuScenes detection scores: mAP, NDS, true-positive errors, AP per class; and AMOTA of a replay's tracks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from perception.frame import Boxes, Frame
from perception.io.files import format_number, strict, write_atomically
from perception.tasks.detection.columns import BoxColumns, match, read_submission
from perception.tasks.detection.devkit import RESULTS, TRACKING, TRACKS
from perception.tasks.detection.scores import ERRORS, RECALLS, THRESHOLDS, DetectionScores
from perception.tasks.detection.submission import select_submitted
from perception.tasks.drawing import COUNTED_SCORE
from perception.tasks.metric import (
    Counts,
    Curve,
    GateMetric,
    Kind,
    Metric,
    Outline,
    Recorded,
    ReplayedFrames,
    Score,
    Subject,
    Unmeasured,
    Weights,
    WorstFrame,
)

if TYPE_CHECKING:
    from rich.table import Table

    from perception.datasets.keyframes import Keyframes

_MISSING = "the drive has no annotations"
WITHIN = 2.0  # m between the centres of an annotated object and its detection
_NO_RACKS = np.zeros((0, 11))
_CORNERS = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]]) / 2  # of a box of length and width 1, the front first


class DetectionMetric(Metric[Boxes]):
    """The devkit's metrics (detection_cvpr_2019), equal to the devkit's own within 1e-9.

    mAP            mean AP over all classes
    NDS            nuScenes detection score
    mAP_present    mean AP over the annotated classes
    AP             by class
    boxes          number of scored annotations
    """

    truth = ("boxes", "bicycle_racks")
    main = "NDS"
    shown = ("boxes", "mAP", "NDS", "mAP_present", "AP")
    sized_by_items = True
    gates: ClassVar[Mapping[str, GateMetric]] = {
        "mAP": GateMetric(missing=_MISSING),
        "NDS": GateMetric(missing=_MISSING),
        "AP": GateMetric("class_names", each=True, missing=_MISSING, item="annotated object"),
        "AMOTA": GateMetric(
            ranged=False,
            whole=True,
            missing=(
                "AMOTA needs annotations, every keyframe, nuscenes-devkit with motmetrics, and a replay with this gate"
            ),
        ),
    }
    agreements: ClassVar[Mapping[str, GateMetric]] = {"detections": GateMetric("class_names")}
    files = (TRACKING,)

    def counts(self, frame: Frame, result: Boxes) -> dict[str, Any]:
        """`truth`: the annotations; None without them. A replay has the detections in results.json.

        Its `boxes` are rows of label, x y z, w l h, yaw, vx vy, attribute, score, points; `bike_racks` of centre, size
        and rotation. All in the global frame.
        """
        boxes: Boxes | None = frame.truth.get("boxes")
        if boxes is None:
            return {"truth": None}
        rows = BoxColumns.of_frame(boxes).rows[:, 1:]
        return {"truth": {"boxes": rows, "bike_racks": list(frame.truth.get("bicycle_racks", ()))}}

    def details(self, frame: Frame, result: Boxes) -> dict[str, Any]:
        """As of a frame of `recorded`, and the `pose` (4, 4) of the vehicle in the global frame."""
        pose = frame.global_from_ego
        found = BoxColumns.of_frame(select_submitted(frame, result, self.taxonomy))
        counted = self._scored(self.counts(frame, result)["truth"], pose[:2, 3])
        counted["boxes"] = found.counted(pose[None, :2, 3], counted["racks"], self.taxonomy)
        return {**counted, "pose": pose}

    def recorded(self, frames: ReplayedFrames, counts: Iterable[Counts | None]) -> list[dict[str, Any] | None]:
        """`truth`: the scored annotations; None without any. `boxes`: the scored detections, of results.json."""
        pairs = zip(counts, frames.egos, strict=True)
        recorded = [None if own is None else self._scored(own["truth"], ego) for own, ego in pairs]
        number = {token: i for i, token in enumerate(frames.tokens)}
        for i, boxes in read_submission(frames.folder / RESULTS, number, self.taxonomy):
            own = recorded[i]
            if own is not None:
                own["boxes"] = boxes.counted(frames.egos[None, i], own["racks"], self.taxonomy)
        return recorded

    def _scored(self, truth: Mapping[str, Any] | None, ego: np.ndarray) -> dict[str, Any]:
        """The scored annotations of a frame, from its `counts`, with its bicycle racks (K, 11) and its place (2,)."""
        if not truth:
            return {"truth": None, "racks": _NO_RACKS, "ego": ego}
        boxes, racks = (
            np.insert(np.array(truth[name], np.float64).reshape(-1, length), 0, 0, axis=1)
            for name, length in (("boxes", 13), ("bike_racks", 10))
        )
        racks = racks if len(racks) else _NO_RACKS
        return {"truth": BoxColumns(boxes).counted(ego[None], racks, self.taxonomy), "racks": racks, "ego": ego}

    def _select(self, name: str, counts: Sequence[Counts | None], weights: Weights) -> BoxColumns:
        """The `truth` or `boxes` of the frames and of the range that count."""
        known = {i: own for i, own in enumerate(counts) if own is not None and weights.frames[i]}
        boxes = BoxColumns.joined((i, own[name]) for i, own in known.items())
        if weights.range is None:
            return boxes
        egos = np.zeros((len(counts), 2))
        egos[[*known]] = np.array([own["ego"] for own in known.values()]).reshape(-1, 2)
        return boxes.select(boxes.within(weights.range, egos))

    def scores(self, counts: Sequence[Counts | None], weights: Weights) -> dict[str, Score]:
        names = self.taxonomy.class_names
        if not _are_annotated(counts):
            none = np.full((len(weights.draws), len(names)), np.nan)
            nothing = dict.fromkeys(("mAP", "NDS", "mAP_present"), Score(none[:, 0]))
            return {"boxes": Score(np.zeros(len(none), np.int64)), **nothing, "AP": Score(none, names)}
        found = self._select("boxes", counts, weights)
        matched = DetectionScores(self._select("truth", counts, weights), found, weights.scenes, self.taxonomy)
        scored, there = matched.score(weights.draws), matched.annotated
        present = weights.draws @ there > 0
        some, aps = present.any(axis=1), scored.class_aps
        means = {
            "mAP": np.where(some, scored.mean_ap, np.nan),
            "NDS": np.where(some, scored.nds, np.nan),
            "mAP_present": np.array(
                [np.mean(ap[p]) if p.any() else np.nan for ap, p in zip(aps, present, strict=True)]
            ),
        }
        items = _fingerprints(found, weights.scenes, matched.scenes, len(names))
        return {
            "boxes": Score((weights.draws @ there).sum(axis=1).astype(np.int64)),
            **{name: Score(values, (), there, items) for name, values in means.items()},
            "AP": Score(np.where(present, aps, np.nan), names, there, items),
        }

    def _match_whole(self, counts: Sequence[Counts]) -> tuple[BoxColumns, BoxColumns, DetectionScores]:
        """Annotations, detections, and all frames matched as one scene; Unmeasured without annotations."""
        if not _are_annotated(counts):
            raise Unmeasured("no annotations to score with")
        weights = Weights.of(np.ones(len(counts), bool))
        truth, detections = (self._select(name, counts, weights) for name in ("truth", "boxes"))
        return truth, detections, DetectionScores(truth, detections, weights.scenes, self.taxonomy)

    def report(self, counts: Sequence[Counts]) -> dict[str, Any]:
        """`mAP`, `NDS`; `mAP_present`, mean AP over the annotated classes; `ground_truth`, number of boxes by class.

        `label_recalls` (per class and matching distance): recall of all detections, whatever their scores.
        And under the devkit's names `label_aps` (per class and matching distance), `mean_dist_aps` (AP per class),
        `label_tp_errors`, `tp_errors`, `tp_scores`. Errors are metres, 1 - IoU, radians, m/s and 1 - accuracy; None if
        undefined, such as a cone's velocity error. Without annotated attributes, as in infos, the attribute error is 1.
        """
        _, _, matched = self._match_whole(counts)
        names, scores = self.taxonomy.class_names, matched.score()
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
                "label_recalls": {
                    name: dict(zip(THRESHOLDS, each, strict=True))
                    for name, each in zip(names, matched.recalls(), strict=True)
                },
                "mean_dist_aps": dict(zip(names, aps, strict=True)),
                "label_tp_errors": {
                    name: dict(zip(ERRORS, each, strict=True)) for name, each in zip(names, errors, strict=True)
                },
                "tp_errors": dict(zip(ERRORS, mean_errors, strict=True)),
                "tp_scores": dict(zip(ERRORS, np.maximum(0, 1 - mean_errors), strict=True)),
            }
        )

    def curves(self, counts: Sequence[Counts]) -> list[Curve]:
        """Precision by recall of each annotated class at each matching distance, as in the devkit."""
        matched = self._match_whole(counts)[2]
        found = zip(self.taxonomy.class_names, matched.annotated.any(axis=0), matched.precisions(), strict=True)
        return [
            Curve(f"precision by recall: {name}", f"{distance:g} m", ("recall", "precision"), RECALLS, precision)
            for name, present, own in found
            if present
            for distance, precision in zip(THRESHOLDS, own, strict=True)
        ]

    def find_worst(self, counts: Sequence[Counts], most: int) -> list[WorstFrame]:
        """Frames with the most mistakes, missed annotations and extra detections from COUNTED_SCORE on; then by F1."""
        truth, detections, _ = self._match_whole(counts)
        detections = detections.select(detections.scores >= COUNTED_SCORE)
        taken = match(truth, detections, (WITHIN,))[0]
        is_found, is_right = np.isin(np.arange(len(truth)), taken), taken >= 0
        found, missed, extra = (
            np.bincount(frames, minlength=len(counts))
            for frames in (truth.frames[is_found], truth.frames[~is_found], detections.frames[~is_right])
        )
        mistakes = missed + extra
        f1 = 2 * found / np.maximum(1, 2 * found + mistakes)
        sides = (truth, np.where(is_found, "found", "missed")), (detections, np.where(is_right, "right", "extra"))
        samples = []
        for i in np.lexsort((f1, -mistakes))[: min(most, np.count_nonzero(mistakes))].tolist():
            outlines = [
                Outline(kind, self.taxonomy.class_names[label], corners)
                for boxes, kinds in sides
                for kind, label, corners in _footprints(boxes, kinds, i, counts[i]["pose"])
            ]
            numbers = {"mistakes": mistakes[i], "missed": missed[i], "extra": extra[i], "found": found[i]}
            samples.append(
                WorstFrame(i, {**{name: int(n) for name, n in numbers.items()}, "F1": float(f1[i])}, outlines)
            )
        return samples

    def tables(self, scores: Mapping[str, Any]) -> list[Table]:
        """AP and true-positive errors per class, with mAP, NDS and mAP_present in the title."""
        from rich.table import Table

        summary = "  ".join(f"{key} {format_number(scores[key])}" for key in ("mAP", "NDS", "mAP_present"))
        table = Table(title=summary, show_footer=True)
        table.add_column("class", footer="mean")
        table.add_column("boxes", str(sum(scores["ground_truth"].values())), justify="right")
        table.add_column("AP", format_number(scores["mAP"]), justify="right")
        for error, short in zip(ERRORS, ("ATE", "ASE", "AOE", "AVE", "AAE"), strict=True):
            table.add_column(short, format_number(scores["tp_errors"][error]), justify="right")
        for name in self.taxonomy.class_names:
            errors = scores["label_tp_errors"][name]
            table.add_row(
                name,
                str(scores["ground_truth"][name]),
                format_number(scores["mean_dist_aps"][name]),
                *(format_number(errors[error]) for error in ERRORS),
            )
        return [table]

    def list_usual_gates(self, counts: Sequence[Counts | None]) -> tuple[Sequence[str], Sequence[str]]:
        return (("mAP", "NDS"), ()) if _are_annotated(counts) else ((), ("detections",))

    def agreement(self, here: Recorded, there: Recorded, weights: Weights, subject: Subject) -> tuple[float, str]:
        """2 M / (A + B) for A and B detections above the score, M of them matched."""
        sides = []
        for each in (here, there):
            boxes = self._select("boxes", each.counts, weights)
            if subject.class_ is not None:
                boxes = boxes.select(boxes.labels == self.taxonomy.label(subject.class_))
            sides.append(boxes.select(boxes.scores >= subject.score))
        ours, theirs = map(len, sides)
        if not ours + theirs:
            raise Unmeasured(f"neither replay detects anything with a score of {subject.score:g}{subject.where}")
        matched = (match(sides[1], sides[0], (subject.metres,)) >= 0).sum()
        return float(2 * matched / (ours + theirs)), f" of {ours} detections and the baseline's {theirs}"

    def measure_whole(self, folder: Path, tokens: Sequence[str], source: Keyframes) -> None:
        """The devkit scores the tracks; without one, as on a vehicle, AMOTA is not measured."""
        from perception.tasks.detection.devkit import DEVKITS, open_devkit

        scoring = DEVKITS.get(self.taxonomy.devkit or "")
        if scoring is None or not scoring.tracking:
            return
        if any(find_spec(name) is None for name in (scoring.package, "motmetrics")):
            return
        from perception.tasks.detection.devkit import score_tracks

        scores = score_tracks(folder / TRACKS, open_devkit(source.dataroot, source.version), tokens)
        write_atomically(folder / TRACKING, json.dumps(scores, indent=2).encode())

    def read_whole_score(self, folder: Path, name: str) -> float:
        try:
            return float(json.loads((folder / TRACKING).read_text(encoding="utf-8"))["amota"])
        except (OSError, ValueError, KeyError, TypeError):
            raise Unmeasured(self.gates[name].missing) from None


def _are_annotated(counts: Sequence[Counts | None]) -> bool:
    return all(own is not None and own["truth"] is not None for own in counts)


def _fingerprints(detections: BoxColumns, scenes: np.ndarray, count: int, classes: int) -> np.ndarray:
    """(S, classes) hashes of the detections of each of `count` = S scenes and class; scenes (F,) int of the frames."""
    group = scenes[detections.frames] * classes + detections.labels
    order = np.argsort(group, kind="stable")
    bounds = np.searchsorted(group[order], np.arange(count * classes + 1)).tolist()
    rows = detections.rows[order]
    return np.array([hash(rows[start:stop].tobytes()) for start, stop in pairwise(bounds)]).reshape(count, classes)


def _footprints(
    boxes: BoxColumns, kinds: np.ndarray, frame: int, pose: np.ndarray
) -> Iterator[tuple[Kind, int, np.ndarray]]:
    """Kind, label and corners (4, 2) in the vehicle's frame of the boxes of a frame."""
    own = np.flatnonzero(boxes.frames == frame)
    turn = np.stack([np.cos(boxes.yaws[own]), np.sin(boxes.yaws[own])], axis=-1)
    along = turn * boxes.sizes[own, 1:2]
    across = turn[:, ::-1] * [-1, 1] * boxes.sizes[own, 0:1]
    flat = boxes.centers[own, None, :2] + _CORNERS[:, :1] * along[:, None] + _CORNERS[:, 1:] * across[:, None]
    corners = (flat - pose[:2, 3]) @ pose[:2, :2]
    yield from zip(kinds[own].tolist(), boxes.labels[own].tolist(), corners, strict=True)
