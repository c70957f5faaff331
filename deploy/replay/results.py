"""The results of a finished replay, read from its folder to be shown and judged."""

from __future__ import annotations

import json
import mmap
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson

from deploy.replay.provenance import PROVENANCE, ReplayProvenance
from perception.errors import InputError
from perception.tasks.metric import ReplayedFrames
from perception.tasks.task import Task
from perception.taxonomy import Taxonomy

STATISTICS, LATENCY, REPORT, SOURCES = "statistics.jsonl", "latency.json", "report.html", "sources.json"
VIEWER = "results.mcap"  # for Foxglove and Rerun


class FrameColumns(NamedTuple):
    """What statistics.jsonl says of F frames, without what their tasks counted."""

    starts: np.ndarray  # (F,) int, first byte of the frame's line
    tokens: Sequence[str]
    scenes: np.ndarray  # (F,) int, sorted by their names
    times: np.ndarray  # (F,) int64 us
    egos: np.ndarray  # (F, 2) m, position of the vehicle in the global frame
    conditions: np.ndarray  # (F,) int, index into `condition_sets`
    tasks: np.ndarray  # (F,) int, those that ran, index into `task_sets`
    blind: np.ndarray  # (F,) bool, without any sensor that the network takes
    not_finite: np.ndarray  # (F,) bool, with an output of the network that is not finite
    condition_sets: Sequence[frozenset[str]]
    task_sets: Sequence[frozenset[str]]

    @staticmethod
    def read(path: Path) -> FrameColumns:
        """Reads the file line by line. InputError if it cannot be read or was written by an earlier version."""
        numbers = {name: array("q") for name in ("start", "scene", "time", "conditions", "tasks", "flags")}
        tokens, egos, start = list[str](), array("d"), 0
        scenes, conditions, tasks = dict[str, int](), dict[frozenset[str], int](), dict[frozenset[str], int]()
        try:
            with path.open("rb") as file:
                for text in file:
                    line = orjson.loads(text)
                    if "sensors" not in line:
                        raise InputError(f"{path}: was written by an earlier version; replay again")
                    tokens.append(line["token"])
                    egos.extend(line["ego"])
                    row = (
                        start,
                        scenes.setdefault(line["scene"], len(scenes)),
                        line["timestamp"],
                        conditions.setdefault(frozenset(line["conditions"]), len(conditions)),
                        tasks.setdefault(frozenset(line["tasks"]), len(tasks)),
                        line["blind"] + 2 * bool(line["not_finite"]),
                    )
                    for column, number in zip(numbers.values(), row, strict=True):
                        column.append(number)
                    start += len(text)
        except (OSError, ValueError):
            raise _unfinished_error(path.parent, path.name) from None
        columns = {name: np.array(each, np.int64) for name, each in numbers.items()}
        by_name = np.argsort(np.argsort(np.array(list(scenes), str)))
        return FrameColumns(
            columns["start"],
            tokens,
            by_name[columns["scene"]],
            columns["time"],
            np.array(egos, np.float64).reshape(-1, 2),
            columns["conditions"],
            columns["tasks"],
            columns["flags"] % 2 == 1,
            columns["flags"] >= 2,
            list(conditions),
            list(tasks),
        )

    def select(self, index: np.ndarray) -> FrameColumns:
        """The frames at the integer index (M,)."""
        arrays = {name: each[index] for name, each in self._asdict().items() if isinstance(each, np.ndarray)}
        return self._replace(tokens=[self.tokens[i] for i in index.tolist()], **arrays)


class _Lines(Sequence[dict[str, Any]]):
    """Lines of a file with JSON, each read when it is asked for."""

    def __init__(self, path: Path, starts: np.ndarray) -> None:
        self._path, self._starts = path, starts

    @cached_property
    def _content(self) -> mmap.mmap:
        try:
            with self._path.open("rb") as file:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError):
            raise _unfinished_error(self._path.parent, self._path.name) from None

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, i: Any) -> Any:
        start = int(self._starts[i])
        end = self._content.find(b"\n", start)
        return orjson.loads(self._content[start : end if end >= 0 else None])


class _OfTask(Sequence[dict[str, Any] | None]):
    """What lines of statistics.jsonl have for one task; None: it did not run."""

    def __init__(self, lines: Sequence[dict[str, Any]], task: str) -> None:
        self._lines, self._task = lines, task

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, i: Any) -> Any:
        return self._lines[i]["tasks"].get(self._task)


