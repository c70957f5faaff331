"""The perception model: sensors to bird's eye, fusion, trunk, heads; modules at the slots along the way."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from perception.backbone.camera import ImageEncoder
from perception.backbone.fuse import Fuse
from perception.backbone.lidar import PillarEncoder
from perception.backbone.lift import Lift
from perception.backbone.trunk import Trunk
from perception.config import Config
from perception.frame import Conditions
from perception.heads.detection import CenterHead
from perception.heads.map_segmentation import MapSegmentationHead
from perception.modules.bank import Bank
from perception.modules.routing.fixed import FixedRouter


class PerceptionModel(nn.Module):
    """Camera and LiDAR to boxes and map. A missing sensor is an input of zeros (`data/inputs.py`)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        grid, model = config.grid.build(), config.model
        inputs = []  # channels and stride of each sensor's bird's-eye map
        if model.lidar:
            self.lidar = PillarEncoder(model.lidar, grid)
            inputs.append((model.lidar.channels, 1))
        if model.camera:
            self.camera = ImageEncoder(model.camera)
            self.lift = Lift(model.camera, grid.coarser(model.camera.stride))
            inputs.append((model.camera.channels * len(model.camera.heights), model.camera.stride))
        self.fuse = Fuse(inputs, model.fused_channels, model.fused_stride)
        self.trunk = Trunk(model.trunk, model.fused_channels, model.fused_stride)
        self.heads = nn.ModuleDict(
            {"detection": CenterHead(model.detection, self.trunk.channels, grid.coarser(model.trunk.stride))}
        )
        if model.map:
            self.heads["map"] = MapSegmentationHead(model.map, self.trunk.channels)
        self.bank = Bank(self)
        for module in config.modules:
            self.bank.add(module.name, module.kind, module.slots, module.rank)
        self.router = FixedRouter({module.name: module.when for module in config.modules})

    def forward(self, inputs: dict[str, Tensor], conditions: Sequence[Conditions] = ()) -> dict[str, Tensor]:
        """Dense output of every head, for inputs as `data/inputs.py` makes them and the frames' conditions."""
        self.bank.apply(self.router(conditions))
        maps = []
        if self.config.model.lidar:
            maps.append(self.lidar(inputs["pillar_points"], inputs["pillar_counts"], inputs["pillar_cells"]))
        if self.config.model.camera:
            context, depth = self.camera(inputs["images"])
            maps.append(self.lift(context, depth, inputs["image_from_reference"]))
        features = self.trunk(self.fuse(maps))
        return {name: value for head in self.heads.values() for name, value in head(features).items()}

    def predict(self, inputs: dict[str, Tensor], conditions: Sequence[Conditions] = ()) -> dict[str, Tensor]:
        """Decoded output: boxes, scores, labels, attributes and, with a map head, map."""
        dense = self(inputs, conditions)
        decoders: list[Any] = [head.decode for head in self.heads.values()]
        return {name: value for decode in decoders for name, value in decode(dense).items()}

    def folded(self, conditions: Conditions) -> PerceptionModel:
        """A copy whose modules for these conditions are written into the weights, with every slot empty."""
        model = copy.deepcopy(self)
        model.bank.fold(self.router([conditions]))
        model.router = FixedRouter({})
        return model
