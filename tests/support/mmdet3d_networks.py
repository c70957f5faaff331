"""Small networks of mmdet3d: configurations, random weights that their names determine, and mmdet3d's outputs.

The outputs are in `mmdet3d_outputs`. `make_mmdet3d_outputs.py` wrote them with mmdet3d itself: most tests need no
mmdet3d, and tests/mmdet3d compares the files with what it computes.
"""

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from infos import MMDET3D_CLASSES
from pandaset_drive import SPINNING
from repository import ROOT, recorded
from vocabulary import CLASSES, taxonomy_of

from perception.datasets.keyframes import Reads
from perception.datasets.pandaset import PandaSet
from perception.frame import Boxes, Frame
from perception.mmdet3d.centerpoint import NAMES
from perception.mmdet3d.pillarnest import HEAD_NAMES

OUTPUTS = ROOT / "tests" / "support" / "mmdet3d_outputs"
TASKS = (CLASSES[0:1], CLASSES[1:3], CLASSES[3:5], CLASSES[5:6], CLASSES[6:8], CLASSES[8:10])
_TASKS = ", ".join(f"dict(num_class={len(task)}, class_names={list(task)})" for task in TASKS)
_NORM, _SYNC = "dict(type='BN', eps=1e-3, momentum=0.01)", "dict(type='naiveSyncBN2d', eps=1e-3, momentum=0.01)"
_HEAD = f"""in_channels=24, tasks=[{_TASKS}], share_conv_channel=8, norm_bbox=True,
        separate_head=dict(type='SeparateHead', init_bias=-2.19, head_conv=8, final_kernel=3), """
_CODER = """type='CenterPointBBoxCoder', post_center_range=[-12.0, -13.0, -10.0, 13.0, 13.0, 10.0], max_num=40,
            score_threshold=0.1, out_size_factor=4, voxel_size=[0.4, 0.4], pc_range=[-12.8, -12.8]"""
_TESTING = """post_center_limit_range=[-12.0, -13.0, -10.0, 13.0, 13.0, 10.0], min_radius=[4, 12, 10, 1, 0.85, 0.175],
        score_threshold=0.1, pre_max_size=1000, post_max_size=83, nms_thr=0.2"""
_SIZE, _RANGE = "[0.4, 0.4, 8]", "[-12.8, -12.8, -5.0, 12.8, 12.8, 3.0]"
_VOXELS = f"max_num_points=6, voxel_size={_SIZE}, max_voxels=(500, 700), point_cloud_range={_RANGE}"
_PILLARS = f"""in_channels=5, feat_channels=[8], voxel_size={_SIZE}, legacy=False,
        norm_cfg=dict(type='BN1d', eps=1e-3, momentum=0.01), point_cloud_range={_RANGE}"""
