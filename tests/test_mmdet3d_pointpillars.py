"""An imported PointPillars against the same network written plainly, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from centerpoint_reference import voxelised
from pointpillars_reference import THEIRS, files, reference

from deploy.golden import synthetic_frame
from perception.errors import InputError
from perception.frame import CLASSES
from perception.mmdet3d.importing import import_checkpoint
from perception.sensors.inputs import InputSpec, prepare
from perception.training.checkpoint import load_model

FRAME = synthetic_frame("lidar", seed=3)


@torch.no_grad()
@pytest.mark.parametrize("neck", ["fpn", "secfpn"])
def test_maps_are_those_of_the_network_written_plainly(neck: str, tmp_path: Path) -> None:
    import_checkpoint(*files(tmp_path, neck), tmp_path / "run")
    ours, config = load_model(tmp_path / "run")
    assert config.model.lidar is not None
    assert config.model.lidar.sweeps == 3
    inputs = prepare(FRAME, InputSpec.of(config))
    found = ours({name: torch.from_numpy(array) for name, array in inputs.items()})
    voxels, counts, cells = voxelised(FRAME.points, 700, 6)
    expected = reference(neck)(*map(torch.from_numpy, (voxels, counts, cells)))
    classes = [THEIRS.index(name) for name in CLASSES]
    orders = {"classes": classes, "boxes": [0, 1, 2, 4, 3, 5, 6, 7, 8], "directions": [0, 1]}
    for (name, order), levels in zip(orders.items(), expected, strict=True):
        assert len(levels) == (3 if neck == "fpn" else 1)
        for i, level in enumerate(levels):
            wanted = level.unflatten(1, (4, len(order)))[:, :, order].flatten(1, 2)
            assert wanted.std() > 0.05
            torch.testing.assert_close(found[f"{name}.{i}"], wanted, atol=1e-5, rtol=1e-5)


def test_every_key_must_be_accounted_for(tmp_path: Path) -> None:
    config, checkpoint = files(tmp_path, "fpn")
    content = torch.load(checkpoint, weights_only=True)
    linear, conv = "pts_voxel_encoder.vfe_layers.1.linear.weight", "pts_neck.fpn_convs.2.conv.weight"
    del content["state_dict"][linear], content["state_dict"][conv]
    content["state_dict"]["pts_bbox_head.conv_iou.weight"] = torch.zeros(1)
    torch.save(content, checkpoint)
    with pytest.raises(InputError) as error:
        import_checkpoint(config, checkpoint, tmp_path / "run")
    assert str(error.value) == (
        f"{checkpoint}: does not fit its configuration: 2 keys are missing ({conv}, {linear}), "
        "1 unexpected (pts_bbox_head.conv_iou.weight)"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("with_distance=False", "with_distance=True", "pts_voxel_encoder: .*with_distance is True, ours has False"),
        ("in_channels=4", "in_channels=5", "pts_voxel_encoder: .*in_channels is 5, ours has 4"),
        ("test_mode=True", "use_dim=[0, 1, 3, 4]", r"points have the columns \[0, 1, 3, 4\] of x, y, z, intensity, dt"),
        ("use_rotate_nms=True", "use_rotate_nms=False", "test_cfg.pts: .*use_rotate_nms is False, ours has True"),
        ("AlignedAnchor3DRangeGenerator", "Anchor3DRangeGenerator", "anchor_generator: .*type is 'Anchor3DRange"),
        ("code_size=9", "code_size=7", "bbox_coder: .*code_size is 7, ours has 9"),
        ("num_outs=3", "num_outs=4", "pts_neck: .*num_outs is 4, ours has 3"),
        ("'trailer', ", "'tram', ", "`class_names` of .* must be, in any order, car, truck"),
        ("nms_pre=100", "nms_pre=2000", "candidates of all maps together must be fewer than 3840"),
        ("type='MVXFasterRCNN',", "type='MVXFasterRCNN', img_backbone=dict(type='ResNet'),", "img_backbone is"),
        ("test_pipeline", "train_pipeline", "no `test_pipeline`"),
    ],
)
def test_what_ours_has_no_counterpart_of_is_refused(before: str, after: str, message: str, tmp_path: Path) -> None:
    config, checkpoint = files(tmp_path, "fpn")
    text = config.read_text()
    assert before in text
    config.write_text(text.replace(before, after))
    with pytest.raises(InputError, match=message) as error:
        import_checkpoint(config, checkpoint, tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()
