"""mmdet3d beside all else: what is installed, nothing of it twice, and compiled operators that compute."""

import math
from importlib.metadata import packages_distributions, version

import mmcv
import numpy as np
import torch
from mmcv.ops import Voxelization, box_iou_rotated, nms_rotated


def test_versions_are_those_that_the_bridge_is_written_for_and_nothing_is_there_twice():
    assert (version("mmdet3d"), version("mmdet"), np.__version__.split(".")[0]) == ("1.4.0", "3.3.0", "1")
    assert version("onedl-mmcv").startswith("2.3.")
    assert mmcv.__version__ == version("onedl-mmcv")  # it has its own number again
    owners = packages_distributions()
    expected = {"cv2": "opencv-python-headless", "mmcv": "onedl-mmcv", "mmengine": "onedl-mmengine"}
    assert {name: owners[name] for name in expected} == {name: [owner] for name, owner in expected.items()}


def test_rotated_boxes_overlap_as_geometry_says():
    square = torch.tensor([[0.0, 0.0, 1.0, 1.0, 0.0]])
    turned = torch.tensor([[0.0, 0.0, 1.0, 1.0, math.pi / 4]])
    octagon = 2 * (math.sqrt(2) - 1)  # area of the intersection
    torch.testing.assert_close(box_iou_rotated(square, turned), torch.tensor([[octagon / (2 - octagon)]]))


def test_of_boxes_that_overlap_the_best_is_kept():
    boxes = torch.tensor([[0.0, 0.0, 4.0, 2.0, 0.1], [0.2, 0.0, 4.0, 2.0, 0.1], [9.0, 0.0, 4.0, 2.0, 0.1]])
    _, kept = nms_rotated(boxes, torch.tensor([0.3, 0.9, 0.5]), 0.2)
    assert kept.tolist() == [1, 2]


def test_points_are_grouped_into_voxels():
    points = torch.rand(500, 4, generator=torch.Generator().manual_seed(0)) * 4
    voxels, cells, counts = Voxelization([1.0, 1.0, 4.0], [0, 0, 0, 4, 4, 4], 500, 16)(points)
    expected = torch.bincount((points[:, 1].int() * 4 + points[:, 0].int()).long(), minlength=16)
    assert counts.tolist() == expected[(cells[:, 1] * 4 + cells[:, 2]).long()].tolist()
    torch.testing.assert_close(voxels.sum(), points.sum())
