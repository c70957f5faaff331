"""PointPillars for KITTI: an imported run computes what a plain network does."""

from functools import cache
from pathlib import Path

import kitti_reference as kitti
import numpy as np
import pytest
import torch
from commands import one_line_error, refuses, succeeds
from kitti_reference import Dense
from made_up import keyframe
from pandaset_drive import SPINNING
from repository import ROOT
from safetensors.torch import save_file
from torch import Tensor
from vocabulary import taxonomy_of

from perception.checkpoint import load_model
from perception.config import load_config
from perception.datasets.keyframes import Reads
from perception.datasets.pandaset import PandaSet
from perception.frame import Boxes, Frame
from perception.mmdet3d.importing import import_pointpillars
from perception.predict import TorchPredictor
from perception.sensors.inputs import InputSpec, prepare, without_padding
from perception.tasks.detection.anchor_head import AnchorHead

CONFIG = ROOT / "configs" / "kitti" / "pointpillars.yaml"
CLASSES = ("car", "cyclist", "pedestrian")
RADII = (1.0, 0.6, 0.4)  # m, of NMS


@cache
def random_weights() -> dict[str, Tensor]:
    """Of the network's layout, with outputs of about one."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"pillar": (64, 4)}
    for i, (inputs, outputs, layers) in enumerate(((64, 32, 4), (32, 32, 6), (32, 64, 6))):
        shapes |= {f"blocks.{i}.{j}": (outputs, outputs if j else inputs, 3, 3) for j in range(layers)}
        shapes[f"deblocks.{i}"] = (outputs, 64, 2**i, 2**i)
    shapes |= {f"heads.{name}": (n, 192, 1, 1) for name, n in {"cls": 18, "box": 42, "dir_cls": 12}.items()}
    weights = {}
    for name, shape in shapes.items():
        transposed = name.startswith("deblocks")
        inputs = shape[0] if transposed else int(np.prod(shape[1:]))
        weights[f"{name}.weight"] = torch.randn(shape, generator=generator) * (2 / inputs) ** 0.5
        weights[f"{name}.bias"] = 0.3 * torch.randn(shape[1 if transposed else 0], generator=generator)
    weights["heads.box.weight"] *= 0.1
    return weights


def synthetic_frame() -> Frame:
    """Points on the ground, on walls, and many in a few pillars, over the ground."""
    rng = np.random.default_rng(0)
    ground = np.column_stack([rng.uniform(-5, 75, 6000), rng.uniform(-45, 45, 6000), rng.normal(0, 0.05, 6000)])
    walls = np.column_stack([rng.uniform(0, 60, 4000), rng.choice([-12.0, 9.0], 4000), rng.uniform(-1.5, 3, 4000)])
    crowded = rng.uniform([10, 2, 0], [10.4, 2.4, 1.5], (2000, 3))
    points = np.column_stack([np.concatenate([ground, walls, crowded]), rng.uniform(0, 255, 12000), np.zeros(12000)])
    return Frame("synthetic", 0, "ego", np.eye(4), np.eye(4), cameras={}, **keyframe(points.astype(np.float32)))


def for_kitti(points: np.ndarray) -> np.ndarray:
    """(N, 4) of points (N, 5) over the ground."""
    return np.column_stack([points[:, :2], points[:, 2] + np.float32(kitti.GROUND), points[:, 3] / np.float32(255)])


def both(weights: dict[str, Tensor], run: Path, frame: Frame) -> tuple[Dense, dict[str, Tensor], Boxes]:
    """Dense outputs of the plain network; those of the run, and its boxes."""
    model, _ = load_model(run)
    inputs = without_padding(prepare(frame, InputSpec.of(model.config)))
    with torch.no_grad():
        dense = model({name: torch.from_numpy(array) for name, array in inputs.items()})
    return kitti.run(weights, for_kitti(frame.points)), dense, TorchPredictor(model)(frame).results["detection"]


def compare(weights: dict[str, Tensor], run: Path, frame: Frame) -> int:
    """Compare dense outputs and boxes; returns how many boxes there are."""
    theirs, dense, found = both(weights, run, frame)
    codes = theirs.boxes.unflatten(0, (6, 7)).clone()
    codes[:, 6] *= -1  # ours are counter-clockwise
    wanted = {"classes": theirs.classes, "boxes": codes.flatten(0, 1), "directions": theirs.directions}
    for name, expected in wanted.items():
        torch.testing.assert_close(dense[f"detection/{name}.0"][0], expected, rtol=0, atol=1e-4)
    assert np.isnan(found.velocities[:, :2]).all()
    for label, radius in enumerate(RADII):
        expected = kitti.detections(theirs, label, threshold=0.15, apart=radius)
        ours = found.select(found.labels == label)
        assert len(ours) == min(len(expected.scores), 83)
        places = expected.boxes[: len(ours), :3] - [0, 0, kitti.GROUND]
        apart = np.linalg.norm(places[:, None] - ours.centers, axis=2)
        assert sorted(apart.argmin(axis=1)) == list(range(len(ours)))  # one to one
        ours = ours.select(apart.argmin(axis=1))
        np.testing.assert_allclose(ours.centers, places, atol=1e-3)
        np.testing.assert_allclose(ours.scores, expected.scores[: len(ours)], atol=1e-4)
        np.testing.assert_allclose(ours.sizes, expected.boxes[: len(ours), 3:6], rtol=1e-3)
        np.testing.assert_allclose(np.cos(ours.yaws - kitti.headings(expected)[: len(ours)]), 1, atol=1e-5)
    return len(found)


def test_random_weights(tmp_path: Path) -> None:
    save_file(random_weights(), tmp_path / "weights.safetensors")
    ours, _ = import_pointpillars(CONFIG, tmp_path / "weights.safetensors", tmp_path / "run")
    assert ours.taxonomy.class_names == CLASSES
    theirs, dense, _ = both(random_weights(), tmp_path / "run", synthetic_frame())
    scale = theirs.classes.abs().max()
    assert scale > 0.5
    torch.testing.assert_close(dense["detection/classes.0"][0], theirs.classes, rtol=0, atol=float(1e-5 * scale))


@pytest.mark.slow("a network of full size")
def test_trained_weights_on_a_recorded_drive(tmp_path: Path, pandaset_root: Path) -> None:
    out = tmp_path / "run"
    import_pointpillars(CONFIG, kitti.weights_file(), out)
    frame = PandaSet(pandaset_root, SPINNING, taxonomy_of({})).frame("002-30", Reads(cameras=False))
    assert compare(kitti.load(), out, frame) >= 20


def test_the_command_and_what_is_refused(tmp_path: Path) -> None:
    weights, whole, other = tmp_path / "weights.safetensors", random_weights(), tmp_path / "other"
    save_file(whole, weights)
    command = ("import", CONFIG, weights, "--out", tmp_path / "run")
    assert "kitti-pointpillars" in succeeds(*command)
    assert "holds files already" in refuses(*command)
    text = CONFIG.read_text()
    for old, new, message in (
        ("velocity: false", "velocity: true", "with `anchors` and `velocity: false`"),
        ("encoder: padded", "encoder: masked", "its encoder padded and of one layer"),
        ("z: [-1.27, 2.73]", "z: [-2.0, 2.0]", "grid.z must not be symmetric"),
    ):
        (tmp_path / "changed.yaml").write_text(text.replace(old, new))
        with one_line_error(says=message):
            import_pointpillars(tmp_path / "changed.yaml", weights, other)
    fewer = {name: tensor for name, tensor in whole.items() if name != "blocks.1.2.bias"}
    for content, message in (
        (fewer, "1 keys are missing (blocks.1.2.bias)"),
        (whole | {"heads.cls.weight": torch.zeros(20, 192, 1, 1)}, "heads.cls.weight has the shape (20, 192, 1, 1)"),
        (None, "cannot read the weights"),
    ):
        save_file(content, weights) if content else weights.write_bytes(b"no weights")
        with one_line_error(says=message):
            import_pointpillars(CONFIG, weights, other)
    assert not other.exists()


def test_a_head_without_velocities_decodes_and_learns_as_one_whose_velocities_are_unknown() -> None:
    config = load_config(CONFIG)
    shorter = config.tasks["detection"].anchors
    longer = shorter.model_copy(update={"velocity": True})
    generator, shape = torch.Generator().manual_seed(0), (1, 6, 20, 24)
    dense = {
        f"{name}.0": torch.randn(1, 6 * n, *shape[2:], generator=generator)
        for name, n in {"classes": 3, "boxes": 7, "directions": 2}.items()
    }
    padded = torch.cat([dense["boxes.0"].unflatten(1, (6, 7)), torch.zeros(1, 6, 2, *shape[2:])], dim=2).flatten(1, 2)
    other = dense | {"boxes.0": padded}
    heads = [AnchorHead(each, 8, config.taxonomy) for each in (shorter, longer)]
    decoded = [head.decode(each) for head, each in zip(heads, (dense, other), strict=True)]
    for name, values in decoded[0].items():
        torch.testing.assert_close(values, decoded[1][name], rtol=0, atol=0)
    box = torch.tensor([[[30.24, 5.952, 0.8, 1.6, 3.9, 1.5, 0.1, torch.nan, torch.nan]]])  # at a cell
    labels = {"boxes": box, "classes": torch.tensor([[0]]), "real": torch.tensor([[True]])}
    losses = [head.losses(each, labels) for head, each in zip(heads, (dense, other), strict=True)]
    for name, loss in losses[0].items():
        assert loss.mean() > 0
        torch.testing.assert_close(loss.mean(), losses[1][name].mean())
