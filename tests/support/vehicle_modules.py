"""Modules that the vehicle must not import."""

import subprocess
import sys

from repository import ROOT

# What deploy has for the workshop: it trains or exports.
WORKSHOP = {
    *(f"deploy.{name}" for name in ("demo", "export", "fold_batchnorm", "network", "onnx_export", "origin", "plan")),
    *("deploy.precision", "deploy.replay.rerun_results", "deploy.street", "deploy.structure"),
}


DEPLOY = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "deploy").rglob("*.py")
}


VEHICLE = (
    "perception.frame",
    "perception.grid",
    "perception.tasks.detection.tracker",
    "perception.datasets.nuscenes.dataset",
    "perception.datasets.nuscenes.map_expansion",
    "perception.sensors.lidar.pillars",
    "perception.sensors.inputs",
    "perception.tasks.result",
    "perception.tasks.detection.rotated_iou",
    "perception.tasks.detection.nms",
    "perception.tasks.detection.submission",
    "perception.tasks.detection.tracking",
    "perception.scene.scene",
    *sorted(name for name in DEPLOY if name not in WORKSHOP and not name.startswith("deploy.precision.")),
)


ABSENT = ["torch", "torchvision", "timm", "onnx", "onnxscript", "accelerate"]


BLOCKED = f"import sys\nsys.modules.update(dict.fromkeys({ABSENT}))\n"


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", BLOCKED + code], capture_output=True, text=True, check=False, cwd=ROOT)
