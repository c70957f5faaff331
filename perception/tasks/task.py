"""The interface of a task for training, evaluation, export and replay. numpy only.

A task is a folder and an entry in `perception.tasks.TASKS`. Its torch part is `network.TaskNetwork`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Protocol, TypeVar

import numpy as np

from perception.frame import Arrays, Boxes, Frame, Prediction
from perception.grid import BevGrid
from perception.io.section import Section
from perception.tasks.metric import Metric, Result
from perception.tasks.outputs import Output, decode
from perception.tasks.published import UNKNOWN, Cloud, ScoreThresholds, Tracks
from perception.taxonomy import Taxonomy

if TYPE_CHECKING:
    from perception.datasets.keyframes import Recording
    from perception.tasks.drawing import Layer
    from perception.tasks.network import TaskNetwork


# An observation: kind of condition -> probability of each value in the order of the taxonomy, for some kinds.
Evidence = Mapping[str, Sequence[float]]


class TaskConfig(Section):
    """Configuration of a task's head."""

    names_points: ClassVar[bool] = False  # whether its outputs are named by the taxonomy's classes of points
    added: bool = False  # trained on the frozen base, and not part of it or its hash

    @property
    def point_places(self) -> int:
        """Number of points of the keyframe that the head reads at most; 0: it reads none."""
        return 0

    def extended(self, taxonomy: Taxonomy) -> Taxonomy:
        """Return the taxonomy with the names that the head brings, such as point classes."""
        return taxonomy

    def require_taxonomy(self, taxonomy: Taxonomy) -> None:
        """Raise ValueError if the head cannot have the names of this taxonomy."""

    def require_cameras(self, cameras: bool) -> None:
        """Raise ValueError if the head needs the pictures of a model without a camera branch."""

    def require_grid(self, grid: BevGrid) -> None:
        """Raise ValueError if the head cannot work on this grid of the trunk's outputs."""

    def require_levels(self, levels: int) -> None:
        """Raise ValueError if the head cannot read this number of feature maps from the trunk."""
        if levels > 1:
            raise ValueError("reads one feature map, a trunk with `pyramid` gives one for each stage")


class Task(ABC, Generic[Result]):
    """A task of a model, with the configuration of its head, on the grid of the trunk's outputs."""

    name: ClassVar[str]
    Config: ClassVar[type[TaskConfig]]
    # Features after the trunk, these and the points of the keyframe, or the sensors' data.
    reads: ClassVar[Literal["trunk", "points", "inputs"]] = "trunk"
    truth: ClassVar[Sequence[str]] = ()  # kinds of `Frame.truth` that its labels are made of
    metric: type[Metric[Any]]
    files: ClassVar[Mapping[str, str]] = {}  # files of the task in a replay: content -> file name
    submitted: ClassVar[str | None] = None  # file that `submission` writes
    outputs: Sequence[Output]

    def __init__(self, config: Any, grid: BevGrid, taxonomy: Taxonomy) -> None:
        self.config, self.grid, self.taxonomy = config, grid, taxonomy

    @abstractmethod
    def network(self, channels: int) -> TaskNetwork:
        """The torch head, for feature maps with this number of channels."""

    def deployed(self, network: Any) -> Any:
        """The torch module to export for a trained network, with its `forward` and `decode`."""
        return network

    @abstractmethod
    def labels(self, frame: Frame) -> dict[str, np.ndarray]:
        """Labels for the losses of one frame after augmentation; computed in the loader's workers.

        Batches concatenate the arrays frame by frame; arrays with different first dimensions are padded with zeros.
        """

    def labelled(self, recording: Recording) -> bool:
        """Whether a keyframe has labels for training this head alone; reads no file of it."""
        return all(map(recording.exists, self.truth))

    @property
    def ranked(self) -> bool:
        """Whether its outputs are a list of detections."""
        return any(each.kind == "boxes" for each in self.outputs)

    def result(self, outputs: Arrays) -> Result:
        """The result of one frame, from the network's outputs without the batch dimension."""
        return self.from_arrays(decode(self.outputs, outputs)[0])

    @abstractmethod
    def from_arrays(self, arrays: Arrays) -> Result:
        """The result of one frame, from its arrays as `decode` makes them."""

    def memory(self) -> Memory[Result] | None:
        """A memory for one drive; None if the task has none."""
        return None

    def objects(self, state: Any) -> Boxes:
        """Objects that the task's memory follows after a frame, in the global frame: they explain to other tasks what
        is there."""
        return Boxes.none()

    def doubts(self, state: Any) -> Mapping[str, str]:
        """Detection classes whose objects seem to be missed -> the reason; state as in `objects`, but explained."""
        return {}

    def evidence(self, result: Result) -> Evidence:
        """Evidence for the conditions by which the next frame is routed."""
        return {}

    @property
    def thresholds(self) -> ScoreThresholds | None:
        """The scores from which its detections are published, the configuration's `score_thresholds`, which a drive
        may replace; None: it detects nothing to publish."""
        return None

    def published(self, result: Result) -> Boxes:
        """The detections to publish, if there are `thresholds`."""
        return Boxes.none()

    def tracks(self, state: Any) -> Tracks | None:
        """The tracks to publish, of the memory's state; None if the task follows nothing."""
        return None

    def cloud(self, frame: Frame, result: Result | None, state: Any) -> Cloud | None:
        """The points to publish under the task's name, of a result or the memory's state; None: no points."""
        return None

    @property
    def ground(self) -> BevGrid | None:
        """The grid on which the task itself tells where the vehicle can drive; None if it does not tell."""
        return None

    def cells(self, state: Any, grid: BevGrid) -> np.ndarray:
        """(rows, columns) which cells of the ground are FREE, TAKEN or UNKNOWN (`perception.tasks.published`).

        Args:
            grid: the `ground` of the network's first task with one.
        """
        return np.full(grid.shape, UNKNOWN)

    def draw(self, frame: Frame, result: Result, state: Any) -> Iterable[Layer]:
        """The layers of a frame, with its annotations, and of the memory's state after it, always in the same order."""
        return ()

    def mistakes(self, frame: Frame, result: Result) -> tuple[int, str] | None:
        """Number of mistakes of a result, and their description; None if the frame is not annotated."""
        return None

    def writer(self, folder: Path, sensors: Sequence[str]) -> AbstractContextManager[FrameWriter] | None:
        """Opens `files` in the folder of a replay, which appear atomically when the block ends; None without files."""
        return None

    @staticmethod
    def submission(
        folder: Path, sensors: Sequence[str], taxonomy: Taxonomy
    ) -> AbstractContextManager[FrameWriter] | None:
        """Opens what an evaluation writes for the benchmark of the task; None: nothing. As `writer` otherwise."""
        return None

    @staticmethod
    def arrays(result: Any) -> dict[str, np.ndarray]:
        """A result as runtimes in other languages give it (docs/bundle_format.md), for a golden frame's file."""
        return {"values": np.asarray(result)}


