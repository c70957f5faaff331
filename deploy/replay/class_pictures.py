"""Pictures of points and voxels for the report: from above, and points in the cameras' pictures, by class.

They are rendered here instead of in the page, so that the report's size depends on the number of pixels alone.
"""

from __future__ import annotations

import numpy as np

from deploy.replay.pictures import (
    data_uri,
    extent,
    height_shades,
    indexed_png,
    painted_above,
    raster_picture,
    screen_from_reference,
)
from perception.frame import Frame
from perception.grid import BevGrid
from perception.tasks.drawing import PointLayer, RasterLayer, VoxelLayer, rgb

SHADES = 8  # of each voxel's class by height; fewer where there are many classes
DARKEST = 0.4  # share of the colour's brightness below the road
DOT = 2  # pixels, of a point in a camera's picture
NEAREST = 0.2  # m ahead of the camera


def layer_pictures(
    layer: RasterLayer | PointLayer | VoxelLayer, frame: Frame, grid: BevGrid, above: int, width: int
) -> dict[str, object]:
    """Data URIs of a layer: `above` the grid, and for points in `cameras` by name; transparent elsewhere.

    Args:
        grid: of the report's view from above.
        above: width and height of the view from above, pixels.
        width: of the cameras' pictures.
    """
    if isinstance(layer, RasterLayer):
        return {"above": raster_picture(layer), "cameras": {}}
    if isinstance(layer, VoxelLayer):
        return {"above": _uri(voxels_above(layer, frame, grid, above), shaded_colours(layer)), "cameras": {}}
    colours = np.array([rgb(colour) for colour in layer.colours.values()], np.uint8)
    seen = painted_above(layer.points, (layer.labels + 1).astype(np.uint8), frame, grid, above)
    cameras = {name: _uri(points_in_camera(layer, frame, name, width), colours) for name in frame.cameras}
    return {"above": _uri(seen, colours), "cameras": cameras}


def points_in_camera(layer: PointLayer, frame: Frame, camera: str, width: int) -> np.ndarray:
    """A picture (height, width) uint8 as of `indexed_png`: each point's label + 1, the nearest on top."""
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
    """A picture (size, size) uint8 of the topmost voxels, as of `indexed_png` with `shaded_colours`."""
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
    return data_uri("png", indexed_png(picture, colours))
