"""Recognises conditions from pictures alone, and says unknown where they are unlike its training data.

The features of a picture come from the first stages of an EfficientNet-Lite0 with ImageNet weights, which stay frozen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perception.errors import InputError
from perception.loss import Loss
from perception.sensors.camera.pretrained import PACKAGED, load_packaged, picture_backbone
from perception.tasks.conditions.fitting import (
    Fitted,
    Pictures,
    describe_taught,
    find_learned_values,
    fit,
    folds_of_drives,
    transfer,
)
from perception.tasks.network import FittedNetwork

STAGES = (1, 2, 3)  # timm feature levels, at strides 4, 8 and 16
WIDTH = 256  # pixels; wider pictures are reduced by a whole factor


class PictureFeatures(nn.Module):
    """Pictures (N, H, W, 3), RGB 0-255, to features (N, `size`): mean and deviation over the cells of each channel.

    The weights are random until `load_pretrained`; a checkpoint has its own copy of them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.backbone = picture_backbone(PACKAGED, STAGES)
        self.size = 2 * sum(self.backbone.feature_info.channels())
        self.train()

    def load_pretrained(self) -> None:
        weights = load_packaged("tasks.conditions")
        self.backbone.load_state_dict({name: weights[name] for name in self.backbone.state_dict()})

    def train(self, mode: bool = True) -> PictureFeatures:
        """Always in evaluation mode: frozen."""
        return super().train(False)

    def forward(self, pictures: Tensor) -> Tensor:
        pictures = reduce_pictures(pictures.permute(0, 3, 1, 2).float())
        pooled = []
        for level in self.backbone(pictures / 127.5 - 1):
            cells = level.flatten(2)
            mean = cells.mean(dim=2)
            pooled += [mean, ((cells - mean[..., None]).square().mean(dim=2) + 1e-6).sqrt()]
        return torch.cat(pooled, dim=1)


def reduce_pictures(pictures: Tensor) -> Tensor:
    """(N, 3, H, W) averaged over squares of pixels, such that they are about `WIDTH` wide."""
    factor = max(1, round(pictures.shape[-1] / WIDTH))
    return F.avg_pool2d(pictures, factor) if factor > 1 else pictures


