"""Training samples with ten LiDAR sweeps and six pictures: mmdet3d's pipeline and ours on the same files."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from benchmark import KEYFRAMES, NuScenes, Rounds, measure_times, medians
from ten_sweeps import SWEEPS, drive

from perception.config import Config, find_config, load_config
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.frame import Boxes
from perception.sensors.inputs import InputSpec, prepare
from perception.training import loader as loaders
from perception.training.augment import draw_image_affine, draw_similarity, shuffle_points
from perception.training.frame_cache import FrameCache
from perception.training.loader import FrameDataset, reads_of

CONFIG = "nuscenes/fusion"
# Nothing is pasted or dropped. Pictures are enlarged by up to a quarter, as they are here for mmdet3d.
CHANGES = ("data.paste=null", "data.class_balanced=false", "data.augment.image_scale=[1.0, 1.25]",
           "train.drop_lidar=0.0", "train.drop_cameras=0.0")  # fmt: skip
WIDTH, HEIGHT, RECORDED = 704, 256, (1600, 900)
RANGE = [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]  # m
INCLUDED = {
    "both": f"one thread; {SWEEPS + 1} LiDAR sweeps and six {RECORDED[0]}x{RECORDED[1]} JPEGs read, decoded, and "
    f"augmented in BEV and pictures; pictures of {WIDTH}x{HEIGHT}; points shuffled; boxes",
    "complete": "also pillars of 0.2 m (20 points, 30,000 pillars) and CenterPoint's targets in six groups",
    "ours alone": "pictures are also rotated and mirrored, and small classes have heatmap cells of 0.2 m",
    "mmdet3d alone": "pictures of float32, as in its multi-view configuration; uint8: kept as bytes",
}

Side = Callable[[int], Any]


def loader(data: NuScenes = KEYFRAMES, rounds: Rounds = 15) -> dict[str, Any]:
    """Ratios of mmdet3d's time to ours: medians of alternating rounds over all whole keyframes, without the first one.

    All files are in memory, so it is processor time that counts; the clock says the same if nothing else runs.
    `speedup` and `speedup_cached` are those of complete samples, with reduced decoding as in the configuration; whole:
    without it; cached: decoded frames are read from `data.cache`, which the first round fills. `against_workers`
    compares our complete samples with mmdet3d's pipeline alone, because it makes voxels and targets in the training
    process.
    """
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder, no_memory():
        root = Path(folder) / "data"
        tables, tokens = drive(data, root)
        changes = {"whole": ("data.reduced_pictures=false",), "reduced": (), "cached": (f"data.cache={folder}/cache",)}
        configs = {name: load_config(find_config(CONFIG), (*CHANGES, *each)) for name, each in changes.items()}
        sides: dict[str, Side] = {**_theirs(tables, tokens, root)}
        for name, config in configs.items():
            sides[f"{name}/complete"] = FrameDataset(tables, tokens, config, ["detection"]).__getitem__
            sides[f"{name}/loaded"] = _load(tables, tokens, config)
        seconds = measure_times(sides, rounds, [time.perf_counter, time.process_time], range(len(tokens)), discarded=1)
        wall, processor = medians(seconds), medians(seconds, clock=1)
        stored = [path.stat().st_size for path in (Path(folder) / "cache").rglob("*.frame")]
        points = [len(sides["whole/loaded"](i)[0]) for i in range(len(tokens))]
    theirs = ("mmdet3d", "mmdet3d_uint8")
    ratios = {
        base: {
            f"{kind}_{name}": processor[f"{base}/{kind}"] / processor[f"{name}/{kind}"]
            for kind in ("complete", "loaded")
            for name in configs
        }
        for base in theirs
    }
    return {
        "speedup": ratios["mmdet3d"]["complete_reduced"],
        "speedup_cached": ratios["mmdet3d"]["complete_cached"],
        "against_mmdet3d": ratios["mmdet3d"],
        "against_mmdet3d_uint8": ratios["mmdet3d_uint8"],
        "against_workers": {name: processor["mmdet3d/loaded"] / processor[f"{name}/complete"] for name in configs},
        "seconds": processor,
        "clock_seconds": wall,
        "points": round(statistics.mean(points)),
        "cached_megabytes": statistics.mean(stored) / 1e6,
        "keyframes": len(tokens),
        "rounds": rounds,
        "included": INCLUDED,
    }


@contextmanager
def no_memory() -> Iterator[None]:
    """Loaders keep no decoded frame in memory."""
    kept, loaders._CACHE_BYTES = loaders._CACHE_BYTES, 0
    try:
        yield
    finally:
        loaders._CACHE_BYTES = kept


def _load(tables: NuScenesTables, tokens: list[str], config: Config) -> Side:
    """Our samples without pillars and targets: points, pictures and boxes after augmentation."""
    spec, augment, cache = InputSpec.of(config), config.data.augment, config.data.cache
    camera = spec.camera
    assert camera is not None
    assert augment is not None
    reads = reads_of(config)
    pictures, stored = replace(spec, lidar=None), None if cache is None else FrameCache(Path(cache), tables, reads)

    def load(position: int) -> tuple[np.ndarray | None, dict[str, np.ndarray], Boxes | None]:
        rng, token = np.random.default_rng(position), tokens[position]
        recorded = tables.frame(token, reads) if stored is None else stored.frame(token)
        frame = shuffle_points(recorded.transformed(draw_similarity(rng, augment)), rng)
        sizes = {name: camera.image.shape for name, camera in frame.cameras.items()}
        affines = {name: draw_image_affine(rng, augment, size, camera.image) for name, size in sizes.items()}
        return frame.points, prepare(frame, pictures, affines), frame.boxes

    return load


def _theirs(tables: NuScenesTables, tokens: list[str], root: Path) -> dict[str, Side]:
    """mmdet3d's pipeline, with pictures as float32 and as bytes; `complete` has voxels and targets as well."""
    from centerpoints import build  # imports mmdet3d
    from mmdet3d.datasets import NuScenesDataset

    from perception.mmdet3d.annotation_file import LABELS, write

    write(root / "infos.json", tables, tokens)
    network = build().train()  # its numbers of voxels are those of training
    cameras = {name: f"samples/{name}" for name in tables.rig.sensors.cameras}

    def side(float32: bool, complete: bool) -> Side:
        data = NuScenesDataset(
            data_root=str(root),
            ann_file="infos.json",
            data_prefix={"pts": "samples/LIDAR_TOP", "sweeps": "sweeps/LIDAR_TOP", **cameras},
            modality={"use_lidar": True, "use_camera": True},
            pipeline=_pipeline(float32, LABELS),
        )

        def load(position: int) -> Any:
            sample = data[position]
            if not complete:
                return sample
            voxels = network.data_preprocessor.voxelize([sample["inputs"]["points"]], [sample["data_samples"]])
            return sample, voxels, network.pts_bbox_head.get_targets([sample["data_samples"].gt_instances_3d])

        return load

    return {
        f"mmdet3d{'' if float32 else '_uint8'}/{'complete' if complete else 'loaded'}": side(float32, complete)
        for float32 in (True, False)
        for complete in (True, False)
    }


def _pipeline(float32: bool, classes: tuple[str, ...]) -> list[dict[str, Any]]:
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
        {"type": "ObjectNameFilter", "classes": list(classes)},
        {"type": "PointShuffle"},
        {"type": "Pack3DDetInputs", "keys": ["img", "points", "gt_bboxes_3d", "gt_labels_3d"]},
    ]  # fmt: skip
