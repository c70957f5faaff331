"""Headings of objects whose front and rear are hard to tell apart.

A network that is unsure gives the mean of both headings, which is short and points anywhere. The axis, as sine and
cosine of twice the yaw, is the same for both: it says how the box lies, and the heading only which end is in front.
"""

from __future__ import annotations

import torch
from torch import Tensor

AXIS = {"axis": 2}  # regression output: sine and cosine of twice the yaw


def along_axis(heading: Tensor, axis: Tensor) -> Tensor:
    """(..., 2) the heading's projection onto the axis: sine and cosine of the yaw, times its length there.

    It is short where the heading does not tell the ends apart, so that rounding changes it little.

    Args:
        heading: (..., 2) sine and cosine of the yaw, times any factor.
        axis: (..., 2) sine and cosine of twice the yaw, times any positive factor.
    """
    sine, cosine = axis.unbind(dim=-1)
    length = (axis**2).sum(dim=-1).sqrt()
    # tan(yaw) = sin(2 yaw) / (1 + cos(2 yaw)) = (1 - cos(2 yaw)) / sin(2 yaw): the one that is far from 0 / 0.
    flat = torch.stack([sine, length + cosine], dim=-1)
    steep = torch.stack([length - cosine, sine], dim=-1)
    along = torch.where(cosine[..., None] >= 0, flat, steep)
    share = (along * heading).sum(dim=-1, keepdim=True) / (along**2).sum(dim=-1, keepdim=True).clamp(min=1e-12)
    return along * share
