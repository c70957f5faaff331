"""The task contract: all that training, evaluation, export and replay need to know of a head. numpy only.

A task is a folder and a line in `perception.tasks.TASKS`. Its half in torch is `network.TaskNetwork`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Protocol, TypeVar

import numpy as np

from perception.frame import Frame
from perception.grid import BevGrid
from perception.section import Section
from perception.tasks.judging import Judge

if TYPE_CHECKING:
    from rich.table import Table

    from perception.datasets.keyframes import Keyframes
    from perception.tasks.drawing import Layer
    from perception.tasks.network import TaskNetwork

Arrays = Mapping[str, np.ndarray]
# One observation: for some kinds of conditions, the probability of each value in the order of CONDITIONS.
Evidence = Mapping[str, Sequence[float]]
Result = TypeVar("Result")


class TaskConfig(Section):
    """Configuration of a task's head."""

    added: bool = False  # trained on the frozen base, and not part of it: the base's hash does not know it

    def require_levels(self, levels: int) -> None:
        """Raise ValueError where the head cannot read the trunk's number of feature maps."""
        if levels > 1:
            raise ValueError("reads one feature map, a trunk with `pyramid` gives one for each stage")


@dataclass(frozen=True)
class Output:
    """One output of a task's network; its tensor is called TASK/NAME.

    Attributes:
        channels: names along the second dimension of a dense output of probabilities (B, channels, ...).
        cells: whether a dense output has dimensions behind the channels.
        steady: whether what it says of frames unlike those it was trained on may be compared between engines in INT8;
            else INT8 is compared on the frames that it was calibrated on.
    """

    name: str
    unit: str
    channels: tuple[str, ...] = ()
    cells: bool = True
    steady: bool = True


class Task(ABC, Generic[Result]):
    """One task of a model.

    Args:
        config: of its head.
        grid: of the trunk's cells, in the reference frame.
    """

    name: ClassVar[str]
    Config: ClassVar[type[TaskConfig]]
    reads: ClassVar[Literal["trunk", "fused"]] = "trunk"  # feature maps: behind the trunk, or before it
    ranked: ClassVar[bool] = False  # its outputs are lists of detections: boxes, scores, labels and attributes
    random_routes: ClassVar[bool] = False  # while its head is trained on a frozen base, modules run at random
    metric: type[Metric[Any]]
    judge: ClassVar[type[Judge] | None] = None  # of finished replays; None: gates measure nothing of the task
    files: ClassVar[Mapping[str, str]] = {}  # what a replay writes for the task alone: what it is -> file name
    outputs: Sequence[Output]

    def __init__(self, config: Any, grid: BevGrid) -> None:
        self.config, self.grid = config, grid

    @abstractmethod
    def network(self, channels: int) -> TaskNetwork:
        """The head in torch, for feature maps of so many channels."""

    def deployed(self, network: TaskNetwork) -> Any:
        """What is exported of a trained network: a module in torch with its `forward` and `decode`."""
        return network

    @abstractmethod
    def labels(self, frame: Frame, source: Keyframes | None = None) -> dict[str, np.ndarray]:
        """What the losses compare with, for one frame after augmentation; made in the loader's worker.

        Batches join the arrays frame by frame; those whose first dimension differs are padded with zeros.
        """

    def labelled(self, source: Keyframes, token: str) -> bool:
        """Whether a head that is trained alone can learn from a keyframe; reads no file."""
        return True

    @abstractmethod
    def result(self, outputs: Arrays) -> Result:
        """One frame's outputs of the network, without the batch dimension, decoded."""

    def memory(self) -> Memory[Result] | None:
        """A memory for one drive; None where the task remembers nothing."""
        return None

    def evidence(self, result: Result) -> Evidence:
        """What a result says of the conditions that the next frame is routed by."""
        return {}

    def draw(self, frame: Frame, result: Result, state: Any) -> Iterable[Layer]:
        """What the report and the viewers show of a frame; always in the same order.

        Args:
            frame: with its annotations, where it has some.
            state: what the memory holds of the drive up to the frame; None where the task has no memory.
        """
        return ()

    def mistakes(self, frame: Frame, result: Result) -> tuple[int, str] | None:
        """How many mistakes a result makes, and that in words; None where the frame does not tell."""
        return None

    def writer(self, folder: Path, sensors: Sequence[str]) -> AbstractContextManager[FrameWriter] | None:
        """Opens `files` in the folder of a replay; they appear whole when the block ends. None: there are none.

        Args:
            sensors: what the network takes, of "camera" and "lidar".

        Raises:
            InputError: the folder cannot be written.
        """
        return None

    @staticmethod
    def submission(folder: Path, sensors: Sequence[str]) -> AbstractContextManager[FrameWriter] | None:
        """Opens what an evaluation writes for the benchmark of the task; None: nothing. As `writer` otherwise."""
        return None

    def statistics(self, frame: Frame, result: Result, source: Keyframes | None) -> Mapping[str, Any]:
        """What the `judge` needs of a frame, as JSON holds it; under `truth`, if there, what is annotated.

        Args:
            source: of the frame and its truth, which faults of the sensors do not touch; None: the drive has none.
        """
        return {}

    @staticmethod
    def pack(result: Any) -> dict[str, np.ndarray]:
        """A result as arrays, for the journal of a replay; as it stands for results that are an array."""
        return {"values": np.ascontiguousarray(result)}

    @staticmethod
    def unpack(arrays: Arrays) -> Any:
        """What `pack` has taken apart."""
        return arrays["values"]

    def finite(self, outputs: Arrays) -> tuple[Arrays, Mapping[str, int]]:
        """One frame's outputs for `result`, and how many of their numbers are NaN or infinite, by output.

        A task that can leave such numbers out does so here; otherwise its `result` gets them as they are.
        """
        counts = {name: int(np.count_nonzero(~np.isfinite(values))) for name, values in outputs.items()}
        return outputs, {name: count for name, count in counts.items() if count}


