"""The commands of README and of the guide, as they stand there but smaller."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import perception
from infos import new_infos, old_infos, write_infos
from mmdet3d_networks import files
from nuscenes import NuScenes
from repository import ROOT

from perception.config import parse_config

SMALLER = {
    "--scenes 8 --samples 20": "--scenes 4 --samples 2",  # the recogniser takes two drives of each weather
    "train configs/tiny.yaml": "train configs/tiny.yaml --steps 25",
    "--scenes 16 --samples 10": "--scenes 2 --samples 1",
    "train configs/truck.yaml": "train configs/truck.yaml --steps 2",
    "--scenes scene-0005": "--scenes scene-0002",
    "--conditions night --out": "--conditions night --split all --steps 2 --out",
    "--task conditions": "--task conditions --split all",
    "--samples 36": "--samples 3",
    "--calibrate drives": "--calibrate drives --scenes scene-0002:0-1",
}
SMALLER_CONFIG = {
    "grid": {"cell": 1.6},
    "lidar": {"max_pillars": 3000, "points_per_pillar": 4, "channels": 16},
    "camera": {"stages": [1, 2], "channels": 16, "image": {"height": 64, "width": 160}},
    "trunk": {"channels": [16, 32], "blocks": [1, 1], "strides": [1, 2], "up_channels": 16},
}  # of what configs/tiny.yaml says of these parts


def run(folder: Path, command: str) -> str:
    program, *arguments = command.split()
    if program == "perception":
        done = perception(*arguments, cwd=folder)
    else:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        given: Any = {"cwd": folder, "env": os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"}}
        done = subprocess.run([program, *arguments], check=False, capture_output=True, text=True, **given)
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    return done.stdout


def smaller_configs(folder: Path) -> None:
    """Configurations with fewer layers, which are what an export takes its time for."""
    folder.mkdir()
    shutil.copytree(ROOT / "configs" / "replay", folder / "replay")
    for file in ("tiny.yaml", "truck.yaml"):
        content = yaml.safe_load((ROOT / "configs" / file).read_text())
        for name, part in SMALLER_CONFIG.items():
            own = content if name == "grid" else content["model"]
            own[name] |= part
        (folder / file).write_text(yaml.safe_dump(content))


def commands_of(page: str) -> list[str]:
    return re.findall(r"^perception .*$", (ROOT / page).read_text(), re.MULTILINE)


def test_readme_shows_commands_of_the_guide_in_its_order() -> None:
    shown = commands_of("README.md")
    assert shown == [command for command in commands_of("docs/guide.md") if command in shown]
    jobs = "simulate train evaluate export build replay"
    assert {command.split()[1] for command in shown} >= {*jobs.split()}


@pytest.mark.slow("all commands of the guide, as a newcomer types them")
def test_commands_of_the_guide(tmp_path: Path) -> None:
    text = (ROOT / "docs/guide.md").read_text()
    smaller_configs(tmp_path / "configs")
    commands = commands_of("docs/guide.md")
    shown = "simulate train evaluate compare export build replay adapt modules import"
    assert {command.split()[1] for command in commands} >= {*shown.split()}
    for large, small in SMALLER.items():
        assert sum(large in command for command in commands) == 1, large
        commands = [command.replace(large, small) for command in commands]
    files(tmp_path, "centerpoint")
    for command in commands:
        if "infos" in command:
            devkit = NuScenes("v1.0-sim", str(tmp_path / "drives"), verbose=False)
            write_infos(tmp_path / "drives" / "nuscenes_infos_val.pkl", new_infos(old_infos(devkit)))
        run(tmp_path, command)

    def said(file: str) -> Any:
        return json.loads((tmp_path / "runs" / file).read_text())

    assert said("tiny/infos/metrics.json")["samples"] == 8
    assert said("tiny/evaluation/metrics.json")["samples"] == 2
    assert said("truck/evaluation/metrics.json")["samples"] == 1
    assert said("recognising/replay/latency.json")["frames"] == 3
    assert said("tiny/replay/latency.json")["frames"] == 2
    assert (tmp_path / "runs/centerpoint/bundle/model.onnx").exists()
    parts = said("tiny/parts/metrics.json")
    assert list(parts["slices"]) == ["condition", "range"]
    assert [level["level"] for level in parts["robustness"]["corruptions"]["lidar_noise"]["levels"]] == [0.05, 0.1, 0.2]
    assert "</html>" in (tmp_path / "runs/tiny/parts/report.html").read_text()
    assert said("tiny/compared/comparison.json")["slices"]["all"]["all"]["NDS"]["after"] == parts["NDS"]
    manifest, banked = said("tiny/bundle/manifest.json"), said("merged/bundle/manifest.json")
    assert (manifest["routes"], manifest["folded"]) == (["rain"], ["rain"])
    assert banked["routes"] == ["base", "rain", "night"]
    assert [module["name"] for module in banked["banked"]] == ["rain", "night"]
    lowered = said("tiny/int8/manifest.json")
    assert (lowered["precision"], (tmp_path / "runs/tiny/int8/model.cpu.onnx").exists()) == ("int8", True)
    assert (tmp_path / "runs/tiny/bundle-orin/build.sh").exists()
    assert said("tiny/bundle/engines/rtx-ampere.json")["plan_bytes"] > 4 * manifest["parameters"]
    (modules,) = re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    (rain,) = parse_config(yaml.safe_load("name: guide\n" + modules), "guide").modules
    assert [part.kind for part in rain.single()] == ["batch_norm", "low_rank"]
    (python,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    (tmp_path / "modules.py").write_text(python)
    assert "name='rainy_night'" in run(tmp_path, f"{sys.executable} modules.py")
    assert (tmp_path / "runs/fog.json").exists()
    names = [m["name"] for m in json.loads(run(tmp_path, "perception modules runs/merged --json"))["modules"]]
    assert names == ["rain", "night", "rainy_night"]

    assert "accelerate launch -m deploy.cli train" in text
    # Without GPUs accelerate starts a single process; torchrun starts two, as accelerate does for two GPUs.
    launched = "torchrun --standalone --nproc_per_node 2 -m deploy.cli train"
    printed = run(tmp_path, f"{launched} configs/tiny.yaml --data drives --out runs/two --steps 2")
    assert printed.count("runs/two/checkpoints/step-000002") == 1
    assert said("two/checkpoints/step-000002/checkpoint.json")["step"] == 2
