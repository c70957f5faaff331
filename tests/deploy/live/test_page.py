"""docs/drive.md: its first commands in small, and its tables against the code; the unit of systemd."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import typer
import yaml
from commands import perception
from exported import bundle
from repository import ROOT

from deploy.cli import app
from deploy.live.policy import Policy

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
