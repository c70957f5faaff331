"""The folder of a replay: no verdict outlives its results, and replay.json says what they are of."""

import hashlib
import io
import json
import platform
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from judged import gates
from junitparser import Error, JUnitXml
from pages import page_data
from replays import VERSION, begun, change, replayed, small
from rich.console import Console
from tiny import write_tiny

from deploy.manifest import MANIFEST
from deploy.replay.fingerprint import Fingerprint
from deploy.replay.journal import JOURNAL
from deploy.replay.provenance import PROVENANCE, ReplayProvenance
from deploy.replay.selection import Selection
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.errors import InputError

FRAMES, LASTING = 8, Selection(end=2.0)  # four frames
EASY = gates({"metric": "dropped", "at_most": 1000})


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("folder") / "tiny"
    write_tiny(root, FRAMES)
    return root


@pytest.fixture(scope="module")
def judged(drive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("judged") / "out"
    assert replayed(drive, out, gates=EASY, selection=LASTING)["verdict"]["passed"]
    return out


def copied(folder: Path, to: Path) -> Path:
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


@pytest.mark.parametrize("way", ["the same", "a link", "inside", "linked files"])
def test_a_baseline_that_the_replay_would_change_is_refused(
    drive: Path, judged: Path, tmp_path: Path, way: str
) -> None:
    baseline = copied(judged, tmp_path / "baseline")
    before = contents(baseline)
    out = baseline
    if way == "a link":
        out = tmp_path / "link"
        out.symlink_to(baseline)
    elif way == "inside":
        out = baseline / "new" / "out"
    elif way == "linked files":
        baseline = tmp_path / "links"
        baseline.mkdir()
        for name in before:
            (baseline / name).symlink_to(out / name)
    with pytest.raises(InputError, match=r"(folder of the baseline itself|is a link to .*, which the replay replaces)"):
        replayed(drive, out, baseline=baseline, faults=["drop:all"], selection=LASTING)
    assert contents(tmp_path / "baseline") == before


def test_a_later_replay_leaves_nothing_of_an_earlier_verdict(drive: Path, judged: Path, tmp_path: Path) -> None:
    out = copied(judged, tmp_path / "out")
    for name in ("tracking_metrics.json", "results.mcap", "results.rrd", "notes.txt"):
        (out / name).write_text("of before")
    replayed(drive, out, selection=LASTING)
    files = {"results.json", "tracks.json", "statistics.jsonl", "sources.json", "latency.json", "report.html"}
    assert {file.name for file in out.iterdir()} == files | {PROVENANCE, "notes.txt"}
    assert page_data(out / "report.html")["verdict"] is None


def broken(junit: Path) -> str:
    """The message of the error that is all there is in the file."""
    (suite,) = JUnitXml.fromfile(str(junit))
    (case,) = suite
    (error,) = case.result
    assert isinstance(error, Error)
    assert (suite.tests, suite.failures, suite.errors) == (1, 0, 1)
    return str(error.message)


def test_a_replay_that_breaks_off_leaves_an_error_and_no_old_pass(drive: Path, judged: Path, tmp_path: Path) -> None:
    out = copied(judged, tmp_path / "out")
    last = sorted((drive / "samples" / "LIDAR_TOP").iterdir())[3]
    content = last.read_bytes()
    last.write_bytes(content[:-1])
    with pytest.raises(InputError) as stopped:
        replayed(drive, out, gates=EASY, selection=LASTING)
    last.write_bytes(content)
    assert broken(out / "junit.xml") == str(stopped.value)
    assert {file.name for file in out.iterdir()} == {"junit.xml", JOURNAL}
    # It goes on from there, and then there is a verdict.
    assert replayed(drive, out, gates=EASY, selection=LASTING)["resumed_at_frame"] == 3
    assert (out / "results.json").read_bytes() == (judged / "results.json").read_bytes()
    assert JUnitXml.fromfile(str(out / "junit.xml")).errors == 0


def test_a_replay_that_cannot_begin_leaves_an_error_and_the_old_results(
    drive: Path, judged: Path, tmp_path: Path
) -> None:
    out = copied(judged, tmp_path / "out")
    with pytest.raises(InputError, match="not a bundle"):
        replayed(drive, out, bundle=tmp_path, gates=EASY)
    assert "not a bundle" in broken(out / "junit.xml")
    assert not (out / "verdict.json").exists()
    assert (out / "results.json").read_bytes() == (judged / "results.json").read_bytes()


def test_replay_json_says_what_was_replayed(drive: Path, tmp_path: Path) -> None:
    faults = ["drop:CAM_FRONT@0.5-1.0"]
    summary = replayed(drive, tmp_path, faults=faults, selection=LASTING, scenes=["scene-0001"])
    found = ReplayProvenance.load(tmp_path)
    assert summary["provenance"] == str(tmp_path / PROVENANCE)
    assert found.bundle.manifest_sha256 == hashlib.sha256((small() / MANIFEST).read_bytes()).hexdigest()
    assert found.engine.target == "cpu"
    assert found.engine.compiler.startswith("onnxruntime ")
    assert found.software["numpy"] == np.__version__
    assert found.software["python"] == platform.python_version()
    assert (found.path, found.version, found.scenes) == ("tiny", VERSION, ("scene-0001",))
    assert (found.faults, found.conditions) == (("drop:CAM_FRONT@0.5-1.0",), None)
    assert (found.selection.start, found.selection.end, found.selection.every) == (0, 2, 1)
    assert (found.frames, found.resumed_at_frame, found.latency) == (4, 0, False)
    assert [(each.name, each.frames) for each in found.drives] == [("scene-0001", 4)]
    shown = page_data(tmp_path / "report.html")["bundle"]
    assert shown["faults"] == "drop:CAM_FRONT@0.5-1.0"
    assert np.__version__ in shown["software"]


def test_a_damaged_replay_json_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no readable replay\.json"):
        ReplayProvenance.load(tmp_path)
    (tmp_path / PROVENANCE).write_text('{"schema_version": 1}')
    with pytest.raises(InputError, match=r"replay.json: bundle: field required; replay again"):
        ReplayProvenance.load(tmp_path)


def test_the_hash_of_a_drive_is_its_sensors_whatever_network_reads_them(drive: Path, tmp_path: Path) -> None:
    def sensors(root: Path, reference: Any = "ego", sweeps: int = 1) -> str:
        tables, found = NuScenesTables(root, VERSION), Fingerprint()
        for sample in tables.samples():
            found.add(tables.frame(sample, reference, sweeps))
        return found.hexdigest()

    first = sensors(drive)
    assert {sensors(drive, "lidar", 1), sensors(drive, "ego", 3), sensors(drive, "lidar", 2)} == {first}
    other = tmp_path / "tiny"
    write_tiny(other, FRAMES)
    assert sensors(other) == first
    for channel, at in (("LIDAR_TOP", 12), ("CAM_BACK", None)):  # an intensity; another picture
        file, *_, last = sorted((other / "samples" / channel).iterdir())
        content = bytearray(file.read_bytes())
        content[(at or 0) : (at or 0) + 4] = np.float32(77).tobytes()
        file.write_bytes(last.read_bytes() if at is None else content)
        assert sensors(other) != first
        file.write_bytes((drive / file.relative_to(other)).read_bytes())
    assert sensors(other) == first


@pytest.mark.parametrize("changed", ["numpy", "source", "compiler", "processor"])
def test_what_other_software_or_another_machine_began_starts_anew(
    drive: Path, judged: Path, tmp_path: Path, changed: str
) -> None:
    """Of a journal whose first record has another version of one thing, no frame is used."""
    said = io.StringIO()
    last = sorted((drive / "samples" / "LIDAR_TOP").iterdir())[3]
    content = last.read_bytes()
    last.write_bytes(content[:-1])
    with pytest.raises(InputError):
        replayed(drive, tmp_path, selection=LASTING)
    last.write_bytes(content)
    known = begun(tmp_path / JOURNAL)
    known["computed"][changed] = "another"
    record = zlib.compress(json.dumps(known).encode())
    change(tmp_path / JOURNAL, "UPDATE records SET content = ? WHERE number = 0", record)
    console = Console(file=said, width=1000)
    assert replayed(drive, tmp_path, selection=LASTING, console=console)["resumed_at_frame"] == 0
    (line,) = (line for line in said.getvalue().splitlines() if "restarting" in line)
    assert f"begun with {changed} another (now " in line
    assert (tmp_path / "results.json").read_bytes() == (judged / "results.json").read_bytes()
