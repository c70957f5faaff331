"""The report of a replay: a single HTML file to step through the frames.

Its data is JSON in a script element, in which the verdict can be replaced.
"""

from __future__ import annotations

import json
from collections import defaultdict, deque
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from deploy.manifest import Manifest
from deploy.replay import pictures
from deploy.replay.latency import STAGES
from deploy.replay.pictures import layer_pictures
from deploy.replay.timeline import Timeline, WorstFrames
from perception.frame import Boxes, Frame
from perception.grid import BevGrid
from perception.page import as_script, single_file
from perception.rig import order_by_view
from perception.scene.scene import SceneFrame
from perception.tasks.drawing import COUNTED_SCORE, LOWEST_SCORE, BoxLayer, Layer, PointLayer, RasterLayer, VoxelLayer
from perception.tasks.task import Task

LENGTH = 4.0  # s
STEP = 0.4  # s, the least time between positions of a trail


class Trails:
    """The positions of a layer's boxes in the last LENGTH seconds of a drive, in the global frame."""

    def __init__(self) -> None:
        self._scene = ""
        self._positions: deque[tuple[int, dict[str, np.ndarray]]] = deque()  # us; id -> (3,) m

    def add(self, scene: str, timestamp: int, layer: BoxLayer) -> None:
        """Add the layer of the next frame; a new drive clears the history."""
        if scene != self._scene:
            self._scene = scene
            self._positions.clear()
        while self._positions and timestamp - self._positions[0][0] > LENGTH * 1e6:
            self._positions.popleft()
        if not self._positions or timestamp - self._positions[-1][0] >= STEP * 1e6:
            self._positions.append((timestamp, dict(zip(layer.ids, layer.boxes.centers, strict=True))))

    def positions(self, track: str) -> np.ndarray:
        """The positions (P, 3) in m of the box with this id, oldest first."""
        return np.array([centers[track] for _, centers in self._positions if track in centers]).reshape(-1, 3)


ABOVE_SIZE, CAMERA_WIDTH = 640, 400  # pixels
MOST_BOXES = 80  # of a layer in a frame, except annotations
_STYLES = {RasterLayer: "raster", PointLayer: "points", VoxelLayer: "voxels"}  # on the page


