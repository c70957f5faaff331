"""The replay's report: one HTML file that needs nothing else, to step through what was seen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import numpy as np

from deploy.manifest import Manifest
from deploy.replay import pictures
from perception.frame import CAMERAS, CLASSES, MAP_CLASSES, Boxes, Frame, Prediction
from perception.grid import BevGrid

PICTURED = 40  # keyframes with pictures, evenly spread over the replay; they make the size of the file
ABOVE_SIZE, CAMERA_WIDTH = 720, 448  # pixels
LOWEST_SCORE, MOST_BOXES = 0.05, 120  # of the detections that the page can show


class Report:
    """Collects frames as they are replayed.

    Args:
        frames: how many there will be.
    """

    def __init__(self, manifest: Manifest, target: str, frames: int) -> None:
        self.manifest, self.target = manifest, target
        self._grid = manifest.grid.build()
        self._pictured = set(np.linspace(0, frames - 1, min(frames, PICTURED)).round().astype(int).tolist())
        self._frames: list[dict[str, Any]] = []
        self._timeline: list[dict[str, Any]] = []  # every frame, also those without pictures
        self._start: dict[str, int] = {}  # timestamp of each scene's first frame

    def add(self, frame: Frame, prediction: Prediction, seconds: Mapping[str, float]) -> None:
        """The next frame, with what was perceived in it and how long each stage took."""
        since = (frame.timestamp - self._start.setdefault(frame.scene, frame.timestamp)) * 1e-6
        stages = {stage: round(value * 1e3, 2) for stage, value in seconds.items()}
        if len(self._timeline) in self._pictured:
            self._frames.append(
                {
                    "token": frame.token,
                    "scene": frame.scene,
                    "seconds": round(since, 2),
                    "location": frame.location,
                    "conditions": frame.conditions.known(),
                    "number": len(self._timeline),
                    "points": pictures.points_picture(frame, self._grid, ABOVE_SIZE),
                    "map": pictures.map_picture(prediction.map_probabilities, frame.reference),
                    "cameras": {
                        name: pictures.camera_picture(camera.image, CAMERA_WIDTH)
                        for name, camera in frame.cameras.items()
                    },
                    "predicted": _drawn(_worth_showing(prediction.boxes), frame),
                    "annotated": None if frame.boxes is None else _drawn(_annotated(frame.boxes, self._grid), frame),
                }
            )
        self._timeline.append({"scene": frame.scene, "ms": stages})

    def html(self, latency: Mapping[str, Any]) -> str:
        """The page; `latency` is Latency.summary()."""
        m = self.manifest
        low = pictures.from_above(m.grid.reference) @ np.array([m.grid.x, m.grid.y])
        data = {
            "bundle": {
                "network": m.name,
                "sensors": " + ".join(m.sensors),
                "engine": self.target,
                "precision": m.precision,
                "routes": ", ".join(m.routes),
                "modules folded": ", ".join(m.folded) or "none",
                "modules on board": ", ".join(module.name for module in m.banked) or "none",
                "parameters": f"{m.parameters:,}",
                "GFLOP per frame": f"{m.flops / 1e9:.1f}",
                "ONNX": f"opset {m.opset}, {sum(m.operators.values())} nodes, sha256 {m.files['model.onnx'][:16]}",
                "grid": f"{m.grid.x[0]:g} to {m.grid.x[1]:g} m, pillars of {m.grid.cell:g} m",
            },
            "classes": CLASSES,
            "mapClasses": [
                {"name": name, "colour": "rgb({},{},{})".format(*rgb)}
                for name, rgb in zip(MAP_CLASSES, pictures.MAP_COLOURS, strict=True)
            ]
            if m.map_classes
            else [],
            "cameras": CAMERAS,
            "cameraWidth": CAMERA_WIDTH,
            "extent": [low[0].min(), low[1].min(), np.ptp(low[0]), np.ptp(low[1])],
            "latency": latency,
            "timeline": self._timeline,
            "frames": self._frames,
        }
        page = files("deploy.replay").joinpath("page.html").read_text(encoding="utf-8")
        # "</" could end the script element that holds the data.
        return page.replace("__DATA__", json.dumps(data, separators=(",", ":")).replace("</", "<\\/"))


def _worth_showing(boxes: Boxes) -> Boxes:
    return boxes.select(np.flatnonzero(boxes.scores >= LOWEST_SCORE)[:MOST_BOXES])


def _annotated(boxes: Boxes, grid: BevGrid) -> Boxes:
    """Annotations that count: on the grid, and with a LiDAR or radar point, as the devkit scores."""
    return boxes.select(grid.inside(boxes.centers * [1, 1, 0]) & (boxes.num_points != 0))


def _drawn(boxes: Boxes, frame: Frame) -> list[dict[str, Any]]:
    """Each box as the page draws it."""
    above = pictures.outlines_from_above(boxes, frame.reference).round(2).tolist()
    moved = (np.nan_to_num(boxes.velocities[:, :2]) @ pictures.from_above(frame.reference).T).round(2).tolist()
    in_cameras = {
        name: pictures.outlines_in_camera(boxes, frame.image_from_reference(name), camera.image.shape, CAMERA_WIDTH)
        for name, camera in frame.cameras.items()
    }
    return [
        {
            "class": int(boxes.labels[i]),
            "score": round(float(boxes.scores[i]), 3),
            "above": above[i],
            "velocity": moved[i],
            "cameras": {name: paths[i] for name, paths in in_cameras.items() if paths[i]},
        }
        for i in range(len(boxes))
    ]
