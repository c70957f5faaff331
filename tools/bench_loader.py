"""Training samples with ten LiDAR sweeps and six pictures: mmdet3d's pipeline and ours on the same files."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import torch
from benchmark import KEYFRAMES, median_seconds
from foreign_networks import build  # imports mmdet3d
from mmdet3d.datasets import NuScenesDataset
from ten_sweeps import SWEEPS, drive

from perception.config import find_config, load_config
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.mmdet3d.annotation_file import LABELS, write
from perception.training import loader as loaders
from perception.training.loader import FrameDataset

CONFIG = "nuscenes/fusion"
# Nothing is pasted or dropped. Pictures are enlarged by up to a quarter, as they are here for mmdet3d.
CHANGES = ("data.paste=null", "data.class_balanced=false", "data.augment.image_scale=[1.0, 1.25]",
           "train.drop={}")  # fmt: skip
WIDTH, HEIGHT, RECORDED = 704, 256, (1600, 900)
RANGE = [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]  # m
Side = Callable[[int], Any]


def loader(quick: bool) -> dict[str, Any]:
    """Ratios of mmdet3d's time to ours, in processor time: medians of alternating rounds over all whole keyframes.

    One thread; ten LiDAR sweeps and six JPEGs of 1600 x 900, which are in memory, are read, decoded and augmented in
    BEV and pictures, to 704 x 256; pillars of 0.2 m, CenterPoint's targets in six groups. Ours also rotate and mirror
    the pictures, and small classes have heatmap cells of 0.2 m; mmdet3d's pictures are float32 as in its multi-view
    configuration, or kept as bytes (uint8). reduced: pictures are decoded reduced, as in the configuration; cached:
    decoded frames are read from `data.cache`, which the first round fills.
    """
    rounds = 1 if quick else 15
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    loaders._CACHE_BYTES = 0  # no decoded frame is kept in memory
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "data"
        tables, tokens = drive(KEYFRAMES, root)
        tokens = tokens[: 1 if quick else None]
        sides = _theirs(tables, tokens, root)
        for name, more in {"reduced": (), "cached": (f"data.cache={folder}/cache",)}.items():
            config = load_config(find_config(CONFIG), (*CHANGES, *more))
            sides[name] = FrameDataset(tables, tokens, config, ["detection"]).__getitem__
        seconds = median_seconds(sides, rounds, time.process_time, range(len(tokens)), discarded=1)
    ratios = {
        base: {f"complete_{name}": seconds[base] / seconds[name] for name in ("reduced", "cached")}
        for base in ("mmdet3d", "mmdet3d_uint8")
    }
    return {
        "speedup": ratios["mmdet3d"]["complete_reduced"],
        "speedup_cached": ratios["mmdet3d"]["complete_cached"],
        **{f"against_{base}": each for base, each in ratios.items()},
        "seconds": seconds,
    }


def _theirs(tables: NuScenesTables, tokens: list[str], root: Path) -> dict[str, Side]:
    """mmdet3d's pipeline with voxels and targets, with pictures as float32 and as bytes."""
    write(root / "infos.json", tables, tokens)
    network = build("circle").train()  # its numbers of voxels are those of training
    cameras = {name: f"samples/{name}" for name in tables.rig.sensors.cameras}

    def side(float32: bool) -> Side:
        data = NuScenesDataset(
            data_root=str(root),
            ann_file="infos.json",
            data_prefix={"pts": "samples/LIDAR_TOP", "sweeps": "sweeps/LIDAR_TOP", **cameras},
            modality={"use_lidar": True, "use_camera": True},
            pipeline=pipeline(float32),
        )

        def load(position: int) -> Any:
            sample = data[position]
            voxels = network.data_preprocessor.voxelize([sample["inputs"]["points"]], [sample["data_samples"]])
            return sample, voxels, network.pts_bbox_head.get_targets([sample["data_samples"].gt_instances_3d])

        return load

    return {"mmdet3d": side(True), "mmdet3d_uint8": side(False)}


def pipeline(float32: bool) -> list[dict[str, Any]]:
    """Parts of mmdet3d with the settings of its CenterPoint and multi-view configurations, sizes as of BEVFusion.

    Pictures are loaded after the flip of the BEV, which would mirror them without their calibration.
    """
    pictures = [
        {"type": "RandomResize3D", "scale": (WIDTH, WIDTH * RECORDED[1] // RECORDED[0]), "ratio_range": (1.0, 1.25),
         "keep_ratio": True},
        {"type": "RandomCrop3D", "crop_size": (WIDTH, HEIGHT)},
    ]  # fmt: skip
    return [
        {"type": "LoadPointsFromFile", "coord_type": "LIDAR", "load_dim": 5, "use_dim": 5},
        {"type": "LoadPointsFromMultiSweeps", "sweeps_num": SWEEPS, "use_dim": [0, 1, 2, 3, 4],
         "pad_empty_sweeps": True, "remove_close": True},
        {"type": "LoadAnnotations3D", "with_bbox_3d": True, "with_label_3d": True},
        {"type": "GlobalRotScaleTrans", "rot_range": [-0.7854, 0.7854], "scale_ratio_range": [0.9, 1.1],
         "translation_std": [0.5, 0.5, 0.5]},
        {"type": "RandomFlip3D", "sync_2d": False, "flip_ratio_bev_horizontal": 0.5, "flip_ratio_bev_vertical": 0.5},
        {"type": "LoadMultiViewImageFromFiles", "to_float32": float32, "num_views": 6},
        {"type": "MultiViewWrapper", "transforms": pictures},
        {"type": "PointsRangeFilter", "point_cloud_range": RANGE},
        {"type": "ObjectRangeFilter", "point_cloud_range": RANGE},
        {"type": "ObjectNameFilter", "classes": list(LABELS)},
        {"type": "PointShuffle"},
        {"type": "Pack3DDetInputs", "keys": ["img", "points", "gt_bboxes_3d", "gt_labels_3d"]},
    ]  # fmt: skip
