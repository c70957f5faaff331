"""What runs on the vehicle imports no torch."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from exported import bundle
from vehicle_modules import ABSENT, DEPLOY, ROOT, VEHICLE, WORKSHOP, python

from deploy.golden import synthetic_frame
from deploy.runtime import Runtime


def test_vehicle_side_imports_and_runs_without_torch() -> None:
    imports = "".join(f"import {name}\n" for name in VEHICLE)
    result = python(
        f"{imports}from pathlib import Path\n"
        f"runtime = deploy.runtime.Runtime(Path({str(bundle().path)!r}))\n"
        "frame = deploy.golden.synthetic_frame('ego', runtime.bundle.manifest.rig, 1)\n"
        "print(len(runtime.step(frame).prediction.results['detection']))"
    )
    assert result.returncode == 0, result.stderr
    here = Runtime(bundle().path)
    assert int(result.stdout) == len(here(synthetic_frame("ego", here.bundle.manifest.rig, 1)).results["detection"]) > 0


def test_nothing_of_the_workshop_is_imported_where_it_is_there() -> None:
    other = [*ABSENT, "nuscenes", "motmetrics", "pandas", "sklearn"]
    code = f"import sys, {', '.join(VEHICLE)}\nprint(sys.modules.keys() & {other})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "set()\n"


def test_a_vehicle_without_a_key_needs_no_cryptography() -> None:
    code = f"from pathlib import Path\nimport deploy.runtime\ndeploy.runtime.Runtime(Path({str(bundle().path)!r}))\n"
    assert python(f"sys.modules['cryptography'] = None\n{code}").returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "configs/tiny.yaml", "--data", "DATA"],
        ["evaluate", ".", "--data", "DATA"],
        ["adapt", ".", "--add", "low_rank:a", "--data", "DATA"],
        ["merge", ".", "--modules", "a,b", "--name", "c"],
        ["modules", "."],
        ["plan", "."],
        ["import-mmdet3d", ".", "."],
        ["import-pointpillars", ".", "."],
        ["export", "."],
        ["demo"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_command_that_needs_torch_is_one_line(arguments: list[str], tiny_root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    writes = [] if arguments[0] in ("modules", "plan") else ["--out", str(out)]
    given = [str(tiny_root) if argument == "DATA" else argument for argument in arguments]
    done = python(f"sys.argv = {['perception', *given, *writes]}\nfrom deploy.cli import main\nmain()")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    needs = r"perception: this command needs (torch|onnx|timm|accelerate), which is not installed here; run it where "
    assert re.match(needs, done.stderr), done.stderr
    assert not out.exists()


def test_what_the_workshop_has_is_there() -> None:
    assert WORKSHOP <= DEPLOY


def test_the_block_works() -> None:
    assert "ModuleNotFoundError" in python("import deploy.export").stderr
