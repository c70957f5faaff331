"""The folder of a drive, whatever ends it; docs/drive.md: its commands in small, its tables; the unit of systemd."""

import json
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml
from commands import perception, refuses, succeeds
from exported import bundle
from live import driving, log, recorded, replayed
from repository import ROOT

from deploy.cli import app
from deploy.live.outputs import Output
from deploy.live.policy import Policy
from deploy.live.state import TOPIC_PROBLEMS, Status
from deploy.replay.folder import occupy
from deploy.runtime import Runtime


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


class Emptied(Output):
    """The disk has space again once an output has failed."""

    def report(self, status: Status) -> None:
        if any(each.code == "output" for each in status.reasons):
            _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


@pytest.mark.slow("may be the first to export")
def test_a_disk_that_was_full_leaves_no_results_that_seem_whole(tmp_path: Path) -> None:
    recording, runtime = recorded(tmp_path, log()), Runtime(bundle().path, checks=False)
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, most))  # of each file; Python buffers 8192 bytes of it
    try:
        drive = driving(recording, tmp_path / "out", runtime, more=lambda *_: [Emptied()])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))
    drive.require_outcomes()
    (reason,) = (each for each in drive.driven.status.reasons if each.code == "output")
    assert (reason.state, reason.subject) == ("DEGRADED", "results")
    assert "cannot write" in reason.text
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["frames.jsonl"]


KILLED = """
import os, sys
from pathlib import Path
from deploy.live.outputs import FrameLog
frames = FrameLog(Path(sys.argv[1]))
for i in range(3):
    frames.log({"token": str(i), "outcome": "perceived"})
os.kill(os.getpid(), 9)
"""


@pytest.mark.slow("may be the first to export")
def test_the_log_of_a_process_that_is_killed_is_whole_and_outlives_the_next_start(tmp_path: Path) -> None:
    lines = "".join(f'{{"token": "{i}", "outcome": "perceived"}}\n' for i in range(3))
    for name in ("frames.jsonl", "frames.before.jsonl"):
        done = subprocess.run([sys.executable, "-c", KILLED, tmp_path], check=False, timeout=100)
        assert done.returncode == -signal.SIGKILL
        assert (tmp_path / name).read_text() == lines
    drive = driving(log(2.0), tmp_path)
    assert len(drive.frames) == drive.driven.announced
    assert (tmp_path / "frames.before.jsonl").read_text() == lines


PAGE = (ROOT / "docs/drive.md").read_text()
UNIT = ROOT / "docker/tessera-drive.service"


@pytest.mark.slow("two commands, as a newcomer types them")
def test_the_first_commands_of_the_page(sim_root: Path, tmp_path: Path) -> None:
    """Of a demo with another bundle and drive."""
    demo = tmp_path / "runs" / "demo"
    demo.mkdir(parents=True)
    (demo / "changing").symlink_to(sim_root)
    (demo / "bundle").symlink_to(bundle().path)
    first, second = re.findall(r"^perception .*$", PAGE, re.MULTILINE)
    assert perception(*shlex.split(first)[1:], cwd=tmp_path).returncode == 0
    done = perception(*shlex.split(second)[1:], "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    frames = json.loads(done.stdout)["frames"]
    assert frames.pop("announced") == sum(frames.values()) == 3
    lines = [json.loads(line) for line in (demo / "driven" / "frames.jsonl").read_text().splitlines()]
    shown = [json.loads(line.replace(", ...", "")) for line in re.findall(r"^\{.*\}$", PAGE, re.MULTILINE)]
    for line in lines:
        assert line.keys() == next(each for each in shown if each["outcome"] == line["outcome"]).keys()
    assert (demo / "driven" / "tracks.json").exists()
    done = perception(*shlex.split(second)[1:], "--record", "runs/demo/drive.mcap", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr  # the recording that it plays


def test_the_page_has_every_reason_and_every_key_of_the_policy() -> None:
    code = "".join(path.read_text() for path in sorted((ROOT / "deploy/live").glob("*.py")))
    reasons = set(re.findall(r'Reason\(\s*"(\w+)", "(\w+)"', code)) | {("DEGRADED", "sensor"), ("DOWN", "sensor")}
    reasons |= {("DEGRADED", problem) for problem in TOPIC_PROBLEMS}
    rows = re.findall(r"^\| `(\w+)` \| ([A-Z]+)(?: or ([A-Z]+))? \|", PAGE, re.MULTILINE)
    assert {(state, code) for code, *states in rows for state in states if state} == reasons
    (policy,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert yaml.safe_load(policy) == Policy().model_dump()
    for example in re.findall(r"`(sensors: .*)`", PAGE):
        Policy.model_validate(yaml.safe_load(example))


def test_the_unit_of_systemd_starts_a_command_that_exists() -> None:
    unit = dict(re.findall(r"^(\w+)=(.*)$", UNIT.read_text(), re.MULTILINE))
    program, name, _, *options = shlex.split(unit["ExecStart"])
    command = typer.main.get_command(app).get_command(None, name)  # type: ignore[attr-defined,arg-type]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {each for each in options if each.startswith("--")} <= known
    assert (Path(program).name, unit["Type"]) == ("perception", "notify")
    assert float(unit["WatchdogSec"]) > Policy().hang  # in which it tells that it lives


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_the_unit_is_valid(tmp_path: Path) -> None:
    copy = tmp_path / UNIT.name
    copy.write_text(re.sub(r"(ExecStart)=\S+", r"\1=/bin/true", UNIT.read_text()))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", copy], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    security = subprocess.run(["systemd-analyze", "security", "--offline=yes", "--json=short", copy],
                              capture_output=True, text=True, check=True)  # fmt: skip
    missing = {each["json_field"] for each in json.loads(security.stdout) if not each["set"]}
    hardened = {"NoNewPrivileges", "ProtectSystem", "ProtectHome", "PrivateTmp", "RestrictAddressFamilies_OTHER"}
    assert not hardened & missing
    assert "CapabilityBoundingSet_CAP_SYS_ADMIN" not in missing
