"""Recognises conditions from pictures alone, and says unknown where they are unlike its training data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from perception.errors import InputError
from perception.tasks.conditions.fitting import Fitted, Pictures, fit
from perception.tasks.conditions.folds import folds_of_drives, learned_values
from perception.tasks.conditions.network import cross_entropies
from perception.tasks.conditions.pictures import PictureFeatures, photometric
from perception.tasks.network import FittedNetwork, Loss

_NEVER = -1e4  # logit of a value that was not learned


class KindOfCondition(nn.Module):
    """Logits and distance of one kind of condition; unknown for everything until it is fitted.

    Args:
        features: D of a picture.
        values: V of this kind.
    """

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
        zeros = {
            "centre": (features,),
            "weights": (values, features),
            "biases": (values,),
            "centres": (values, features),
        }
        for name, shape in zeros.items():
            self.register_buffer(name, torch.zeros(shape))
        self.register_buffer("learned", torch.zeros(values, dtype=torch.bool))
        self.register_buffer("temperature", torch.ones(()))
        self.register_buffer("whitening", torch.eye(features))
        self.register_buffer("per_limit", torch.tensor(1e6))  # 1 / limit of the distance

    def take(self, fitted: Fitted, learned: Tensor) -> None:
        """Take over what was fitted to values (V,), of which these are learned."""
        centre = fitted.distance.means[learned].mean(dim=0)  # float32 is precise for what is small
        weights, biases = fitted.classifier.linear()
        self.centre.copy_(centre)
        self.weights.copy_(weights)
        self.biases.copy_(biases + weights @ centre)
        self.whitening.copy_(fitted.distance.whitening)
        self.centres.copy_((fitted.distance.means - centre) @ fitted.distance.whitening)
        self.learned.copy_(learned)
        self.temperature.fill_(fitted.temperature)
        self.per_limit.fill_(1 / fitted.limit)

    def forward(self, features: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
        """Calibrated logits (B, V), and the distance (B,) as d / (d + limit); 1 for a frame without pictures.

        Args:
            features: (B, N, D) of the pictures.
            shares: (B, N) weight of each picture; they sum to 1, or are all 0 for a frame without pictures.
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
        return torch.where(self.learned, logits, _NEVER), torch.where(missing, 1.0, far)


class ConditionsRecogniser(FittedNetwork):
    """Frozen features of each picture, and Gaussians over them for each kind of condition.

    A frame's logits and squared distances are the means over its pictures. Pictures of zeros (missing or failed) do not
    count. No module changes what it says.

    `fit` uses cross-validation over drives: temperature and limit are those that suit keyframes of drives that the
    Gaussians were not fitted to; then these are fitted to all drives. The classifier sees each picture twice, as
    recorded and with photometric augmentation; the distance is that from pictures as recorded.
    """

    def __init__(self, conditions: Mapping[str, Sequence[str]]) -> None:
        super().__init__()
        self.features = PictureFeatures()
        self.kinds = nn.ModuleDict(
            {kind: KindOfCondition(self.features.size, len(values)) for kind, values in conditions.items()}
        )
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
        return cross_entropies(self.kinds, dense, labels)

    def start(self) -> None:
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

    def fit(self) -> None:
        seen, self._seen = self._seen, []
        drives = [keyframe.drive for keyframe in seen]
        folds, pictures, fitted = folds_of_drives(drives), None, 0
        for kind, network in self.kinds.items():
            part: Any = network
            values = torch.tensor([keyframe.values[kind] for keyframe in seen], dtype=torch.int64)
            learned = learned_values(values, drives, len(part.learned))
            if learned.sum() >= 2:
                pictures = pictures or _joined(seen)
                found = fit(pictures, torch.where((values >= 0) & learned[values], values, -1), learned, folds)
                if found is not None:
                    part.take(found, learned)
                    fitted += 1
        if not fitted:
            raise InputError(
                f"{len({*drives})} drives with pictures, but no kind of condition with two values that two drives show "
                "each; recognising takes more drives"
            )


class _Keyframe(NamedTuple):
    """Features of a keyframe's pictures, (n, D) each."""

    recorded: Tensor
    changed: Tensor
    values: Mapping[str, int]
    drive: str


def _joined(seen: Sequence[_Keyframe]) -> Pictures:
    counts = torch.tensor([len(keyframe.recorded) for keyframe in seen])
    return Pictures(
        torch.cat([keyframe.recorded for keyframe in seen]).double(),
        torch.cat([keyframe.changed for keyframe in seen]).double(),
        torch.arange(len(seen)).repeat_interleave(counts),
    )