_CENTERPOINT = f"""
model = dict(
    type='CenterPoint',
    data_preprocessor=dict(type='Det3DDataPreprocessor', voxel=True, voxel_layer=dict({_VOXELS})),
    pts_voxel_encoder=dict(type='PillarFeatureNet', {_PILLARS}),
    pts_middle_encoder=dict(type='PointPillarsScatter', in_channels=8, output_shape=(64, 64)),
    pts_backbone=dict(
        type='SECOND', in_channels=8, out_channels=[8, 12, 16], layer_nums=[1, 1, 2], layer_strides=[2, 2, 2],
        norm_cfg={_NORM}, conv_cfg=dict(type='Conv2d', bias=False)),
    pts_neck=dict(
        type='SECONDFPN', in_channels=[8, 12, 16], out_channels=[8, 8, 8], upsample_strides=[0.5, 1, 2],
        norm_cfg={_NORM}, upsample_cfg=dict(type='deconv', bias=False), use_conv_for_no_stride=True),
    pts_bbox_head=dict(
        type='CenterHead', {_HEAD}
        common_heads=dict(reg=(2, 2), height=(1, 2), dim=(3, 2), rot=(2, 2), vel=(2, 2)),
        bbox_coder=dict({_CODER})),
    test_cfg=dict(pts=dict({_TESTING}, nms_type='circle')))
test_pipeline = [dict(type='LoadPointsFromMultiSweeps', sweeps_num=2, use_dim=[0, 1, 2, 3, 4])]
"""
_PILLARNEST = f"""
voxel_size = {_SIZE}
model = dict(
    type='CenterPoint',
    init_cfg=[],
    pts_voxel_layer=dict({_VOXELS}),
    pts_voxel_encoder=dict(type='HeightPillarFeatureNet', with_distance=False, mode='maxavg', {_PILLARS}),
    pts_middle_encoder=dict(type='PointPillarsScatter', in_channels=8, output_shape=(64, 64)),
    pts_backbone=dict(
        type='ConvNeXt_PC', arch=dict(depths=[2, 1, 1, 2, 1], channels=[48, 12, 16, 16, 20]), in_channels=8,
        out_indices=[2, 3, 4], drop_path_rate=0.4, layer_scale_init_value=1.0, gap_before_final_norm=False,
        init_cfg=dict(type='Pretrained', checkpoint='/data/convnext_tiny.pth', prefix='backbone.')),
    pts_neck=dict(
        type='SECONDFPN', in_channels=[16, 16, 20], out_channels=[8, 8, 8], upsample_strides=[1, 2, 4],
        norm_cfg={_NORM}, upsample_cfg=dict(type='deconv', bias=False), use_conv_for_no_stride=True),
    pts_bbox_head=dict(
        type='CenterPlusHead', {_HEAD}
        common_heads=dict(reg=(2, 2), height=(1, 2), dim=(3, 2), rot=(2, 2), vel=(2, 2), iou=(1, 2)),
        bbox_coder=dict({_CODER}, code_size=9),
        iou_score=dict(type='BboxOverlaps3D', coordinate='lidar'), iou_score_weight=1.0),
    test_cfg=dict(pts=dict({_TESTING}, nms_type='rotate', iou_score_beta=0.4)))
test_pipeline = [
    dict(type='LoadPointsFromMultiSweeps', sweeps_num=2, use_dim=[0, 1, 2, 3, 4], pad_empty_sweeps=True),
    dict(type='MultiScaleFlipAug3D', flip=False, transforms=[dict(type='RandomFlip3D')])]
"""


def _pointpillars(neck: str, channels: int, scales: Sequence[int]) -> str:
    return f"""
class_names = [{", ".join(map(repr, MMDET3D_CLASSES))}]
model = dict(
    type='MVXFasterRCNN',
    data_preprocessor=dict(type='Det3DDataPreprocessor', voxel=True, voxel_layer=dict({_VOXELS})),
    pts_voxel_encoder=dict(
        type='HardVFE', in_channels=4, feat_channels=[8, 8], with_distance=False, voxel_size={_SIZE},
        with_cluster_center=True, with_voxel_center=True, point_cloud_range={_RANGE},
        norm_cfg=dict(type='naiveSyncBN1d', eps=1e-2, momentum=0.01)),
    pts_middle_encoder=dict(type='PointPillarsScatter', in_channels=8, output_shape=[64, 64]),
    pts_backbone=dict(
        type='SECOND', in_channels=8, norm_cfg={_SYNC}, layer_nums=[1, 1, 2], layer_strides=[2, 2, 2],
        out_channels=[8, 12, 16]),
    pts_neck=dict({neck}, norm_cfg={_SYNC}, in_channels=[8, 12, 16]),
    pts_bbox_head=dict(
        type='Anchor3DHead', num_classes=10, in_channels={channels}, feat_channels={channels},
        use_direction_classifier=True,
        anchor_generator=dict(
            type='AlignedAnchor3DRangeGenerator', ranges=[[-12.8, -12.8, -1.8, 12.8, 12.8, -1.8]], scales={scales},
            sizes=[[2.6, 0.9, 1.0], [0.4, 0.4, 1.0]], custom_values=[0, 0], rotations=[0, 1.57], reshape_out=True),
        assigner_per_size=False, diff_rad_by_sin=True, dir_offset=-0.7854,
        bbox_coder=dict(type='DeltaXYZWLHRBBoxCoder', code_size=9),
        loss_cls=dict(type='mmdet.FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0)),
    test_cfg=dict(pts=dict(
        use_rotate_nms=True, nms_across_levels=False, nms_pre=100, nms_thr=0.2, score_thr=0.05, min_bbox_size=0,
        max_num=50)))
test_pipeline = [dict(type='LoadPointsFromMultiSweeps', sweeps_num=3, test_mode=True)]
"""


