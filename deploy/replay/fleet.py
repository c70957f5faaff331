"""A replay is a map over drives and a join: any process replays a drive, into a folder of its own; then all are joined.

The joined files have the same bytes whatever the number of processes. A drive whose process died is replayed again by
another one, and a replay that was killed goes on with the drives that are finished.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import accumulate
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

from deploy.recordings.drives import Drive, open_drives
from deploy.replay.faults import parse_faults
from deploy.replay.folder import SCENES, final_files, occupy, remove
from deploy.replay.player import Player, Watcher
from deploy.replay.provenance import differences, new_provenance
from deploy.replay.report import DriveRange
from deploy.replay.results import STATISTICS, VIEWER, ReplayResults
from deploy.replay.settings import Settings, Source
from deploy.replay.totals import ReplayTotals
from deploy.runtime import Runtime
from perception.errors import InputError
from perception.io.files import atomic_file, join_frame_files, make_folder, write_atomically
from perception.io.stores import (
    WRITTEN,
    fetch,
    is_remote,
    mirror_of,
    origin_of,
    put_files,
    read_file,
    refresh,
    remove_folder,
)
from perception.io.workers import open_pool

PART = "part.json"  # in the folder of a drive that is finished


class Assignment(NamedTuple):
    number: int  # also names its folder
    name: str
    place: DriveRange


class Played(NamedTuple):
    """What became of an assignment."""

    resumed: int = 0  # frames of a drive that was finished before
    discarded: str = ""  # why earlier results of the drive were not used


class Fleet:
    """Replays drives by one or several processes, and writes to the folder `out`:

        TASK'S FILES      such as results.json and tracks.json of detection (`Task.files`)
        statistics.jsonl  what a verdict also needs of every frame
        sources.json      per drive: number of frames, missing sensors, and problems of a recording's messages
        latency.json      p50, p95 and p99 of every stage
        report.html       the replay as a single HTML page
        results.mcap      the replay for Foxglove and Rerun, if requested
        replay.json       drives, bundle, software and machine (`deploy.replay.provenance`)

    The files of an earlier replay are removed first. Until the new ones are complete, `scenes` has a folder for each
    drive. A killed replay goes on with the drives that are finished there, and ends with the same bytes as without the
    kill; with other software or on another machine they are replayed again.
    """

    def __init__(
        self,
        runtime: Runtime,
        source: Source,
        drives: Sequence[Drive],
        out: Path,
        settings: Settings | None = None,
        watcher: Watcher | None = None,
    ) -> None:
        self.runtime, self.source, self.drives, self.out = runtime, source, drives, out
        self.settings, self.watcher = settings or Settings(), watcher or Watcher()
        manifest = runtime.bundle.manifest
        parse_faults(self.settings.faults, manifest.rig.sensors, manifest.taxonomy)  # before any file is removed
        frames = [self.settings.selection.expected(len(drive), drive.seconds) for drive in drives]
        self.expected = sum(frames)
        firsts = accumulate(frames, initial=0)
        self.assignments = [
            Assignment(number, drive.name, DriveRange(next(firsts), count, self.expected))
            for number, (drive, count) in enumerate(zip(drives, frames, strict=True))
        ]

    def run(self, jobs: int = 0, ray: str | None = None) -> ReplayResults:
        """Replay everything once, by so many processes of this machine or by a Ray cluster's; 0: by this one alone."""
        settings = self.settings
        for option, given in (
            ("real_time", settings.real_time),
            ("viewer", settings.viewer),
        ):
            if given and (jobs or ray is not None):
                raise InputError(f"--jobs and {option}: this needs a single process; use one of both")
        begun = new_provenance(self.runtime, self.source, settings)
        with occupy(make_folder(self.out)):
            remove(self.out, final_files())
            if settings.viewer:  # which gets every frame
                remove_folder(self.out / SCENES)
            resumed = 0
            for name, played in self._replay_here() if ray is None and not jobs else self._replay_in_pool(jobs, ray):
                if played.discarded:
                    message = f"{name}: restarting, because it was replayed with {played.discarded}"
                    self.watcher.message(message)
                if played.resumed and not resumed:
                    self.watcher.message(f"{self.out}: resuming the interrupted replay")
                resumed += played.resumed
            self.totals = self._join()
            self.totals.write(self.out, begun, resumed)
            remove_folder(self.out / SCENES)
        return ReplayResults(self.out)

    def _replay_here(self) -> Iterator[tuple[str, Played]]:
        """Replay all drives in this process, and yield the name of each and what became of it."""
        with ExitStack() as files:
            viewer = None
            if self.settings.viewer:
                from deploy.replay.foxglove_results import FoxgloveWriter

                manifest = self.runtime.bundle.manifest
                lidar = next(iter(manifest.rig.sensors.lidars), "")
                viewer = files.enter_context(FoxgloveWriter.open(self.out / VIEWER, manifest.heads, lidar))
            player = Player(self.runtime, self.settings, self.watcher, viewer)
            worker = Worker(player, self.source, self.drives, self.out)
            for assigned in self.assignments:
                played = worker.play(assigned)
                self.watcher.advance(assigned.place.frames if played.resumed else 0)
                yield assigned.name, played

    def _replay_in_pool(self, jobs: int, ray: str | None) -> Iterator[tuple[str, Played]]:
        """As `_replay_here`, in other processes and any order."""

        def anywhere(path: Path) -> Path:
            """A path for processes with another working directory, or on another machine."""
            return path.absolute() if ray is None else origin_of(path.absolute())

        def died(name: str) -> None:
            self.watcher.message(f"{name}: its process died; another one replays it again")

        source, settings = self.source, self.settings
        opened = partial(
            Worker.open,
            anywhere(self.runtime.bundle.path),
            replace(source, path=anywhere(source.path), topics=source.topics and source.topics.absolute()),
            anywhere(self.out),
            replace(settings, evidence=settings.evidence and settings.evidence.absolute()),
        )
        with open_pool(opened, min(jobs, len(self.assignments)), ray, died=died) as workers:
            for i, played in workers.run(Worker.play, self.assignments, attrgetter("name")):
                self.watcher.advance(self.assignments[i].place.frames)
                yield self.assignments[i].name, played
        if is_remote(anywhere(self.out)):
            refresh(self.out.absolute() / SCENES)

    def _join(self) -> ReplayTotals:
        folders = [self.out / SCENES / str(each.number) for each in self.assignments]
        absent = next((folder for folder in folders if not (folder / PART).exists()), None)
        if absent is not None:
            raise InputError(
                f"{absent}: the results of this drive are on another machine; give --out on a disk that all share, or "
                "in an object store"
            )
        totals = ReplayTotals(self.runtime, self.settings)
        for folder in folders:
            totals.join(json.loads((folder / PART).read_bytes())["totals"])
        if not len(totals):
            remove_folder(self.out / SCENES)
            longest = max(drive.seconds for drive in self.drives)
            start = self.settings.selection.start
            raise InputError(f"start {start:g}: the longest drive ends at {longest:.1f} s; start earlier")
        for task in self.runtime.bundle.manifest.heads.values():
            for what, file in task.files.items():
                if (folders[0] / file).exists():
                    join_frame_files([folder / file for folder in folders], self.out / file, what)
        with atomic_file(self.out / STATISTICS, "the statistics") as joined:
            for folder in folders:
                with (folder / STATISTICS).open("rb") as part:
                    shutil.copyfileobj(part, joined)
        return totals


