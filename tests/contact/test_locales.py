"""The command where the locale has other characters, other numbers or another way to write in capitals."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import perception
from exported import checkpoint
from kitti import bundle_of_kitti, drive_of_kitti, topics_of_kitti
from once import once
from replays import small
from tiny import write_tiny

SAME = (
    *("replay/results.json", "replay/tracks.json", "replay/statistics.jsonl", "replay/verdict.json"),
    *("replay/junit.xml", "evaluation/results_nusc.json", "evaluation/metrics.json"),
)
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
# German writes 0,5 and, in ISO-8859-1, no ellipsis and no frames of tables; Turkish has no I for i.
LOCALES = [("de_DE", "ISO-8859-1"), ("de_DE", "UTF-8"), ("tr_TR", "UTF-8")]


def drives() -> Path:
    """The tiny drive in a folder whose name is not ASCII, and gates that it fails."""

    def write(out: Path) -> None:
        write_tiny(out / "Straße")
        (out / "gates.yaml").write_text("gates: [{metric: mAP, at_least: 0.5}]  # für Straßen\n", "utf-8")

    return once("drives-of-locales", write)


def commands(out: Path) -> list[tuple[int, list[object]]]:
    """Exit code and arguments of what prints much."""
    data, evaluated = drives() / "Straße", ("--split", "all", "--by", "condition", "--report")
    replayed = ("--bundle", small(), "--gates", drives() / "gates.yaml")
    return [
        (0, ["verify", small()]),
        (1, ["replay", data, *replayed, "--out", out / "replay"]),
        (0, ["evaluate", small(), "--data", data, *evaluated, "--out", out / "evaluation"]),
    ]


def expected() -> Path:
    """The results here."""

    def write(out: Path) -> None:
        for code, arguments in commands(out):
            assert perception(*arguments).returncode == code

    return once("results-of-locales", write)


def run(code: int, arguments: list[object], encoding: str, **environment: str) -> str:
    """Run the command with lines of 60 characters, which cut its tables; returns what it prints."""
    command, narrow = [sys.executable, "-m", "deploy.cli", *map(str, arguments)], {"COLUMNS": "60"}
    done = subprocess.run(command, env=os.environ | narrow | environment, capture_output=True, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout.decode(encoding)


@pytest.mark.slow("three commands, each a process")
@pytest.mark.parametrize(("name", "encoding"), [("C", "ascii"), *LOCALES], ids=lambda each: each)
def test_results_are_the_same_in_every_locale(name: str, encoding: str, tmp_path: Path) -> None:
    environment, out = ASCII, tmp_path / "Größe"
    if name != "C":
        locale = f"{name}.{encoding}"
        made = subprocess.run(["localedef", "-i", name, "-f", encoding, tmp_path / locale], check=False)
        if made.returncode:
            pytest.skip(f"localedef makes no locale {locale} (apt-get install locales)")
        environment = {"LC_ALL": locale, "LOCPATH": str(tmp_path)}
    for code, arguments in commands(out):
        assert run(code, arguments, encoding, **environment).strip()
    for file in SAME:
        assert (out / file).read_bytes() == (expected() / file).read_bytes()
    for report in (out / "replay" / "report.html", out / "evaluation" / "report.html"):
        assert report.read_text("utf-8")
    assert json.loads((out / "replay" / "replay.json").read_text("utf-8"))["path"] == "Straße"


@pytest.mark.slow("the network of KITTI is exported")
def test_a_recording_may_have_any_name(tmp_path: Path) -> None:
    recording = tmp_path / "Straße-\udcff"  # a byte that is no UTF-8
    shutil.copytree(drive_of_kitti(0.1035), recording)
    (tmp_path / "replay.yaml").write_text("end: 0.25\n")
    given = ("--topics", topics_of_kitti(), "--config", tmp_path / "replay.yaml", "--out", tmp_path / "out")
    for environment in (ASCII, {}):
        run(0, ["replay", recording, "--bundle", bundle_of_kitti(), *given], "utf-8", **environment)
        tokens = json.loads((tmp_path / "out" / "results.json").read_text("utf-8"))["results"]
        assert {token.partition("@")[0] for token in tokens} == {"Straße-\ufffd"}
        shutil.rmtree(tmp_path / "out")


@pytest.mark.slow("one command imports torch")
@pytest.mark.parametrize("command", ["build --list", "modules {}", "modules --help"])
def test_output_in_ascii_has_question_marks_and_no_traceback(command: str) -> None:
    arguments = command.format(checkpoint()).split()
    assert run(0, arguments, "ascii", PYTHONIOENCODING="ascii").strip()