class FrameWriter(Protocol):
    """Writes a task's files of a replay."""

    def add(self, frame: Frame, result: Any, state: Any) -> None:
        """The next frame, with the task's result and what its memory holds."""


class Memory(ABC, Generic[Result]):
    """What a task remembers of one drive. It does not grow with the length of the drive."""

    @abstractmethod
    def update(self, frame: Frame, result: Result) -> Any:
        """Take in the result of the next frame, and return the state of the drive up to it."""


class Metric(ABC, Generic[Result]):
    """Scores of a task over frames that are added one by one.

    Args:
        source: of the frames, and of what is true in them.
        grid: of the pillars; results on a grid cover the same ground.
    """

    main: ClassVar[str | None] = None  # of the numbers of `part`, the one that a robust network keeps

    def __init__(self, source: Keyframes, grid: BevGrid) -> None:
        self.source, self.grid = source, grid

    @abstractmethod
    def add(self, frame: Frame, result: Result) -> None:
        """Count one frame; the truth comes from the source, not from the frame."""

    @abstractmethod
    def scores(self) -> dict[str, Any]:
        """All scores of all frames, as strict JSON. No other task uses their names.

        Raises:
            InputError: the frames have no annotations.
        """

    @abstractmethod
    def part(self, frames: np.ndarray, bounds: tuple[float, float] | None = None) -> dict[str, Any]:
        """The scores of some frames, (F,) bool, or of a range (m from the vehicle), as if that were all there is.

        Its numbers, None where nothing is annotated, are those that tables show.
        """

    @abstractmethod
    def tables(self, scores: Mapping[str, Any]) -> list[Table]:
        """What `scores` gave, to be printed."""


def joined_labels(frames: Sequence[Arrays]) -> dict[str, np.ndarray]:
    """Labels of several frames as one batch: (B, ...), with zeros where a frame has fewer rows than another."""
    batch = {}
    for name in frames[0]:
        arrays = [frame[name] for frame in frames]
        if arrays[0].ndim:
            most = max(len(array) for array in arrays)
            arrays = [np.pad(a, ((0, most - len(a)), *((0, 0),) * (a.ndim - 1))) for a in arrays]
        batch[name] = np.stack(arrays)
    return batch


Values = TypeVar("Values")


def prefixed(task: str, values: Mapping[str, Values]) -> dict[str, Values]:
    """A task's tensors under their names among those of all tasks."""
    return {f"{task}/{name}": value for name, value in values.items()}


def part_of(task: str, values: Mapping[str, Values]) -> dict[str, Values]:
    """The tensors of one task, under its own names."""
    start = f"{task}/"
    return {name.removeprefix(start): value for name, value in values.items() if name.startswith(start)}
