"""Training samples whose order and augmentation depend only on seed and position.

A training is one sequence of positions, and each step takes the next ones. So a resumed training, or one with another
number of workers, gets bit-identical samples.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from perception.config import Config
from perception.datasets.keyframes import Keyframes, Reads
from perception.errors import InputError
from perception.frame import Conditions, Frame
from perception.io.workers import iterate
from perception.model import batch_inputs
from perception.sensors.inputs import prepare
from perception.session import follow
from perception.state import Moment
from perception.tasks import tasks_of
from perception.tasks.task import join_labels
from perception.training.augment import Augmentation
from perception.training.clips import Clip, Clips, pad
from perception.training.frame_cache import FrameCache, FramesInMemory
from perception.training.interrupt import ignore_interrupt
from perception.training.objects import Objects
from perception.training.paste import Paster

FrameInputs = tuple[dict[str, np.ndarray], Conditions]  # inputs as returned by `follow`, with batch dimension 1
_CACHE_BYTES = 2 << 30  # of decoded frames, in total over all workers


@dataclass(frozen=True)
class Sample:
    """One training frame and, for a memory, those before it."""

    frames: list[FrameInputs]  # the oldest first, the training frame last
    labels: dict[str, dict[str, np.ndarray]]  # by task; `camera` has those of its depth
    token: str
    outage: bool  # whether the clips of its step end in an outage


@dataclass(frozen=True)
class Batch:
    """B training frames and those before them."""

    frames: list[tuple[dict[str, torch.Tensor], list[Conditions]]]  # of the samples by age; shorter clips are padded
    labels: dict[str, dict[str, torch.Tensor]]  # as of the samples, by `join_labels`
    tokens: list[str]
    outage: bool  # whether the clips of the step end in an outage

    def to(self, device: torch.device) -> Batch:
        """The batch on a device; from pinned memory the copy runs while the caller goes on."""
        return self._change(lambda value: value.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory; called by the DataLoader."""
        return self._change(torch.Tensor.pin_memory)

    def _change(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        labels = {task: {k: change(v) for k, v in own.items()} for task, own in self.labels.items()}
        frames = [({name: change(value) for name, value in inputs.items()}, facts) for inputs, facts in self.frames]
        return replace(self, frames=frames, labels=labels)


class FrameDataset(Dataset[Sample]):
    """The samples of a training by position.

    Args:
        tasks: names of the tasks that need labels; None: all.
        supervision: of the branches whose losses need labels (`PerceptionModel.supervision`).
        trained: names of the modules that train; None: all.
    """

    def __init__(
        self,
        tables: Keyframes,
        tokens: Sequence[str],
        config: Config,
        tasks: Sequence[str] | None = None,
        objects: Objects | None = None,
        supervision: Mapping[str, Any] | None = None,
        trained: Collection[str] | None = None,
    ) -> None:
        if not tokens:
            raise InputError(f"{tables.dataroot}: no keyframes to train on; choose other scenes or another split")
        self._tables, self._tokens, self._config = tables, list(tokens), config
        self._spec, self._supervision = config.spec, supervision or {}
        every = tasks_of(config.tasks, config.head_grid, config.taxonomy)
        self._tasks = {name: task for name, task in every.items() if tasks is None or name in tasks}
        self._truth = dict.fromkeys(kind for task in self._tasks.values() for kind in task.truth)
        self._paster = None if objects is None else Paster(objects, config)
        self._clips = None if self._spec.memory is None else Clips(tables, config, self._spec.memory, trained)
        # s from frame to frame of the clips, least and largest; None: no memory trains
        self.spacing = None if self._clips is None else self._clips.trained_spacing(tokens)
        boxes = any(task.ranked for task in self._tasks.values())
        self._holders = _frames_of_classes(tables, self._tokens, boxes) if config.data.class_balanced else None
        until = 0.0 if config.data.paste is None else config.data.paste.until
        # Objects are pasted into the samples of the first steps, at the positions before this one.
        self._require_pastable = round(until * self.steps) * config.train.batch
        self._order: tuple[int, np.ndarray] = (-1, np.zeros(0, np.int64))  # epoch and its order
        reads, folder = reads_of(config, bool(supervision)), config.data.cache
        memory = _CACHE_BYTES // max(1, config.data.workers)
        # Stored frames do not stay in memory as well: the operating system keeps them there for all workers together.
        self._frames = (
            FramesInMemory(tables, reads, memory) if folder is None else FrameCache(Path(folder), tables, reads)
        )

    @property
    def epoch_length(self) -> int:
        if self._holders is None:
            return len(self._tokens)
        return len(self._holders) * _quota(self._holders)

    @property
    def steps(self) -> int:
        return self._config.train.total_steps(self.epoch_length)

    def token(self, position: int) -> str:
        """Token of the keyframe at a position."""
        epoch, place = divmod(position, self.epoch_length)
        if self._order[0] != epoch:
            rng = np.random.default_rng([self._config.seed, 0, epoch])
            if self._holders is None:
                order = rng.permutation(len(self._tokens))
            else:
                order = class_balanced_order(self._holders, rng)
            self._order = (epoch, order)
        return self._tokens[self._order[1][place]]

    def __getitem__(self, position: int) -> Sample:
        rng = np.random.default_rng([self._config.seed, 1, position])
        token = self.token(position)
        clip = Clip([token]) if self._clips is None else self._clips.clip(token, position)
        recorded = self._with_truth(self._frames.frame(token))
        frame = unpasted = clip.without(self._as_seen(recorded, rng), age=0)
        if self._paster is not None and position < self._require_pastable:
            frame = self._paster(unpasted, np.random.default_rng([self._config.seed, 2, position]))
        # Of a frame with pasted objects only its own points tell the depth.
        measured = recorded if frame is unpasted else frame
        augmentation = Augmentation(rng, self._config.data.augment, self._spec.picture)
        frame = augmentation.apply(frame)
        earlier = [
            augmentation.apply(clip.without(self._as_seen(self._frames.frame(each), rng), age))
            for age, each in zip(range(len(clip.tokens) - 1, 0, -1), clip.tokens[:-1], strict=True)
        ]
        frames = self._follow([*earlier, frame], augmentation)
        labels = {name: task.labels(frame) for name, task in self._tasks.items()}
        for kind, needs in self._supervision.items():
            sensor = self._spec.sensors[kind]
            labels[kind] = sensor.labels(measured, frames[-1][0], augmentation.similarity, needs)
        return Sample(frames, labels, token, clip.outage)

    def _follow(self, frames: Sequence[Frame], augmentation: Augmentation) -> list[FrameInputs]:
        """The inputs of a clip, without frames before the last whose state replaces none: nothing depends on them."""
        prepared = [(Moment.of(frame), prepare(frame, self._spec, augmentation.affines)) for frame in frames]
        followed = zip(follow(prepared, self._spec.memory), frames, strict=True)
        return [(inputs, each.conditions) for (inputs, replaces), each in followed if replaces or each is frames[-1]]

    def _with_truth(self, frame: Frame) -> Frame:
        """The frame with the truth that labels are made of, which is not kept: voxels would fill the memory."""
        if not self._truth:
            return frame
        missing = [kind for kind in self._truth if kind not in frame.truth]
        return replace(frame, truth={**frame.truth, **self._tables.recording(frame.token).read_truth(missing)})

    def _as_seen(self, recorded: Frame, rng: np.random.Generator) -> Frame:
        """The frame that the network gets; only labels of a branch need points that it does not see."""
        seen = recorded if self._spec.lidar else recorded.without_points()
        return self._with_dropped_sensors(seen, rng)

    def _with_dropped_sensors(self, frame: Frame, rng: np.random.Generator) -> Frame:
        """Drop a kind of sensor of frames that have all of several, with the configured probabilities."""
        draw, sensors = rng.random(), self._spec.sensors.values()
        if len(sensors) < 2 or not all(sensor.sees(frame) for sensor in sensors):
            return frame
        edge = 0.0
        for sensor in sensors:
            edge += self._config.train.drop.get(sensor.fact, 0.0)
            if draw < edge:
                return sensor.hidden(frame)
        return frame


def reads_of(config: Config, supervised: bool = False) -> Reads:
    """What a training reads; with labels of a branch also the LiDAR, whether the model has it or not."""
    reads, picture = config.spec.reads._replace(annotations=True), config.spec.picture
    if config.data.reduced_pictures and picture is not None:
        reads = reads._replace(least_width=picture.width)
    return reads._replace(lidar=True) if supervised else reads


def collate(samples: list[Sample]) -> Batch:
    longest = max(len(sample.frames) for sample in samples)
    by_age = zip(*(pad(sample.frames, longest) for sample in samples), strict=True)
    return Batch(
        frames=[(batch_inputs([own for own, _ in frames]), [facts for _, facts in frames]) for frames in by_age],
        labels=batch_labels([sample.labels for sample in samples]),
        tokens=[sample.token for sample in samples],
        outage=samples[0].outage,
    )


def batch_labels(frames: Sequence[Mapping[str, Mapping[str, np.ndarray]]]) -> dict[str, dict[str, torch.Tensor]]:
    """Batched labels by task, from the labels of each frame by task."""
    return {
        task: {k: torch.from_numpy(v) for k, v in join_labels([frame[task] for frame in frames]).items()}
        for task in frames[0]
    }


def batches(
    dataset: FrameDataset, config: Config, start_step: int = 0, process: int = 0, processes: int = 1
) -> Iterator[Batch]:
    """The batches of this process from `start_step` to the end of the training: `config.train.accumulate` for a step.

    The frames of a step do not depend on the number of processes or passes.
    """
    train = config.train
    size, rest = divmod(train.batch, train.accumulate * processes)
    if rest:
        shares = f"{processes} processes with {train.accumulate} passes each"
        multiple = train.accumulate * processes
        raise InputError(
            f"train.batch: {train.batch} frames cannot be divided among {shares}; give a multiple of {multiple}"
        )
    starts = [
        step * train.batch + (i * processes + process) * size
        for step in range(start_step, dataset.steps)
        for i in range(train.accumulate)
    ]
    loader = DataLoader(
        dataset,
        batch_sampler=[list(range(start, start + size)) for start in starts],
        num_workers=config.data.workers,
        collate_fn=collate,
        worker_init_fn=ignore_interrupt,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # else a resumed training would advance the global one
    )
    yield from iterate(loader)


def _frames_of_classes(tables: Keyframes, tokens: list[str], required: bool) -> list[np.ndarray] | None:
    """Indices of the frames of each class that occurs; None if none does, and if none is required."""
    holders: list[list[int]] = [[] for _ in tables.taxonomy.classes]
    for i, token in enumerate(tokens):
        boxes = tables.recording(token).annotated("boxes")
        for label in np.unique(boxes.labels[boxes.num_points > 0]) if boxes is not None else ():
            holders[label].append(i)
    present = [np.array(frames) for frames in holders if frames]
    if not present and required:
        raise InputError(
            f"{tables.dataroot}: no annotated box in the {len(tokens)} keyframes to train on; choose other scenes"
        )
    return present or None


def _quota(holders: list[np.ndarray]) -> int:
    """Number of frames of each class in an epoch."""
    return sum(len(frames) for frames in holders) // len(holders)


def class_balanced_order(holders: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Frame indices of an epoch in which each class contributes equally many frames.

    Zhu et al., "Class-balanced grouping and sampling for point cloud 3D object detection", 2019, section 3.1; but the
    frames of a class are repeated equally often (up to one) instead of drawn with replacement.
    """
    quota = _quota(holders)
    drawn = []
    for frames in holders:
        rounds = -(-quota // len(frames))
        drawn.append(np.concatenate([rng.permutation(frames) for _ in range(rounds)])[:quota])
    return rng.permutation(np.concatenate(drawn))