_FPN = "type='mmdet.FPN', act_cfg=dict(type='ReLU'), out_channels=8, start_level=0, num_outs=3"
_SECFPN = "type='SECONDFPN', upsample_strides=[1, 2, 4], out_channels=[8, 8, 8]"
CONFIGS = {  # as `Config.dump` writes them; fpn and secfpn are PointPillars
    "centerpoint": _CENTERPOINT,
    "pillarnest": _PILLARNEST,
    "fpn": _pointpillars(_FPN, 8, [1, 2, 4]),
    "secfpn": _pointpillars(_SECFPN, 24, [1]),
}


def points() -> np.ndarray:
    """(4000, 5) float32, crowded around the middle: more pillars than the networks take, and more points in some."""
    rng = np.random.default_rng(0)
    places = rng.normal(0, [6, 6, 1.5], (4000, 3)) - [0, 0, 1]
    return np.column_stack([places, rng.uniform(0, 255, 4000), rng.choice([0, 0.05, 0.1], 4000)]).astype(np.float32)


_LAST: dict[str, Callable[[np.ndarray], np.ndarray]] = {  # layers: some cells have boxes, of sizes that boxes may have
    "heatmap.1.weight": lambda values: 3 * values,
    "heatmap.1.bias": lambda values: values - 4.1,
    "conv_cls.weight": lambda values: values / 2,
    "conv_cls.bias": lambda values: values - 2,
    "conv_reg.weight": lambda values: 0.3 * values,
}


def weight(name: str, shape: Sequence[int]) -> torch.Tensor:
    """A random tensor of a `state_dict`, by which features keep about their magnitude from layer to layer."""
    rng, leaf = np.random.default_rng(zlib.crc32(name.encode())), name.rpartition(".")[2]
    if leaf == "num_batches_tracked":
        return torch.tensor(0)
    if leaf == "running_var" or (leaf in ("weight", "gamma") and len(shape) == 1):
        values = rng.uniform(0.7, 1.3, shape)
    elif leaf in ("bias", "running_mean"):
        values = rng.uniform(-0.2, 0.2, shape)
    else:
        values = rng.normal(size=shape) * (2 / np.prod(shape[1:])) ** 0.5
        if shape[1:] in ((10,), (11,)):  # features of points: m, and intensities up to 255
            values[:, :3] /= 8
            values[:, 3] /= 100 if shape[1] == 11 else 1
    for end, change in _LAST.items():
        if name.endswith(end):
            values = change(values)
    return torch.from_numpy(np.array(values, np.float32))


def weights(shapes: Mapping[str, Sequence[int]]) -> dict[str, torch.Tensor]:
    return {name: weight(name, tuple(shape)) for name, shape in shapes.items()}


def outputs(network: str) -> dict[str, np.ndarray]:
    """What mmdet3d's network gives for `points`: `boxes`, (N, 9) x y z (m, centre) width length height (m) yaw (rad)
    and velocity (m/s); `scores`; `labels` by CLASSES; maps under its own names, on every second cell if they are
    large; and `shapes` of its weights, as JSON."""
    with np.load(OUTPUTS / f"{network}.npz") as file:
        return dict(file)


def require_maps(found: Mapping[str, torch.Tensor], theirs: Mapping[str, Any], tolerance: float) -> None:
    """Require mmdet3d's maps, under our names, with our order of classes and sizes and our headings."""
    expected: dict[str, Any] = {}
    if "classes.0" in theirs:
        classes = [MMDET3D_CLASSES.index(name) for name in CLASSES]
        orders = {"classes": classes, "boxes": [0, 1, 2, 4, 3, 5, 6, 7, 8], "directions": [0, 1]}
        for (name, order), i in product(orders.items(), range(3)):
            if (values := theirs.get(f"{name}.{i}")) is not None:
                expected[f"{name}.{i}"] = np.asarray(values).reshape(-1, len(order), *values.shape[-2:])[:, order]
    else:
        with_iou = "0.iou" in theirs  # PillarNeSt's sizes and headings are those of mmdet3d before 1.0
        for i, (name, other) in product(range(len(TASKS)), (HEAD_NAMES if with_iou else NAMES).items()):
            order = {"heading": [1, 0]} if with_iou else {"size": [1, 0, 2]}
            values = np.asarray(theirs[f"{i}.{other}"]).reshape(-1, *theirs[f"{i}.{other}"].shape[-2:])
            turned = values[order[name]] * (-1 if with_iou else 1) if name in order else values
            expected[f"group{i}_{name}"] = turned
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        assert wanted.std() > 0.05  # the map says something
        step = found[name].shape[-1] // wanted.shape[-1]  # large maps are stored in part
        mine = found[name][0, :, ::step, ::step].reshape(wanted.shape)
        np.testing.assert_allclose(mine, wanted, atol=tolerance, rtol=tolerance, err_msg=name)


