"""PointPillars for KITTI: an imported run computes what mmdet3d does with the same weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from commands import one_line_error, refuses, succeeds
from made_up import keyframe
from mmdet3d_networks import GROUND, kitti_points, kitti_weights, outputs, recorded_frame, trained_kitti
from repository import ROOT
from safetensors.torch import save_file

from perception.config import load_config
from perception.frame import Frame
from perception.mmdet3d.importing import import_pointpillars
from perception.predict import TorchPredictor
from perception.sensors.inputs import prepare, without_padding
from perception.tasks.detection.anchor_head import AnchorHead

CONFIG = ROOT / "configs" / "kitti" / "pointpillars.yaml"
CLASSES = ("car", "cyclist", "pedestrian")


def test_maps_are_those_of_mmdet3d(tmp_path: Path) -> None:
    """For random weights."""
    save_file(kitti_weights(), tmp_path / "weights.safetensors")
    ours, network = import_pointpillars(CONFIG, tmp_path / "weights.safetensors", tmp_path / "run")
    assert ours.taxonomy.class_names == CLASSES
    frame = Frame("made", 0, "ego", np.eye(4), np.eye(4), cameras={}, **keyframe(kitti_points()))
    inputs = without_padding(prepare(frame, ours.spec))
    with torch.no_grad():
        dense = network({name: torch.from_numpy(array) for name, array in inputs.items()})
    stored = outputs("kitti")
    codes = stored["box"].reshape(6, 7, *stored["box"].shape[1:]).copy()
    codes[:, 6] *= -1  # ours are counter-clockwise
    expected = {"classes": stored["cls"], "boxes": codes.reshape(stored["box"].shape), "directions": stored["dir_cls"]}
    for name, values in expected.items():
        assert values.std() > 0.1
        scale = float(np.abs(values).max())
        np.testing.assert_allclose(dense[f"detection/{name}.0"][0, :, ::16, ::16], values, rtol=0, atol=1e-5 * scale)


@pytest.mark.slow("a network of full size")
def test_boxes_of_trained_weights_are_those_of_mmdet3d(tmp_path: Path) -> None:
    """On a recorded frame, one to one."""
    import_pointpillars(CONFIG, trained_kitti(), tmp_path / "run")
    found = TorchPredictor.load(tmp_path / "run")(recorded_frame()).results["detection"]
    expected = outputs("kitti")
    assert np.isnan(found.velocities[:, :2]).all()
    assert len(found) == len(expected["labels"]) >= 20
    for label in range(3):
        ours, boxes = found.select(found.labels == label), expected["boxes"][expected["labels"] == label]
        places = boxes[:, :3] - [0, 0, GROUND]
        apart = np.linalg.norm(places[:, None] - ours.centers, axis=2)
        assert sorted(apart.argmin(axis=1)) == list(range(len(ours)))  # one to one
        ours = ours.select(apart.argmin(axis=1))
        np.testing.assert_allclose(ours.centers, places, atol=1e-3)
        np.testing.assert_allclose(ours.scores, expected["scores"][expected["labels"] == label], atol=1e-4)
        np.testing.assert_allclose(ours.sizes, boxes[:, 3:6], rtol=1e-3)
        np.testing.assert_allclose(np.cos(ours.yaws - boxes[:, 6]), 1, atol=1e-5)


def test_the_command_and_what_is_refused(tmp_path: Path) -> None:
    weights, whole, other = tmp_path / "weights.safetensors", kitti_weights(), tmp_path / "other"
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