class PageFrames:
    """Frames with pictures, by number. Pictures of a frame that later ones may displace are drawn at the end.

    `layers` has by name what is equal in all frames.
    """

    def __init__(self, tasks: Mapping[str, Task[Any]], grid: BevGrid) -> None:
        self.layers: dict[str, dict[str, Any]] = {}
        self._tasks, self._grid = tasks, grid
        self._pages: dict[int, dict[str, Any]] = {}  # as JSON
        self._undrawn: dict[int, tuple[Frame, Sequence[Layer]]] = {}  # frames that are `reduce_frame`
        self._trails = defaultdict[str, Trails](Trails)  # by the layer's name

    def layers_of(self, frame: Frame, seen: SceneFrame) -> list[Layer]:
        """The layers of the next frame; stores their descriptions and the positions of tracked boxes."""
        found = []
        for task, layer in pictures.draw_layers(self._tasks, frame, seen):
            if layer.name not in self.layers:
                self.layers[layer.name] = _describe_layer(task, layer)
            if isinstance(layer, BoxLayer) and layer.style == "tracked":
                self._trails[layer.name].add(frame.scene, frame.timestamp, layer)
            found.append(layer)
        return found

    def add(self, page: dict[str, Any], frame: Frame, layers: Sequence[Layer], stays: bool) -> None:
        """Add the frame of the last `layers_of`; its page gets boxes and pictures, at once if it stays."""
        page["layers"] = {each.name: self._boxes(each, frame) for each in layers if isinstance(each, BoxLayer)}
        self._pages[page["number"]] = page
        if stays:
            self._draw(page, frame, layers)
        else:
            self._undrawn[page["number"]] = pictures.reduce_frame(frame, CAMERA_WIDTH), layers

    def keep(self, numbers: Collection[int]) -> None:
        for number in self._pages.keys() - set(numbers):
            del self._pages[number]
            self._undrawn.pop(number, None)

    def drawn(self) -> list[dict[str, Any]]:
        for number, (frame, layers) in self._undrawn.items():
            self._draw(self._pages[number], frame, layers, reduced=True)
        self._undrawn.clear()
        return [self._pages[number] for number in sorted(self._pages)]

    def join(self, frames: Sequence[Mapping[str, Any]], first: int) -> None:
        """Add the drawn frames of later drives, whose frames are counted from `first` on."""
        self._pages |= {first + each["number"]: {**each, "number": first + each["number"]} for each in frames}

    def _draw(self, page: dict[str, Any], frame: Frame, layers: Sequence[Layer], reduced: bool = False) -> None:
        page["points"] = pictures.points_picture(frame, self._grid, ABOVE_SIZE)
        page["cameras"] = {
            name: pictures.data_uri("jpeg", pictures.small_jpeg(camera, CAMERA_WIDTH, reduced))
            for name, camera in frame.cameras.items()
        }
        page["layers"] |= {
            each.name: layer_pictures(each, frame, self._grid, ABOVE_SIZE, CAMERA_WIDTH)
            for each in layers
            if not isinstance(each, BoxLayer)
        }

    def _boxes(self, layer: BoxLayer, frame: Frame) -> list[dict[str, Any]]:
        layer, to_reference = self._worth_showing(layer), np.linalg.inv(frame.global_from_reference)
        tracked = layer.style == "tracked"
        boxes = layer.boxes.transformed(to_reference) if tracked else layer.boxes
        above = pictures.box_outlines(boxes, frame.reference).round(2).tolist()
        more = self._with_trails(layer, frame, to_reference) if tracked else _in_pictures(boxes, frame)
        return [
            {"class": int(label), "score": round(float(score), 3), "above": outline, **each}
            for label, score, outline, each in zip(boxes.labels, boxes.scores, above, more, strict=True)
        ]

    def _worth_showing(self, layer: BoxLayer) -> BoxLayer:
        """The annotations in the visible area, or the other boxes with the best scores."""
        index = np.flatnonzero(layer.shown)
        if layer.style == "annotated":
            return layer.select(index[self._grid.inside(layer.boxes.centers[index] * [1, 1, 0])])
        return layer.select(index[np.argsort(-layer.boxes.scores[index], kind="stable")[:MOST_BOXES]])

    def _with_trails(self, layer: BoxLayer, frame: Frame, to_reference: np.ndarray) -> list[dict[str, Any]]:
        to_screen = pictures.screen_from_reference(frame.reference) @ to_reference[:2]
        faded = np.zeros(len(layer.ids), bool) if layer.faded is None else layer.faded
        trails = [self._trails[layer.name].positions(each) @ to_screen[:, :3].T + to_screen[:, 3] for each in layer.ids]
        return [
            {"id": text, "faded": bool(unseen), "trail": trail.round(1).tolist()}
            for text, unseen, trail in zip(layer.details, faded, trails, strict=True)
        ]


def _describe_layer(task: str, layer: Layer) -> dict[str, Any]:
    """A layer's data for the page that is equal in all frames: checkbox, legend and style."""
    style, within = (layer.style, layer.within) if isinstance(layer, BoxLayer) else (_STYLES[type(layer)], None)
    classes = [{"name": name, "colour": colour} for name, colour in layer.colours.items()]
    return {"name": layer.name, "task": task, "style": style, "within": within, "classes": classes}


def _in_pictures(boxes: Boxes, frame: Frame) -> list[dict[str, Any]]:
    """The movement of each box in 1 s, and its edges in the cameras' pictures."""
    moved = (
        (np.nan_to_num(boxes.velocities[:, :2]) @ pictures.screen_from_reference(frame.reference).T).round(2).tolist()
    )
    edges = {
        name: pictures.box_edges_resized(boxes, frame.image_from_reference(name), camera.image.shape, CAMERA_WIDTH)
        for name, camera in frame.cameras.items()
    }
    return [
        {"velocity": velocity, "cameras": {name: each[i] for name, each in edges.items() if i in each}}
        for i, velocity in enumerate(moved)
    ]


