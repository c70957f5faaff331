"""nuScenes detection scores: mAP, NDS, true-positive errors, AP per class; and AMOTA of a replay's tracks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from perception.frame import Boxes, Frame
from perception.io.files import format_number, strict, write_atomically
from perception.tasks.detection.columns import BoxColumns, GrowingColumns, match, read_submission
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
    Sample,
    Score,
    Subject,
    Unmeasured,
    Weights,
)
from perception.taxonomy import Taxonomy

if TYPE_CHECKING:
    from rich.table import Table

    from perception.datasets.keyframes import Keyframes

_MISSING = "the drive has no annotations"
WITHIN = 2.0  # m between the centres of an annotated object and its detection
_CORNERS = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]]) / 2  # of a box of length and width 1, the front first


@dataclass(frozen=True)
class _BoxScore(Score):
    """A score that is made of detections."""

    detections: Callable[[], BoxColumns] | None = None
    label: int | None = None  # of the detections that it is made of; None: all

    def of_class(self, name: str) -> Score:
        label = self.classes.index(name)
        sizes = None if self.sizes is None else self.sizes[:, [label]]
        return _BoxScore(self.values[:, label], (), sizes, None, self.detections, label)

    def same(self, other: Score) -> bool:
        assert isinstance(other, _BoxScore)
        mine, theirs = self._own, other._own
        return mine is not None and theirs is not None and mine.equals(theirs)

    @property
    def _own(self) -> BoxColumns | None:
        if self.detections is None:
            return None
        boxes = self.detections()
        return boxes if self.label is None else boxes.select(boxes.labels == self.label)


@dataclass(frozen=True)
class _Joined:
    """The scored boxes of many frames."""

    egos: np.ndarray  # (F, 2) m, position of the vehicle in the global frame
    truth: BoxColumns | None  # None: a frame has no annotations
    detections: BoxColumns


class _RecordedBoxes(list[Counts | None]):
    """The frames of a finished replay, {} or None, and the boxes of all of them."""

    def __init__(self, frames: Sequence[Counts | None], joined: _Joined) -> None:
        super().__init__(frames)
        self.joined = joined


def _annotated(truth: Mapping[str, Any], frame: int) -> tuple[BoxColumns, np.ndarray]:
    """The annotations and the bicycle racks (K, 11) from the `truth` of a frame."""
    boxes, racks = (
        np.insert(np.array(truth[name], np.float64).reshape(-1, length), 0, frame, axis=1)
        for name, length in (("boxes", 13), ("bike_racks", 10))
    )
    return BoxColumns.of(boxes), racks


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
        "AP": GateMetric(
            "class_names", each=True, missing=_MISSING, nothing="nothing is annotated", nothing_of="no {} is annotated"
        ),
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
    _latest: tuple[Sequence[Counts | None], int, _Joined] | None = None

    def counts(self, frame: Frame, result: Boxes) -> dict[str, Any]:
        """`truth`: the annotations; None without them. A replay has the detections in results.json.

        Its `boxes` are rows of label, x y z, w l h, yaw, vx vy, attribute, score, points; `bike_racks` of centre, size
        and rotation. All in the global frame.
        """
        boxes: Boxes | None = frame.truth.get("boxes")
        if boxes is None:
            return {"truth": None}
        rows = np.column_stack(
            [
                boxes.labels, boxes.centers, boxes.sizes, boxes.yaws, boxes.velocities[:, :2],
                boxes.attributes, boxes.scores, boxes.num_points,
            ]
        )  # fmt: skip
        return {"truth": {"boxes": rows, "bike_racks": list(frame.truth.get("bicycle_racks", ()))}}

    def details(self, frame: Frame, result: Boxes) -> dict[str, Any]:
        """The detections `boxes` and the `pose` (4, 4) of the vehicle, in the global frame.

        For a network that sees views, `left_out` has the annotations outside of all of them.
        """
        boxes = BoxColumns.of_frame(select_submitted(frame, result, self.taxonomy))
        rest: Boxes | None = frame.truth.get("boxes_left_out")
        left_out = {} if rest is None else {"left_out": BoxColumns.of_frame(rest)}
        return {"boxes": boxes, "pose": frame.global_from_ego, "ego": frame.global_from_ego[:2, 3], **left_out}

    def recorded(self, frames: ReplayedFrames, counts: Iterable[Counts | None]) -> _RecordedBoxes:
        """With the detections of results.json, in its order: the devkit breaks ties of scores by it."""
        annotated, racks, recorded = GrowingColumns(), dict[int, np.ndarray](), list[Counts | None]()
        none, complete = np.zeros((0, 11)), True
        for i, own in enumerate(counts):
            recorded.append(None if own is None else {})
            complete = complete and own is not None and bool(own["truth"])
            if own is not None and own["truth"]:
                boxes, racks_here = _annotated(own["truth"], i)
                if len(racks_here):
                    racks[i] = racks_here
                annotated.add(boxes.counted(frames.egos, racks_here, self.taxonomy))

        def counted(boxes: BoxColumns) -> np.ndarray:
            """(N,) bool of the boxes of one frame."""
            frame = int(boxes.frames[0]) if len(boxes) else 0
            if recorded[frame] is None:
                return np.zeros(len(boxes), bool)
            return boxes.are_counted(frames.egos, racks.get(frame, none), self.taxonomy)

        number = {token: i for i, token in enumerate(frames.tokens)}
        detections = read_submission(frames.folder / RESULTS, number, self.taxonomy, counted)
        joined = _Joined(frames.egos, annotated.columns() if complete else None, detections)
        return _RecordedBoxes(recorded, joined)

    def _join(self, counts: Sequence[Counts | None]) -> _Joined:
        """The boxes of the frames; those of the latest ones are kept."""
        if isinstance(counts, _RecordedBoxes):
            return counts.joined
        if self._latest is None or self._latest[0] is not counts or self._latest[1] != len(counts):
            known = [(i, each) for i, each in enumerate(counts) if each is not None]
            truths = [_annotated(each["truth"], i) for i, each in known if each["truth"]]
            annotated = BoxColumns.joined([boxes for boxes, _ in truths])
            racks = np.concatenate([np.zeros((0, 11)), *(each for _, each in truths)])
            found = BoxColumns.joined(
                [replace(each["boxes"], frames=np.full(len(each["boxes"]), i)) for i, each in known]
            )
            egos = np.zeros((len(counts), 2))
            for i, each in known:
                egos[i] = each["ego"]
            truth, detections = (boxes.counted(egos, racks, self.taxonomy) for boxes in (annotated, found))
            joined = _Joined(egos, truth if len(truths) == len(counts) else None, detections)
            self._latest = counts, len(counts), joined
        return self._latest[2]

    def _select(self, joined: _Joined, boxes: BoxColumns, weights: Weights) -> BoxColumns:
        chosen = weights.frames[boxes.frames]
        if weights.range is not None:
            chosen &= boxes.within(weights.range, joined.egos)
        return boxes if chosen.all() else boxes.select(chosen)

    def scores(self, counts: Sequence[Counts | None], weights: Weights) -> dict[str, Score]:
        joined, names = self._join(counts), self.taxonomy.class_names
        found = self._select(joined, joined.detections, weights)
        if joined.truth is None:
            none = np.full((len(weights.draws), len(names)), np.nan)
            nothing = dict.fromkeys(("mAP", "NDS", "mAP_present"), _BoxScore(none[:, 0]))
            return {"boxes": Score(np.zeros(len(none), np.int64)), **nothing, "AP": _BoxScore(none, names)}
        truth = self._select(joined, joined.truth, weights)
        matched = DetectionScores(truth, found, weights.scenes, self.taxonomy)
        same = partial(self._select, joined, joined.detections, weights)
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
        return {
            "boxes": Score((weights.draws @ there).sum(axis=1).astype(np.int64)),
            **{name: _BoxScore(values, (), there, None, same) for name, values in means.items()},
            "AP": _BoxScore(np.where(present, aps, np.nan), names, there, None, same),
        }

    def _match_whole(self, counts: Sequence[Counts]) -> tuple[BoxColumns, BoxColumns, DetectionScores]:
        """Annotations, detections, and all frames matched as one scene; Unmeasured without annotations."""
        joined = self._join(counts)
        if joined.truth is None:
            raise Unmeasured("no annotations to score with")
        scenes = np.zeros(len(counts), np.int64)
        matched = DetectionScores(joined.truth, joined.detections, scenes, self.taxonomy)
        return joined.truth, joined.detections, matched

    def report(self, counts: Sequence[Counts]) -> dict[str, Any]:
        """`mAP`, `NDS`; `mAP_present`, mean AP over the annotated classes; `ground_truth`, number of boxes by class.

        `label_recalls` (per class and matching distance): recall of all detections, whatever their scores.
        And under the devkit's names `label_aps` (per class and matching distance), `mean_dist_aps` (AP per class),
        `label_tp_errors`, `tp_errors`, `tp_scores`. Errors are metres, 1 - IoU, radians, m/s and 1 - accuracy; None if
        undefined, such as a cone's velocity error. Without annotated attributes, as in infos, the attribute error is 1.
        For a network that sees views, `left_out` is the number of objects, by class, that would be scored if a view
        covered them.
        """
        _, _, matched = self._match_whole(counts)
        names, scores = self.taxonomy.class_names, matched.score()
        present = matched.annotated.sum(axis=0) > 0
        aps, errors, mean_errors = scores.class_aps[0], scores.errors[0], scores.mean_errors[0]
        return strict(
            {
                **self._count_left_out(counts),
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

    def _count_left_out(self, counts: Sequence[Counts]) -> dict[str, Any]:
        if not all("left_out" in each for each in counts):
            return {}
        names, numbers = self.taxonomy.class_names, np.zeros(len(self.taxonomy.class_names), np.int64)
        for each in counts:
            _, racks = _annotated({"boxes": (), **each["truth"]}, 0)
            rest = each["left_out"].counted(np.asarray(each["ego"])[None], racks, self.taxonomy)
            numbers += np.bincount(rest.labels, minlength=len(names))
        return {"left_out": dict(zip(names, numbers.tolist(), strict=True))}

    def curves(self, counts: Sequence[Counts]) -> list[Curve]:
        """Precision by recall of each annotated class at each matching distance, as in the devkit."""
        return precision_recall(self._match_whole(counts)[2], self.taxonomy)

    def find_worst(self, counts: Sequence[Counts], most: int) -> list[Sample]:
        """See `find_worst_samples`."""
        truth, detections, _ = self._match_whole(counts)
        poses = np.array([each["pose"] for each in counts], np.float64).reshape(-1, 4, 4)
        return find_worst_samples(truth, detections, poses, self.taxonomy, most)

    def tables(self, scores: Mapping[str, Any]) -> list[Table]:
        """AP and true-positive errors per class, with mAP, NDS and mAP_present in the title."""
        from rich.table import Table

        summary = "  ".join(f"{key} {format_number(scores[key])}" for key in ("mAP", "NDS", "mAP_present"))
        if "left_out" in scores:
            summary += f"\n{sum(scores['left_out'].values())} objects are outside of what the network sees: left out"
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
        annotated = self._join(counts).truth is not None
        return (("mAP", "NDS"), ()) if annotated else ((), ("detections",))

    def agreement(self, here: Recorded, there: Recorded, weights: Weights, subject: Subject) -> tuple[float, str]:
        """2 M / (A + B) for A and B detections above the score, M of them matched."""
        sides = []
        for each in (here, there):
            joined = self._join(each.counts)
            boxes = self._select(joined, joined.detections, weights)
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


def precision_recall(matched: DetectionScores, taxonomy: Taxonomy) -> list[Curve]:
    """Precision at RECALLS of each annotated class and each matching distance; 0 where a recall is not reached."""
    return [
        Curve(f"precision by recall: {name}", f"{distance:g} m", ("recall", "precision"), RECALLS, precision)
        for name, present, own in zip(
            taxonomy.class_names, matched.annotated.any(axis=0), matched.precisions(), strict=True
        )
        if present
        for distance, precision in zip(THRESHOLDS, own, strict=True)
    ]


def find_worst_samples(
    truth: BoxColumns, detections: BoxColumns, poses: np.ndarray, taxonomy: Taxonomy, count: int
) -> list[Sample]:
    """At most so many frames with the most mistakes: missed annotations and extra detections; then the lowest F1.

    Detections count from COUNTED_SCORE on. They are matched as for the scores, within WITHIN.

    Args:
        truth: scored annotations.
        detections: scored detections.
        poses: (F, 4, 4) of the vehicle in the global frame.
    """
    detections = detections.select(detections.scores >= COUNTED_SCORE)
    taken = match(truth, detections, (WITHIN,))[0]
    is_found, is_right = np.isin(np.arange(len(truth)), taken), taken >= 0
    found, missed, extra = (
        np.bincount(frames, minlength=len(poses))
        for frames in (truth.frames[is_found], truth.frames[~is_found], detections.frames[~is_right])
    )
    mistakes = missed + extra
    f1 = 2 * found / np.maximum(1, 2 * found + mistakes)
    samples = []
    for i in np.lexsort((f1, -mistakes))[: min(count, np.count_nonzero(mistakes))].tolist():
        outlines = [
            Outline(kind, taxonomy.class_names[label], corners)
            for boxes, kinds in (
                (truth, np.where(is_found, "found", "missed")),
                (detections, np.where(is_right, "right", "extra")),
            )
            for kind, label, corners in _footprints(boxes, kinds, i, poses[i])
        ]
        counts = {"mistakes": mistakes[i], "missed": missed[i], "extra": extra[i], "found": found[i]}
        samples.append(Sample(i, {**{name: int(n) for name, n in counts.items()}, "F1": float(f1[i])}, outlines))
    return samples


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
