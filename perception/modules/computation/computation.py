"""The interface of computation functions, and the linear algebra of the layers that they attach to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from perception.modules.spec import Module

# Of a module on a route: a number for the whole batch; a tensor (B,) with one for each frame; or (B, 1, rows, columns)
# with one for each cell of the bird's-eye view, which is stretched over the slot's grid.
Weight = float | Tensor


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels at each cell of (B, C, rows, columns); records of modules have its name."""

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__(num_features, eps)
        self.num_features = num_features

    def forward(self, x: Tensor) -> Tensor:
        x = functional.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
NORMS = (nn.BatchNorm2d, nn.BatchNorm1d)
LAYERS = (*CONVOLUTIONS, nn.Linear, *NORMS)  # what gets a slot in a foreign network
CHANNELWISE = (*LAYERS, ChannelNorm)  # layers whose outputs a module can scale and shift


class Site(NamedTuple):
    """What a module reads at its slot."""

    x: Any  # what the layer reads: a tensor (B, I, ...), for a Linear (..., I); x[rows] is that of some rows
    y: Tensor  # output of the layer with the modules stacked before: (B, O, ...), for a Linear (..., O)
    layer: Any  # the slot's layer; read only
    z: Tensor | None  # (B, Z) or (1, Z) condition vectors, see `routing/fixed.py`; None: unknown


class Affine(NamedTuple):
    """An affine function with the geometry (stride, padding, groups, statistics) of a layer.

    y = layer's operation with `weight` (shaped like the layer's) + bias (O) + constant (1, O, H, W) or nothing.
    The constant is that of a prompt: a bias that differs by cell.
    """

    weight: Tensor
    bias: Tensor
    constant: Tensor | None = None

    @staticmethod
    def of(layer: Any, constant: Tensor | None = None) -> Affine:
        bias = layer.weight.new_zeros(outputs(layer)) if layer.bias is None else layer.bias
        return Affine(layer.weight, bias, constant)

    def plus(self, change: Affine, since: Affine, weight: float) -> Affine:
        """self + weight * (change - since)."""
        constant = self.constant
        if change.constant is not None:
            step = change.constant if since.constant is None else change.constant - since.constant
            constant = weight * step if constant is None else constant + weight * step
        return Affine(
            self.weight + weight * (change.weight - since.weight),
            self.bias + weight * (change.bias - since.bias),
            constant,
        )


class Computation(nn.Module):
    """A computation function at one slot: forward returns the delta that is added to the output of the slot's layer.

    A new one is the identity: its delta is exactly zero. If `affine`, `fold` returns layer and module as one affine
    function for a given condition vector (for export without modules); other modules stay in the graph.
    The module's tensors have the type and device of the layer's.
    """

    Options: ClassVar[type[Module]]  # configuration of such a module; its own fields are arguments of the class
    kind: ClassVar[str]  # of the options
    layers: ClassVar[tuple[type[nn.Module], ...]]
    affine: ClassVar[bool] = True
    linear: ClassVar[Mapping[str, float]] = {}  # parameters that are a task vector -> their value of the identity
    conditional: ClassVar[bool] = False  # whether it reads `Site.z`

    def __init_subclass__(cls) -> None:
        if "Options" in vars(cls):
            cls.kind = cls.Options.model_fields["kind"].default

    @classmethod
    def attaches_to(cls, layer: nn.Module) -> bool:
        """Whether a slot with this layer can hold such a module."""
        bare = isinstance(layer, NORMS) and not (layer.affine and layer.track_running_stats)
        return isinstance(layer, cls.layers) and not bare

    def forward(self, site: Site) -> Tensor:
        """The delta, with the shape of `site.y`."""
        raise NotImplementedError

    def output(self, x: Any, layer: Any, z: Tensor | None) -> Tensor:
        """layer(x) + delta: the output of a slot with only this module. Overridden where that is cheaper."""
        y: Tensor = layer(x)
        return y + self(Site(x, y, layer, z))

    def fold(self, function: Affine, layer: Any, z: Tensor | None) -> Affine:
        """`function` of the slot, with the geometry of its layer, combined with this module; z (1, Z) as in Site."""
        raise NotImplementedError(f"{self.kind} is not affine")

    def multiply_adds(self, layer: Any) -> int:
        """Multiplications per output cell (for a Linear per row) if the module is not folded.

        Those of a transposed convolution inside it are counted per input cell.
        """
        raise NotImplementedError

    def task_vector(self, layer: Any) -> dict[str, Tensor]:
        """The learned change as tensors that may be added and scaled, all zero for the identity.

        Raises NotImplementedError if the module is not linear in any set of tensors.
        """
        if not self.linear:
            raise NotImplementedError(f"{self.kind} modules cannot be merged; use Parallel, Average or Stack")
        return {name: self.get_parameter(name).detach() - identity for name, identity in self.linear.items()}

    @torch.no_grad()
    def set_task_vector(self, vector: dict[str, Tensor], layer: Any) -> None:
        """Set the module to this task vector, as closely as its size allows."""
        for name, identity in self.linear.items():
            self.get_parameter(name).copy_(identity + vector[name])


