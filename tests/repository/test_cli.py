"""The command as a user types it: help, exit codes, one line for each mistake."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import perception, refuses, succeeds
from repository import ROOT

PERCEPTION = Path(sys.executable).with_name("perception")
CONFIG = ROOT / "configs" / "tiny.yaml"
COMMANDS = (
    *("simulate", "train", "evaluate", "export", "build", "replay", "judge", "adapt", "modules", "merge", "demo"),
    *("import-mmdet3d", "import-pointpillars", "verify", "sign", "compare"),
)


HELP = """
import sys
from deploy.cli import main
sys.argv = ["perception", "--help"]
try:
    main()
finally:
    print(*(name for name in sys.modules if "." not in name), file=sys.stderr)
"""


def test_help_answers_at_once_and_names_every_command():
    """At once, because nothing that takes long to import is: neither numpy nor what is built on it."""
    shown = subprocess.run([sys.executable, "-c", HELP], check=True, capture_output=True, text=True)
    assert all(command in shown.stdout for command in COMMANDS)
    imported = set(shown.stderr.split())
    assert "typer" in imported
    assert not imported & {"numpy", "cv2", "scipy", "torch", "onnx", "onnxruntime", "nuscenes", "matplotlib"}


def test_the_installed_command_is_the_one_that_the_tests_run():
    shown = subprocess.run([PERCEPTION, "export", "nowhere", "--out", "b"], check=False, capture_output=True, text=True)
    here = perception("export", "nowhere", "--out", "b")
    assert (shown.returncode, shown.stdout, shown.stderr) == (here.returncode, here.stdout, here.stderr)
    assert here.returncode == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command):
    assert f"Example: perception {command}" in " ".join(succeeds(command, "--help").split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", CONFIG, "--data", "{tmp}", "--version", "v1.0-mini", "--out", "{tmp}/r"], "{tmp}"),
        (
            ["train", "{tmp}/no.yaml", "--data", "{tmp}", "--version", "v1.0-mini", "--out", "{tmp}/r"],
            "no.yaml",
        ),
        (["evaluate", "{tmp}", "--data", "{tmp}", "--version", "v1.0-mini", "--out", "{tmp}/r"], "{tmp}"),
        (["compare", "{tmp}", "{tmp}"], "no readable left_out.json; give a folder that `perception evaluate` wrote"),
        (["export", "{tmp}", "--out", "{tmp}/b"], "no checkpoint here"),
        (["build", "{tmp}", "--target", "cpu"], "{tmp}"),
        (["replay", "{tmp}", "--version", "v1.0-mini", "--bundle", "{tmp}", "--out", "{tmp}/r"], "{tmp}"),
        (["simulate", "{tmp}/d", "--conditions", "hail"], "hail"),
        (["adapt", "{tmp}", "--add", "low_rank", "--data", "{tmp}", "--out", "{tmp}/r"], "write KIND:NAME"),
        (
            ["adapt", "{tmp}", "--add", "low_rank:a", "--option", "rank=x", "--data", "{tmp}", "--out", "{tmp}/r"],
            "--option rank=x: write NAME=NUMBER",
        ),
        (["adapt", "{tmp}", "--add", "low_rank:a", "--data", "{tmp}", "--out", "{tmp}/r"], "no checkpoint here"),
        (
            ["adapt", "{tmp}", "--task", "map", "--data", "{tmp}", "--out", "{tmp}/r", "--rig", "truck"],
            "{tmp}: no checkpoint here",
        ),
        (["simulate", "{tmp}/d", "--rig", "trukc"], "rig trukc: not known; give a YAML file or one of nuscenes,"),
        (
            ["adapt", "{tmp}", "--task", "conditions", "--add", "low_rank:a", "--data", "{tmp}", "--out", "{tmp}/r"],
            "give --add with --conditions and --option for a module, or --task with --config for a task",
        ),
        (["adapt", "{tmp}", "--data", "{tmp}", "--out", "{tmp}/r"], "give --add with --conditions"),
        (
            ["adapt", "{tmp}", "--task", "conditions", "--conditions", "rain", "--data", "{tmp}", "--out", "{tmp}/r"],
            "or --task with --config for a task",
        ),
        (["replay", "{tmp}/a.mcap", "--bundle", "{tmp}", "--out", "{tmp}/r", "--conditions", "hail"], "not a bundle"),
        (["merge", "{tmp}", "--modules", "a,b", "--name", "c", "--out", "{tmp}/r"], "no checkpoint here"),
        (["modules", "{tmp}"], "no checkpoint here"),
        (
            ["replay", "{tmp}", "--scenes", "a", "--bundle", "{tmp}", "--out", "{tmp}/r", "--scenes=b"],
            "--scenes is given 2 times; give it once",
        ),
        (["modules", "{tmp}", "--frame", "scene-0001:0"], "--frame and --data go together"),
        (["modules", "{tmp}", "--load", "a.safetensors"], "--load and --out go together"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, arguments, message):
    line = refuses(*(str(a).replace("{tmp}", str(tmp_path)) for a in arguments))
    assert line.startswith("perception: ")
    assert message.replace("{tmp}", str(tmp_path)) in line


def test_damaged_sensor_files_end_a_training_with_exit_code_2(tiny_root, tmp_path):
    for file in sorted((tiny_root / "samples" / "LIDAR_TOP").iterdir()):
        points = np.fromfile(file, np.float32)
        points[7] = np.nan
        points.tofile(file)
    shown = perception("train", CONFIG, "--data", tiny_root, "--split", "all", "--out", tmp_path / "run")
    assert shown.returncode == 2
    assert "LIDAR_TOP" in shown.stderr.splitlines()[-1]
    assert "1 of 500 points hold NaN or infinity" in shown.stderr.splitlines()[-1]


def test_bad_usage_is_exit_code_2():
    assert perception("train", "--nonsense").returncode == 2
    assert perception("fly").returncode == 2