EVENLY = 28  # frames with pictures, evenly spread over the replay; with the worst frames they make up the file's size


class DriveRange(NamedTuple):
    """The place of a drive in a replay, in expected numbers of frames."""

    first: int  # before it
    frames: int
    total: int  # of the replay

    @property
    def evenly(self) -> set[int]:
        """The frames of the drive, counted from 0, that are among EVENLY of the replay's at even distances."""
        numbers = np.linspace(0, self.total - 1, min(self.total, EVENLY)).round().astype(int) - self.first
        return set(numbers[(numbers >= 0) & (numbers < self.frames)].tolist())


NO_DRIVE = DriveRange(0, 0, 0)


class Report:
    """Collects replayed frames; without a place in the replay it is for `join`."""

    def __init__(self, manifest: Manifest, target: str, place: DriveRange = NO_DRIVE) -> None:
        self.manifest, self.target = manifest, target
        self._grid = manifest.grid.build()
        self._spread = place.evenly
        self._milliseconds: list[list[float]] = []  # of every frame, as STAGES
        self._scenes: list[tuple[int, str]] = []  # number of each scene's first frame
        self._start = 0  # us, of the scene
        self._timeline, self._worst = Timeline(), WorstFrames()
        self._tasks = manifest.heads
        self._frames = PageFrames(manifest.heads, self._grid)
        # By camera, from its first picture: the yaw of its optical axis in the ego frame, and its height on the page.
        self._yaws: dict[str, float] = {}
        self._heights: dict[str, int] = {}

    def add(self, frame: Frame, seen: SceneFrame) -> None:
        """Add the next frame and what was perceived in it; `seen.seconds` must have all STAGES."""
        number = len(self._milliseconds)
        if not self._scenes or self._scenes[-1][1] != frame.scene:
            self._scenes.append((number, frame.scene))
            self._start = frame.timestamp
        self._milliseconds.append([round(seen.seconds[stage] * 1e3, 2) for stage in STAGES])
        self._timeline.add(number, frame, seen)
        for name, camera in frame.cameras.items():
            ahead = camera.ego_from_camera[:2, 2]
            self._yaws.setdefault(name, float(np.arctan2(ahead[1], ahead[0])))
            self._heights.setdefault(name, round(camera.image.shape[0] * CAMERA_WIDTH / camera.image.shape[1]))
        layers = self._frames.layers_of(frame, seen)
        if self._worst.add(number, self._ratings(frame, seen)) | (number in self._spread):
            self._frames.add(self._page(number, frame, seen), frame, layers, number in self._spread)
            self._keep_only_shown()

    def _keep_only_shown(self) -> None:
        self._frames.keep(self._spread | self._worst.numbers)

    def part(self) -> dict[str, Any]:
        """What was collected, as JSON, for `join`."""
        return {
            "spread": sorted(self._spread),
            "frames": self._frames.drawn(),
            "milliseconds": self._milliseconds,
            "scenes": self._scenes,
            "lanes": self._timeline.lanes(),
            "worst": self._worst.part(),
            "layers": list(self._frames.layers.values()),
            "yaws": self._yaws,
            "heights": self._heights,
        }

    def join(self, part: Mapping[str, Any]) -> None:
        """Append the frames of later drives."""
        first = len(self._milliseconds)
        self._spread |= {first + number for number in part["spread"]}
        self._frames.join(part["frames"], first)
        self._milliseconds += part["milliseconds"]
        self._scenes += [(first + number, name) for number, name in part["scenes"]]
        self._timeline.join(part["lanes"], first)
        self._worst.join(part["worst"], first)
        layers = {each["name"]: each for each in part["layers"]}
        known: tuple[tuple[dict[str, Any], Mapping[str, Any]], ...] = (
            (self._frames.layers, layers),
            (self._yaws, part["yaws"]),
            (self._heights, part["heights"]),
        )
        for own, others in known:
            for name, each in others.items():
                own.setdefault(name, each)
        self._keep_only_shown()

    def html(
        self,
        latency: Mapping[str, Any],
        provenance: Mapping[str, str] | None = None,
        faults: Sequence[Mapping[str, Any]] = (),
    ) -> str:
        """The page without a verdict, which `with_verdict` adds.

        Of Latency.summary(), ReplayProvenance.brief() and FaultDetections.to_rows().
        """
        low = pictures.screen_from_reference(self._grid.reference) @ np.array([self._grid.x, self._grid.y])
        data = {
            "verdict": None,
            "bundle": _bundle_facts(self.manifest, self.target) | dict(provenance or {}),
            "layers": list(self._frames.layers.values()),
            "lidars": self.manifest.rig.sensors.lidars,
            "cameras": self._arrange_cameras(),
            "cameraWidth": CAMERA_WIDTH,
            "cameraHeights": self._heights,
            "extent": [low[0].min(), low[1].min(), np.ptp(low[0]), np.ptp(low[1])],
            "threshold": [LOWEST_SCORE, COUNTED_SCORE],
            "latency": latency,
            "stages": list(STAGES),
            "milliseconds": self._milliseconds,
            "scenes": self._scenes,
            "lanes": self._timeline.lanes(),
            "faults": faults,
            "worst": self._worst.to_rows(),
            "frames": self._frames.drawn(),
        }
        return single_file("deploy.replay", "Replay", data)

    def _arrange_cameras(self) -> list[list[str]]:
        """The rig's cameras as rows of the page, as they look; those without a picture come last."""
        front, rear = order_by_view(self._yaws)
        rear += [name for name in self.manifest.rig.sensors.cameras if name not in self._yaws]
        return [row for row in (front, rear) if row]

    def _ratings(self, frame: Frame, seen: SceneFrame) -> dict[str, tuple[float, str]]:
        total = sum(self._milliseconds[-1])
        faulty: dict[str, list[str]] = {}  # sensors by status
        for name, health in seen.health.items():
            if health.status != "ok":
                faulty.setdefault(health.words, []).append(name)
        ratings: dict[str, tuple[float, str]] = {
            "slowest": (total, f"{total:.0f} ms"),
            "sensors": (
                sum(map(len, faulty.values())),
                "; ".join(
                    f"{', '.join(names) if len(names) < 3 else f'{len(names)} sensors'} {status}"
                    for status, names in faulty.items()
                ),
            ),
        }
        results = seen.prediction.results
        found = [task.mistakes(frame, results[name]) for name, task in self._tasks.items() if name in results]
        mistakes = [each for each in found if each is not None]
        if mistakes:
            ratings["mistakes"] = sum(number for number, _ in mistakes), "; ".join(text for _, text in mistakes)
        return ratings

    def _page(self, number: int, frame: Frame, seen: SceneFrame) -> dict[str, Any]:
        return {
            "token": frame.token,
            "scene": frame.scene,
            "seconds": round((frame.timestamp - self._start) * 1e-6, 2),
            "location": frame.location,
            "conditions": frame.conditions.known(),
            "number": number,
            "believed": {kind: [belief.value, belief.why] for kind, belief in seen.beliefs.items()},
            "route": {name: [routed.weight, routed.why] for name, routed in seen.route.items()},
            "doubts": seen.doubts,
            "health": {name: [health.words, health.reasons] for name, health in seen.health.items()},
        }


def _bundle_facts(m: Manifest, target: str) -> dict[str, str]:
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
        "ONNX": f"opset {m.opset}, {sum(m.operators.values())} nodes",
        "grid": f"{m.grid.x[0]:g} to {m.grid.x[1]:g} m, pillars of {m.grid.cell:g} m",
    }


_START, _END = '<script id="data" type="application/json">', "</script>"


def with_verdict(page: str, verdict: Mapping[str, Any]) -> str:
    """The page with this verdict (Verdict.as_dict()); unchanged if it has no data element."""
    before, start, rest = page.partition(_START)
    data, end, after = rest.partition(_END)
    if not end:
        return page
    return before + start + as_script(json.loads(data) | {"verdict": verdict}) + end + after
