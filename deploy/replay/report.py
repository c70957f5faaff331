"""The replay's report: one HTML file that needs nothing else, to step through what was seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import numpy as np

from deploy.manifest import Manifest
from deploy.replay import pictures
from deploy.replay.fault_detection import Told
from deploy.replay.faults import Fault
from deploy.replay.latency import STAGES
from deploy.replay.page_data import as_script
from deploy.replay.timeline import Timeline
from deploy.replay.track_history import Trails
from deploy.replay.worst_frames import WITHIN, Worst, mistakes
from perception.frame import CAMERAS, CLASSES, MAP_CLASSES, Boxes, Frame
from perception.grid import BevGrid
from perception.scene.scene import SceneFrame

SPREAD = 28  # keyframes with pictures, evenly spread over the replay; they and the worst make the size of the file
ABOVE_SIZE, CAMERA_WIDTH = 640, 400  # pixels
MOST_BOXES = 80  # that the page can show
THRESHOLD = 0.3  # score from which a detection counts as one, until the reader moves the slider


class Report:
    """Collects frames as they are replayed.

    Args:
        frames: how many there will be.
        faults: that are injected.
    """

    def __init__(self, manifest: Manifest, target: str, frames: int, faults: Sequence[Fault] = ()) -> None:
        self.manifest, self.target = manifest, target
        self._grid = manifest.grid.build()
        self._spread = set(np.linspace(0, frames - 1, min(frames, SPREAD)).round().astype(int).tolist())
        self._frames: dict[int, dict[str, Any]] = {}  # those with pictures, by number
        self._milliseconds: list[list[float]] = []  # of every frame, as STAGES
        self._scenes: list[tuple[int, str]] = []  # number of each scene's first frame
        self._start = 0  # us, of the scene
        self.told = Told(faults)
        self._timeline, self._trails, self._worst = Timeline(), Trails(), Worst()

    def add(self, frame: Frame, seen: SceneFrame) -> None:
        """The next frame, with what was perceived in it; its seconds have every one of STAGES."""
        number = len(self._milliseconds)
        if not self._scenes or self._scenes[-1][1] != frame.scene:
            self._scenes.append((number, frame.scene))
            self._start = frame.timestamp
        self._milliseconds.append([round(seen.seconds[stage] * 1e3, 2) for stage in STAGES])
        self._timeline.add(number, frame, seen)
        self.told.add(frame, seen.health)
        self._trails.add(frame.scene, frame.timestamp, seen.states["detection"])
        annotated = None if frame.boxes is None else _annotated(frame.boxes, self._grid)
        if self._worst.add(number, self._badness(seen, annotated)) | (number in self._spread):
            self._frames[number] = self._pictured(number, frame, seen, annotated)
            for number in self._frames.keys() - self._spread - self._worst.numbers:
                del self._frames[number]

    def html(self, latency: Mapping[str, Any], provenance: Mapping[str, str] | None = None) -> str:
        """The page, without a verdict, which `page_data.with_verdict` adds.

        Args:
            latency: Latency.summary().
            provenance: ReplayProvenance.brief().
        """
        low = pictures.from_above(self._grid.reference) @ np.array([self._grid.x, self._grid.y])
        data = {
            "verdict": None,
            "bundle": _facts(self.manifest, self.target) | dict(provenance or {}),
            "classes": [{"name": name, "colour": pictures.BOX_COLOURS[i]} for i, name in enumerate(CLASSES)],
            "mapClasses": [
                {"name": name, "colour": "rgb({},{},{})".format(*rgb)}
                for name, rgb in zip(MAP_CLASSES, pictures.MAP_COLOURS, strict=True)
            ]
            if self.manifest.map_classes
            else [],
            "cameras": CAMERAS,
            "cameraWidth": CAMERA_WIDTH,
            "extent": [low[0].min(), low[1].min(), np.ptp(low[0]), np.ptp(low[1])],
            "threshold": [pictures.LOWEST_SCORE, THRESHOLD],
            "within": WITHIN,
            "latency": latency,
            "stages": list(STAGES),
            "milliseconds": self._milliseconds,
            "scenes": self._scenes,
            "lanes": self._timeline.lanes(),
            "told": self.told.listed(),
            "worst": self._worst.listed(),
            "frames": [self._frames[number] for number in sorted(self._frames)],
        }
        parts = files("deploy.replay").joinpath("page")
        page = parts.joinpath("page.html").read_text(encoding="utf-8")
        for name in ("style.css", "drive.js", "frame.js"):
            page = page.replace(f"__{name}__", parts.joinpath(name).read_text(encoding="utf-8"))
        return page.replace("__data__", as_script(data))

    def _badness(self, seen: SceneFrame, annotated: Boxes | None) -> dict[str, tuple[float, str]]:
        total = sum(self._milliseconds[-1])
        ill: dict[str, list[str]] = {}  # sensors by status
        for name, health in seen.health.items():
            if health.status != "ok":
                ill.setdefault(health.words, []).append(name)
        measures = {
            "slowest": (total, f"{total:.0f} ms"),
            "sensors": (
                sum(map(len, ill.values())),
                "; ".join(
                    f"{', '.join(names) if len(names) < 3 else f'{len(names)} sensors'} {status}"
                    for status, names in ill.items()
                ),
            ),
        }
        if annotated is None:
            return measures
        boxes = seen.prediction.results["detection"]
        missed, extra = mistakes(boxes.select(boxes.scores >= THRESHOLD), annotated)
        return {"mistakes": (missed + extra, f"{missed} missed, {extra} extra"), **measures}

    def _pictured(self, number: int, frame: Frame, seen: SceneFrame, annotated: Boxes | None) -> dict[str, Any]:
        return {
            "token": frame.token,
            "scene": frame.scene,
            "seconds": round((frame.timestamp - self._start) * 1e-6, 2),
            "location": frame.location,
            "conditions": frame.conditions.known(),
            "number": number,
            "points": pictures.points_picture(frame, self._grid, ABOVE_SIZE),
            "map": pictures.map_picture(seen.states.get("map"), frame.reference),
            "cameras": {
                name: pictures.camera_picture(camera.image, CAMERA_WIDTH) for name, camera in frame.cameras.items()
            },
            "predicted": _drawn(_worth_showing(seen.prediction.results["detection"]), frame),
            "annotated": None if annotated is None else _drawn(annotated, frame),
            "tracks": self._tracks(frame, seen),
            "believed": {kind: [belief.value, belief.why] for kind, belief in seen.beliefs.items()},
            "route": {name: [routed.weight, routed.why] for name, routed in seen.route.items()},
            "health": {name: [health.words, health.reasons] for name, health in seen.health.items()},
        }

    def _tracks(self, frame: Frame, seen: SceneFrame) -> list[dict[str, Any]]:
        """Each confirmed track as the page draws it, those with the best scores."""
        tracks, to_reference = seen.states["detection"], np.linalg.inv(frame.global_from_reference)
        tracks = tracks.select(tracks.confirmed)
        best = np.argsort(-tracks.boxes.scores, kind="stable")[:MOST_BOXES]
        best = best[tracks.boxes.scores[best] >= pictures.LOWEST_SCORE]
        boxes = tracks.boxes.select(best).transformed(to_reference)
        above = pictures.outlines_from_above(boxes, frame.reference).round(2).tolist()
        to_screen = pictures.from_above(frame.reference) @ to_reference[:2]
        trails = [self._trails.of(track) for track in tracks.ids[best].tolist()]
        return [
            {
                "id": int(tracks.ids[index]),
                "class": int(boxes.labels[i]),
                "score": round(float(boxes.scores[i]), 3),
                "unseen": round(float(tracks.unseen[index]), 2),
                "above": above[i],
                "trail": (trails[i] @ to_screen[:, :3].T + to_screen[:, 3]).round(1).tolist(),
            }
            for i, index in enumerate(best)
        ]


def _facts(m: Manifest, target: str) -> dict[str, str]:
    return {
        "network": m.name,
        "sensors": " + ".join(m.sensors),
        "engine": target,
        "precision": m.precision,
        "routes": ", ".join(m.routes),
        "modules folded": ", ".join(m.folded) or "none",
        "modules on board": ", ".join(module.name for module in m.banked) or "none",
        "parameters": f"{m.parameters:,}",
        "GFLOP per frame": f"{m.flops / 1e9:.1f}",
        "ONNX": f"opset {m.opset}, {sum(m.operators.values())} nodes, sha256 {m.files['model.onnx'][:16]}",
        "grid": f"{m.grid.x[0]:g} to {m.grid.x[1]:g} m, pillars of {m.grid.cell:g} m",
    }


def _worth_showing(boxes: Boxes) -> Boxes:
    return boxes.select(np.flatnonzero(boxes.scores >= pictures.LOWEST_SCORE)[:MOST_BOXES])


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
            "cameras": {name: edges[i] for name, edges in in_cameras.items() if i in edges},
        }
        for i in range(len(boxes))
    ]
