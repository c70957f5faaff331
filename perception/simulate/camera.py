"""A camera's picture of a simulated moment: what covers each pixel, its colour, its light, the air and the sensor."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from perception.simulate import weather
from perception.simulate.rasterize import Faces, Spans, draw, project
from perception.simulate.scenery import Ground, GroundRaster, Snapshot, Solids
from perception.simulate.shading import Light, Surfaces, is_foliage, radiance, texture

FAR = 3000.0  # m: how far the ground reaches
GROUND_COLOURS = {
    Ground.GRASS: (98, 122, 62),
    Ground.ROAD: (92, 93, 97),
    Ground.MARKING: (225, 225, 222),
    Ground.CROSSING: (215, 215, 212),
    Ground.WALKWAY: (158, 150, 142),
    Ground.CARPARK: (112, 108, 110),
    Ground.YELLOW: (222, 178, 48),
}


@dataclass(frozen=True)
class Picture:
    """What a camera recorded, and what can be seen in it."""

    image: np.ndarray  # (H, W, 3) uint8 RGB
    owners: np.ndarray  # (H, W) int32 index of the agent at each pixel, -1 for none
    visible_share: np.ndarray  # (A,) visible pixels / pixels the agent would cover alone; NaN where it covers none


def render(
    snapshot: Snapshot,
    intrinsics: np.ndarray,
    global_from_camera: np.ndarray,
    size: tuple[int, int],
    rng: np.random.Generator,
    global_from_ego: np.ndarray | None = None,
) -> Picture:
    """What a camera records of the moment.

    intrinsics: (3, 3) pixels. global_from_camera: (4, 4), x right, y down, z forward. size: width, height.
    global_from_ego: (4, 4) pose of the vehicle whose headlights shine at night; None for a camera without one.
    """
    surfaces, owners, visible_share = _surfaces(snapshot, intrinsics, global_from_camera, size)
    light = Light.of(snapshot.weather)
    colour = _albedo(surfaces, snapshot)
    seen = radiance(surfaces, colour, snapshot, light, global_from_ego)
    alpha = weather.extinction(snapshot.weather) + weather.CLEAR_AIR
    seen = weather.koschmieder(seen, surfaces.distance, alpha, light.horizon)
    seen = weather.rain_streaks(seen, snapshot.weather.rain, intrinsics[0, 0], light.horizon, rng)
    return Picture(weather.expose(seen, light.exposure, light.gain, rng), owners, visible_share)


def _surfaces(
    snapshot: Snapshot, intrinsics: np.ndarray, global_from_camera: np.ndarray, size: tuple[int, int]
) -> tuple[Surfaces, np.ndarray, np.ndarray]:
    """What covers each pixel, owners (H, W) and visible share (A,) as in `Picture`."""
    width, height = size
    position, rotation = global_from_camera[:3, 3], global_from_camera[:3, :3]
    solids = _in_view(snapshot.solids, intrinsics, global_from_camera, size)
    faces = Faces.towards(solids, position)
    # `draw` wants the faces of one agent together.
    order = np.argsort(solids.owners[faces.solids], kind="stable")
    faces = Faces(**{f.name: getattr(faces, f.name)[order] for f in fields(Faces)})

    # A plane's 1 / depth is linear in the pixel: for n . p = d in the camera's frame, n @ inv(K) / d @ (u, v, 1).
    unproject = np.linalg.inv(intrinsics)
    in_camera = (faces.corners - position) @ rotation
    normals = faces.normals @ rotation
    outlines, kept = project(in_camera, intrinsics)
    offsets = (normals * in_camera[:, 0]).sum(axis=1)
    planes = normals[kept] @ unproject / offsets[kept, None]
    ground = -(rotation @ unproject)[2] / position[2]

    rays = _over_pixels(rotation @ unproject, width, height)  # of unit depth
    nearness = np.maximum(_over_pixels(ground[None], width, height)[0], 1 / FAR)
    owner_of_face = solids.owners[faces.solids[kept]]
    face_at, covered = draw(Spans.of(outlines, width, height), planes, owner_of_face, nearness)

    owners = np.append(owner_of_face, -1).astype(np.int32)[face_at]
    agents = len(snapshot.agent_velocities)
    visible = np.bincount(owners[owners >= 0], minlength=agents)
    alone = np.pad(covered, (0, agents - len(covered)))
    share = np.divide(visible, alone, where=alone > 0, out=np.full(agents, np.nan))

    depth = 1 / nearness
    points = rays * depth + position.astype(np.float32)[:, None, None]
    drawn = Faces(faces.corners[kept], faces.normals[kept], faces.solids[kept])
    sky = (face_at < 0) & (depth >= FAR)
    surfaces = Surfaces(solids, drawn, face_at, sky, points, rays, depth, intrinsics, global_from_camera)
    return surfaces, owners, share


def _over_pixels(rows: np.ndarray, width: int, height: int) -> np.ndarray:
    """(N, H, W) float32 values of rows (N, 3) @ (u, v, 1)."""
    a, b, c = rows.astype(np.float32).T[..., None, None]
    return a * np.arange(width, dtype=np.float32) + (b * np.arange(height, dtype=np.float32)[:, None] + c)


def _in_view(solids: Solids, intrinsics: np.ndarray, global_from_camera: np.ndarray, size: tuple[int, int]) -> Solids:
    """The solids whose bounding sphere reaches into the camera's pyramid of view."""
    centers = (solids.centers - global_from_camera[:3, 3]) @ global_from_camera[:3, :3]
    radii = np.linalg.norm(solids.sizes, axis=1) / 2
    corners = np.array([[0, 0, 1], [size[0], 0, 1], [size[0], size[1], 1], [0, size[1], 1]], np.float64)
    edges = corners @ np.linalg.inv(intrinsics).T
    inward = np.cross(edges, np.roll(edges, -1, axis=0))
    inward /= np.linalg.norm(inward, axis=1, keepdims=True)
    seen = ((centers @ inward.T) > -radii[:, None]).all(axis=1) & (centers[:, 2] > -radii)
    return Solids(**{f.name: getattr(solids, f.name)[seen] for f in fields(Solids)})


