"""Pictures decoded at a part of their size, and pictures as taken, which become those of a pinhole: where their pixels
are, against ramps of brightness and rays through the published lens models."""

import resource
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import cv2
import numpy as np
import pandaset_drive as written
import pytest
from commands import one_line_error
from infos import new_infos, old_infos, open_tiny, write_infos
from recordings import Sent, assemble, edit, nuscenes_topics
from scipy.ndimage import map_coordinates
from vocabulary import NUSCENES, RIG

from deploy.recordings.topics import CameraTopics, Topics
from perception.datasets.files import jpeg_size, read_image
from perception.datasets.infos import Infos
from perception.datasets.keyframes import Keyframes, Picture, Reads, Recording
from perception.datasets.keyframes import assemble as assemble_recording
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.datasets.pandaset import PandaSet
from perception.datasets.sources import JoinedTables
from perception.frame import Frame


def _written(path: Path, picture: np.ndarray) -> Path:
    path.write_bytes(cv2.imencode(path.suffix, picture, [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes())
    return path


@pytest.mark.parametrize("reduction", [1, 2, 4, 8])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_pixel_stands_for_the_middle_of_a_square(tmp_path: Path, reduction: int, axis: int) -> None:
    """On a ramp of brightness, 1 for a pixel, in a picture whose sides no reduction divides."""
    shape = (203, 237)
    ramp = np.broadcast_to(np.indices(shape)[axis].astype(np.uint8), shape)
    path = _written(tmp_path / "ramp.jpg", ramp)
    assert jpeg_size(path.read_bytes()) == shape[::-1]
    image, found, file = read_image(path, shape[1] // reduction)
    assert found == reduction
    assert (file is not None) == (reduction == 1)
    assert image.shape == (*(-(-side // reduction) for side in shape), 3)
    inner = image[: shape[0] // reduction, : shape[1] // reduction]  # without pixels that reach beyond the edge
    middle = (np.indices(inner.shape[:2])[axis] + 0.5) * reduction - 0.5
    assert np.abs(inner - middle[..., None]).max() < 1  # rounding of a half, and of the coefficients


@pytest.mark.parametrize("sized", [True, False])
@pytest.mark.parametrize(("suffix", "header", "at"), [(".jpg", b"\xff\xc0", 5), (".png", b"IHDR", 4)])
def test_a_damaged_header_costs_no_memory(tmp_path: Path, suffix: str, header: bytes, at: int, sized: bool) -> None:
    """Two changed bytes ask for 3 GB of pixels; the calibration, or the optical axis, says that they are wrong."""
    path = _written(tmp_path / f"picture{suffix}", np.zeros((90, 160, 3), np.uint8))
    content = bytearray(path.read_bytes())
    place, width = content.index(header) + at, 2 if suffix == ".jpg" else 4
    content[place + width - 2] = content[place + 2 * width - 2] = 0x7F
    path.write_bytes(content)
    intrinsics = np.array([[100, 0, 80], [0, 100, 45], [0, 0, 1.0]])
    picture = Picture(path, 0, intrinsics, np.eye(4), np.eye(4), (160, 90) if sized else None)
    recording = Recording("a", "b", 0, np.eye(4), np.eye(4), {}, {"front": picture})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with one_line_error("picture is 32", at=path):
        assemble_recording(recording, Reads(annotations=False))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


@pytest.mark.parametrize(
    ("suffix", "least", "reduction"),
    [
        *((".jpg", *each) for each in ((0, 1), (704, 2), (256, 2), (352, 4), (200, 8), (534, 2), (533, 1), (801, 1))),
        (".png", 200, 1),
    ],
)
def test_a_reduction_divides_a_pictures_width(tmp_path: Path, suffix: str, least: int, reduction: int) -> None:
    image, found, _ = read_image(_written(tmp_path / f"picture{suffix}", np.zeros((8, 1600), np.uint8)), least)
    assert (found, image.shape[1]) == (reduction, 1600 // reduction)


@pytest.mark.parametrize(
    ("segment", "kept"),
    [
        (b"", True),
        (b"\xff\xfe\0\x09comment", True),
        (b"\xff\xe1\0\x08Exif\0\0", False),  # other programs may turn it
    ],
)
def test_a_file_is_kept_if_all_programs_show_the_same(tmp_path: Path, segment: bytes, kept: bool) -> None:
    path = _written(tmp_path / "picture.jpg", np.zeros((8, 16, 3), np.uint8))
    content = path.read_bytes()
    path.write_bytes(content[:2] + segment + content[2:])
    image, _, file = read_image(path)
    assert image.shape == (8, 16, 3)
    assert (file is not None) == kept


def test_a_header_that_does_not_say_the_size_is_damage(tmp_path: Path) -> None:
    path = _written(tmp_path / "picture.jpg", np.zeros((8, 16, 3), np.uint8))
    content = path.read_bytes()
    path.write_bytes(content[:2] + b"\xff\x01" + content[2:])  # a marker without a length, which few programs write
    with one_line_error("damaged header", at=path):
        read_image(path)


def _pandaset(root: Path) -> Keyframes:
    written.write_drive(root / "drives", [], {0: np.zeros((4, 6))})
    return PandaSet(root / "drives")


def _infos(root: Path) -> Keyframes:
    content = new_infos(old_infos(open_tiny(root), old_boxes=False))
    return Infos(write_infos(root / "nuscenes_infos_val.pkl", content))


SOURCES: list[Callable[[Path], Keyframes]] = [
    lambda root: NuScenesTables(root, "v1.0-tiny"),
    lambda root: JoinedTables(root.parent, "v1.0-tiny", RIG, NUSCENES),
    _infos,
    _pandaset,
]


@pytest.mark.parametrize("source", SOURCES)
def test_frames_project_to_the_reduced_pixels(tiny_root: Path, source: Callable[[Path], Keyframes]) -> None:
    tables = source(tiny_root)
    sample = tables.samples()[0]
    whole = tables.frame(sample)
    width = next(iter(whole.cameras.values())).image.shape[1]
    reduced = tables.frame(sample, Reads(least_width=width // 2))
    to_reduced = np.array([[0.5, 0, -0.25], [0, 0.5, -0.25], [0, 0, 1]])
    assert whole.cameras
    for name, camera in whole.cameras.items():
        assert reduced.cameras[name].image.shape[:2] == tuple(side // 2 for side in camera.image.shape[:2])
        expected = to_reduced @ whole.image_from_reference(name)
        np.testing.assert_allclose(reduced.image_from_reference(name), expected, rtol=1e-12, atol=1e-9)


# Pictures as taken.

TAKEN = np.array([[62.0, 0, 41.0], [0, 61.0, 23.0], [0, 0, 1]])
PINHOLE = np.array([[55.0, 0, 39.5], [0, 56.0, 24.5], [0, 0, 1]])
LENSES = {
    "plumb_bob": [-0.21, 0.06, 0.002, -0.001, 0.01],
    "rational_polynomial": [0.3, 0.1, 0.001, 0.002, 0.05, 0.6, 0.2, 0.1],
    "equidistant": [-0.02, 0.01, -0.003, 0.001],
}
SLIGHT = cv2.Rodrigues(np.array([0.01, -0.02, 0.015]))[0]


def distorted(model: str, d: list[float], rays: np.ndarray) -> np.ndarray:
    """(N, 2) where on the plane z = 1 behind the lens rays (N, 3) fall, by the formulas of the papers."""
    x, y = rays[:, 0] / rays[:, 2], rays[:, 1] / rays[:, 2]
    r = np.hypot(x, y)
    if model == "equidistant":
        angle = np.arctan(r)
        bent = angle * (1 + d[0] * angle**2 + d[1] * angle**4 + d[2] * angle**6 + d[3] * angle**8)
        scale = np.divide(bent, r, out=np.ones_like(r), where=r > 0)
        return np.stack([x * scale, y * scale], axis=1)
    k1, k2, p1, p2, k3, k4, k5, k6 = [*d, 0, 0, 0][:8]
    radial = (1 + k1 * r**2 + k2 * r**4 + k3 * r**6) / (1 + k4 * r**2 + k5 * r**4 + k6 * r**6)
    along = x * radial + 2 * p1 * x * y + p2 * (r**2 + 2 * x**2)
    return np.stack([along, y * radial + p1 * (r**2 + 2 * y**2) + 2 * p2 * x * y], axis=1)


def with_lens(log: list[Sent], model: str, d: list[float], r: np.ndarray, p: np.ndarray = PINHOLE) -> list[Sent]:
    """The log with this lens before CAM_FRONT."""
    projection = np.concatenate([p, np.zeros((3, 1))], axis=1).ravel()
    info = {"distortion_model": model, "d": np.array(d), "k": TAKEN.ravel(), "r": r.ravel(), "p": projection}
    return [edit(each, **info) if each.topic == "/cam_front/camera_info" else each for each in log]


def as_taken(rectified: bool | None) -> Topics:
    cameras = dict(nuscenes_topics().cameras)
    cameras["CAM_FRONT"] = cameras["CAM_FRONT"].model_copy(update={"rectified": rectified})
    return nuscenes_topics(cameras=cameras)


def front(log: list[Sent], topics: Topics) -> Frame:
    frames, counts = assemble(log, topics)
    assert counts.line() == assemble(log, nuscenes_topics())[1].line()
    return frames[0]


@pytest.mark.parametrize("turn", [np.eye(3), SLIGHT], ids=["straight", "turned"])
@pytest.mark.parametrize("model", LENSES)
def test_every_pixel_is_where_its_ray_went_through_the_lens(log: list[Sent], model: str, turn: np.ndarray) -> None:
    raw = front(log, nuscenes_topics()).cameras["CAM_FRONT"]
    camera = front(with_lens(log, model, LENSES[model], turn), as_taken(False)).cameras["CAM_FRONT"]
    np.testing.assert_array_equal(camera.intrinsics, PINHOLE)
    height, width = raw.image.shape[:2]
    v, u = np.mgrid[:height, :width]
    pixels = np.stack([u.ravel(), v.ravel(), np.ones(u.size)])
    rays = (turn.T @ np.linalg.inv(PINHOLE) @ pixels).T  # in the camera as mounted
    source = TAKEN[:2, :2] @ distorted(model, LENSES[model], rays).T + TAKEN[:2, 2:]
    inside = ((source >= 0) & (source <= [[width - 1], [height - 1]])).all(axis=0)
    assert inside.mean() > 0.6
    for channel in range(3):
        expected = map_coordinates(raw.image[..., channel].astype(float), source[::-1], order=1, mode="constant")
        found = camera.image[..., channel].ravel()
        # OpenCV looks up in 32nds of a pixel.
        slope = max(np.abs(np.diff(raw.image.astype(float), axis=axis)).max() for axis in (0, 1))
        assert np.abs(found - expected)[inside].max() < 1 + 2 * slope / 32
    # A point ahead falls on the pixel through which its ray came.
    np.testing.assert_allclose(camera.ego_from_camera[:3, :3], raw.ego_from_camera[:3, :3] @ turn.T, atol=1e-12)
    np.testing.assert_array_equal(camera.ego_from_camera[:, 3], raw.ego_from_camera[:, 3])


def test_pictures_that_are_rectified_are_left_as_they_are(log: list[Sent]) -> None:
    """By the settings or the topic's name; a lens that does nothing changes no bit."""
    lens = with_lens(log, "plumb_bob", LENSES["plumb_bob"], np.eye(3))
    expected = front(log, nuscenes_topics()).cameras["CAM_FRONT"].image
    nothing = with_lens(log, "plumb_bob", [0.0] * 5, np.eye(3), p=TAKEN)
    for sent_log, rectified, pinhole in ((lens, True, PINHOLE), (lens, None, PINHOLE), (nothing, False, TAKEN)):
        camera = front(sent_log, as_taken(rectified)).cameras["CAM_FRONT"]
        np.testing.assert_array_equal(camera.image, expected)
        np.testing.assert_array_equal(camera.intrinsics, pinhole)
    for image, taken in {"/a/image_raw": True, "/a/image_rect_color/compressed": False, "/a/image": True}.items():
        assert CameraTopics(image=image, info="/a/camera_info").unrectified == taken


@pytest.mark.parametrize(
    ("model", "d", "turn", "reason"),
    [
        ("omnidirectional", [0.1, 0.2], 1, "a picture with an unknown lens model"),
        ("plumb_bob", [0.1, 0.2, 0.3], 1, "a picture with an unknown lens model"),
        ("plumb_bob", [np.nan] * 5, 1, "invalid lens parameters"),
        ("plumb_bob", [0.0] * 5, 2, "invalid lens parameters"),  # a turn that is none
    ],
)
def test_an_unusable_lens_is_counted(log: list[Sent], model: str, d: list[float], turn: float, reason: str) -> None:
    frames, counts = assemble(with_lens(log, model, d, turn * np.eye(3)), as_taken(False))
    assert all("CAM_FRONT" not in frame.cameras and len(frame.cameras) == 5 for frame in frames)
    assert reason in str(counts.summary())


def test_without_a_projection_the_pinhole_is_as_taken(log: list[Sent], monkeypatch: pytest.MonkeyPatch) -> None:
    """And the maps are made once."""
    made = Mock(side_effect=cv2.initUndistortRectifyMap)
    monkeypatch.setattr(cv2, "initUndistortRectifyMap", made)
    lens = with_lens(log, "plumb_bob", LENSES["plumb_bob"], np.eye(3), p=np.zeros((3, 3)))
    frames, _ = assemble(lens, as_taken(False))
    assert (len(frames), made.call_count) == (3, 1)
    camera = frames[0].cameras["CAM_FRONT"]
    np.testing.assert_array_equal(camera.intrinsics, TAKEN)
    taken = front(log, nuscenes_topics()).cameras["CAM_FRONT"].image
    expected = cv2.undistort(taken, TAKEN, np.array(LENSES["plumb_bob"]), newCameraMatrix=TAKEN)
    assert np.abs(camera.image.astype(int) - expected).max() <= 1
