"""The results of a finished replay, read from its folder to be shown and judged."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from deploy.replay.provenance import PROVENANCE, ReplayProvenance
from perception.errors import InputError
from perception.tasks.task import Task
from perception.taxonomy import Taxonomy

STATISTICS, LATENCY, REPORT, SOURCES = "statistics.jsonl", "latency.json", "report.html", "sources.json"
VIEWERS = {"foxglove": "results.mcap", "rerun": "results.rrd"}  # files for external viewers


@dataclass(frozen=True)
class ReplayResults:
    """A finished replay, by the files in its folder. Each is read on first use.

    Attributes:
        chosen: lines of statistics.jsonl, one for each frame that counts; None: all.
    """

    folder: Path
    chosen: Sequence[dict[str, Any]] | None = None

    @staticmethod
    def load(folder: Path) -> ReplayResults:
        """The replay in this folder. InputError if there is no finished one with frames to judge."""
        results = ReplayResults(folder)
        if not results.lines:
            raise InputError(f"{folder / STATISTICS}: no frame was replayed; there is nothing to judge")
        if any("sensors" not in line for line in results.lines):
            raise InputError(f"{folder / STATISTICS}: was written by an earlier version; replay again")
        return results

    @cached_property
    def lines(self) -> Sequence[dict[str, Any]]:
        """Those of statistics.jsonl, one for each frame. InputError if it cannot be read."""
        return list(self._read_lines()) if self.chosen is None else self.chosen

    def _read_lines(self) -> Iterator[dict[str, Any]]:
        try:
            with (self.folder / STATISTICS).open(encoding="utf-8") as file:
                yield from map(json.loads, file)
        except (OSError, ValueError):
            raise _unfinished(self.folder, STATISTICS) from None

    def summary(self, tasks: Mapping[str, Task[Any]]) -> dict[str, Any]:
        """Counts, latencies and files, for `--json`."""
        files = {what: file for task in tasks.values() for what, file in task.files.items()}
        files |= {"sources": SOURCES, "latency": LATENCY, "report": REPORT, "provenance": PROVENANCE}
        return {
            "frames": self.latency["frames"],
            "resumed_at_frame": ReplayProvenance.load(self.folder).resumed_at_frame,
            "not_finite": sum(bool(line["not_finite"]) for line in self._read_lines()),
            "latency_ms": self.latency["stages"],
            **{name: str(self.folder / file) for name, file in files.items()},
            "viewers": {
                name: str(self.folder / file) for name, file in VIEWERS.items() if (self.folder / file).exists()
            },
        }

    def only(self, tokens: Sequence[str]) -> ReplayResults:
        """The replay with only these frames, in this order."""
        line_of = {line["token"]: line for line in self.lines}
        return ReplayResults(self.folder, [line_of[token] for token in tokens])

    def __len__(self) -> int:
        return len(self.lines)

    @property
    def tokens(self) -> list[str]:
        return [line["token"] for line in self.lines]

    @cached_property
    def scenes(self) -> np.ndarray:
        """The scene (F,) int of each frame, counted from 0."""
        return np.asarray(np.unique([line["scene"] for line in self.lines], return_inverse=True)[1])

    @cached_property
    def egos(self) -> np.ndarray:
        """The position (F, 2) of the vehicle in the global frame, m."""
        return np.array([line["ego"] for line in self.lines], np.float64)

    @property
    def conditions(self) -> list[str]:
        """The conditions that some frames have but not all, such as rain and clear."""
        known = [frozenset(line["conditions"]) for line in self.lines]
        return sorted(frozenset.union(*known) - frozenset.intersection(*known))

    def statistics(self, task: str) -> list[dict[str, Any] | None]:
        """What each frame has for the metric of a task; None: the task did not run."""
        return [line["tasks"].get(task) for line in self.lines]

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
        times = np.array([line["timestamp"] for line in self.lines], np.int64)
        missing = 0
        for scene in np.unique(self.scenes):
            gaps = np.diff(times[np.asarray(self.scenes) == scene])
            later = gaps[gaps > 0]
            missing += len(gaps) - len(later)
            if len(later):
                missing += int(np.rint(later / np.median(later) - 1).clip(0).sum())
        return missing, sum(line["blind"] for line in self.lines)

    @property
    def not_finite(self) -> list[str]:
        """Tokens of the frames with a non-finite output of the network."""
        return [line["token"] for line in self.lines if line["not_finite"]]

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
            raise _unfinished(self.folder, name) from None


def _unfinished(folder: Path, name: str) -> InputError:
    return InputError(f"{folder}: holds no finished replay (no readable {name}); replay again")