def find_drives(source: Source, runtime: Runtime) -> Sequence[Drive]:
    """The drives for a bundle. InputError as `open_drives`."""
    bundle, signals, between = runtime.bundle, runtime.sources.signals, runtime.spacing
    taxonomy, topics = bundle.manifest.taxonomy, source.topics
    return open_drives(source.path, source.version, source.scenes, bundle.spec, topics, taxonomy, signals, between)


class Worker:
    """Replays assigned drives: the state of a process."""

    def __init__(self, player: Player, source: Source, drives: Sequence[Drive], out: Path) -> None:
        self.player, self.drives, self.out = player, drives, out
        provenance = new_provenance(player.runtime, source, player.settings)
        self._about, self._computed = provenance.about(source.path), provenance.computed

    @staticmethod
    def open(bundle: Path, source: Source, out: Path, settings: Settings) -> Worker:
        """A worker in another process. InputError as `replay`."""
        source = replace(source, path=fetch(source.path))
        runtime = Runtime(fetch(bundle), settings.target, settings.trust, settings.evidence)
        return Worker(Player(runtime, settings), source, find_drives(source, runtime), out)

    def play(self, assigned: Assignment) -> Played:
        """Replay a drive to its end, unless that was done before."""
        folder = mirror_of(self.out / SCENES / str(assigned.number), WRITTEN)
        played = self._play(assigned, make_folder(folder) / PART)
        if is_remote(self.out):
            put_files(folder, [each.name for each in folder.iterdir()])
            shutil.rmtree(folder)
        return played

    def _play(self, assigned: Assignment, part: Path) -> Played:
        # Of the other drives, which pictures the report shows.
        known = {"about": {**self._about, "scene": assigned.name, "place": assigned.place}, "computed": self._computed}
        found = _read_part(part)
        discarded = ""
        if found is not None:
            if different := differences(found["about"], known["about"]):
                raise InputError(
                    f"{part}: is of an unfinished replay with {different}; repeat that one to finish it, or remove the "
                    f"folder {SCENES} to restart"
                )
            if not (discarded := differences(found["computed"], known["computed"])):
                return Played(resumed=sum(found["totals"]["frames"].values()))
        totals = self.player.play(self.drives[assigned.number], part.parent, assigned.place)
        write_atomically(part, json.dumps({**known, "totals": totals.to_json()}).encode())
        return Played(discarded=discarded)


def _read_part(part: Path) -> Mapping[str, Any] | None:
    """What is known of a drive that was replayed to its end; None if there is none, or it is damaged."""
    try:
        found = json.loads(read_file(part))
        return {name: dict(found[name]) for name in ("about", "computed", "totals")}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