@dataclass(frozen=True)
class ReplayResults:
    """A finished replay, by the files in its folder. Each is read on first use.

    Attributes:
        chosen: the frames that count; None: all.
    """

    folder: Path
    chosen: FrameColumns | None = None

    @staticmethod
    def load(folder: Path) -> ReplayResults:
        """The replay in this folder. InputError if there is no finished one with frames to judge."""
        results = ReplayResults(folder)
        if not len(results):
            raise InputError(f"{folder / STATISTICS}: no frame was replayed; there is nothing to judge")
        return results

    @cached_property
    def frames(self) -> FrameColumns:
        """The frames that count. InputError if statistics.jsonl cannot be read."""
        return FrameColumns.read(self.folder / STATISTICS) if self.chosen is None else self.chosen

    @property
    def lines(self) -> Sequence[dict[str, Any]]:
        """Those of statistics.jsonl, one for each frame, each read when it is asked for."""
        return _Lines(self.folder / STATISTICS, self.frames.starts)

    def summary(self, tasks: Mapping[str, Task[Any]]) -> dict[str, Any]:
        """Counts, latencies and files, for `--json`."""
        files = {what: file for task in tasks.values() for what, file in task.files.items()}
        files |= {"sources": SOURCES, "latency": LATENCY, "report": REPORT, "provenance": PROVENANCE}
        return {
            "frames": self.latency["frames"],
            "resumed_at_frame": ReplayProvenance.load(self.folder).resumed_at_frame,
            "not_finite": len(self.not_finite),
            "latency_ms": self.latency["stages"],
            **{name: str(self.folder / file) for name, file in files.items()},
            **({"viewer": str(self.folder / VIEWER)} if (self.folder / VIEWER).exists() else {}),
        }

    def only(self, tokens: Sequence[str]) -> ReplayResults:
        """The replay with only these frames, in this order."""
        number = {token: i for i, token in enumerate(self.tokens)}
        index = np.array([number[token] for token in tokens], np.int64)
        same = np.array_equal(index, np.arange(len(self)))
        return self if same else ReplayResults(self.folder, self.frames.select(index))

    def __len__(self) -> int:
        return len(self.frames.tokens)

    @property
    def tokens(self) -> Sequence[str]:
        return self.frames.tokens

    @cached_property
    def scenes(self) -> np.ndarray:
        """The scene (F,) int of each frame, counted from 0."""
        return np.asarray(np.unique(self.frames.scenes, return_inverse=True)[1])

    @property
    def conditions(self) -> list[str]:
        """The conditions that some frames have but not all, such as rain and clear."""
        known = [self.frames.condition_sets[i] for i in np.unique(self.frames.conditions)]
        return sorted(frozenset.union(*known) - frozenset.intersection(*known))

    def under(self, conditions: frozenset[str]) -> np.ndarray:
        """(F,) bool, whether a frame is known to have all of these conditions."""
        return np.array([conditions <= each for each in self.frames.condition_sets], bool)[self.frames.conditions]

    @property
    def tasks(self) -> frozenset[str]:
        """The tasks that ran in any frame."""
        return frozenset().union(*(self.frames.task_sets[i] for i in np.unique(self.frames.tasks)))

    def statistics(self, task: str) -> Sequence[dict[str, Any] | None]:
        """What each frame has for the metric of a task, read when it is asked for; None: the task did not run."""
        return _OfTask(self.lines, task)

    @property
    def replayed(self) -> ReplayedFrames:
        frames = self.frames
        groups = frames.scenes * len(frames.condition_sets) + frames.conditions
        return ReplayedFrames(self.folder, frames.tokens, frames.egos, groups)

    @cached_property
    def taxonomy(self) -> Taxonomy:
        """Of the network, from replay.json."""
        return ReplayProvenance.load(self.folder).taxonomy

    @property
    def dropped(self) -> tuple[int, int]:
        """The number of missing keyframes, and of frames without any sensor that the network takes.

        Gaps are divided by the median period of their drive: with keyframes every 0.5 s, two are missing in a gap of
        1.5 s. A frame that is not later than the one before it counts as a missing one.
        """
        missing = 0
        for scene in np.unique(self.scenes):
            gaps = np.diff(self.frames.times[self.scenes == scene])
            later = gaps[gaps > 0]
            missing += len(gaps) - len(later)
            if len(later):
                missing += int(np.rint(later / np.median(later) - 1).clip(0).sum())
        return missing, int(self.frames.blind.sum())

    @property
    def not_finite(self) -> list[str]:
        """Tokens of the frames with a non-finite output of the network."""
        return [self.tokens[i] for i in np.flatnonzero(self.frames.not_finite)]

    @cached_property
    def latency(self) -> dict[str, Any]:
        """`Latency.summary`, and `behind` (ms). InputError if there is no latency.json."""
        return dict(self._json(LATENCY))

    @property
    def sources(self) -> list[dict[str, Any]]:
        """`Counts.summary` of each drive. InputError if there is no sources.json."""
        return list(self._json(SOURCES))

    def _json(self, name: str) -> Any:
        try:
            return json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise _unfinished_error(self.folder, name) from None


def _unfinished_error(folder: Path, name: str) -> InputError:
    return InputError(f"{folder}: holds no finished replay (no readable {name}); replay again")
