"""The README's commands, as they stand there but smaller."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import centerpoint_reference
import yaml
from commands import perception
from infos import new_infos, old_infos, write_infos
from nuscenes import NuScenes
from repository import ROOT

from perception.config import parse_config

SMALLER = {
    "--scenes 8 --samples 20": "--scenes 2 --samples 2",
    "train configs/tiny.yaml": "train configs/tiny.yaml --steps 25",
    "--scenes 16 --samples 10": "--scenes 2 --samples 1",
    "train configs/truck.yaml": "train configs/truck.yaml --steps 2",
    "--scenes scene-0005": "--scenes scene-0002",
    "--conditions night --out": "--conditions night --split all --steps 2 --out",
    "--task conditions": "--task conditions --split all --steps 2",
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
        environment = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [program, *arguments], cwd=folder, env=environment, check=False, capture_output=True, text=True
        )
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    return done.stdout


def smaller_configs(folder: Path) -> None:
    """Configurations with fewer layers, which are what an export takes its time for."""
    folder.mkdir()
    for file in ("tiny.yaml", "truck.yaml"):
        content = yaml.safe_load((ROOT / "configs" / file).read_text())
        for name, part in SMALLER_CONFIG.items():
            own = content if name == "grid" else content["model"]
            own[name] |= part
        (folder / file).write_text(yaml.safe_dump(content))


def check_evaluation_of_parts(folder: Path) -> None:
    parts = json.loads((folder / "runs/tiny/parts/metrics.json").read_text())
    assert list(parts["slices"]) == ["condition", "range"]
    assert [level["level"] for level in parts["robustness"]["corruptions"]["lidar_noise"]["levels"]] == [0.05, 0.1, 0.2]
    assert "</html>" in (folder / "runs/tiny/parts/report.html").read_text()
    compared = json.loads((folder / "runs/tiny/compared/comparison.json").read_text())
    assert compared["slices"]["all"]["all"]["NDS"]["after"] == parts["NDS"]


def test_commands_of_the_readme(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text()
    smaller_configs(tmp_path / "configs")
    commands = re.findall(r"^perception .*$", text, re.MULTILINE)
    assert {c.split()[1] for c in commands} >= {
        "simulate",
        "train",
        "evaluate",
        "compare",
        "export",
        "build",
        "replay",
        "adapt",
        "merge",
        "modules",
        "plan",
        "import-mmdet3d",
    }
    for large, small in SMALLER.items():
        assert sum(large in command for command in commands) == 1, large
        commands = [command.replace(large, small) for command in commands]
    centerpoint_reference.files(tmp_path)
    for command in commands:
        if "infos" in command:
            devkit = NuScenes("v1.0-sim", str(tmp_path / "drives"), verbose=False)
            write_infos(tmp_path / "drives" / "nuscenes_infos_val.pkl", new_infos(old_infos(devkit)))
        run(tmp_path, command)

    infos = json.loads((tmp_path / "runs/tiny/infos/metrics.json").read_text())
    assert infos["samples"] == 4
    recognised = json.loads((tmp_path / "runs/recognising/replay/latency.json").read_text())
    assert recognised["frames"] == 3
    assert (tmp_path / "runs/centerpoint/bundle/model.onnx").exists()
    metrics = json.loads((tmp_path / "runs/tiny/evaluation/metrics.json").read_text())
    assert metrics["samples"] == 2
    assert json.loads((tmp_path / "runs/truck/evaluation/metrics.json").read_text())["samples"] == 1
    check_evaluation_of_parts(tmp_path)
    manifest = json.loads((tmp_path / "runs/tiny/bundle/manifest.json").read_text())
    assert (manifest["routes"], manifest["folded"]) == (["rain"], ["rain"])
    banked = json.loads((tmp_path / "runs/merged/bundle/manifest.json").read_text())
    assert banked["routes"] == ["base", "rain", "night"]
    assert [module["name"] for module in banked["banked"]] == ["rain", "night"]
    lowered = json.loads((tmp_path / "runs/tiny/int8/manifest.json").read_text())
    assert (lowered["precision"], "model.cpu.onnx" in lowered["files"]) == ("int8", True)
    assert (tmp_path / "runs/tiny/bundle-orin/build.sh").exists()
    record = json.loads((tmp_path / "runs/tiny/bundle/engines/rtx-ampere.json").read_text())
    assert record["plan_bytes"] > 4 * manifest["parameters"]
    (modules,) = re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    (rain,) = parse_config(yaml.safe_load("name: readme\n" + modules), "README").modules
    assert [part.kind for part in rain.single()] == ["batch_norm", "low_rank"]
    (python,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    (tmp_path / "modules.py").write_text(python)
    assert "name='rainy_night'" in run(tmp_path, f"{sys.executable} modules.py")
    assert (tmp_path / "runs/fog.json").exists()
    assert (tmp_path / "runs/route.png").stat().st_size > 5000
    names = [m["name"] for m in json.loads(run(tmp_path, "perception modules runs/merged --json"))["modules"]]
    assert names == ["rain", "night", "rainy_night"]
    latency = json.loads((tmp_path / "runs/tiny/replay/latency.json").read_text())
    assert latency["frames"] == 2

    assert "accelerate launch -m deploy.cli train" in text
    # Without GPUs accelerate starts a single process; torchrun starts two, as accelerate does for two GPUs.
    launched = "torchrun --standalone --nproc_per_node 2 -m deploy.cli train"
    printed = run(tmp_path, f"{launched} configs/tiny.yaml --data drives --out runs/two --steps 2")
    assert printed.count("runs/two/checkpoints/step-000002") == 1
    checkpoint = json.loads((tmp_path / "runs/two/checkpoints/step-000002/checkpoint.json").read_text())
    assert checkpoint["step"] == 2
