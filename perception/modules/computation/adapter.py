"""Adapters: small networks after or beside the layer (Rebuffi et al., 2017 and 2018; Houlsby et al., 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from perception.io.section import Positive
from perception.modules.computation.computation import (
    CONVOLUTIONS,
    Affine,
    Computation,
    Site,
    groups_of,
    inputs,
    mix_outputs,
    outputs,
    pointwise,
)
from perception.modules.spec import Module

EPS = 2.0**-10  # a power of two, so that a variance of 1 - EPS normalises by exactly one


class SeriesAdapter(Computation):
    """BN2(y + A BN1(y)) in place of the output y, with a pointwise A that starts at zero (Rebuffi et al., 2017).

    BN1 estimates the domain's statistics while the module trains. BN2 trains scale and shift but has fixed unit
    statistics, because normalising would remove the scale that the frozen network after the slot expects.
    """

    class Options(Module):
        kind: Literal["series_adapter"] = "series_adapter"  # kind of module

    layers = CONVOLUTIONS

    def __init__(self, layer: Any) -> None:
        super().__init__()
        channels, self.groups = outputs(layer), groups_of(layer)
        self.a = pointwise(layer, channels, channels, self.groups)
        nn.init.zeros_(self.a.weight)
        self.before, self.after = nn.BatchNorm2d(channels, EPS), nn.BatchNorm2d(channels, EPS)
        for norm in (self.before, self.after):
            nn.init.constant_(norm.running_var, 1 - EPS)  # type: ignore[arg-type]
        self.after.eval()
        self.to(layer.weight)

    def train(self, mode: bool = True) -> SeriesAdapter:
        super().train(mode)
        self.after.eval()
        return self

    def forward(self, site: Site) -> Tensor:
        adapted: Tensor = self.after(site.y + self.a(self.before(site.y)))
        return adapted - site.y

    def matrix(self) -> tuple[Tensor, Tensor]:
        """M (g, O / g, O / g) and c (O) such that the module's output is M y + c."""
        inner, outer = _scale_and_shift(self.before), _scale_and_shift(self.after)
        a = self.a.weight[..., 0, 0].unflatten(0, (self.groups, -1))  # g O/g O/g
        scaled = a * inner[0].unflatten(0, (self.groups, 1, -1))
        m = (torch.eye(a.shape[-1]).to(a) + scaled) * outer[0].unflatten(0, (self.groups, -1, 1))
        shift = torch.einsum("gpo,go->gp", a, inner[1].unflatten(0, (self.groups, -1))).flatten()
        return m, outer[0] * shift + outer[1]

    def fold(self, function: Affine, layer: Any, z: Tensor | None) -> Affine:
        m, shift = self.matrix()

        def mixed(channels: Tensor) -> Tensor:  # along the first dimension
            return torch.einsum("gpo,go...->gp...", m, channels.unflatten(0, (self.groups, -1))).flatten(0, 1)

        constant = None if function.constant is None else mixed(function.constant[0])[None]
        return Affine(mix_outputs(function.weight, m, layer), mixed(function.bias) + shift, constant)

    def multiply_adds(self, layer: Any) -> int:
        return int(self.a.weight.numel()) + 2 * outputs(layer)

    def task_vector(self, layer: Any) -> dict[str, Tensor]:
        m, shift = (t.detach() for t in self.matrix())
        return {"matrix": m - torch.eye(m.shape[-1]).to(m), "shift": shift.clone()}

    @torch.no_grad()
    def set_task_vector(self, vector: dict[str, Tensor], layer: Any) -> None:
        """Set A and the shift of BN2; both normalisations become the identity otherwise."""
        self.load_state_dict(type(self)(layer).state_dict())
        self.a.weight.copy_(vector["matrix"].flatten(0, 1)[..., None, None])
        self.after.bias.copy_(vector["shift"])


class ParallelAdapter(Computation):
    """A x beside the layer, with A pointwise, of the layer's stride and starting at zero (Rebuffi et al., 2018).

    It attaches to linear layers and to convolutions whose central tap is aligned with the output.
    """

    class Options(Module):
        kind: Literal["parallel_adapter"] = "parallel_adapter"  # kind of module

    layers = (nn.Conv2d, nn.Linear)
    linear: ClassVar[Mapping[str, float]] = {"a.weight": 0.0}

    @classmethod
    def attaches_to(cls, layer: nn.Module) -> bool:
        if not isinstance(layer, nn.Conv2d):
            return isinstance(layer, nn.Linear)
        if isinstance(layer.padding, str):
            return False
        sides = zip(layer.kernel_size, layer.padding, layer.dilation, strict=True)
        return all(k % 2 == 1 and 2 * p == d * (k - 1) for k, p, d in sides)

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.a = pointwise(layer, inputs(layer), outputs(layer), groups_of(layer))
        if isinstance(layer, nn.Conv2d):
            self.a.stride = layer.stride
        nn.init.zeros_(self.a.weight)
        self.to(layer.weight)

    def forward(self, site: Site) -> Tensor:
        delta: Tensor = self.a(site.x)
        return delta

    def fold(self, function: Affine, layer: Any, z: Tensor | None) -> Affine:
        weight = function.weight.clone()
        if isinstance(layer, nn.Linear):
            weight += self.a.weight
        else:
            rows, columns = layer.kernel_size
            weight[..., rows // 2, columns // 2] += self.a.weight[..., 0, 0]
        return function._replace(weight=weight)

    def multiply_adds(self, layer: Any) -> int:
        return int(self.a.weight.numel())


class Bottleneck(Computation):
    """y + U relu(D y), with pointwise D to fewer channels and U back, which starts at zero (Houlsby et al., 2019)."""

    class Options(Module):
        kind: Literal["bottleneck"] = "bottleneck"  # kind of module
        reduction: Positive = 8  # the hidden width is the output's, divided by this

    layers = (*CONVOLUTIONS, nn.Linear)
    affine = False

    def __init__(self, layer: Any, reduction: int) -> None:
        super().__init__()
        channels = outputs(layer)
        hidden = max(1, channels // reduction)
        self.down, self.up = pointwise(layer, channels, hidden), pointwise(layer, hidden, channels)
        nn.init.zeros_(self.up.weight)
        self.to(layer.weight)

    def forward(self, site: Site) -> Tensor:
        delta: Tensor = self.up(torch.relu(self.down(site.y)))
        return delta

    def multiply_adds(self, layer: Any) -> int:
        return int(self.down.weight.numel() + self.up.weight.numel())


def _scale_and_shift(norm: Any) -> tuple[Tensor, Tensor]:
    """A batch normalisation in evaluation, as scale * y + shift."""
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return scale, norm.bias - norm.running_mean * scale
