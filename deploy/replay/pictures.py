"""Draw a frame for the report: points and cells from above, camera pictures, and boxes as lines on both.

Points and voxels by class are rendered here instead of in the page, so that the report's size depends on the number of
pixels alone.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import cv2
import numpy as np

from perception.datasets.files import decode_image, jpeg_size, reduction_to
from perception.frame import Boxes, Camera, Frame, JpegFile
from perception.grid import BevGrid, Reference
from perception.scene.scene import SceneFrame
from perception.tasks.drawing import Layer, PointLayer, RasterLayer, VoxelLayer
from perception.tasks.task import Task
from perception.taxonomy import rgb

JPEG_QUALITY = 85  # in files for viewers

# Colours (RGB) of points by height above the road, from below it to 4 m.
HEIGHT_COLOURS = np.linspace((104, 126, 150), (255, 240, 205), 12).astype(np.uint8)

# Corners as `Boxes.corners` orders them: 0-3 of the front face, 4-7 of the rear; 2, 3, 6, 7 are the lower ones.
_EDGES = np.array([(0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7)])
_NEAR = 0.2  # m, distance of the near plane at which edges are clipped


def draw_layers(tasks: Mapping[str, Task[Any]], frame: Frame, seen: SceneFrame) -> Iterator[tuple[str, Layer]]:
    """Yield each task's name with each of its layers for a frame."""
    for name, task in tasks.items():
        if name in seen.prediction.results:
            for layer in task.draw(frame, seen.prediction.results[name], seen.states.get(name)):
                yield name, layer


def screen_from_reference(reference: Reference) -> np.ndarray:
    """The rotation (2, 2) from the reference frame to the screen (x right, y down), with the vehicle facing up."""
    return np.array([[0.0, -1], [-1, 0]]) if reference == "ego" else np.array([[1.0, 0], [0, -1]])


def points_picture(frame: Frame, grid: BevGrid, size: int) -> str | None:
    """Data URI of the keyframe's points from above, coloured by height, transparent elsewhere; None without LiDAR."""
    if frame.points is None:
        return None
    points = frame.keyframe_points
    shades = height_shades(points, frame, len(HEIGHT_COLOURS))
    return data_uri("png", encode_indexed_png(paint_above(points, shades + 1, frame, grid, size), HEIGHT_COLOURS))


def paint_above(points: np.ndarray, colours: np.ndarray, frame: Frame, grid: BevGrid, size: int) -> np.ndarray:
    """A picture (size, size) uint8 of the grid from above: 0, and at each point its colour, the highest on top.

    Points (N, >=3), with colours (N,) uint8, are in the frame's reference; those outside the grid are left out.
    """
    inside = grid.inside(points)
    points, colours = points[inside], colours[inside]
    order = np.argsort(heights(points, frame), kind="stable")  # of a pixel's points the last one stays
    low, span = extent(grid)
    screen = points[order, :2] @ screen_from_reference(frame.reference).T
    pixels = np.clip(((screen - low) / span * size).astype(int), 0, size - 1)
    picture = np.zeros((size, size), np.uint8)
    picture[pixels[:, 1], pixels[:, 0]] = colours[order]
    return picture


def heights(points: np.ndarray, frame: Frame) -> np.ndarray:
    """(N,) m above the road of points (N, >=3) in the frame's reference."""
    ego_from_reference = np.linalg.inv(frame.global_from_ego) @ frame.global_from_reference
    above: np.ndarray = points[:, :3] @ ego_from_reference[2, :3] + ego_from_reference[2, 3]
    return above


def height_shades(points: np.ndarray, frame: Frame, shades: int) -> np.ndarray:
    """(N,) uint8 shade of points (N, >=3), from 0 below the road to `shades` - 1 at 4 m above it."""
    share = (heights(points, frame) + 0.5) / 4.5
    return np.clip(share * shades, 0, shades - 1).astype(np.uint8)


