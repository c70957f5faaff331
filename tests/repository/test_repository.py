"""The command as a user types it, and what is imported: nothing that takes long, and on the vehicle no torch."""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from check_repository import ABSENT, circles, layers, vehicle
from commands import perception, python, refuses
from exported import bundle
from repository import ROOT
from typer.testing import CliRunner

from deploy.cli import app, main
from deploy.golden import synthetic_frame
from deploy.runtime import Runtime

PERCEPTION = Path(sys.executable).with_name("perception")
CONFIG = ROOT / "configs" / "tiny.yaml"
COMMANDS = (
    *("simulate", "log", "check", "annotate-occupancy", "train", "adapt", "modules", "import", "evaluate", "compare"),
    *("export", "build", "verify", "sign", "predict", "replay", "judge", "drive", "demo", "config"),
)


def test_a_defect_of_the_program_is_no_failed_verdict(monkeypatch, capsys, tmp_path: Path) -> None:
    """Whose exit code is 1: it is one line, and the traceback lies in a file."""

    def defect() -> None:
        raise ZeroDivisionError("by\nzero")

    monkeypatch.setattr("deploy.cli.app", defect)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        main()
    (file,) = tmp_path.iterdir()
    line = f"perception: ZeroDivisionError: by zero; this is a defect of the program, please report it with {file}\n"
    assert (ended.value.code, capsys.readouterr().err) == (70, line)
    assert "in defect" in file.read_text()


# ----- who imports whom -----


def test_imports_between_modules_and_between_folders_go_one_way() -> None:
    assert [*layers()] == []


@pytest.mark.parametrize(
    "arrows",
    [
        {"perception.rig": {"perception.frame"}, "perception.frame": {"perception.rig"}},
        {"perception.a.one": {"perception.b.one"}, "perception.b.two": {"perception.a.two"}},
        {
            "perception.a.one": {"perception.b"},
            "perception.b": {"perception.c.one"},
            "perception.c.two": {"perception.a"},
        },
    ],
)
def test_a_circle_of_files_or_folders_is_found(arrows: dict[str, set[str]]) -> None:
    assert [*circles(arrows)]


# ----- the vehicle's side -----


def test_vehicle_side_imports_and_runs_without_torch() -> None:
    """And without a key it needs no cryptography."""
    imports = "".join(f"import {name}\n" for name in vehicle())
    result = python(
        "from pathlib import Path\nsys.modules['cryptography'] = None\nimport deploy.runtime\n"
        f"runtime = deploy.runtime.Runtime(Path({str(bundle().path)!r}))\ndel sys.modules['cryptography']\n{imports}"
        "frame = deploy.golden.synthetic_frame('ego', runtime.bundle.manifest.rig, 1)\n"
        "print(len(runtime.step(frame).prediction.results['detection']))"
    )
    assert result.returncode == 0, result.stderr
    here = Runtime(bundle().path)
    assert int(result.stdout) == len(here(synthetic_frame("ego", here.bundle.manifest.rig, 1)).results["detection"]) > 0


def test_nothing_of_the_workshop_or_of_an_extra_is_imported_where_it_is_there() -> None:
    extras = ["zenoh", "foxglove", "prometheus_client", "ray", "fsspec", "tensorrt_rtx"]
    other = [*ABSENT, *extras, "nuscenes", "motmetrics", "pandas", "sklearn"]
    code = f"import sys, {', '.join(vehicle())}\nprint(sys.modules.keys() & {other})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "set()\n"


WITHOUT = """
import contextlib, io, json
from deploy.cli import main
said = []
for arguments in {}:
    sys.argv, lines = ["perception", *arguments], io.StringIO()
    with contextlib.redirect_stderr(lines):
        try:
            main()
            said.append([0, ""])
        except SystemExit as end:
            said.append([end.code, lines.getvalue()])
print(json.dumps(said))
"""


def test_a_command_that_needs_torch_is_one_line(tiny_root: Path, tmp_path: Path) -> None:
    out, data = ["--out", str(tmp_path / "out")], ["--data", str(tiny_root)]
    commands = [
        ["train", "tiny", *data, *out],
        ["evaluate", ".", *data, *out],
        ["adapt", ".", "--add", "low_rank:a", *data, *out],
        ["modules", "."],
        ["import", "a.py", "a.pth", *out],
        ["export", ".", *out],
        ["export", ".", "--plan"],
        ["demo", *out],
    ]
    done = python(WITHOUT.format(commands))
    assert done.returncode == 0, done.stderr
    for command, (code, said) in zip(commands, json.loads(done.stdout.splitlines()[-1]), strict=True):
        needs = r"perception: this command needs (torch|onnx|timm|accelerate), which is not installed here; .*\n"
        assert code == 2, command
        assert re.fullmatch(needs, said), (command, said)
    assert not (tmp_path / "out").exists()


# ----- the command -----


HELP = """
import sys
from deploy.cli import main
sys.argv = ["perception", "--help"]
try:
    main()
finally:
    print(*(name for name in sys.modules if "." not in name), file=sys.stderr)
"""


def test_help_answers_at_once_and_names_every_command_whose_own_help_has_an_example() -> None:
    """At once, because nothing that takes long to import is: neither numpy nor what is built on it."""
    shown = subprocess.run([sys.executable, "-c", HELP], check=True, capture_output=True, text=True)
    assert tuple(sorted(COMMANDS)) == tuple(sorted(re.findall(r"^│ ([a-z][a-z-]*)  ", shown.stdout, re.MULTILINE)))
    imported = set(shown.stderr.split())
    assert "typer" in imported
    assert not imported & {"numpy", "cv2", "scipy", "torch", "onnx", "onnxruntime", "nuscenes", "matplotlib"}
    for command in COMMANDS:
        own = CliRunner().invoke(app, [command, "--help"])
        assert f"Example: perception {command}" in " ".join(own.output.split())


