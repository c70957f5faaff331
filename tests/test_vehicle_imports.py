"""What runs on the vehicle imports no torch."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from exported import bundle

ROOT = Path(__file__).parents[1]
VEHICLE = (
    "perception.frame",
    "perception.grid",
    "perception.tasks.detection.tracker",
    "perception.datasets.nuscenes.dataset",
    "perception.sensors.lidar.pillars",
    "perception.sensors.inputs",
    "perception.tasks.result",
    "perception.tasks.detection.rotated_iou",
    "perception.tasks.detection.nms",
    "perception.tasks.detection.submission",
    "perception.tasks.detection.tracking",
    "perception.scene.scene",
    "deploy.bundle",
    "deploy.cli",
    "deploy.commands",
    "deploy.commands.bundles",
    "deploy.commands.drives",
    "deploy.commands.trust",
    "deploy.engine_record",
    "deploy.vocabulary",
    "deploy.onnx_file",
    "deploy.permit",
    "deploy.release",
    "deploy.sign",
    "deploy.trust",
    "deploy.verify",
    "deploy.build",
    "deploy.build_package",
    "deploy.golden",
    "deploy.golden_file",
    "deploy.integrity",
    "deploy.manifest",
    "deploy.targets",
    "deploy.tolerances",
    "deploy.engines",
    "deploy.engines.cuda",
    "deploy.engines.onnxruntime",
    "deploy.engines.tensorrt",
    "deploy.engines.tensorrt_plan",
    "deploy.route",
    "deploy.runtime",
    "deploy.signature",
    "deploy.replay.prefetch",
    "deploy.replay.change",
    "deploy.replay.comparable",
    "deploy.replay.faults",
    "deploy.replay.fingerprint",
    "deploy.replay.results",
    "deploy.replay.folder",
    "deploy.replay.foxglove_messages",
    "deploy.replay.foxglove_results",
    "deploy.replay.gates",
    "deploy.replay.interval",
    "deploy.replay.journal",
    "deploy.replay.latency",
    "deploy.replay.machine",
    "deploy.replay.measures",
    "deploy.replay.outcome",
    "deploy.replay.page_data",
    "deploy.replay.pictures",
    "deploy.replay.player",
    "deploy.replay.provenance",
    "deploy.replay.real_time",
    "deploy.replay.report",
    "deploy.replay.run",
    "deploy.replay.selection",
    "deploy.replay.settings",
    "deploy.replay.sources",
    "deploy.replay.sources.assembler",
    "deploy.replay.sources.cameras",
    "deploy.replay.sources.counts",
    "deploy.replay.sources.encoded",
    "deploy.replay.sources.foxglove",
    "deploy.replay.sources.lidar",
    "deploy.replay.sources.mcap",
    "deploy.replay.sources.messages",
    "deploy.replay.sources.nuscenes",
    "deploy.replay.sources.frame_trigger",
    "deploy.replay.sources.recording",
    "deploy.replay.sources.recorded_drive",
    "deploy.replay.sources.rectify",
    "deploy.replay.sources.ros",
    "deploy.replay.sources.rosbag",
    "deploy.replay.sources.topics",
    "deploy.replay.sources.transforms",
    "deploy.replay.statistics",
    "deploy.replay.timeline",
    "deploy.replay.fault_detection",
    "deploy.replay.track_history",
    "deploy.replay.isolation",
    "deploy.replay.verdict",
    "deploy.replay.worst_frames",
    "deploy.replay.writers",
)
# The rest of deploy is the workshop's: it trains or exports.
WORKSHOP = {
    "deploy.replay.rerun_results",
    "deploy.export",
    "deploy.network",
    "deploy.structure",
    "deploy.fold_batchnorm",
    "deploy.onnx_export",
    "deploy.origin",
    "deploy.street",
    "deploy.plan",
    "deploy.demo",
} | {
    f"deploy.precision{name}"
    for name in ("", ".calibrate", ".convert", ".frames", ".graph", ".half", ".measure", ".quantise", ".sensitivity")
}
ABSENT = ["torch", "torchvision", "timm", "onnx", "onnxscript", "accelerate"]
BLOCKED = f"import sys\nsys.modules.update(dict.fromkeys({ABSENT}))\n"


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", BLOCKED + code], capture_output=True, text=True, check=False, cwd=ROOT)


def test_vehicle_side_imports_and_runs_without_torch() -> None:
    imports = "".join(f"import {name}\n" for name in VEHICLE)
    result = python(
        f"{imports}from pathlib import Path\n"
        f"runtime = deploy.runtime.Runtime(Path({str(bundle().path)!r}))\n"
        "print(len(runtime.step(deploy.golden.synthetic_frame('ego', 1)).prediction.results['detection']))"
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) == 200


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


def test_every_module_of_deploy_is_on_the_vehicle_or_in_the_workshop() -> None:
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in (ROOT / "deploy").rglob("*.py")
    }
    assert modules - {"deploy", "deploy.replay"} - WORKSHOP == {name for name in VEHICLE if name.startswith("deploy")}


@pytest.mark.parametrize("module", ["deploy.export"])
def test_the_block_works(module: str) -> None:
    assert "ModuleNotFoundError" in python(f"import {module}").stderr
