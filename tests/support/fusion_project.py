"""A stand-in for `projects/BEVFusion/bevfusion` of mmdet3d's repository, which is in no package.

What a configuration and a caller see is as there: the names of parts and arguments, the settings that the detector
takes out of its preprocessor's, its own initialisation and losses, and a head with attention. Parts of mmdet3d are
mmdet3d's own, the sparse encoder among them; voxels are mmcv's. The view transform and the head compute little.
"""

import torch
from mmcv.ops import Voxelization
from mmdet.models import DetrTransformerDecoderLayer
from mmdet3d.models import Base3DDetector
from mmdet3d.registry import MODELS
from torch import nn
from torch.nn import functional as F


@MODELS.register_module()
class DepthLSSTransform(nn.Module):
    def __init__(self, in_channels, out_channels, size):
        super().__init__()
        self.depthnet, self.size = nn.Conv2d(in_channels, out_channels, 1), size

    def forward(self, x, points, lidar2image, camera_intrinsics, camera2lidar, img_aug, lidar_aug, metas):
        assert lidar2image.shape == camera2lidar.shape == (len(metas), 6, 4, 4)
        seen = self.depthnet(x.flatten(0, 1)).unflatten(0, x.shape[:2]).mean(dim=(1, 3, 4))
        return seen[:, :, None, None].expand(-1, -1, *self.size)


@MODELS.register_module()
class ConvFuser(nn.Sequential):
    def __init__(self, in_channels, out_channels):
        super().__init__(nn.Conv2d(sum(in_channels), out_channels, 3, padding=1), nn.BatchNorm2d(out_channels))

    def forward(self, inputs):
        return super().forward(torch.cat(inputs, dim=1))


@MODELS.register_module()
class TransFusionHead(nn.Module):
    def __init__(self, in_channels, hidden_channel, num_classes, decoder_layer):
        super().__init__()
        self.shared_conv = nn.Conv2d(in_channels, hidden_channel, 3, padding=1)
        self.decoder = nn.ModuleList([DetrTransformerDecoderLayer(**decoder_layer)])
        self.class_encoding = nn.Conv1d(num_classes, hidden_channel, 1)

    def loss(self, feats, batch_data_samples):
        keys = self.shared_conv(feats[0]).flatten(2).transpose(1, 2)
        queries = self.class_encoding(torch.eye(10).expand(len(keys), 10, 10)).transpose(1, 2)
        found = self.decoder[0](queries, keys, keys)  # normalised: the squares of all channels have a constant mean
        return {"loss_heatmap": found[..., 0].square().mean(), "matched_ious": keys.new_ones(1)}


@MODELS.register_module()
class BEVFusion(Base3DDetector):
    def __init__(self, data_preprocessor, init_cfg=None, **parts):
        voxelize_cfg = data_preprocessor.pop("voxelize_cfg")
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        self.voxelize_reduce = voxelize_cfg.pop("voxelize_reduce")
        self.pts_voxel_layer = Voxelization(**voxelize_cfg)
        for name, part in parts.items():
            self.add_module(name, MODELS.build(part))
        self.init_weights()

    def init_weights(self):
        self.img_backbone.init_weights()

    def parse_losses(self, losses):
        found = {name: value.mean() for name, value in losses.items()}
        return sum(value for name, value in found.items() if "loss" in name), found

    def extract_img_feat(self, x, points, *geometry):
        features = self.img_neck(self.img_backbone(x.flatten(0, 1)))[0]
        return self.vtransform(features.unflatten(0, x.shape[:2]), points, *geometry)

    def extract_pts_feat(self, batch_inputs_dict):
        voxels = [self.pts_voxel_layer(points) for points in batch_inputs_dict["points"]]
        sums = [features.sum(dim=1) / counts[:, None] for features, _, counts in voxels]
        cells = [F.pad(coordinates, (1, 0), value=i) for i, (_, coordinates, _) in enumerate(voxels)]
        return self.pts_middle_encoder(torch.cat(sums), torch.cat(cells), len(voxels))

    def extract_feat(self, batch_inputs_dict, batch_input_metas, **kwargs):
        imgs, points = batch_inputs_dict["imgs"], batch_inputs_dict["points"]
        from_lidar = torch.tensor([meta["lidar2cam"] for meta in batch_input_metas])
        intrinsics = torch.eye(4).repeat(len(imgs), 6, 1, 1)
        intrinsics[..., :3, :3] = torch.tensor([meta["cam2img"] for meta in batch_input_metas])
        same = torch.eye(4)
        geometry = (intrinsics @ from_lidar, intrinsics, from_lidar.inverse(), same, same, batch_input_metas)
        features = [self.extract_img_feat(imgs, points, *geometry), self.extract_pts_feat(batch_inputs_dict)]
        return self.pts_neck(self.pts_backbone(self.fusion_layer(features)))

    def loss(self, batch_inputs_dict, batch_data_samples, **kwargs):
        metas = [item.metainfo for item in batch_data_samples]
        return self.bbox_head.loss(self.extract_feat(batch_inputs_dict, metas), batch_data_samples)

    def predict(self, batch_inputs_dict, batch_data_samples, **kwargs):
        raise NotImplementedError

    def _forward(self, batch_inputs, batch_data_samples=None):
        raise NotImplementedError
