"""Configurations of MMEngine's Runner for our model on simulated drives, through mmdet3d's pipeline and metric."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import mmdet3d
import yaml
from mmengine.config import Config
from vocabulary import CAMERAS, CLASSES

from perception.config import find_config
from perception.datasets.keyframes import Reads
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.frame import Frame
from perception.mmdet3d import annotation_file

FOLDERS = {"pts": "samples/LIDAR_TOP", "sweeps": "sweeps/LIDAR_TOP", **{name: f"samples/{name}" for name in CAMERAS}}
SWEEPS = {"sweeps_num": 5, "use_dim": [0, 1, 2, 3, 4], "remove_close": True, "test_mode": True}
LOADING = [
    {"type": "LoadPointsFromFile", "coord_type": "LIDAR", "load_dim": 5, "use_dim": 5},
    {"type": "LoadPointsFromMultiSweeps", **SWEEPS},
    {"type": "LoadMultiViewImageFromFiles", "num_views": 6},
]


def converter(name: str) -> ModuleType:
    """One of mmdet3d's dataset converters, which come with its wheel, but are in no package."""
    path = Path(mmdet3d.__file__).parent / ".mim" / "tools" / "dataset_converters" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def lidar_frames(nuscenes_root: Path, sim_root: Path, keyframes: str, sweeps: int) -> dict[str, Frame]:
    """Keyframes in the LiDAR's frame: two real ones of scene-0103, and a simulated one with its two sweeps."""
    real, simulated = NuScenesTables(nuscenes_root, "v1.0-mini"), NuScenesTables(sim_root, "v1.0-sim")
    first, second = real.samples(selectors=[f"scene-0103:{keyframes}"])
    chosen = {"real": (real, first), "another": (real, second), "simulated": (simulated, simulated.samples()[0])}
    return {
        name: tables.frame(token, Reads("lidar", sweeps, cameras=False)) for name, (tables, token) in chosen.items()
    }


def tiny(folder: Path, **model: Any) -> Path:
    """configs/tiny.yaml in the LiDAR's frame, with changes to its `model`."""
    content = yaml.safe_load(find_config("tiny").read_text())
    content["grid"]["reference"] = "lidar"
    content["model"] |= model
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def runner_config(
    root: Path, model: dict[str, Any], work: Path, steps: int = 20, loaded: Sequence[dict[str, Any]] = LOADING
) -> Config:
    """Trains for `steps` iterations of two frames on mini_val and tests on the same.

    Args:
        loaded: the pipeline before the annotations.
    """
    tables = NuScenesTables(root, "v1.0-mini")
    annotated = [
        {"type": "LoadAnnotations3D", "with_bbox_3d": True, "with_label_3d": True, "with_attr_label": True},
        {"type": "Pack3DDetInputs", "keys": ["points", "img", "gt_bboxes_3d", "gt_labels_3d", "attr_labels"]},
    ]

    def loader(name: str, pipeline: list[dict[str, Any]], training: bool) -> dict[str, Any]:
        annotations = work / f"{name}.json"
        annotation_file.write(annotations, tables, tables.samples("mini_val"))
        return {
            "batch_size": 2 if training else 1,
            "num_workers": 0,
            "sampler": {"type": "InfiniteSampler" if training else "DefaultSampler", "shuffle": training},
            "dataset": {
                **{"type": "NuScenesDataset", "data_root": str(root), "ann_file": str(annotations)},
                **{"data_prefix": FOLDERS, "metainfo": {"classes": CLASSES, "version": "v1.0-mini"}},
                **{"modality": {"use_lidar": True, "use_camera": True}, "pipeline": pipeline},
                **{"use_valid_flag": True, "test_mode": not training, "box_type_3d": "LiDAR"},
            },
        }

    work.mkdir(parents=True, exist_ok=True)
    testing = loader("testing", [*loaded, {"type": "Pack3DDetInputs", "keys": ["points", "img"]}], training=False)
    content = {
        "default_scope": "mmdet3d",
        "custom_imports": {"imports": ["perception.mmdet3d.registered", "perception.mmdet3d.metric"]},
        "work_dir": str(work),
        "model": model,
        "train_dataloader": loader("training", [*loaded, *annotated], training=True),
        "train_cfg": {"by_epoch": False, "max_iters": steps, "val_interval": steps + 1},
        "optim_wrapper": {"optimizer": {"type": "AdamW", "lr": 5e-3}, "clip_grad": {"max_norm": 35}},
        "test_dataloader": testing,
        "test_cfg": {},
        "test_evaluator": {"type": "NuScenesMetric", "data_root": str(root), "ann_file": str(work / "testing.json")},
        "default_hooks": {"checkpoint": {"type": "CheckpointHook", "interval": -1, "by_epoch": False}},
        "log_level": "WARNING",
        "randomness": {"seed": 0},
    }
    Config(content).dump(work / "config.py")
    return Config.fromfile(work / "config.py")  # which also imports what `custom_imports` names
