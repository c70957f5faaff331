"""Our model registered in mmdet3d, so that mmdet3d's scripts train and test it on mmdet3d's data pipeline.

In a configuration of mmdet3d, for a model with LiDAR and cameras, such as tiny.yaml with `grid: {reference: lidar}`:

    custom_imports = dict(imports=["perception.mmdet3d.registered"])
    model = dict(type="PerceptionDetector", config="tiny.yaml")
    pipeline = [
        dict(type="LoadPointsFromFile", coord_type="LIDAR", load_dim=5, use_dim=5),
        dict(type="LoadPointsFromMultiSweeps", sweeps_num=5, use_dim=list(range(5)), remove_close=True, test_mode=True),
        dict(type="LoadMultiViewImageFromFiles", num_views=6),  # or LoadViewsThatAreThere: some may be missing
        dict(type="LoadAnnotations3D", with_bbox_3d=True, with_label_3d=True, with_attr_label=True),
        dict(type="Pack3DDetInputs", keys=["points", "img", "gt_bboxes_3d", "gt_labels_3d", "attr_labels"]),
    ]

with `sweeps_num` equal to the model's `lidar.sweeps`, in a NuScenesDataset with `modality=dict(use_lidar=True,
use_camera=True)`, a folder for each camera in `data_prefix`, and classes in the order of
configs/taxonomies/nuscenes.yaml. A model without cameras or without LiDAR omits their steps. Points and boxes may be
augmented by GlobalRotScaleTrans and RandomFlip3D (with cameras its horizontal ratio must be 0, since mmdet3d 1.4 would
corrupt the images); images are given as recorded. mmdet3d has neither maps nor conditions: a map head is not trained,
and modules that require conditions are never active.

To evaluate, adapt and export a model trained by MMEngine's Runner, save it as a run:

    save_model(folder, detector.network.config, detector.network)  # perception/checkpoint.py
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perception.checkpoint import load_model
from perception.config import load_config
from perception.errors import InputError
from perception.frame import Boxes, Conditions, Frame
from perception.mmdet3d.frames import to_frame  # also registers its step of the pipeline
from perception.mmdet3d.install import ATTRIBUTES, import_mmdet3d
from perception.model import PerceptionModel, Trace, batch_inputs
from perception.sensors.inputs import InputSpec, prepare
from perception.tasks.task import Task, part_of
from perception.training.loader import batch_labels

import_mmdet3d()

from mmdet3d.registry import MODELS  # noqa: E402
from mmdet3d.structures import LiDARInstance3DBoxes  # noqa: E402
from mmengine.model import BaseModel  # noqa: E402
from mmengine.structures import InstanceData  # noqa: E402


@MODELS.register_module()
class PerceptionDetector(BaseModel):
    """A PerceptionModel with the interface of mmdet3d's detectors; points and boxes are in the LiDAR's frame.

    Args:
        config: YAML file of the model, with `grid.reference: lidar`.
        checkpoint: a run with weights and configuration, instead of `config`.
        data_preprocessor: configuration of mmdet3d's; by default Det3DDataPreprocessor.

    Raises:
        InputError: not exactly one of config and checkpoint; another frame of reference; supervised depth; or the
            preprocessor makes other images than RGB from 0 to 255.
    """

    def __init__(
        self,
        config: str | None = None,
        checkpoint: str | None = None,
        data_preprocessor: Mapping[str, Any] | None = None,
        init_cfg: Any = None,
    ) -> None:
        preprocessor = dict(data_preprocessor or {"type": "Det3DDataPreprocessor", "bgr_to_rgb": True})
        super().__init__(preprocessor, init_cfg)
        if (config is None) == (checkpoint is None):
            raise InputError("PerceptionDetector: give either config, a YAML file, or checkpoint, a run")
        self.from_config = config is not None  # its weights are random
        self.network = PerceptionModel(load_config(Path(config))) if config else load_model(Path(str(checkpoint)))[0]
        self.spec = InputSpec.of(self.network.config)
        if self.spec.grid.reference != "lidar":
            raise InputError(
                f"{config or checkpoint}: mmdet3d's points and boxes are in the LiDAR's frame; set "
                "grid.reference: lidar"
            )
        if self.spec.camera and self.spec.camera.depth.supervision:
            raise InputError(
                f"{config or checkpoint}: mmdet3d's samples have no labels of the depth; set "
                "model.camera.depth.supervision: 0"
            )
        if self.spec.camera and (not preprocessor.get("bgr_to_rgb") or preprocessor.get("mean") is not None):
            raise InputError(
                "PerceptionDetector: data_preprocessor needs bgr_to_rgb=True and no mean or std: the network takes "
                "pictures in RGB from 0 to 255"
            )

    def init_weights(self) -> None:
        """Called by the runner before it trains: loads `model.camera.weights`."""
        super().init_weights()
        if self.spec.camera and self.from_config:
            self.network.camera.load_pretrained()

    def forward(
        self, inputs: Mapping[str, Any], data_samples: Sequence[Any] | None = None, mode: str = "tensor"
    ) -> Any:
        """Losses by name, the samples with `pred_instances_3d`, or the dense outputs, by mode.

        Args:
            inputs: `points`, a list of (N, 5) x y z (m), intensity (0-255), dt (s, >= 0); with cameras `imgs`,
                (B, 6, 3, H, W) RGB 0-255.
            data_samples: Det3DDataSample of each frame; optional for `tensor` without cameras. For `loss` with
                `gt_instances_3d`, whose `attr_labels` are optional.
            mode: loss, predict or tensor.
        """
        arrays = self._arrays(inputs, data_samples)
        conditions = [Conditions()] * len(next(iter(arrays.values())))
        if mode == "predict":
            task = self.network.tasks["detection"]
            return _with_predictions(task, self.network.predict(arrays, conditions), data_samples or ())
        trace = Trace()
        dense = self.network(arrays, conditions, trace=trace)
        if mode != "loss":
            return dense
        task, device = self.network.tasks["detection"], next(self.parameters()).device
        labels = batch_labels([{"detection": task.labels(_make_annotated_frame(each))} for each in data_samples or ()])
        on_device = {name: values.to(device) for name, values in labels["detection"].items()}
        terms = self.network.losses(dense, {"detection": on_device})
        losses = {name: term.mean() for name, term in terms.items()} | self.network.routing_losses(trace.routes)
        return {f"loss_{name.removeprefix('detection/')}": value for name, value in losses.items()}

    def _arrays(self, inputs: Mapping[str, Any], data_samples: Sequence[Any] | None) -> dict[str, Tensor]:
        """Inputs of the network, as our own loader makes them."""
        metas = [sample.metainfo for sample in data_samples] if data_samples else [{}] * len(inputs["points"])

        def of_sensor(key: str, used: bool) -> Sequence[Tensor | None]:
            if used and key not in inputs:
                raise InputError(f"mmdet3d's pipeline gives no {key}, which the network takes; see {__name__}")
            return inputs[key] if used else [None] * len(metas)

        points = of_sensor("points", self.spec.lidar is not None)
        images = of_sensor("imgs", self.spec.camera is not None)
        frames = [to_frame(*frame) for frame in zip(points, images, metas, strict=True)]
        arrays, device = batch_inputs([prepare(frame, self.spec) for frame in frames]), next(self.parameters()).device
        return {name: array.to(device) for name, array in arrays.items()}


def _make_annotated_frame(sample: Any) -> Frame:
    """A frame with the annotations of a sample and without sensor data."""
    pose, boxes = np.eye(4), _boxes(sample.gt_instances_3d)
    return Frame("", 0, "lidar", global_from_reference=pose, global_from_ego=pose, points=None, cameras={}, boxes=boxes)


def _boxes(instances: Any) -> Boxes:
    """Annotations of one frame, without numbers of points, which mmdet3d's samples do not have."""
    boxes = instances.bboxes_3d
    tensor = boxes.tensor.detach().cpu().numpy().astype(np.float64)
    yaws = tensor[:, 6]
    attributes = np.full(len(tensor), -1)
    if "attr_labels" in instances:
        labels = instances.attr_labels.cpu().numpy()
        attributes = np.where(labels < len(ATTRIBUTES), labels, -1)  # mmdet3d has 'None' after the last
    return Boxes.from_yaws(
        centers=boxes.gravity_center.cpu().numpy(),
        sizes=tensor[:, [4, 3, 5]],  # mmdet3d: length along x, width along y
        yaws=yaws,
        velocities=tensor[:, 7:9],
        labels=instances.labels_3d.cpu().numpy(),
        attributes=attributes,
        scores=np.ones(len(tensor)),
    )


def _with_predictions(task: Task[Any], outputs: Mapping[str, Tensor], samples: Sequence[Any]) -> list[Any]:
    """The samples with their detections after NMS, best score first; an unknown velocity is 0, as in mmdet3d."""
    decoded = {name: values.numpy(force=True) for name, values in part_of("detection", outputs).items()}
    for i, sample in enumerate(samples):
        found: Boxes = task.result({name: values[i : i + 1] for name, values in decoded.items()})
        velocities = np.nan_to_num(found.velocities[:, :2])
        rows = np.concatenate([found.centers, found.sizes[:, [1, 0, 2]], found.yaws[:, None], velocities], axis=1)
        sample.pred_instances_3d = InstanceData(
            bboxes_3d=LiDARInstance3DBoxes(rows, box_dim=9, origin=(0.5, 0.5, 0.5)),  # z of the centre
            scores_3d=torch.from_numpy(found.scores),
            labels_3d=torch.from_numpy(found.labels),
            attr_labels=torch.from_numpy(found.attributes),
        )
        sample.pred_instances = InstanceData()
    return list(samples)
