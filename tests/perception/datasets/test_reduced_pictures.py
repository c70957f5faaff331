"""Pictures that are decoded at a part of their size: where their pixels are, and that the network sees the same."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandaset_drive as written
import pytest
from infos import new_infos, old_infos, opened_tiny, write_infos
from loaders import _config

from perception.datasets.files import jpeg_size, read_image
from perception.datasets.keyframes import Keyframes
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.datasets.nuscenes.joined import JoinedTables
from perception.datasets.pandaset import PandaSet
from perception.mmdet3d.infos import Infos
from perception.rig import load_rig
from perception.taxonomy import load_taxonomy
from perception.training.loader import FrameDataset


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


@pytest.mark.parametrize(
    ("suffix", "width", "least", "reduction"),
    [
        *((".jpg", 1600, *each) for each in ((0, 1), (704, 2), (256, 2), (352, 4), (200, 8), (534, 2), (533, 1))),
        *((".jpg", 1600, *each) for each in ((801, 1), (2000, 1))),
        (".png", 1600, 200, 1),
    ],
)
def test_the_reduction_divides_how_many_times_a_picture_is_wider(
    tmp_path: Path, suffix: str, width: int, least: int, reduction: int
) -> None:
    image, found, _ = read_image(_written(tmp_path / f"picture{suffix}", np.zeros((8, width), np.uint8)), least)
    assert (found, image.shape[1]) == (reduction, -(-width // reduction))


@pytest.mark.parametrize(
    ("segment", "kept"),
    [
        (b"", True),
        (b"\xff\xfe\0\x09comment", True),
        (b"\xff\xe1\0\x08Exif\0\0", False),  # other programs may turn it
        (b"\xff\x01", False),  # a marker without a length, which few programs write
    ],
)
def test_a_file_is_kept_if_all_programs_show_the_same(tmp_path: Path, segment: bytes, kept: bool) -> None:
    path = _written(tmp_path / "picture.jpg", np.zeros((8, 16, 3), np.uint8))
    content = path.read_bytes()
    path.write_bytes(content[:2] + segment + content[2:])
    image, _, file = read_image(path)
    assert image.shape == (8, 16, 3)
    assert (file is not None) == kept


def _nuscenes(root: Path) -> Keyframes:
    return NuScenesTables(root, "v1.0-tiny")


def _joined(root: Path) -> Keyframes:
    return JoinedTables(root.parent, "v1.0-tiny", load_rig("nuscenes"), load_taxonomy("nuscenes"))


def _infos(root: Path) -> Keyframes:
    content = new_infos(old_infos(opened_tiny(root), old_boxes=False))
    return Infos(write_infos(root / "nuscenes_infos_val.pkl", content))


def _pandaset(root: Path) -> Keyframes:
    written.write_drive(root / "drives", [], {0: np.zeros((4, 6))})
    return PandaSet(root / "drives")


@pytest.mark.parametrize("source", [_nuscenes, _joined, _infos, _pandaset])
def test_frames_project_to_the_reduced_pixels(tiny_root: Path, source: Callable[[Path], Keyframes]) -> None:
    tables = source(tiny_root)
    sample = tables.samples()[0]
    whole = tables.frame(sample)
    width = next(iter(whole.cameras.values())).image.shape[1]
    reduced = tables.frame(sample, least_width=width // 2)
    to_reduced = np.array([[0.5, 0, -0.25], [0, 0.5, -0.25], [0, 0, 1]])
    assert whole.cameras
    for name, camera in whole.cameras.items():
        assert reduced.cameras[name].image.shape[:2] == tuple(side // 2 for side in camera.image.shape[:2])
        expected = to_reduced @ whole.image_from_reference(name)
        np.testing.assert_allclose(reduced.image_from_reference(name), expected, rtol=1e-12, atol=1e-9)


def test_the_network_sees_the_same_without_augmentation(nuscenes_root: Path) -> None:
    """Real pictures of 1600x900 for a network of 256 x 128: by 2 when decoded and by 3 afterwards, instead of by 6."""
    tables = NuScenesTables(nuscenes_root, "v1.0-mini")
    [token] = tables.samples(selectors=["scene-0103:0-1"])
    drops = {"drop_lidar": 0.0, "drop_cameras": 0.0}
    whole, reduced = (
        FrameDataset(tables, [token], _config(drops, augment=None, reduced_pictures=each))[0] for each in (False, True)
    )
    np.testing.assert_allclose(
        reduced.inputs["image_from_reference"], whole.inputs["image_from_reference"], rtol=1e-6, atol=1e-4
    )
    difference = np.abs(reduced.inputs["images"].astype(int) - whole.inputs["images"])
    assert 0 < difference.mean() < 0.5  # rounding: of one decoded pixel, and of averages
    # A picture that is a recorded pixel beside its place differs more.
    moved = np.abs(np.diff(whole.inputs["images"].astype(int), axis=3)) / 6
    assert difference.mean() < moved.mean()
    for name in ("pillar_points", "pillar_cells"):
        np.testing.assert_array_equal(reduced.inputs[name], whole.inputs[name])