def encode_indexed_png(picture: np.ndarray, colours: np.ndarray) -> bytes:
    """PNG of a picture (H, W) uint8 of colour indices, W even: 0 is transparent, i is colours[i - 1], (C, 3) uint8 RGB.

    OpenCV cannot write indices: 20 times as fast as RGBA, and half the size. A pixel has 4 bits if C < 16, else 8.
    """
    height, width = picture.shape
    bits = 4 if len(colours) < 16 else 8
    lines = np.zeros((height, 1 + width * bits // 8), np.uint8)  # each line starts with 0: no filter
    lines[:, 1:] = picture if bits == 8 else picture[:, ::2] << 4 | picture[:, 1::2]
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, bits, 3, 0, 0, 0),  # 3: indexed colours
        b"PLTE": bytes(3) + colours.tobytes(),
        b"tRNS": b"\0",  # the opacity of colour 0; others are opaque
        b"IDAT": zlib.compress(lines.tobytes(), 3),
        b"IEND": b"",
    }
    parts = [
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks.items()
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def raster_colours(layer: RasterLayer) -> np.ndarray:
    """The colours (rows, columns, 4) uint8 RGBA of a layer's cells."""
    cells = layer.probabilities.shape[1:]
    colour, opacity = np.zeros((*cells, 3)), np.zeros(cells)
    for probability, own in zip(layer.probabilities, layer.colours.values(), strict=True):
        alpha = np.round(np.clip((probability - 0.25) / 0.5, 0, 1) * 8) / 8  # few levels compress well
        opacity_below = opacity * (1 - alpha)
        opacity = alpha + opacity_below
        weights = np.divide(alpha, opacity, out=np.zeros_like(alpha), where=opacity > 0)
        colour += weights[..., None] * (np.array(rgb(own)) - colour)
    return np.concatenate([colour, 255 * opacity[..., None]], axis=-1).astype(np.uint8)


def raster_picture(layer: RasterLayer) -> str:
    """Data URI of a layer's cells in raster_colours, in screen orientation."""
    picture = raster_colours(layer)[..., [2, 1, 0, 3]]
    picture = picture[::-1, ::-1].transpose(1, 0, 2) if layer.grid.reference == "ego" else picture[::-1]
    _, content = cv2.imencode(".png", picture, [cv2.IMWRITE_PNG_COMPRESSION, 3])
    return data_uri("png", content.tobytes())


def reduce_frame(frame: Frame, width: int) -> Frame:
    """The frame with no more than its pictures are drawn from: the keyframe's points, and of each camera a JPEG file.

    The cameras have black images of the recorded size, which take no memory. Pictures without a recorded file are
    `width` pixels wide.
    """
    cameras = {}
    for name, camera in frame.cameras.items():
        black = np.broadcast_to(np.uint8(0), camera.image.shape)
        cameras[name] = replace(camera, image=black, file=JpegFile(camera.jpeg or small_jpeg(camera, width), black))
    frame = frame if frame.points is None else frame.select_points(frame.of_keyframe)
    return replace(frame, cameras=cameras, truth={})


def small_jpeg(camera: Camera, width: int, reduced: bool = False) -> bytes:
    """A camera's picture as a JPEG file, `width` pixels wide; a recorded file that is not wider is taken as it is.

    The image of one that is `reduced` by `reduce_frame` is black.
    """
    content, image = camera.jpeg, camera.image
    if content is not None and jpeg_size(content)[0] <= width:
        return content
    if content is not None and reduced:
        image = decode_image(content, reduction_to(content, width))
    height = round(image.shape[0] * width / image.shape[1])
    return _encode_jpeg(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), 66)


def jpeg(camera: Camera) -> bytes:
    """A camera's picture as a JPEG file: the recorded one if it has this image."""
    return camera.jpeg or _encode_jpeg(camera.image, JPEG_QUALITY)


def _encode_jpeg(image: np.ndarray, quality: int) -> bytes:
    _, content = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return content.tobytes()


