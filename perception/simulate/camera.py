"""Camera rendering: rasterization, surface colour, lighting, atmosphere and sensor noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from perception.simulate import weather_effects
from perception.simulate.rasterize import Faces, Spans, draw, project
from perception.simulate.shading import Light, Surfaces, is_foliage, radiance, texture
from perception.simulate.snapshot import Ground, GroundRaster, Snapshot, Solids

FAR = 3000.0  # m, extent of the ground


@dataclass(frozen=True)
class Rendering:
    """A camera image with the agents in it."""

    image: np.ndarray  # (H, W, 3) uint8 RGB
    owners: np.ndarray  # (H, W) int32 index of the agent at each pixel, -1 for none
    visible_share: np.ndarray  # (A,) visible pixels / pixels without occlusion; NaN for an agent outside the image


def render(
    snapshot: Snapshot,
    intrinsics: np.ndarray,
    global_from_camera: np.ndarray,
    size: tuple[int, int],
    rng: np.random.Generator,
    global_from_ego: np.ndarray | None = None,
) -> Rendering:
    """The image that a camera records of a snapshot.

    Args:
        intrinsics: (3, 3) pixels.
        global_from_camera: (4, 4); x right, y down, z forward.
        size: width, height in pixels.
        global_from_ego: (4, 4) pose of the vehicle whose headlights are on at night; None for no headlights.
    """
    surfaces, owners, visible_share = _visible_surfaces(snapshot, intrinsics, global_from_camera, size)
    light = Light.of(snapshot.weather)
    image = radiance(surfaces, _albedo(surfaces, snapshot), snapshot, light, global_from_ego)
    alpha = weather_effects.extinction(snapshot.weather) + weather_effects.CLEAR_AIR
    image = weather_effects.koschmieder(image, surfaces.distance, alpha, light.horizon)
    image = weather_effects.rain_streaks(image, snapshot.weather.rain, intrinsics[0, 0], light.horizon, rng)
    image = weather_effects.falling_snow(image, snapshot.weather.snow, intrinsics[0, 0], light.horizon, rng)
    return Rendering(weather_effects.expose(image, light.exposure, light.gain, rng), owners, visible_share)


def _visible_surfaces(
    snapshot: Snapshot, intrinsics: np.ndarray, global_from_camera: np.ndarray, size: tuple[int, int]
) -> tuple[Surfaces, np.ndarray, np.ndarray]:
    """The surface at each pixel, and owners (H, W) and visible share (A,) as in `Rendering`."""
    width, height = size
    position, rotation = global_from_camera[:3, 3], global_from_camera[:3, :3]
    solids = _in_view(snapshot.solids, intrinsics, global_from_camera, size)
    faces = Faces.facing(solids, position)
    faces = faces[np.argsort(solids.owners[faces.solids], kind="stable")]  # `draw` needs them grouped by agent

    # The inverse depth of a plane is linear in the pixel: for n . p = d in the camera's frame it is
    # n @ inv(K) / d @ (u, v, 1).
    unproject = np.linalg.inv(intrinsics)
    in_camera = (faces.corners - position) @ rotation
    normals = faces.normals @ rotation
    outlines, kept = project(in_camera, intrinsics)
    offsets = (normals * in_camera[:, 0]).sum(axis=1)
    planes = normals[kept] @ unproject / offsets[kept, None]
    ground = -(rotation @ unproject)[2] / position[2]

    rays = _over_pixels(rotation @ unproject, width, height)  # of unit depth
    inverse_depth = np.maximum(_over_pixels(ground[None], width, height)[0], 1 / FAR)
    faces = faces[kept]
    owner_of_face = solids.owners[faces.solids]
    face_at, covered = draw(Spans.of(outlines, width, height), planes, owner_of_face, inverse_depth)

    owners = np.append(owner_of_face, -1).astype(np.int32)[face_at]
    agents = len(snapshot.agent_velocities)
    visible = np.bincount(owners[owners >= 0], minlength=agents)
    unoccluded = np.pad(covered, (0, agents - len(covered)))
    share = np.divide(visible, unoccluded, where=unoccluded > 0, out=np.full(agents, np.nan))

    depth = 1 / inverse_depth
    points = rays * depth + position.astype(np.float32)[:, None, None]
    sky = (face_at < 0) & (depth >= FAR)
    surfaces = Surfaces(solids, faces, face_at, sky, points, rays, depth, intrinsics, global_from_camera)
    return surfaces, owners, share


def _over_pixels(rows: np.ndarray, width: int, height: int) -> np.ndarray:
    """(N, H, W) float32: rows (N, 3) @ (u, v, 1) at every pixel (u, v)."""
    a, b, c = rows.astype(np.float32).T[..., None, None]
    return a * np.arange(width, dtype=np.float32) + (b * np.arange(height, dtype=np.float32)[:, None] + c)


def _in_view(solids: Solids, intrinsics: np.ndarray, global_from_camera: np.ndarray, size: tuple[int, int]) -> Solids:
    """The solids whose bounding sphere intersects the view frustum."""
    centers = (solids.centers - global_from_camera[:3, 3]) @ global_from_camera[:3, :3]
    radii = np.linalg.norm(solids.sizes, axis=1) / 2
    corners = np.array([[0, 0, 1], [size[0], 0, 1], [size[0], size[1], 1], [0, size[1], 1]], np.float64)
    edges = corners @ np.linalg.inv(intrinsics).T
    inward = np.cross(edges, np.roll(edges, -1, axis=0))
    inward /= np.linalg.norm(inward, axis=1, keepdims=True)
    return solids[((centers @ inward.T) > -radii[:, None]).all(axis=1) & (centers[:, 2] > -radii)]


def _albedo(surfaces: Surfaces, snapshot: Snapshot) -> np.ndarray:
    """(3, H, W) float32 linear reflectance with a texture that is fixed in the world; 0 in the sky."""
    palette = (np.array(snapshot.weather.ground_colours, np.float32) / 255) ** 2
    palette = palette + weather_effects.wetness(snapshot.weather) * (weather_effects.wet_albedo(palette) - palette)
    cover = snapshot.weather.snow_cover
    palette = weather_effects.under_snow(palette, cover, weather_effects.SNOW_ALBEDO)
    solid = surfaces.faces.solids
    painted = (surfaces.solids.colours[solid].astype(np.float32) / 255) ** 2
    roofs = (surfaces.faces.normals[:, 2] > 0.9) & (surfaces.solids.owners[solid] < 0)
    painted[roofs] = weather_effects.under_snow(painted[roofs], cover, weather_effects.SNOW_ALBEDO)
    table = np.concatenate([palette, painted, np.zeros((1, 3), np.float32)])

    index = surfaces.face_at + len(palette)
    index[surfaces.sky] = len(table) - 1
    albedo = table.T[:, index]
    ground = np.flatnonzero(surfaces.ground)
    x, y = surfaces.points[0].ravel()[ground], surfaces.points[1].ravel()[ground]
    kinds, albedo.reshape(3, -1)[:, ground] = _ground_paint(snapshot.ground, palette, x, y)
    index.ravel()[ground] = kinds
    # Strength of the texture: smooth agents, walls (the default), rough foliage.
    leaves, smooth = is_foliage(surfaces.solids)[solid], surfaces.solids.owners[solid] >= 0
    ground_contrast = np.full(len(palette), 0.13)
    ground_contrast[Ground.GRASS] = 0.45
    contrast = np.concatenate([ground_contrast, np.select([smooth, leaves], [0.04, 0.75], 0.1), [0]])
    albedo *= (1 + contrast.astype(np.float32)[index] * texture(surfaces)).clip(0.15)
    albedo[:, surfaces.windows > 0] = np.array([[0.03], [0.045], [0.06]], np.float32)
    return albedo


def _ground_paint(
    ground: GroundRaster, palette: np.ndarray, x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(N,) kind and (3, N) colour of the ground at each point, bilinear between the four nearest cells (which hides
    the steps of diagonal edges)."""
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
