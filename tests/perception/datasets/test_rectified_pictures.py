"""Pictures as taken become those of a pinhole: against rays through the published lens models, pixel by pixel."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from recordings import TINY, Sent, assembled, edited, nuscenes_topics, sent
from scipy.ndimage import map_coordinates

from deploy.replay.sources import messages
from deploy.replay.sources.messages import CorruptMessage
from deploy.replay.sources.topics import CameraTopics, Topics
from perception.frame import Frame

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
    return np.stack(
        [
            x * radial + 2 * p1 * x * y + p2 * (r**2 + 2 * x**2),
            y * radial + p1 * (r**2 + 2 * y**2) + 2 * p2 * x * y,
        ],
        axis=1,
    )


def with_lens(log: list[Sent], model: str, d: list[float], r: np.ndarray, p: np.ndarray = PINHOLE) -> list[Sent]:
    """The log with this lens before CAM_FRONT."""
    projection = np.concatenate([p, np.zeros((3, 1))], axis=1).ravel()
    info = {"distortion_model": model, "d": np.array(d), "k": TAKEN.ravel(), "r": r.ravel(), "p": projection}
    return [edited(each, **info) if each.topic == "/cam_front/camera_info" else each for each in log]


def as_taken(rectified: bool | None) -> Topics:
    cameras = dict(nuscenes_topics().cameras)
    cameras["CAM_FRONT"] = cameras["CAM_FRONT"].model_copy(update={"rectified": rectified})
    return nuscenes_topics(cameras=cameras)


def front(log: list[Sent], topics: Topics) -> Frame:
    frames, counts = assembled(log, topics)
    assert counts.line() == assembled(log, nuscenes_topics())[1].line()
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


def test_rectified_pictures_are_left_as_they_are(log: list[Sent]) -> None:
    lens = with_lens(log, "plumb_bob", LENSES["plumb_bob"], np.eye(3))
    expected = front(log, nuscenes_topics()).cameras["CAM_FRONT"].image
    for rectified in (True, None):  # the topic's name, image_rect_compressed, says so
        camera = front(lens, as_taken(rectified)).cameras["CAM_FRONT"]
        np.testing.assert_array_equal(camera.image, expected)
        np.testing.assert_array_equal(camera.intrinsics, PINHOLE)


def test_a_lens_that_does_nothing_changes_no_bit(log: list[Sent]) -> None:
    lens = with_lens(log, "plumb_bob", [0.0] * 5, np.eye(3), p=TAKEN)
    camera = front(lens, as_taken(False)).cameras["CAM_FRONT"]
    np.testing.assert_array_equal(camera.image, front(log, nuscenes_topics()).cameras["CAM_FRONT"].image)
    np.testing.assert_array_equal(camera.intrinsics, TAKEN)


def test_names_say_which_pictures_are_rectified() -> None:
    for image, taken in {"/a/image_raw": True, "/a/image_rect_color/compressed": False, "/a/image": True}.items():
        assert CameraTopics(image=image, info="/a/camera_info").unrectified == taken


@pytest.mark.parametrize(
    ("model", "d", "reason"),
    [
        ("omnidirectional", [0.1, 0.2], "a picture with an unknown lens model"),
        ("plumb_bob", [0.1, 0.2, 0.3], "a picture with an unknown lens model"),
        ("plumb_bob", [np.nan] * 5, "invalid lens parameters"),
    ],
)
def test_an_unusable_lens_is_counted(log: list[Sent], model: str, d: list[float], reason: str) -> None:
    frames, counts = assembled(with_lens(log, model, d, np.eye(3)), as_taken(False))
    assert all("CAM_FRONT" not in frame.cameras and len(frame.cameras) == 5 for frame in frames)
    assert reason in str(counts.summary())


def test_a_turn_that_is_none_is_refused() -> None:
    with pytest.raises(CorruptMessage, match="invalid lens parameters"):
        messages.intrinsics(
            0, "", (80, 50), "plumb_bob", np.zeros(5), TAKEN.ravel(), 2 * np.eye(3).ravel(), np.zeros(12)
        )


def test_without_a_projection_the_pinhole_is_the_camera_as_taken(log: list[Sent]) -> None:
    lens = with_lens(log, "plumb_bob", LENSES["plumb_bob"], np.eye(3), p=np.zeros((3, 3)))
    camera = front(lens, as_taken(False)).cameras["CAM_FRONT"]
    np.testing.assert_array_equal(camera.intrinsics, TAKEN)
    expected = cv2.undistort(
        front(log, nuscenes_topics()).cameras["CAM_FRONT"].image,
        TAKEN,
        np.array(LENSES["plumb_bob"]),
        newCameraMatrix=TAKEN,
    )
    assert np.abs(camera.image.astype(int) - expected).max() <= 1


def test_the_maps_are_made_once(tiny_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    original = cv2.initUndistortRectifyMap
    monkeypatch.setattr(cv2, "initUndistortRectifyMap", lambda *a: made.append(1) or original(*a))
    log = with_lens(sent(tiny_root, "v1.0-tiny", TINY), "plumb_bob", LENSES["plumb_bob"], np.eye(3))
    frames, _ = assembled(log, as_taken(False))
    assert len(frames) == 3
    assert len(made) == 1
