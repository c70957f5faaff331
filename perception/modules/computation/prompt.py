"""Prompts: learned features added or concatenated to a layer's input (cf. visual prompt tuning, Jia et al., 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from perception.errors import InputError
from perception.io.section import Width
from perception.modules.computation.computation import Affine, Computation, Site, apply_weight, outputs, resized
from perception.modules.spec import Module


class Prompt(Computation):
    """Features p of size x size cells, resized to the layer's input.

    Added to the input (channels = 0), conv(x + p) = conv(x) + conv(p); or concatenated to it, conv([x, p]) =
    conv(x) + V p, with V shaped like the layer. Either way the delta does not depend on the input. It folds into a
    constant for one size of input, the last one; not into a bias, because the borders of a zero-padded convolution see
    less of p. The folded constant is an addition in the graph that prevents fusing a batch normalisation with the
    layer.
    """

    class Options(Module):
        kind: Literal["prompt"] = "prompt"  # kind of module
        size: Width = 8  # the map is size x size, stretched over the input
        channels: Annotated[int, Field(ge=0)] = 0  # 0: added to the input; n: concatenated to it as n more channels

    layers = (nn.Conv2d,)
    linear: ClassVar[Mapping[str, float]] = {"map": 0.0}

    def __init__(self, layer: Any, size: int, channels: int) -> None:
        super().__init__()
        self.map = nn.Parameter(torch.zeros(1, channels or layer.in_channels, size, size))
        self.mix: Any = None
        if channels:
            self.mix = resized(layer, channels, outputs(layer))
            nn.init.zeros_(self.mix.weight)
            nn.init.normal_(self.map)
        self.seen: tuple[int, int] | None = None  # rows and columns of the last input
        self.to(layer.weight)

    def forward(self, site: Site) -> Tensor:
        self.seen = (site.x.shape[-2], site.x.shape[-1])
        return self.constant(site.layer).expand_as(site.y)

    def constant(self, layer: Any) -> Tensor:
        """The delta (1, O, H, W) for inputs of the size last seen."""
        stretched = F.interpolate(self.map, size=self.seen, mode="bilinear")
        if self.mix is not None:
            mixed: Tensor = self.mix(stretched)
            return mixed
        return apply_weight(stretched, layer.weight, layer)

    def fold(self, function: Affine, layer: Any, z: Tensor | None) -> Affine:
        """Raises InputError if the module has not run yet: the size of the input is not known."""
        if self.seen is None:
            raise InputError("a prompt folds for one size of input: run a frame through the model first")
        own = self.constant(layer)
        return function._replace(constant=own if function.constant is None else function.constant + own)

    def multiply_adds(self, layer: Any) -> int:
        """One convolution of the map for the whole batch, counted as if for one frame."""
        return int(layer.weight.numel() if self.mix is None else self.mix.weight.numel())

    def task_vector(self, layer: Any) -> dict[str, Tensor]:
        if self.mix is not None:
            raise NotImplementedError("concatenated prompts, products of two factors, cannot be merged; use Parallel")
        return super().task_vector(layer)
