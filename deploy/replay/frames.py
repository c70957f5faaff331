"""The frames of a page to step through: their boxes, pictures and layers."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from deploy.replay import pictures
from deploy.replay.pictures import layer_pictures
from perception.frame import Boxes, Frame
from perception.grid import BevGrid
from perception.rig import Sensors, order_by_view
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
    """Frames with pictures, by number. Pictures of a frame that later ones may displace are drawn at the end."""

    def __init__(self, tasks: Mapping[str, Task[Any]], grid: BevGrid, sensors: Sensors) -> None:
        self._layers: dict[str, dict[str, Any]] = {}  # by name what is equal in all frames
        self._tasks, self._grid, self._sensors = tasks, grid, sensors
        # By camera, from its first picture: the yaw of its optical axis in the ego frame, and its height on the page.
        self._yaws: dict[str, float] = {}
        self._heights: dict[str, int] = {}
        self._pages: dict[int, dict[str, Any]] = {}  # as JSON
        self._undrawn: dict[int, tuple[Frame, Sequence[Layer]]] = {}  # frames that are `reduce_frame`
        self._trails = defaultdict[str, Trails](Trails)  # by the layer's name

    def layers_of(self, frame: Frame, seen: SceneFrame) -> list[Layer]:
        """The layers of the next frame; stores their descriptions, the cameras', and the positions of tracked boxes."""
        for name, camera in frame.cameras.items():
            ahead = camera.ego_from_camera[:2, 2]
            self._yaws.setdefault(name, float(np.arctan2(ahead[1], ahead[0])))
            self._heights.setdefault(name, round(camera.image.shape[0] * CAMERA_WIDTH / camera.image.shape[1]))
        found = []
        for task, layer in pictures.draw_layers(self._tasks, frame, seen):
            if layer.name not in self._layers:
                self._layers[layer.name] = _describe_layer(task, layer)
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

    def part(self) -> dict[str, Any]:
        """The drawn frames, and what is equal in all of them, as JSON, for `join`."""
        return {
            "frames": self._drawn(),
            "layers": list(self._layers.values()),
            "yaws": self._yaws,
            "heights": self._heights,
        }

    def join(self, part: Mapping[str, Any], first: int) -> None:
        """Add the `part` of later drives, whose frames are counted from `first` on."""
        frames = part["frames"]
        self._pages |= {first + each["number"]: {**each, "number": first + each["number"]} for each in frames}
        self._layers = {each["name"]: each for each in part["layers"]} | self._layers
        self._yaws, self._heights = part["yaws"] | self._yaws, part["heights"] | self._heights

    def data(self) -> dict[str, Any]:
        """Return the frames as the JSON that the page draws."""
        low = pictures.screen_from_reference(self._grid.reference) @ np.array([self._grid.x, self._grid.y])
        return {
            "layers": list(self._layers.values()),
            "lidars": self._sensors.lidars,
            "cameras": self._arrange_cameras(),
            "cameraWidth": CAMERA_WIDTH,
            "cameraHeights": self._heights,
            "extent": [low[0].min(), low[1].min(), np.ptp(low[0]), np.ptp(low[1])],
            "threshold": [LOWEST_SCORE, COUNTED_SCORE],
            "frames": self._drawn(),
        }

    def _arrange_cameras(self) -> list[list[str]]:
        """The rig's cameras as rows of the page, as they look; those without a picture come last."""
        front, rear = order_by_view(self._yaws)
        rear += [name for name in self._sensors.cameras if name not in self._yaws]
        return [row for row in (front, rear) if row]

    def _drawn(self) -> list[dict[str, Any]]:
        for number, (frame, layers) in self._undrawn.items():
            self._draw(self._pages[number], frame, layers, reduced=True)
        self._undrawn.clear()
        return [self._pages[number] for number in sorted(self._pages)]

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


def page_of(number: int, frame: Frame, seen: SceneFrame, start: int) -> dict[str, Any]:
    """A frame's data for the page without layers and pictures; `start` is the time (us) of its drive's first frame."""
    return {
        "token": frame.token,
        "scene": frame.scene,
        "seconds": round((frame.timestamp - start) * 1e-6, 2),
        "location": frame.location,
        "conditions": frame.conditions.known(),
        "number": number,
        "believed": {kind: [belief.value, belief.why] for kind, belief in seen.beliefs.items()},
        "route": {name: [routed.weight, routed.why] for name, routed in seen.route.items()},
        "doubts": seen.doubts,
        "health": {name: [health.words, health.reasons] for name, health in seen.health.items()},
    }


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