def photometric(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """The pictures (N, H, W, 3) of one frame as other cameras in other light might have taken them, 0-255.

    Random gamma, exposure, white balance, contrast, saturation, blur and noise, the same for all pictures of the frame.
    """

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand((), generator=generator)

    x: Any = (pictures.float() / 255).clamp(min=1e-4) ** draw(-0.4, 0.4).exp() * draw(-0.35, 0.35).exp()
    x = x * (0.15 * torch.randn(3, generator=generator)).exp()
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    x = mean + (x - mean) * draw(-0.4, 0.4).exp()
    grey = x.mean(dim=3, keepdim=True)
    x = grey + (x - grey) * draw(0.2, 1.6)
    if draw(0, 1) < 0.4:
        x = F.avg_pool2d(F.pad(x.permute(0, 3, 1, 2), (1, 1, 1, 1), mode="replicate"), 3, 1).permute(0, 2, 3, 1)
    x = x + draw(0, 0.04) * torch.randn(x.shape, generator=generator)
    changed: Tensor = 255 * x.clamp(0, 1)
    return changed


_NEVER = -1e4  # logit of a value that was not learned


class KindOfCondition(nn.Module):
    """Logits and distance of one kind of condition with V values; unknown for everything until it is fitted."""

    learned: Tensor
    centre: Tensor
    weights: Tensor
    biases: Tensor
    temperature: Tensor
    whitening: Tensor
    centres: Tensor
    per_limit: Tensor

    def __init__(self, features: int, values: int) -> None:
        super().__init__()
        initial = {
            "centre": torch.zeros(features),
            "weights": torch.zeros(values, features),
            "biases": torch.zeros(values),
            "centres": torch.zeros(values, features),
            "learned": torch.zeros(values, dtype=torch.bool),
            "temperature": torch.ones(()),
            "whitening": torch.eye(features),
            "per_limit": torch.tensor(1e6),  # 1 / limit of the distance
        }
        for name, tensor in initial.items():
            self.register_buffer(name, tensor)

    def _set(self, **values: Tensor | float) -> None:
        for name, value in values.items():
            self.get_buffer(name).copy_(torch.as_tensor(value))

    def take(self, fitted: Fitted, learned: Tensor) -> None:
        """Take over what was fitted to values (V,), of which these are learned."""
        centre = fitted.distance.means[learned].mean(dim=0)  # float32 is precise for what is small
        weights, biases = fitted.classifier.linear()
        whitening = fitted.distance.whitening
        self._set(centre=centre, weights=weights, biases=biases + weights @ centre, learned=learned)
        self._set(whitening=whitening, centres=(fitted.distance.means - centre) @ whitening)
        self._set(temperature=fitted.temperature, per_limit=1 / fitted.limit)

    def transfer(self, earlier: KindOfCondition, pictures: Pictures, values: Tensor, drives: Sequence[str]) -> None:
        """Fit to values (K,) of few drives, beside what an earlier recogniser learned (`fitting.transfer`)."""
        whitening, centre = earlier.whitening.double().cpu(), earlier.centre.double().cpu()
        recorded, changed = ((each - centre) @ whitening for each in (pictures.recorded, pictures.changed))
        white = Pictures(recorded, changed, pictures.keyframe)
        found = transfer(white, values, drives, earlier.centres.double().cpu(), earlier.learned.cpu())
        self._set(centre=centre, whitening=whitening, centres=found.centres, learned=found.learned)
        self._set(weights=found.centres @ whitening.T, biases=-0.5 * found.centres.square().sum(dim=1))
        self._set(temperature=found.temperature, per_limit=1 / found.limit)

    def forward(self, features: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
        """Calibrated logits (B, V), and the distance (B,) as d / (d + limit); 1 for a frame without pictures.

        It is 1 too where a value that was not learned, but of which an earlier recogniser knew, is likelier than all
        that were. The weights `shares` (B, N) of pictures sum to 1, or are 0 for a frame without any.
        """
        x = features - self.centre
        frame = (shares[..., None] * x).sum(dim=1)  # the logits are linear, so their mean is that of the features
        logits = (frame @ self.weights.T + self.biases) / self.temperature
        white = x @ self.whitening
        squares = (white[:, :, None] - self.centres).square().sum(dim=3)  # B N V
        each = (shares[..., None] * squares).sum(dim=1)
        nearest = torch.where(self.learned, each, each.amax(dim=1, keepdim=True)).amin(dim=1)
        far = 1 - 1 / (1 + nearest.sqrt() * self.per_limit)
        missing = shares.sum(dim=1) == 0
        rejecting = (self.weights != 0).any(dim=1) & ~self.learned  # those of values that nobody knows are 0
        likeliest = torch.where(self.learned, logits, logits.amin(dim=1, keepdim=True)).amax(dim=1, keepdim=True)
        never_shown = torch.where(rejecting, logits - likeliest, 0.0).amax(dim=1) > 0
        return torch.where(self.learned, logits, _NEVER), torch.where(missing | never_shown, 1.0, far)


class ConditionsRecogniser(FittedNetwork):
    """Frozen features of each picture, and Gaussians over them for each kind of condition.

    A frame's logits and squared distances are the means over its pictures. Pictures of zeros (missing or failed) do not
    count. No module changes what it says.

    `fit` uses cross-validation over drives: temperature and limit are those that suit held-out keyframes. The
    classifier sees each picture twice, as recorded and with photometric augmentation; the distance is that from
    recorded ones.
    """

    def __init__(self, conditions: Mapping[str, Sequence[str]]) -> None:
        super().__init__()
        self.features = PictureFeatures()
        self.kinds = nn.ModuleDict(
            {kind: KindOfCondition(self.features.size, len(values)) for kind, values in conditions.items()}
        )
        self._vocabulary = conditions
        self._earlier: dict[str, Any] = {}
        self._seen: list[_Keyframe] = []
        self._random = torch.Generator()

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Logits (B, number of values) by kind, and `distance` (B, kinds), for inputs of the network with `images`."""
        images = inputs["images"]
        there = (images.flatten(2).amax(dim=2) > 0).float()
        shares = there / there.sum(dim=1, keepdim=True).clamp(min=1)
        features = self.features(images.flatten(0, 1)).unflatten(0, images.shape[:2])
        found = {kind: network(features, shares) for kind, network in self.kinds.items()}
        distance = torch.stack([far for _, far in found.values()], dim=1)
        return {kind: logits for kind, (logits, _) in found.items()} | {"distance": distance}

    def decode(self, dense: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """probabilities (B, values), kind by kind; distance (B, kinds)."""
        probabilities = torch.cat([dense[kind].softmax(dim=1) for kind in self.kinds], dim=1)
        return {"probabilities": probabilities, "distance": dense["distance"]}

    def losses(self, dense: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> dict[str, Loss]:
        """The cross-entropy of each kind over the frames where it is tagged."""
        return {
            kind: Loss(F.cross_entropy(dense[kind], labels[kind], ignore_index=-1, reduction="none"), labels[kind] >= 0)
            for kind in self.kinds
        }

    def start(self, earlier: nn.Module | None = None) -> None:
        self._earlier = dict(earlier.kinds.items()) if isinstance(earlier, ConditionsRecogniser) else {}
        self.features.load_pretrained()
        self._seen = []
        self._random.manual_seed(0)

    @torch.no_grad()
    def observe(self, inputs: Mapping[str, Tensor], labels: Mapping[str, Tensor], drive: str) -> None:
        pictures = inputs["images"][0]
        pictures = pictures[pictures.flatten(1).amax(dim=1) > 0]
        if len(pictures):
            recorded = self.features(pictures)
            changed = self.features(photometric(pictures.cpu(), self._random).to(pictures.device))
            values = {kind: int(labels[kind]) for kind in self.kinds}
            self._seen.append(_Keyframe(recorded.cpu(), changed.cpu(), values, drive))

    def fit(self) -> Sequence[str]:
        keyframes, self._seen = self._seen, []
        drives, lines, fitted = [keyframe.drive for keyframe in keyframes], [], False
        for kind, network in self.kinds.items():
            values = torch.tensor([keyframe.values[kind] for keyframe in keyframes], dtype=torch.int64)
            learned = _fit_kind(network, self._earlier.get(kind), keyframes, values)
            fitted = fitted or bool(learned.any())
            lines.append(describe_taught(kind, self._vocabulary[kind], values, drives, learned))
        if not fitted:
            raise InputError(
                f"{len({*drives})} drives with pictures, but no kind of condition with two values that two drives show "
                f"each; recognising takes more drives. {'. '.join(lines)}"
            )
        return lines


def _fit_kind(network: Any, earlier: Any, keyframes: Sequence[_Keyframe], values: Tensor) -> Tensor:
    """Fit a kind of condition, beside what an earlier recogniser of it learned where that knows all that is shown.

    Returns (V,) bool: the values that it now recognises; none if there are too few drives to fit it.
    """
    drives = [keyframe.drive for keyframe in keyframes]
    learned = find_learned_values(values, drives, len(network.learned))
    if earlier is not None:
        known = earlier.learned.cpu()
        shown = torch.where((values >= 0) & known[values], values, -1)
        shown_by = {drive for drive, value in zip(drives, shown.tolist(), strict=True) if value >= 0}
        if len(shown_by) >= 2 and not (learned & ~known).any():
            network.transfer(earlier, _join(keyframes), shown, drives)
            return torch.as_tensor(network.learned.cpu())
    if learned.sum() >= 2:
        taught = torch.where((values >= 0) & learned[values], values, -1)
        found = fit(_join(keyframes), taught, learned, folds_of_drives(drives))
        if found is not None:
            network.take(found, learned)
            return learned
    return torch.zeros_like(learned)


class _Keyframe(NamedTuple):
    """Features of a keyframe's pictures, (n, D) each."""

    recorded: Tensor
    changed: Tensor
    values: Mapping[str, int]
    drive: str


def _join(seen: Sequence[_Keyframe]) -> Pictures:
    counts = torch.tensor([len(keyframe.recorded) for keyframe in seen])
    return Pictures(
        torch.cat([keyframe.recorded for keyframe in seen]).double(),
        torch.cat([keyframe.changed for keyframe in seen]).double(),
        torch.arange(len(seen)).repeat_interleave(counts),
    )