def _albedo(surfaces: Surfaces, snapshot: Snapshot) -> np.ndarray:
    """(3, H, W) float32 linear reflectance, with a grain that is fixed in the world; 0 in the sky."""
    palette = (np.array([GROUND_COLOURS[kind] for kind in Ground], np.float32) / 255) ** 2
    palette = palette + weather.wetness(snapshot.weather) * (weather.wet_albedo(palette) - palette)
    solid = surfaces.faces.solids
    painted = (surfaces.solids.colours[solid].astype(np.float32) / 255) ** 2
    table = np.concatenate([palette, painted, np.zeros((1, 3), np.float32)])

    index = surfaces.face_at + len(palette)
    index[surfaces.sky] = len(table) - 1
    albedo = table.T[:, index]
    ground = np.flatnonzero(surfaces.ground)
    x, y = surfaces.points[0].ravel()[ground], surfaces.points[1].ravel()[ground]
    kinds, albedo.reshape(3, -1)[:, ground] = _ground_paint(snapshot.ground, palette, x, y)
    index.ravel()[ground] = kinds
    # By how much the grain varies: smooth paint and cloth on agents, walls, rough leaves on what is green.
    leaves, smooth = is_foliage(surfaces.solids)[solid], surfaces.solids.owners[solid] >= 0
    ground_grain = np.full(len(palette), 0.13)
    ground_grain[Ground.GRASS] = 0.45
    grain = np.concatenate([ground_grain, np.select([smooth, leaves], [0.04, 0.75], 0.1), [0]]).astype(np.float32)
    albedo *= (1 + grain[index] * texture(surfaces)).clip(0.15)
    albedo[:, surfaces.windows > 0] = np.array([[0.03], [0.045], [0.06]], np.float32)
    return albedo


def _ground_paint(
    ground: GroundRaster, palette: np.ndarray, x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(N,) kind and (3, N) colour of the ground at each point, from the four nearest cells: an edge that runs across
    the raster is a slope, not stairs."""
    rows, columns = ground.kinds.shape
    u, v = (x - ground.origin[0]) / ground.cell - 0.5, (y - ground.origin[1]) / ground.cell - 0.5
    left, low = np.floor(u).astype(np.int32), np.floor(v).astype(np.int32)
    inside = (left >= -1) & (left < columns) & (low >= -1) & (low < rows)
    flat = ground.kinds.ravel()
    column = [(left + step).clip(0, columns - 1) for step in (0, 1)]
    row = [(low + step).clip(0, rows - 1) * columns for step in (0, 1)]
    near = np.stack([flat[r + c] for r in row for c in column])
    near[:, ~inside] = Ground.GRASS
    colour = palette.T[:, near[0]]
    mixed = np.flatnonzero((near != near[0]).any(axis=0))
    u, v = (u - left)[mixed], (v - low)[mixed]
    weights = np.stack([(1 - u) * (1 - v), u * (1 - v), (1 - u) * v, u * v])
    colour[:, mixed] = (palette.T[:, near[:, mixed]] * weights).sum(axis=1)
    return near[0], colour
