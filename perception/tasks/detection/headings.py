"""Headings of objects whose front and rear are hard to tell apart.

A network that is unsure gives the mean of both headings, which is short and points anywhere. The axis, as sine and
cosine of twice the yaw, is the same for both: it says how the box lies, and the heading only which end is in front.
"""

from __future__ import annotations

import torch
from torch import Tensor

AXIS = {"axis": 2}  # regression output: sine and cosine of twice the yaw


def along_axis(heading: Tensor, axis: Tensor) -> Tensor:
    """(..., 2) sine and cosine of the yaw along the axis, on the side of the heading; times a positive factor.

    Args:
        heading: (..., 2) sine and cosine of the yaw, times any factor.
        axis: (..., 2) sine and cosine of twice the yaw, times any positive factor.
    """
    sine, cosine = axis.unbind(dim=-1)
    length = (axis**2).sum(dim=-1).sqrt()
    # tan(yaw) = sin(2 yaw) / (1 + cos(2 yaw)) = (1 - cos(2 yaw)) / sin(2 yaw): the one that is far from 0 / 0.
    flat = torch.stack([sine, length + cosine], dim=-1)
    steep = torch.stack([length - cosine, sine], dim=-1)
    found = torch.where(cosine[..., None] >= 0, flat, steep)
    return torch.where((found * heading).sum(dim=-1, keepdim=True) < 0, -found, found)