def require_boxes(found: Boxes, expected: Mapping[str, np.ndarray], tolerance: float) -> None:
    """Require mmdet3d's boxes after NMS, one to one, in any order."""
    assert len(found) == len(expected["scores"]) > 20
    apart = np.abs(found.centers[:, None] - expected["boxes"][:, :3]).max(axis=2)
    apart += np.abs(found.scores[:, None] - expected["scores"]) + (found.labels[:, None] != expected["labels"])
    partner = apart.argmin(axis=1)
    assert len({*partner.tolist()}) == len(found)
    boxes = expected["boxes"][partner]
    np.testing.assert_array_equal(found.labels, expected["labels"][partner])
    np.testing.assert_allclose(found.scores, expected["scores"][partner], atol=tolerance)
    np.testing.assert_allclose(found.centers, boxes[:, :3], atol=tolerance)
    np.testing.assert_allclose(found.sizes, boxes[:, 3:6], rtol=tolerance)
    np.testing.assert_allclose(np.exp(1j * found.yaws), np.exp(1j * boxes[:, 6]), atol=tolerance)
    np.testing.assert_allclose(found.velocities[:, :2], boxes[:, 7:9], atol=tolerance)


def files(folder: Path, network: str) -> tuple[Path, Path]:
    """A configuration and a checkpoint, as mmdet3d and mmengine write them."""
    config, checkpoint = folder / f"{network}.py", folder / f"{network}.pth"
    config.write_text(CONFIGS[network])
    state = weights(json.loads(str(outputs(network)["shapes"])))
    torch.save({"meta": {"epoch": 20}, "state_dict": state}, checkpoint)
    return config, checkpoint


# PointPillars for KITTI, whose configuration is configs/kitti/pointpillars.yaml.

GROUND = -1.73  # m, in KITTI's LiDAR frame


def kitti_weights() -> dict[str, torch.Tensor]:
    """Random ones of the layout that `perception import-pointpillars` reads."""
    shapes: dict[str, tuple[int, ...]] = {"pillar": (64, 4)}
    for i, (inputs, width, layers) in enumerate(((64, 32, 4), (32, 32, 6), (32, 64, 6))):
        shapes |= {f"blocks.{i}.{j}": (width, width if j else inputs, 3, 3) for j in range(layers)}
        shapes[f"deblocks.{i}"] = (width, 64, 2**i, 2**i)
    shapes |= {f"heads.{name}": (n, 192, 1, 1) for name, n in {"cls": 18, "box": 42, "dir_cls": 12}.items()}
    biases = {f"{name}.bias": (each[name.startswith("deblocks")],) for name, each in shapes.items()}
    return weights({f"{name}.weight": each for name, each in shapes.items()} | biases)


def kitti_points() -> np.ndarray:
    """(12000, 5) float32, z over the ground: on it, on walls, and many in a few pillars."""
    rng = np.random.default_rng(0)
    ground = np.column_stack([rng.uniform(-5, 75, 6000), rng.uniform(-45, 45, 6000), rng.normal(0, 0.05, 6000)])
    walls = np.column_stack([rng.uniform(0, 60, 4000), rng.choice([-12.0, 9.0], 4000), rng.uniform(-1.5, 3, 4000)])
    crowded = rng.uniform([10, 2, 0], [10.4, 2.4, 1.5], (2000, 3))
    places = np.concatenate([ground, walls, crowded])
    return np.column_stack([places, rng.uniform(0, 255, 12000), np.zeros(12000)]).astype(np.float32)


def for_kitti(points: np.ndarray) -> np.ndarray:
    """(N, 4) x y z (m, KITTI's LiDAR frame), intensity (0-1) of points (N, 5) over the ground."""
    return np.column_stack([points[:, :2], points[:, 2] + np.float32(GROUND), points[:, 3] / np.float32(255)])


def trained_kitti() -> Path:
    """Weights trained on KITTI: those of Vitis AI's `VoxelNet_int` with normalisations folded in."""
    return recorded("pointpillars_kitti", "pointpillars.safetensors") / "pointpillars.safetensors"


def recorded_frame() -> Frame:
    root = recorded("pandaset", "002/lidar/poses.json")
    return PandaSet(root, SPINNING, taxonomy_of({})).frame("002-30", Reads(cameras=False))