def box_outlines(boxes: Boxes, reference: Reference) -> np.ndarray:
    """The ground corners of each box from front left on, its centre and its front's: (N, 6, 2) m on the screen."""
    corners = boxes.corners()[..., :2]
    ground = corners[:, [3, 2, 6, 7]]
    middle, front = ground.mean(axis=1, keepdims=True), ground[:, :2].mean(axis=1, keepdims=True)
    outlines: np.ndarray = np.concatenate([ground, middle, front], axis=1) @ screen_from_reference(reference).T
    return outlines


def box_edges(boxes: Boxes, projection: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Edges of boxes, clipped at the near plane, in a recorded picture of this shape (H, W, ...).

    Returns:
        (N, 12, 2, 2) x y of each edge's ends in recorded pixels, NaN for an edge behind the camera; and (N,) bool,
        whether the box is in the picture.
    """
    corners = np.concatenate([boxes.corners(), np.ones((len(boxes), 8, 1))], axis=-1) @ projection.T  # u*d, v*d, d
    edges, inside = np.full((len(boxes), 12, 2, 2), np.nan), np.zeros(len(boxes), bool)
    before = np.flatnonzero((corners[..., 2] >= _NEAR).any(axis=1))  # at least partly in front of the camera
    start, end = corners[before[:, None], _EDGES[:, 0]], corners[before[:, None], _EDGES[:, 1]]  # (M, 12, 3)
    start, end = _clip_edge(start, end), _clip_edge(end, start)
    found = np.stack([start[..., :2] / start[..., 2:], end[..., :2] / end[..., 2:]], axis=2)
    low, high = np.nanmin(found, axis=(1, 2)), np.nanmax(found, axis=(1, 2))
    edges[before] = found
    inside[before] = (low < np.array(shape[1::-1])).all(axis=1) & (high > 0).all(axis=1)
    return edges, inside


def box_edges_resized(boxes: Boxes, projection: np.ndarray, shape: tuple[int, ...], width: int) -> dict[int, list[int]]:
    """For each box in a picture that is resized to `width`: x1 y1 x2 y2 of all its edges in one list."""
    edges, inside = box_edges(boxes, projection, shape)
    index = np.flatnonzero(inside)
    pixels = np.rint(np.clip(edges[index] * (width / shape[1]), -4 * width, 5 * width)).reshape(-1, 12, 4)
    seen = ~np.isnan(pixels[..., 0])
    return {
        i: each[there].ravel().astype(int).tolist() for i, each, there in zip(index.tolist(), pixels, seen, strict=True)
    }


def _clip_edge(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """`start`, moved along the edge to the near plane if it is behind it; NaN if the whole edge is."""
    with np.errstate(invalid="ignore", divide="ignore"):
        share = (_NEAR - start[..., 2:]) / (end[..., 2:] - start[..., 2:])
        moved = start + share * (end - start)
    behind, both = start[..., 2:] < _NEAR, (start[..., 2:] < _NEAR) & (end[..., 2:] < _NEAR)
    return np.where(both, np.nan, np.where(behind, moved, start))


def extent(grid: BevGrid) -> tuple[np.ndarray, np.ndarray]:
    """Low corner and size of the grid on the screen, m."""
    ranges = np.array([grid.x, grid.y])
    corners = np.stack([ranges[:, 0], ranges[:, 1]]) @ screen_from_reference(grid.reference).T
    return corners.min(axis=0), np.abs(corners[1] - corners[0])


def data_uri(kind: str, content: bytes) -> str:
    """A picture's file as an address for a page; kind: png or jpeg."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


SHADES = 8  # of each voxel's class by height; fewer where there are many classes
DARKEST = 0.4  # share of the colour's brightness below the road
DOT = 2  # pixels, of a point in a camera's picture
NEAREST = 0.2  # m ahead of the camera


def layer_pictures(
    layer: RasterLayer | PointLayer | VoxelLayer, frame: Frame, grid: BevGrid, above: int, width: int
) -> dict[str, object]:
    """Data URIs of a layer: `above` the grid, and for points in `cameras` by name; transparent elsewhere.

    The view from above and the cameras' pictures have so many pixels.
    """
    if isinstance(layer, RasterLayer):
        return {"above": raster_picture(layer), "cameras": {}}
    if isinstance(layer, VoxelLayer):
        return {"above": _uri(voxels_above(layer, frame, grid, above), shaded_colours(layer)), "cameras": {}}
    colours = np.array([rgb(colour) for colour in layer.colours.values()], np.uint8)
    seen = paint_above(layer.points, (layer.labels + 1).astype(np.uint8), frame, grid, above)
    cameras = {name: _uri(points_in_camera(layer, frame, name, width), colours) for name in frame.cameras}
    return {"above": _uri(seen, colours), "cameras": cameras}


def points_in_camera(layer: PointLayer, frame: Frame, camera: str, width: int) -> np.ndarray:
    """A picture (height, width) uint8 as of `encode_indexed_png`: each point's label + 1, the nearest on top."""
    rows, columns = frame.cameras[camera].image.shape[:2]
    height = round(rows * width / columns)
    projection = frame.image_from_reference(camera)
    seen = layer.points[:, :3] @ projection[:, :3].T + projection[:, 3]  # u*d, v*d, d
    ahead = seen[:, 2] > NEAREST
    seen, labels = seen[ahead], layer.labels[ahead]
    order = np.argsort(-seen[:, 2], kind="stable")
    corner = np.floor(seen[order, :2] / seen[order, 2:] * (width / columns))
    dots = corner[:, None] + [(x, y) for y in range(DOT) for x in range(DOT)]  # (N, DOT * DOT, 2) x y
    inside = ((dots >= 0) & (dots < (width, height))).all(axis=2)
    x, y = dots[inside].astype(int).T
    picture = np.zeros((height, width), np.uint8)
    picture[y, x] = np.repeat(labels[order] + 1, DOT * DOT)[inside.ravel()]
    return picture


def voxels_above(layer: VoxelLayer, frame: Frame, grid: BevGrid, size: int) -> np.ndarray:
    """A picture (size, size) uint8 of the topmost voxels, as of `encode_indexed_png` with `shaded_colours`."""
    if not len(layer.centers):
        return np.zeros((size, size), np.uint8)
    low, centers = layer.centers.min(axis=0).astype(np.float64), layer.centers.astype(np.float64)
    column, row = np.rint((centers - low)[:, :2] / layer.edges[:2]).astype(int).T
    shades = _shades(layer)
    colours = layer.labels * shades + height_shades(centers, frame, shades) + 1
    cells = np.zeros((row.max() + 3, column.max() + 3), np.uint8)  # nothing around
    order = np.argsort(centers[:, 2], kind="stable")
    cells[row[order] + 1, column[order] + 1] = colours[order]
    # The cell of each pixel's centre.
    start, span = extent(grid)
    pixels = (np.arange(size) + 0.5)[:, None] / size * span + start  # x and y on the screen
    screen = np.stack(np.meshgrid(pixels[:, 0], pixels[:, 1]), axis=-1)
    places = screen @ screen_from_reference(frame.reference)
    index = np.floor((places - low[:2]) / layer.edges[:2] + 0.5).astype(int) + 1
    index = np.clip(index, 0, (cells.shape[1] - 1, cells.shape[0] - 1))
    return np.asarray(cells[index[..., 1], index[..., 0]])


def shaded_colours(layer: VoxelLayer) -> np.ndarray:
    """(classes x shades, 3) uint8: the colour of each class from dark to bright."""
    colours = np.array([rgb(colour) for colour in layer.colours.values()], np.float64)
    brightness = np.linspace(DARKEST, 1, _shades(layer))
    return np.rint(colours[:, None] * brightness[:, None]).astype(np.uint8).reshape(-1, 3)


def _shades(layer: VoxelLayer) -> int:
    return max(1, min(SHADES, 255 // len(layer.colours)))


def _uri(picture: np.ndarray, colours: np.ndarray) -> str:
    return data_uri("png", encode_indexed_png(picture, colours))