def test_the_installed_command_is_the_one_that_the_tests_run() -> None:
    shown = subprocess.run([PERCEPTION, "verify", "nowhere"], check=False, capture_output=True, text=True)
    here = perception("verify", "nowhere")
    assert (shown.returncode, shown.stdout, shown.stderr) == (here.returncode, here.stdout, here.stderr)
    assert here.returncode == perception("train", "--nonsense").returncode == perception("fly").returncode == 2


DATA = "--data {tmp} --out {tmp}/r"
TAKES = "build takes a bundle and its --target; `perception build --list` shows the targets"
ADD = "choose one: --add KIND:NAME, --memory, --task NAME, or --config FILE with a module; --conditions"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (f"train {CONFIG} --version v1.0-mini {DATA}", "{tmp}"),
        (f"train {{tmp}}/no.yaml --version v1.0-mini {DATA}", "no.yaml"),
        (f"evaluate {{tmp}} --version v1.0-mini {DATA}", "{tmp}"),
        (f"evaluate {{tmp}} --allow-older --version v1.0-mini {DATA}", "--allow-older need a bundle"),
        (f"evaluate {{tmp}} --state {{tmp}}/state {DATA}", "--state and --allow-older need a bundle"),
        ("verify {tmp} --state {tmp}/state", "without a key"),
        ("drive {tmp} --from zenoh --state {tmp}/state", "without a key"),
        ("compare {tmp} {tmp}", "no readable left_out.json; give a folder that `perception evaluate` wrote"),
        ("export {tmp}", "export takes --out"),
        ("export {tmp} --plan", "no checkpoint here"),
        ("export {tmp} --plan --precision int8", "--precision has no effect with --plan"),
        ("export {tmp} --plan --out {tmp}/r", "--out has no effect with --plan"),
        ("export {tmp} --routes base,rain+night,night+rain --out {tmp}/r", "name each once"),
        ("export {tmp} --routes base,base --out {tmp}/r", "name each once"),
        ("export {tmp} --conditions rain,rain --out {tmp}/r", "name each once"),
        ("export {tmp} --topics {tmp}/t.yaml --out {tmp}/r", "for the drives of --calibrate"),
        ("export {tmp} --precision int8 --calibrate {tmp}/a.mcap --out {tmp}/r", "with a dataroot"),
        ("build --target cpu", TAKES),
        ("build --list --target cpu", "--target has no effect with --list"),
        ("build {tmp} --list", "bundle has no effect with --list"),
        ("replay {tmp} --version v1.0-mini --bundle {tmp} --out {tmp}/r", "{tmp}"),
        ("replay {tmp}/a.mcap --bundle {tmp} --out {tmp}/r", "not a bundle"),
        ("replay {tmp} --bundle {tmp} --out {tmp}/r --config {tmp}/no.yaml", "{tmp}/no.yaml: cannot read the settings"),
        ("replay {tmp} --scenes a --bundle {tmp} --out {tmp}/r --scenes=b", "--scenes is given 2 times; give it once"),
        ("simulate {tmp}/d --conditions hail", "hail"),
        (f"adapt {{tmp}} --add low_rank {DATA}", "write KIND:NAME"),
        (f"adapt {{tmp}} --add low_rank:a --option rank=x {DATA}", "--option rank=x: write NAME=NUMBER"),
        (f"adapt {{tmp}} {DATA}", ADD),
        (f"adapt {{tmp}} --config {{tmp}}/a.yaml {DATA}", "{tmp}/a.yaml"),
        (f"adapt {{tmp}} --task conditions --conditions rain {DATA}", "--option go with --add and --memory"),
        ("modules {tmp} --merge a,b --out {tmp}/r", "--merge and --name go together"),
        ("modules {tmp} --merge a,b --name c", "--load or --merge goes with --out"),
        ("modules {tmp} --merge a --name c --out {tmp}/r", "name two or more modules"),
        ("modules {tmp} --merge a,b --name c --version v1 --out {tmp}/r", "--version with them"),
        ("modules {tmp} --version v1", "--version with them"),
        ("modules {tmp} --method ties", "--method, --conditions and --option go with them"),
        ("modules {tmp} --frame scene-0001:0", "--frame and --data go together"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path: Path, arguments: str, message: str) -> None:
    line = refuses(*(word.replace("{tmp}", str(tmp_path)) for word in arguments.split()))
    assert line.startswith("perception: ")
    assert message.replace("{tmp}", str(tmp_path)) in line


def test_damaged_sensor_files_end_a_training_with_exit_code_2(tiny_root: Path, tmp_path: Path) -> None:
    for file in sorted((tiny_root / "samples" / "LIDAR_TOP").iterdir()):
        points = np.fromfile(file, np.float32)
        points[7] = np.nan
        points.tofile(file)
    shown = perception("train", CONFIG, "--data", tiny_root, "--split", "all", "--out", tmp_path / "run")
    assert shown.returncode == 2
    *_, line = shown.stderr.splitlines()
    assert "LIDAR_TOP" in line
    assert "1 of 500 points hold NaN or infinity" in line