def inputs(layer: Any) -> int:
    if isinstance(layer, (*NORMS, nn.SyncBatchNorm, ChannelNorm)):
        return int(layer.num_features)
    return int(layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels)


def outputs(layer: Any) -> int:
    if isinstance(layer, (*NORMS, nn.SyncBatchNorm, ChannelNorm)):
        return int(layer.num_features)
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)


def per_channel(vector: Tensor, y: Tensor, layer: Any) -> Tensor:
    """(O,) or (B, O) broadcast over the layer's output y, which may have several rows for each frame."""
    frames = vector.reshape(-1, vector.shape[-1])
    if len(frames) > 1:
        frames = frames.repeat_interleave(y.shape[0] // len(frames), dim=0)
    if isinstance(layer, nn.Linear):
        return frames.reshape(len(frames), *(1,) * (y.ndim - 2), -1)
    return frames.reshape(len(frames), -1, *(1,) * (y.ndim - 2))


def scale_outputs(weight: Tensor, scale: Tensor, layer: Any) -> Tensor:
    """The layer's `weight` with output channel o multiplied by scale[o]."""
    if isinstance(layer, nn.ConvTranspose2d):  # (I, O / g, k, k), whose input channels are grouped
        by_group = weight.unflatten(0, (layer.groups, -1)) * scale.reshape(layer.groups, 1, -1, 1, 1)
        return by_group.flatten(0, 1)
    return weight * scale.reshape(-1, *(1,) * (weight.ndim - 1))


def mix_outputs(weight: Tensor, matrix: Tensor, layer: Any) -> Tensor:
    """The layer's `weight` with its output channels multiplied by a matrix (g, O / g, O / g), one for each group."""
    groups = len(matrix)
    if isinstance(layer, nn.ConvTranspose2d):
        return torch.einsum("gpo,giokl->gipkl", matrix, weight.unflatten(0, (groups, -1))).flatten(0, 1)
    return torch.einsum("gpo,go...->gp...", matrix, weight.unflatten(0, (groups, -1))).flatten(0, 1)


def groups_of(layer: Any) -> int:
    return int(getattr(layer, "groups", 1))


def pointwise(layer: Any, inputs: int, outputs: int, groups: int = 1) -> Any:
    """A linear map of the channels at each cell, without bias, for tensors with the layer's layout."""
    if isinstance(layer, nn.Linear):
        return nn.Linear(inputs, outputs, bias=False)
    return nn.Conv2d(inputs, outputs, 1, groups=groups, bias=False)


def resized(layer: Any, inputs: int, outputs: int, groups: int = 1) -> Any:
    """A layer of this one's kind and geometry with other channels and groups, initial weights and no bias."""
    if isinstance(layer, nn.Linear):
        return nn.Linear(inputs, outputs, bias=False)
    shape = {name: getattr(layer, name) for name in ("kernel_size", "stride", "padding", "dilation", "padding_mode")}
    if isinstance(layer, nn.ConvTranspose2d):
        shape["output_padding"] = layer.output_padding
    kind = nn.ConvTranspose2d if isinstance(layer, nn.ConvTranspose2d) else nn.Conv2d
    return kind(inputs, outputs, groups=groups, bias=False, **shape)


def apply_weight(x: Tensor, weight: Tensor, layer: Any) -> Tensor:
    """The layer's operation on x with another weight and without bias."""
    if isinstance(layer, nn.Linear):
        return functional.linear(x, weight)
    if isinstance(layer, nn.ConvTranspose2d):
        return functional.conv_transpose2d(
            x, weight, None, layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation  # type: ignore[arg-type]
        )  # fmt: skip
    convolve: Any = layer._conv_forward  # handles the padding modes
    y: Tensor = convolve(x, weight, None)
    return y
