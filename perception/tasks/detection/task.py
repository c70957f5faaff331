"""Detection of objects: boxes with class, velocity and attribute."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from perception.frame import Arrays, Boxes, Frame
from perception.grid import BevGrid
from perception.tasks.detection.columns import BoxColumns, match
from perception.tasks.detection.config import DetectionHead
from perception.tasks.detection.devkit import RESULTS, SUBMISSION, TRACKS, ResultFiles
from perception.tasks.detection.metric import WITHIN, DetectionMetric
from perception.tasks.detection.nms import non_maximum_suppression
from perception.tasks.detection.submission import SubmissionWriter
from perception.tasks.detection.tracker import Tracker
from perception.tasks.drawing import COUNTED_SCORE, LOWEST_SCORE, BoxLayer
from perception.tasks.outputs import Output
from perception.tasks.published import ScoreThresholds, Tracks
from perception.tasks.task import Memory, Task
from perception.taxonomy import Taxonomy

if TYPE_CHECKING:
    from perception.tasks.network import TaskNetwork

_ARRAYS = ("centers", "sizes", "rotations", "velocities", "labels", "attributes", "scores")


class TrackMemory(Memory[Boxes]):
    """Memory whose state is the current tracks."""

    def __init__(self, taxonomy: Taxonomy, thresholds: ScoreThresholds) -> None:
        self._tracker = Tracker(taxonomy, thresholds)

    def update(self, frame: Frame, result: Boxes | None) -> Tracks:
        found = Boxes.none() if result is None else result
        pose = frame.global_from_reference
        return self._tracker.update(found.transformed(pose), frame.timestamp, pose[:2, 3])


class DetectionTask(Task[Boxes]):
    """Detection by peaks of heatmaps (CenterPoint) or by anchors (SECOND)."""

    name = "detection"
    metric = DetectionMetric
    files: ClassVar[Mapping[str, str]] = {"results": RESULTS, "tracks": TRACKS}
    submitted = SUBMISSION
    Config = DetectionHead
    config: DetectionHead

    def __init__(self, config: DetectionHead, grid: BevGrid, taxonomy: Taxonomy) -> None:
        super().__init__(config.settled(taxonomy), grid, taxonomy)
        suppression = None if self.config.nms is None else self.config.nms.model_dump(mode="json")
        box = "x y z w l h m, sin and cos of yaw times any factor, vx vy m/s; reference frame"
        score = "probability, descending; where classes are in groups, in each"
        label, attribute = "index in the taxonomy's classes", "index in the taxonomy's attributes; -1 for none"
        output = partial(Output, kind="boxes")
        self.outputs = (
            output(name="boxes", unit=box, suppression=suppression, velocity=self._knows_velocity),
            output(name="scores", unit=score),
            output(name="labels", unit=label, names=taxonomy.class_names),
            output(name="attributes", unit=attribute, names=taxonomy.attributes),
        )

    def network(self, channels: int) -> TaskNetwork:
        from perception.tasks.detection.anchor_head import AnchorHead
        from perception.tasks.detection.center_head import CenterHead

        if self.config.anchors:
            return AnchorHead(self.config.anchors, channels, self.taxonomy)
        return CenterHead(self.config, channels, self.grid, self.taxonomy)

    def deployed(self, network: Any) -> Any:
        """The head with its regression computed only at the decoded peaks."""
        from perception.tasks.detection.center_head import at_peaks

        return at_peaks(network)

    def labels(self, frame: Frame) -> dict[str, np.ndarray]:
        """Labels of the objects on the grid with LiDAR or RADAR points, as the evaluation counts them."""
        from perception.tasks.detection.anchor_head import anchor_labels
        from perception.tasks.detection.targets import center_labels

        boxes = Boxes.none() if frame.boxes is None else frame.boxes
        seen = boxes.select(boxes.num_points != 0)
        return anchor_labels(seen, self.grid) if self.config.anchors else center_labels(seen, self.grid, self.config)

    def from_arrays(self, arrays: Arrays) -> Boxes:
        """Detections after NMS, best score first, in the reference frame."""
        scores, boxes, nms = arrays["scores"], arrays["boxes"], self.config.nms
        kept = np.arange(scores.size)
        if nms is not None:
            count = scores.shape[-1]
            flat = {name: values.reshape(-1, count, *values.shape[scores.ndim :]) for name, values in arrays.items()}
            groups = [{name: values[i] for name, values in flat.items()} for i in range(len(flat["scores"]))]
            kept = np.concatenate([non_maximum_suppression(own, nms, i) + i * count for i, own in enumerate(groups)])
        kept = kept[np.argsort(-scores.flat[kept], kind="stable")][: nms and nms.total]
        kept = kept[scores.flat[kept] >= 0]
        boxes = boxes.reshape(-1, boxes.shape[-1])[kept].astype(np.float64)
        return Boxes.from_headings(
            centers=boxes[:, 0:3],
            sizes=boxes[:, 3:6],
            headings=boxes[:, 6:8],
            velocities=boxes[:, 8:10] if self._knows_velocity else np.full((len(boxes), 2), np.nan),
            labels=arrays["labels"].flat[kept],
            attributes=arrays["attributes"].flat[kept],
            scores=scores.flat[kept],
        )

    @property
    def _knows_velocity(self) -> bool:
        return self.config.anchors is None or self.config.anchors.velocity

    def memory(self) -> TrackMemory:
        return TrackMemory(self.taxonomy, self.thresholds)

    @property
    def thresholds(self) -> ScoreThresholds:
        return self.config.score_thresholds

    def published(self, result: Boxes) -> Boxes:
        return result.select(self.thresholds.reached(result, np.zeros(2), self.taxonomy))

    def tracks(self, state: Tracks) -> Tracks:
        return state.select(state.confirmed)

    def objects(self, state: Tracks) -> Boxes:
        return self.tracks(state).boxes

    def draw(self, frame: Frame, result: Boxes, state: Tracks | None) -> Iterator[BoxLayer]:
        """Detections (best score first), tracks, and annotations with LiDAR or RADAR points."""
        scores, colours = result.scores, self.taxonomy.class_colours()
        texts = [f"{score:.2f}" for score in scores.tolist()]
        ranks = [str(i) for i in range(len(result))]
        yield BoxLayer("detections", "perceived", result, colours, scores >= LOWEST_SCORE, ranks, texts)
        if state is not None:
            shown = state.confirmed & (state.boxes.scores >= LOWEST_SCORE)
            ids = [str(track) for track in state.ids.tolist()]
            yield BoxLayer("tracks", "tracked", state.boxes, colours, shown, ids, ids, faded=state.unseen > 0)
        if frame.boxes is not None:
            hit, names = frame.boxes.num_points != 0, frame.boxes.instances.tolist()
            empty = [""] * len(names)
            yield BoxLayer("annotations", "annotated", frame.boxes, colours, hit, names, empty, within=WITHIN)

    def mistakes(self, frame: Frame, result: Boxes) -> tuple[int, str] | None:
        """Annotated boxes on the grid without a detection, and detections without an annotated box."""
        if frame.boxes is None:
            return None
        there = self.grid.inside(frame.boxes.centers * [1, 1, 0]) & (frame.boxes.num_points != 0)
        counted = result.select(result.scores >= COUNTED_SCORE)
        missed, extra = mistakes(counted, frame.boxes.select(there))
        return missed + extra, f"{missed} missed, {extra} extra"

    def writer(self, folder: Path, sensors: Sequence[str]) -> AbstractContextManager[ResultFiles]:
        return ResultFiles.open(folder, sensors, self.taxonomy)

    @staticmethod
    def submission(
        folder: Path, sensors: Sequence[str], taxonomy: Taxonomy
    ) -> AbstractContextManager[SubmissionWriter]:
        return SubmissionWriter.open(folder / SUBMISSION, sensors, taxonomy)

    @staticmethod
    def arrays(result: Boxes) -> dict[str, np.ndarray]:
        return {name: getattr(result, name) for name in _ARRAYS}


def mistakes(predicted: Boxes, annotated: Boxes) -> tuple[int, int]:
    """Number of annotated boxes without a detection within WITHIN, and of detections without an annotated box."""
    taken = match(BoxColumns.of_frame(annotated), BoxColumns.of_frame(predicted), [WITHIN])
    found = np.count_nonzero(taken >= 0)
    return len(annotated) - found, len(predicted) - found
