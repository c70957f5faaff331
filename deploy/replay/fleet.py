"""Replay drives in several processes: each drive alone, by any process, into a folder of its own; then all are joined.

The joined files have the same bytes as those of one process. A drive whose process died is gone on with by another one,
and a replay that was killed goes on with the drives that it has.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from deploy.replay.class_faults import parse_faults
from deploy.replay.collected import Collected
from deploy.replay.conclude import Concluded, conclude
from deploy.replay.fault_detection import FaultDetections
from deploy.replay.folder import SCENES, final_files, remove
from deploy.replay.journal import JOURNAL, Journal, require_same
from deploy.replay.machine import new_provenance
from deploy.replay.player import Player, Watcher
from deploy.replay.report import Report, Share
from deploy.replay.results import STATISTICS
from deploy.replay.settings import Settings, Source
from deploy.replay.sources import Drive, is_recording, open_drives
from deploy.replay.worst_frames import WorstFrames
from deploy.runtime import Runtime
from perception.errors import InputError
from perception.files import atomic_file, join_frame_files, make_folder, write_atomically
from perception.stores import fetch, origin_of, read_file, upload_results
from perception.workers import open_pool

PART = "part.json"  # in the folder of a drive that is finished


@dataclass(frozen=True)
class Assignment:
    """A drive that a process replays.

    Attributes:
        index: among the drives of the replay.
        name: of its folder.
        share: of the drive in the replay.
    """

    index: int
    name: str
    share: Share


class Fleet:
    """Replays drives in several processes; writes what `Player` writes. Arguments as there.

    Raises:
        InputError: settings that need one process, or a scene that is given twice.
    """

    def __init__(
        self,
        runtime: Runtime,
        source: Source,
        drives: Sequence[Drive],
        out: Path,
        settings: Settings,
        watcher: Watcher,
    ) -> None:
        for option, given in (
            ("--latency", settings.latency),
            ("--real-time", settings.real_time),
            ("--viewer", settings.viewers),
        ):
            if given:
                raise InputError(f"--jobs and {option}: this needs a single process; use one of both")
        self.runtime, self.source, self.out, self.settings, self.watcher = runtime, source, out, settings, watcher
        names = _names(source, drives)
        expected = [settings.selection.expected_of(drive) for drive in drives]
        firsts = [0, *accumulate(expected)]
        shares = [Share(first, firsts[-1]) for first in firsts[:-1]]
        self.assignments = [
            Assignment(i, name, share) for i, (name, share) in enumerate(zip(names, shares, strict=True))
        ]
        self.frames = expected

    def run(self, jobs: int, ray: str | None = None) -> Concluded:
        """Replay everything once.

        Args:
            jobs: processes of this machine.
            ray: address of a Ray cluster, whose processes do it instead; None: none.

        Raises:
            InputError: as `Player.run`, or processes die of the same drive again and again.
        """
        begun = new_provenance(self.runtime, self.source, self.settings)
        with Journal(make_folder(self.out) / JOURNAL, begun.about(self.source.path), begun.computed) as journal:
            remove(self.out, final_files())
            recalled = self._play(min(jobs, len(self.assignments)), ray)
            collected = self._joined()
            collected.recalled = recalled
            concluded = conclude(self.out, collected, begun)
            journal.finish()
        return concluded

    def _play(self, jobs: int, ray: str | None) -> int:
        """Replay all drives; returns the number of frames that an earlier run had perceived."""
        source, settings = self.source, self.settings

        def known(path: Path) -> Path:
            """A path for processes with another working directory, or on another machine."""
            return path.absolute() if ray is None else origin_of(path.absolute())

        opened = partial(
            _Worker,
            known(self.runtime.bundle.path),
            replace(source, path=known(source.path), topics=source.topics and source.topics.absolute()),
            replace(settings, evidence=settings.evidence and settings.evidence.absolute()),
            known(self.out),
        )
        recalled = 0

        def died(name: str) -> None:
            self.watcher.message(f"{name}: its process died; another one goes on with it")

        def counted() -> Iterator[int]:
            nonlocal recalled
            with open_pool(opened, jobs, ray, died=died) as workers:
                for i, known in workers.completed(_Worker.play, self.assignments, lambda each: each.name):
                    recalled += known
                    yield from range(self.frames[i])

        for _ in self.watcher.counted(counted(), sum(self.frames)):
            pass
        if ray is not None:
            fetch(origin_of(self.out.absolute() / SCENES))
        return recalled

    def _joined(self) -> Collected:
        """Join the files of all drives; returns what was collected."""
        manifest = self.runtime.bundle.manifest
        folders = [self.out / SCENES / each.name for each in self.assignments]
        absent = next((folder for folder in folders if not (folder / PART).exists()), None)
        if absent is not None:
            raise InputError(
                f"{absent}: the results of this drive are on another machine; give --out on a disk that all share, or "
                "in an object store"
            )
        for task in manifest.heads.values():
            for what, file in task.files.items():
                if (folders[0] / file).exists():
                    join_frame_files([folder / file for folder in folders], self.out / file, what)
        with atomic_file(self.out / STATISTICS, "the statistics") as joined:
            for folder in folders:
                with (folder / STATISTICS).open("rb") as part:
                    shutil.copyfileobj(part, joined)
        faults = FaultDetections(*parse_faults(self.settings.faults, manifest.rig.sensors, manifest.taxonomy))
        collected = Collected(Report(manifest, self.runtime.target, 0), faults)
        for folder in folders:
            collected.join(json.loads((folder / PART).read_bytes())["collected"])
        if not collected.drives:
            raise InputError(f"--start {self.settings.selection.start:g}: no drive is that long; start earlier")
        return collected


class _Worker:
    """State of a process."""

    def __init__(self, bundle: Path, source: Source, settings: Settings, out: Path) -> None:
        source = replace(source, path=fetch(source.path))
        self.source, self.settings, self.out = source, settings, out
        self.runtime = Runtime(fetch(bundle), settings.target, settings.trust, settings.evidence)
        opened, signals = self.runtime.bundle, self.runtime.sources.signals
        self.drives = open_drives(
            source.path, source.version, source.scenes, opened.spec, source.topics, opened.manifest.taxonomy, signals
        )
        self.worst = WorstFrames()  # of the drives so far

    def play(self, assigned: Assignment) -> int:
        """Replay a drive to its end; returns the number of its frames that were perceived before."""
        with upload_results(self.out / SCENES / assigned.name, (PART,), (*final_files(), PART)) as folder:
            return self._play(assigned, make_folder(folder))

    def _play(self, assigned: Assignment, folder: Path) -> int:
        scenes = () if is_recording(self.source.path) else (assigned.name,)
        share = assigned.share._replace(floors=self.worst.floors)
        player = Player(
            self.runtime,
            replace(self.source, scenes=scenes),
            [self.drives[assigned.index]],
            folder,
            self.settings,
            share=share,
        )
        part = folder / PART
        known = {"about": player.provenance.about(self.source.path), "computed": player.computed}
        collected = _finished(part, known)
        if collected is not None:
            return len(collected["report"]["milliseconds"])
        player.run_part(lambda found: write_atomically(part, json.dumps({**known, "collected": found}).encode()))
        self.worst.join(player.collected.report.part()["worst"], assigned.share.first)
        return player.collected.recalled


def _finished(part: Path, known: Mapping[str, Any]) -> dict[str, Any] | None:
    """What was collected in a drive that was replayed to its end by the same software; None if it is to be replayed.

    Raises:
        InputError: it was in another replay.
    """
    try:
        found = json.loads(read_file(part))
        about, computed, collected = (found[name] for name in ("about", "computed", "collected"))
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # there is none, or it is damaged
        return None
    require_same(part, about, known["about"])
    return dict(collected) if computed == known["computed"] else None


def _names(source: Source, drives: Sequence[Drive]) -> list[str]:
    """Name of each drive, for its folder."""
    if is_recording(source.path):
        return [source.path.name]
    tables = drives[0].tables
    assert tables is not None, "a data set has tables"
    names = [*(source.scenes or tables.scenes())]
    scenes = Counter(name.partition(":")[0] for name in names)
    if len(scenes) < len(names):
        raise InputError(f"--jobs and --scenes: {max(scenes, key=scenes.__getitem__)} is given twice; give it once")
    for name in names:
        if Path(name).name != name:
            raise InputError(
                f"{source.path}: the scene {name!r} cannot have a folder of its results; replay it without --jobs"
            )
    return names
