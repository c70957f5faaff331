"""Dense outputs that decode to given objects."""

import torch
from torch import Tensor
from vocabulary import ATTRIBUTES

from perception.tasks.detection.targets import REGRESSION

SURE = 30.0  # logit


Dense = dict[str, Tensor]


def perfect_detection(labels: Dense) -> Dense:
    peaks = labels["heatmap"] == 1
    shape = peaks.shape[-2:]
    dense = {"heatmap": torch.where(peaks, SURE, -SURE)}
    attributes = SURE * torch.nn.functional.one_hot(labels["attributes"].clamp(min=0), len(ATTRIBUTES)).float()
    regressed = {name: labels[name] for name in REGRESSION} | {"attribute": attributes}
    for name, values in regressed.items():
        plane = torch.zeros(len(values), shape.numel(), values.shape[-1])
        for frame in range(len(values)):
            real = labels["real"][frame]
            plane[frame, labels["cells"][frame, real]] = values[frame, real].nan_to_num()
        dense[name] = plane.transpose(1, 2).reshape(len(values), -1, *shape)
    return dense
