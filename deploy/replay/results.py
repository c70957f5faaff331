"""The results of a finished replay, read from its folder to be judged."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from deploy.replay.provenance import ReplayProvenance
from perception.errors import InputError
from perception.taxonomy import Taxonomy

STATISTICS, LATENCY = "statistics.jsonl", "latency.json"


@dataclass(frozen=True)
class Finished:
    """The frames of a finished replay, from statistics.jsonl. Its other files are read on first use."""

    folder: Path
    lines: Sequence[dict[str, Any]]  # of statistics.jsonl, a line for each frame

    @staticmethod
    def load(folder: Path) -> Finished:
        """Read the replay in this folder. InputError if there is no finished one."""
        path = folder / STATISTICS
        try:
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError):
            raise InputError(f"{folder}: holds no finished replay (no readable {STATISTICS}); replay again") from None
        if not lines:
            raise InputError(f"{path}: no frame was replayed; there is nothing to judge")
        if any("sensors" not in line for line in lines):
            raise InputError(f"{path}: was written by an earlier version; replay again")
        return Finished(folder, lines)

    def only(self, tokens: Sequence[str]) -> Finished:
        """The replay with only these frames, in this order."""
        line_of = {line["token"]: line for line in self.lines}
        return Finished(self.folder, [line_of[token] for token in tokens])

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

    @property
    def latency(self) -> dict[str, Any]:
        """`Latency.summary`, and `behind` (ms).

        Raises:
            InputError: there is no latency.json.
        """
        try:
            return dict(json.loads((self.folder / LATENCY).read_text(encoding="utf-8")))
        except (OSError, ValueError):
            raise InputError(f"{self.folder}: holds no finished replay (no readable {LATENCY}); replay again") from None
