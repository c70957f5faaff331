"""The folder of a drive: whose it is, and what a full disk or a killed process leaves in it."""

from pathlib import Path

import pytest
from commands import refuses, succeeds
from exported import bundle
from live import log, recorded, replayed

from deploy.replay.folder import occupy


@pytest.mark.slow("two drives and a replay, as a user starts them")
def test_a_folder_has_the_files_of_the_latest_drive_alone(tmp_path: Path) -> None:
    """Else the drive would be judged as the replay that was there before."""
    recording, out = recorded(tmp_path, log(1.0)), tmp_path / "out"
    replayed(recording, out)
    (out / "notes.txt").touch()
    for _ in range(2):
        succeeds("drive", bundle().path, "--from", recording, "--out", out)
        left = {each.name for each in out.iterdir()}
        assert left >= {"notes.txt", "tracks.json", "results.json", "statistics.jsonl", "frames.jsonl"}
        assert not left & {"replay.json", "latency.json", "report.html", "sources.json", "verdict.json"}
    says = f"{out}/statistics.jsonl: is of no replay, and a replay would remove it; choose another --out"
    assert says in refuses("replay", recording, "--bundle", bundle().path, "--out", out)


@pytest.mark.slow("may be the first to export")
def test_a_drive_into_a_folder_that_is_not_its_own_is_refused(tmp_path: Path) -> None:
    drive = ("drive", bundle().path, "--from", recorded(tmp_path, log(1.0)), "--out")
    (foreign := tmp_path / "foreign").mkdir()
    (foreign / "tracks.json").touch()
    assert f"{foreign}/tracks.json: is of no drive, and a drive would remove it" in refuses(*drive, foreign)
    (unfinished := tmp_path / "unfinished" / "scenes").mkdir(parents=True)
    assert f"{unfinished}: is of an unfinished replay, which would go on" in refuses(*drive, unfinished.parent)
    (used := tmp_path / "used").mkdir()
    with occupy(used):
        assert f"{used}: another replay or drive writes there" in refuses(*drive, used)
    record = used / "results.mcap"
    assert f"--record {record}: the next drive into" in refuses(*drive, used, "--record", record)
    (tmp_path / "file").touch()
    assert f"{tmp_path}/file: cannot make the folder" in refuses(*drive, tmp_path / "file")
    assert [each.name for each in foreign.iterdir()] == ["tracks.json"]


@pytest.mark.slow("a drive and a mistake, as a user starts them")
def test_a_mistake_leaves_what_an_earlier_drive_wrote(tmp_path: Path) -> None:
    recording, out = recorded(tmp_path, log(1.0)), tmp_path / "out"
    drive = ("drive", bundle().path, "--from", recording, "--out", out)
    succeeds(*drive)
    before = {each.name: each.read_bytes() for each in out.iterdir()}
    assert "exists already" in refuses(*drive, "--record", recording)
    assert {each.name: each.read_bytes() for each in out.iterdir()} == before
