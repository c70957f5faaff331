"""The perception model: sensors to bird's eye, fusion, trunk, heads; modules at the slots along the way."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from perception.bev.fuse import Alone, Fuse
from perception.bev.pyramid import PyramidTrunk
from perception.bev.trunk import Trunk
from perception.config import Config
from perception.frame import Conditions
from perception.modules.aggregation.notation import parse_block
from perception.modules.aggregation.representations import add_fusion
from perception.modules.bank import Bank
from perception.modules.route import Route
from perception.modules.routing.classifier import ConditionClassifier
from perception.modules.routing.fixed import FixedRouter
from perception.modules.routing.input_weighted import SteeredRouter
from perception.modules.routing.learned import LearnedRouter
from perception.modules.routing.pooling import after_fusion
from perception.modules.routing.predicates import present
from perception.modules.routing.random_conditions import WanderingRouter
from perception.modules.spec import SENSORS
from perception.sensors.camera.encoder import ImageEncoder
from perception.sensors.camera.lift import Lift
from perception.sensors.lidar.encoder import PillarEncoder
from perception.sensors.lidar.voxel_features import VoxelFeatureEncoder
from perception.tasks.conditions.network import Recogniser
from perception.tasks.detection.anchor_head import AnchorHead
from perception.tasks.detection.center_head import CenterHead
from perception.tasks.detection.peaks import at_peaks
from perception.tasks.map.network import MapSegmentationHead

CHOOSERS = {"learned": LearnedRouter, "classifier": ConditionClassifier}


class PerceptionModel(nn.Module):
    """Camera and LiDAR to boxes and map. A missing sensor is an input of zeros (`sensors/inputs.py`)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        grid, model = config.grid.build(), config.model
        inputs = []  # channels and stride of each sensor's bird's-eye map
        if model.lidar:
            encoder = VoxelFeatureEncoder if model.lidar.encoder == "padded" else PillarEncoder
            self.lidar = encoder(model.lidar, grid)
            inputs.append((model.lidar.channels, 1))
        if model.camera:
            self.camera = ImageEncoder(model.camera)
            self.lift = Lift(model.camera, grid.coarser(model.camera.stride))
            inputs.append((model.camera.channels * len(model.camera.heights), model.camera.stride))
        self.fuse = Fuse(inputs, model.fused_channels, model.fused_stride) if model.fusion else Alone()
        self.trunk: Trunk | PyramidTrunk
        if model.trunk.pyramid:
            self.trunk = PyramidTrunk(model.trunk, model.fused_channels)
        else:
            self.trunk = Trunk(model.trunk, model.fused_channels, model.fused_stride)
        self.heads = nn.ModuleDict()
        if model.anchors:
            self.heads["detection"] = AnchorHead(model.anchors, self.trunk.channels)
        else:
            grid = grid.coarser(model.trunk.stride)
            self.heads["detection"] = CenterHead(model.detection, self.trunk.channels, grid)
        if model.map:
            self.heads["map"] = MapSegmentationHead(model.map, self.trunk.channels)
        self.bank = Bank(self)
        for module in config.modules:
            self.bank.add(module)
        for text in config.fusions:
            add_fusion(self.bank, parse_block(text))
        self.router: FixedRouter | SteeredRouter | WanderingRouter = FixedRouter(self.bank, tuple(self.heads))
        chooser: Any = CHOOSERS[config.routing.kind] if config.routing else None
        self.chooser = chooser and chooser(config.routing, model.fused_channels, self.bank)
        self.recogniser = Recogniser(model.fused_channels) if config.recognise else None
        self.routes: list[Route] = []  # of the last forward pass, one for each group of tasks

    def forward(self, inputs: dict[str, Tensor], conditions: Sequence[Conditions] = ()) -> dict[str, Tensor]:
        """Dense output of every head, for inputs as `sensors/inputs.py` makes them and the frames' conditions.

        Tasks whose modules differ are computed one after the other; where none do, there is one pass for all.
        """
        outputs: dict[str, Tensor] = {}
        sensors, self.routes = present(inputs), []
        for route, tasks in self.router(conditions, sensors):
            self.bank.apply(route)
            fused = self.fuse(self._maps(inputs))
            if self.recogniser is not None:
                outputs |= self.recogniser(fused)
            if self._chooses():
                route = self.chooser(fused, route, sensors, tasks, conditions)
                self.bank.apply(route)
            features = self.trunk(fused)
            for task in tasks:
                outputs |= self.heads[task](features)
            self.routes.append(route)
        return outputs

    def routing_losses(self, costs: Tensor | None = None) -> dict[str, Tensor]:
        """Terms of the chooser for the batch of the last forward pass, to be added to the losses of the tasks.

        Args:
            costs: (B,) what the tasks lost on each frame; for REINFORCE.

        Raises:
            ValueError: REINFORCE without costs.
        """
        return self.chooser.losses(self.routes, costs) if self._chooses() else {}

    def recognition_losses(self, dense: dict[str, Tensor], conditions: Sequence[Conditions]) -> dict[str, Tensor]:
        """Cross-entropy of what is recognised with the frames' tags; empty without a recogniser."""
        return {} if self.recogniser is None else self.recogniser.losses(dense, conditions)

    def routing_balance(self) -> dict[str, float]:
        """How evenly a learned router used its options on the batch of the last forward pass; empty without one."""
        learned = self._chooses() and isinstance(self.chooser, LearnedRouter)
        return self.chooser.balance(self.routes) if learned else {}

    def _chooses(self) -> bool:
        """Whether there is something to choose: no module is activated by hand or merged, and slots hold some."""
        holding = any(self.bank.slots[slot].computations for slot in after_fusion(self.bank))
        return self.chooser is not None and self.bank.active is None and holding

    def _maps(self, inputs: dict[str, Tensor]) -> list[Tensor]:
        """What each sensor sees, from above."""
        maps = []
        if self.config.model.lidar:
            maps.append(self.lidar(inputs["pillar_points"], inputs["pillar_counts"], inputs["pillar_cells"]))
        if self.config.model.camera:
            context, depth = self.camera(inputs["images"])
            maps.append(self.lift(context, depth, inputs["image_from_reference"]))
        return maps

    def predict(self, inputs: dict[str, Tensor], conditions: Sequence[Conditions] = ()) -> dict[str, Tensor]:
        """Decoded output: boxes, scores, labels, attributes, with a map head map, with a recogniser recognised."""
        dense = self(inputs, conditions)
        decoders: list[Any] = [head.decode for head in self.heads.values()]
        decoders += [] if self.recogniser is None else [self.recogniser.decode]
        return {name: value for decode in decoders for name, value in decode(dense).items()}

    def folded(self, *routes: Conditions) -> PerceptionModel:
        """A copy for these conditions, or for none that are known, whose modules are written into the weights.

        Modules that do not fold stay at their slots, without a gate; those that are not routed are gone. Where a
        chooser decides, all modules stay. What runs under some of several sets of conditions only, or with or without
        a sensor, stays as well, and a `SteeredRouter` runs it; what computes the same on all these routes is folded.
        """
        model = copy.deepcopy(self)
        model.router = router = FixedRouter(model.bank, tuple(model.heads))
        chosen = model.chooser.names if model.chooser else ()
        fixed = [module for name, module in model.bank.modules.items() if name not in chosen]
        asked = {fact.removeprefix("no-") for module in fixed for fact in module.when}
        sensors: list[list[str]] = [[], *([sensor] for sensor in SENSORS if sensor in asked)]  # that are missing
        known = routes or (Conditions(),)
        cases = [router.settle(conditions, missing) for missing in sensors for conditions in known]
        settled = [route for case in cases for route, _ in case]
        always = {name for name in model.bank.modules if all(any(name in r.weights for r, _ in case) for case in cases)}
        model.bank.fold(settled, keep=after_fusion(model.bank) if model.chooser else ())
        if len(cases) > 1:
            model.router = SteeredRouter(model.bank, tuple(model.heads), always)
            if model.chooser is None:
                for slot in model.bank.slots.values():
                    slot.stack_low_rank()
        return model

    def deployed(self, *routes: Conditions) -> PerceptionModel:
        """`folded`, for predictions alone: what is regressed is computed only at the peaks that become boxes.

        Then `forward` gives the heat maps and what `predict` needs beside them.
        """
        model = self.folded(*routes).eval()
        model.heads["detection"] = at_peaks(model.heads["detection"])
        return model