class FrameWriter(Protocol):
    """Writes the files of a task in a replay."""

    def add(self, frame: Frame, result: Any, state: Any) -> None:
        """Add the next frame, with the result of the task and the state of its memory."""


class Memory(ABC, Generic[Result]):
    """State of a task over one drive, bounded in size."""

    @abstractmethod
    def update(self, frame: Frame, result: Result | None) -> Any:
        """Add the result of the next frame, None without sensor data; returns the state of the drive up to it."""

    def explain(self, frame: Frame, state: Any, objects: Boxes) -> Any:
        """The state of the latest `update` with what follows from the `Task.objects` of all tasks; called once after
        each."""
        return state


def join_labels(frames: Sequence[Arrays]) -> dict[str, np.ndarray]:
    """Batched labels (B, ...) of several frames, padded with zeros along their first dimension."""
    batch = {}
    for name in frames[0]:
        arrays = [frame[name] for frame in frames]
        if arrays[0].ndim:
            most = max(len(array) for array in arrays)
            arrays = [np.pad(a, ((0, most - len(a)), *((0, 0),) * (a.ndim - 1))) for a in arrays]
        batch[name] = np.stack(arrays)
    return batch


Values = TypeVar("Values")


def add_prefix(task: str, values: Mapping[str, Values]) -> dict[str, Values]:
    """A task's tensors with their names among those of all tasks, TASK/NAME."""
    return {f"{task}/{name}": value for name, value in values.items()}


def part_of(task: str, values: Mapping[str, Values]) -> dict[str, Values]:
    """The tensors of one task, without its prefix."""
    start = f"{task}/"
    return {name.removeprefix(start): value for name, value in values.items() if name.startswith(start)}


def to_prediction(tasks: Mapping[str, Task[Any]], outputs: Mapping[str, np.ndarray]) -> Prediction:
    """Prediction of the first frame of a batch, from its finite outputs TASK/NAME; `not_finite` counts the others.

    A NaN would never leave a tracker or a belief again.
    """
    results, not_finite = {}, {}
    for name, task in tasks.items():
        own = {key: values[0] for key, values in part_of(name, outputs).items()}
        arrays, counts = decode(task.outputs, own)
        results[name] = task.from_arrays(arrays)
        not_finite.update({f"{name}/{key}": count for key, count in counts.items()})
    return Prediction(results, not_finite)
