"""Our model as one of mmdet3d's: mmdet3d's own entry points train and test it on mmdet3d's own data pipeline.

In a configuration of mmdet3d:

    custom_imports = dict(imports=["perception.mmdet3d.registered"])
    model = dict(type="PerceptionDetector", config="configs/tiny.yaml")

What MMEngine's Runner has trained becomes a run of ours, to evaluate, adapt and export, by

    save_model(folder, detector.network.config, detector.network)  # perception/training/checkpoint.py
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perception.config import load_config
from perception.data.inputs import InputSpec, no_sensors
from perception.data.loader import Batch
from perception.data.pillars import group
from perception.data.sweeps import far_enough
from perception.errors import InputError
from perception.frame import ATTRIBUTES, Boxes, Conditions
from perception.mmdet3d.install import import_mmdet3d
from perception.model import PerceptionModel
from perception.training.checkpoint import load_model
from perception.training.loop import losses_of

import_mmdet3d()

from mmdet3d.registry import MODELS  # noqa: E402
from mmdet3d.structures import LiDARInstance3DBoxes  # noqa: E402
from mmengine.model import BaseModel  # noqa: E402
from mmengine.structures import InstanceData  # noqa: E402


@MODELS.register_module()
class PerceptionDetector(BaseModel):
    """A PerceptionModel behind mmdet3d's interface, LiDAR only.

    Points and boxes are in the LiDAR's frame, as mmdet3d's are. The dataset's `metainfo` must have the classes in the
    order of perception.frame.CLASSES, which is that of mmdet3d's CenterPoint configurations.

    Args:
        config: YAML file of the model, with `grid.reference: lidar` and without `model.camera`.
        checkpoint: a run of ours whose weights and configuration to take instead; one of the two is given.
        data_preprocessor: of mmdet3d; by default the one that brings points and samples together.

    Raises:
        InputError: the configuration is for another frame of reference or has cameras.
    """

    def __init__(
        self,
        config: str | None = None,
        checkpoint: str | None = None,
        data_preprocessor: Mapping[str, Any] | None = None,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(dict(data_preprocessor or {"type": "Det3DDataPreprocessor"}), init_cfg)
        if (config is None) == (checkpoint is None):
            raise InputError("PerceptionDetector: give either config, a YAML file, or checkpoint, a run")
        self.network = PerceptionModel(load_config(Path(config))) if config else load_model(Path(str(checkpoint)))[0]
        self.spec = InputSpec.of(self.network.config)
        where = config or checkpoint
        if self.spec.grid.reference != "lidar":
            raise InputError(f"{where}: mmdet3d's points and boxes are in the LiDAR's frame; set grid.reference: lidar")
        if self.spec.camera is not None or self.spec.lidar is None:
            raise InputError(f"{where}: mmdet3d's pipeline gives it points alone; leave model.camera out")

    def forward(
        self, inputs: Mapping[str, Any], data_samples: Sequence[Any] | None = None, mode: str = "tensor"
    ) -> Any:
        """As mmdet3d's detectors: losses by name, the samples with `pred_instances_3d`, or the dense outputs.

        Args:
            inputs: `points`, a list of (N, 5) x y z (m), intensity (0-255), dt (s, >= 0).
            data_samples: Det3DDataSample of each frame; for `loss` with `gt_instances_3d`, whose `attr_labels` are
                optional.
            mode: loss, predict or tensor.
        """
        points: Sequence[Tensor] = inputs["points"]
        conditions = [Conditions()] * len(points)
        arrays = self._pillars(points)
        if mode == "predict":
            return _with_predictions(self.network.predict(arrays, conditions), data_samples or ())
        dense = self.network(arrays, conditions)
        if mode != "loss":
            return dense
        batch = Batch(
            inputs=arrays,
            boxes=[_boxes(sample.gt_instances_3d) for sample in data_samples or ()],
            map_labels=None,
            map_valid=torch.zeros(len(points), dtype=torch.bool),
            conditions=conditions,
            tokens=[""] * len(points),
        )
        losses = losses_of(self.network.config, dense, batch) | self.network.routing_losses()
        return {f"loss_{name}": value for name, value in losses.items()}

    def _pillars(self, points: Sequence[Tensor]) -> dict[str, Tensor]:
        """Inputs of the network; padding that all frames have is left out."""
        frames, most = [], 1
        assert self.spec.lidar is not None
        for cloud in points:
            arrays = no_sensors(self.spec)
            recorded = cloud.detach().cpu().numpy()
            # mmdet3d drops returns from the vehicle's roof in earlier sweeps alone; in the keyframe, dt is 0.
            kept = far_enough(recorded) | (recorded[:, 4] > 0)
            near_removed = np.ascontiguousarray(recorded[kept], np.float32)
            pillars, counts, cells = (arrays[f"pillar_{name}"][0] for name in ("points", "counts", "cells"))
            found = group(near_removed, self.spec.grid, pillars, counts, cells, self.spec.lidar.overflow)
            most = max(most, found)
            frames.append(arrays)
        device = points[0].device
        return {
            name: torch.from_numpy(np.concatenate([f[name][:, :most] for f in frames])).to(device) for name in frames[0]
        }


def _boxes(instances: Any) -> Boxes:
    """Annotations of one frame. mmdet3d does not carry the number of points to here: the pipeline has filtered."""
    boxes = instances.bboxes_3d
    tensor = boxes.tensor.detach().cpu().numpy().astype(np.float64)
    yaws = tensor[:, 6]
    attributes = np.full(len(tensor), -1)
    if "attr_labels" in instances:
        given = instances.attr_labels.cpu().numpy()
        attributes = np.where(given < len(ATTRIBUTES), given, -1)  # mmdet3d's index after the last is 'None'
    return Boxes.from_yaws(
        centers=boxes.gravity_center.cpu().numpy(),
        sizes=tensor[:, [4, 3, 5]],  # mmdet3d: length along x, width along y
        yaws=yaws,
        velocities=tensor[:, 7:9],
        labels=instances.labels_3d.cpu().numpy(),
        attributes=attributes,
        scores=np.ones(len(tensor)),
    )


def _with_predictions(outputs: Mapping[str, Tensor], samples: Sequence[Any]) -> list[Any]:
    """The samples with what was decoded for each, best score first."""
    for i, sample in enumerate(samples):
        box = outputs["boxes"][i]  # x y z w l h sin cos vx vy
        yaw = torch.atan2(box[:, 6:7], box[:, 7:8])
        tensor = torch.cat([box[:, 0:3], box[:, [4, 3, 5]], yaw, box[:, 8:10]], dim=1)
        sample.pred_instances_3d = InstanceData(
            bboxes_3d=LiDARInstance3DBoxes(tensor, box_dim=9, origin=(0.5, 0.5, 0.5)),  # ours name the middle
            scores_3d=outputs["scores"][i],
            labels_3d=outputs["labels"][i],
            attr_labels=outputs["attributes"][i],
        )
        sample.pred_instances = InstanceData()
    return list(samples)
