"""The figures of a network that remembers: what it gains, what it costs, and whether its motion is right."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from bench_memory import memory
from bench_networks import remembering
from bench_pandaset import pandaset
from benchmark import SHARED
from torch import Tensor

from perception.checkpoint import load_model
from perception.datasets.pandaset import PandaSet
from perception.mmdet3d.importing import import_pointpillars
from perception.model import batch_inputs
from perception.rig import load_rig
from perception.sensors.inputs import InputSpec, prepare
from perception.sensors.state import Limits, Moment, state_inputs

CONFIG = Path(__file__).parents[1] / "configs" / "kitti" / "pointpillars.yaml"
FRAMES = "002:16-32"  # of PandaSet's drive; the vehicle starts there, before it stands
GAPS = (1, 5, 10)  # frames of 0.1 s


def time(
    data: Path = SHARED / "pandaset",
    weights: Path = SHARED / "pointpillars_kitti" / "pointpillars.safetensors",
    out: Annotated[Path, typer.Option(help="Folder of the drives and runs; those that ended are not repeated.")] = Path(
        "runs/memory"
    ),
    seeds: Annotated[int, typer.Option(help="Trainings of each network.")] = 3,
) -> dict[str, Any]:
    """Gains by `bench.py memory` with LiDAR, with cameras and with both; cost; recall and motion on PandaSet's drive.

    `nds_gain_camera`, `car_nds_gain_camera` (of cars alone) and `velocity_error_ratio_camera` (of mAVE) compare joint
    training with a base of as many steps, `post_hoc_share` is the share of its gain in NDS with LiDAR that a memory on
    the frozen base has.
    `kept_without_lidar_1s` is that of the bridge, `nds_spread_over_spacing` that of the seed with the largest one.
    `latency_ratio` is the time of `tiny` with a memory to that without, in ONNX Runtime. `pandaset_recall_kept` is the
    share of the recall lost without LiDAR for 5 frames that a memory keeps; both are of the stride 1.
    `correlation`: see docs/memory.md.
    """
    lidar, camera, both = (memory(out, sensors, seeds) for sensors in ("lidar", "camera", "both"))
    recall = pandaset(data, weights, out / "pandaset", stages="outages")["outages"]
    return {
        **gains(lidar, camera),
        "latency_ratio": remembering()["latency_ratio"],
        "pandaset_recall_kept": recall["stride_1"]["kept"]["5_frames"],
        "correlation": correlation(data, weights),
        "pandaset": recall,
        "camera": camera,
        "lidar": lidar,
        "both": both,
    }


def gains(lidar: Mapping[str, Any], camera: Mapping[str, Any]) -> dict[str, float]:
    """The figures that come from `memory`'s with each of the sensors."""
    added, joint = (lidar[name]["NDS"] - lidar["base"]["NDS"] for name in ("memory", "joint"))
    spacings = [[each["NDS"] for each in seed["spacings"].values()] for seed in lidar["by_seed"]]
    return {
        "nds_gain_camera": camera["joint"]["NDS"] - camera["base"]["NDS"],
        "car_nds_gain_camera": camera["joint"]["car_NDS"] - camera["base"]["car_NDS"],
        "velocity_error_ratio_camera": camera["joint"]["mAVE"] / camera["base"]["mAVE"],
        "kept_without_lidar_1s": lidar["outages"]["1 s"]["kept"]["bridge"],
        "nds_spread_over_spacing": max(max(each) - min(each) for each in spacings),
        "post_hoc_share": added / joint,
    }


@torch.inference_mode()
def correlation(data: Path, weights: Path) -> dict[str, float]:
    """Pearson correlation of the fused features of PandaSet's frames with those of earlier frames, of KITTI's network.

    As they were, moved by the vehicle's motion as the memory does, and moved by its inverse; over the cells and
    channels that all three have from inside of the earlier map and that are not zero in all maps. Mean over the frames.
    """
    with tempfile.TemporaryDirectory() as folder:
        import_pointpillars(CONFIG, weights, Path(folder) / "kitti")
        model, config = load_model(Path(folder) / "kitti")
    spec, limits = InputSpec.of(config), Limits(seconds=1.0, speed=70.0)
    drives = PandaSet(data, load_rig("pandaset_64"), config.taxonomy)
    earlier: list[tuple[Moment, Tensor]] = []
    found: dict[str, list[float]] = {}
    for token in drives.samples(selectors=[FRAMES]):
        frame = drives.frame(token, spec.reads)
        moment = Moment.of(frame)
        features = model.next_state(batch_inputs([prepare(frame, spec)]), [frame.conditions], None)
        for gap in GAPS:
            if gap <= len(earlier):
                motion = state_inputs(earlier[-gap][0], moment, limits)["current_from_previous"][0]
                ways = {"unwarped": np.eye(4), "warped": motion, "inverse": np.linalg.inv(motion)}
                for way, value in _correlations(model.memory.layer, features, earlier[-gap][1], ways).items():
                    found.setdefault(f"{way}_{gap / 10}s", []).append(value)
                found.setdefault(f"meters_{gap / 10}s", []).append(float(np.linalg.norm(motion[:2, 3])))
        earlier = [*earlier[1 - max(GAPS) :], (moment, features)]
    return {name: round(float(np.mean(values)), 3) for name, values in found.items()}


def _correlations(layer: Any, features: Tensor, before: Tensor, ways: dict[str, np.ndarray]) -> dict[str, float]:
    """By way; `ways` are matrices (4, 4) by which the features before are moved."""
    moved = {way: layer.warp(before, torch.from_numpy(matrix)[None].float()) for way, matrix in ways.items()}
    maps = torch.cat([features, *(each for each, _ in moved.values())])
    inside = torch.cat([share for _, share in moved.values()]).amin(dim=0)[0] == 1
    seen = inside & (maps != 0).any(dim=0).any(dim=0)
    own, *others = maps[:, :, seen].flatten(1)
    return {way: float(torch.corrcoef(torch.stack([own, each]))[0, 1]) for way, each in zip(ways, others, strict=True)}
