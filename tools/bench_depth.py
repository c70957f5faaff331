"""Error of the cameras' depth against the LiDAR on real keyframes, trained with and without supervision."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from perception.config import Config, find_config, load_config, parse_config
from perception.datasets.keyframes import Keyframes, Reads
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.model import PerceptionModel
from perception.pretrained import PACKAGE, PACKAGED
from perception.sensors.camera.depth import depth_labels
from perception.sensors.inputs import InputSpec, prepare
from perception.training.checkpoint import load_model
from perception.training.loop import train

TRAINED, HELD_BACK = "scene-0103:0-2", "scene-0103:2-4"
LITE0 = {"backbone": PACKAGED, "weights": PACKAGE}
# Options of `model.camera`, and of its depth.
WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "without": ({}, {}),
    "with": ({}, {"supervision": 3.0}),
    "with_intrinsics": ({}, {"supervision": 3.0, "intrinsics": True}),
    "imagenet_without": (LITE0, {}),
    "imagenet_with": (LITE0, {"supervision": 3.0}),
    "imagenet_with_intrinsics": (LITE0, {"supervision": 3.0, "intrinsics": True}),
}


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--data", type=Path, default=Path("../shared/data/nuscenes"), help="real keyframes, v1.0-mini")
    command.add_argument("--config", default="nuscenes/overfit_camera")
    command.add_argument("--steps", type=int, default=80)
    command.add_argument("--ways", default="without,with", help=f"of {','.join(WAYS)} (default: without,with)")
    command.set_defaults(run=depth)


def depth(arguments: argparse.Namespace) -> dict[str, Any]:
    """For each way to train on two keyframes: median of |depth - LiDAR| / LiDAR over the cells with points in two
    others, `expected` for the depth's expectation, `most_likely` for its most likely bin.

    `cell_median` is the error without any network: each cell's median depth in the two keyframes, where it has one.
    """
    tables = NuScenesTables(arguments.data, "v1.0-mini")
    content = load_config(find_config(arguments.config)).model_dump(mode="json")
    result: dict[str, Any] = {"steps": arguments.steps}
    for way in arguments.ways.split(","):
        config, start = _config(content, way, arguments.steps), time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            model, _ = load_model(train(config, tables, None, Path(folder)))
        result[way] = _errors(model, tables) | {"processor_seconds": round(time.process_time() - start)}
    known, seen = (np.stack([labels for _, labels in _keyframes(model, tables, part)]) for part in (TRAINED, HELD_BACK))
    places = np.broadcast_to((known > 0).any(axis=0), seen.shape)
    median = np.nanmedian(np.where(known > 0, known, np.nan)[:, places[0]], axis=0)
    filled = np.zeros(seen.shape)
    filled[places] = np.tile(median, len(seen))
    return result | {"cell_median": _relative(filled, np.where(places, seen, 0)), "cells": int((seen > 0).sum())}


def _config(content: dict[str, Any], way: str, steps: int) -> Config:
    camera, options = WAYS[way]
    own = content["model"]["camera"] | camera
    own["depth"] = own["depth"] | options
    train = content["train"] | {"steps": steps, "batch": 2, "checkpoint_every": steps}
    data = content["data"] | {"scenes": [TRAINED]}
    return parse_config(content | {"model": content["model"] | {"camera": own}, "data": data, "train": train}, way)


def _keyframes(model: PerceptionModel, tables: Keyframes, part: str) -> list[tuple[dict[str, np.ndarray], np.ndarray]]:
    """Inputs of the network, and labels (N, h, w) of its depth."""
    spec, found = InputSpec.of(model.config), []
    assert spec.camera is not None
    stride = model.camera.backbone.feature_info.reduction()[0]
    cells = (spec.camera.image.height // stride, spec.camera.image.width // stride)
    for token in tables.samples(selectors=[part]):
        frame = tables.frame(token, Reads(spec.grid.reference, sweeps=0))
        inputs = prepare(frame, spec)
        projections = inputs["image_from_reference"][0]
        found.append((inputs, depth_labels(frame.points, projections, spec.camera.image, cells, spec.camera.depth)))
    return found


def _errors(model: PerceptionModel, tables: Keyframes) -> dict[str, float]:
    bins = model.config.model.camera.depth
    centres = bins.near + (torch.arange(bins.bins) + 0.5) * (bins.far - bins.near) / bins.bins
    found = []
    for inputs, labels in _keyframes(model, tables, HELD_BACK):
        given = (torch.from_numpy(inputs[name]) for name in ("images", "image_from_reference"))
        with torch.no_grad():
            shares = model.camera(*given)[1][0].softmax(dim=1)  # N D h w
        found.append((torch.einsum("ndhw,d->nhw", shares, centres), centres[shares.argmax(dim=1)], labels))
    expected, likely, seen = (np.stack([np.asarray(each) for each in part]) for part in zip(*found, strict=True))
    return {"expected": _relative(expected, seen), "most_likely": _relative(likely, seen)}


def _relative(depths: np.ndarray, seen: np.ndarray) -> float:
    """Median of |depth - LiDAR| / LiDAR over the cells with points."""
    known = seen > 0
    return float(np.median(np.abs(depths[known] - seen[known]) / seen[known]))
