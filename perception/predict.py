"""A trained model as a predictor from frames to predictions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from perception.evaluation.predictions import Predicted, Reader
from perception.frame import Frame, Prediction
from perception.model import PerceptionModel
from perception.rig import Rig
from perception.sensors.inputs import InputSpec, prepare
from perception.tasks.result import to_prediction
from perception.training.checkpoint import load_model
from perception.training.loader import batch_inputs, loaded

Arrays = dict[str, np.ndarray]


class TorchPredictor:
    """Runs a PerceptionModel, routed by the frames' conditions.

    Args:
        batch: number of frames that `predictions` computes in a forward pass. With several, the loader's workers of the
            model's configuration read them.
    """

    def __init__(self, model: PerceptionModel, batch: int = 1) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model, self.spec = model.eval().to(self.device), InputSpec.of(model.config)
        self.taxonomy, self.batch = model.config.taxonomy, batch

    @staticmethod
    def load(checkpoint: Path, rig: Rig | None = None, batch: int = 1) -> TorchPredictor:
        """The predictor of a run or of one of its checkpoints.

        Args:
            rig: of the vehicle to run it on, instead of the one that it was trained on.

        Raises:
            InputError: no checkpoint, or a damaged one.
        """
        model, _ = load_model(checkpoint, rig)
        return TorchPredictor(model, batch)

    def __call__(self, frame: Frame) -> Prediction:
        return self._predict([frame], [prepare(frame, self.spec)])[0]

    def predictions(self, read: Reader, tokens: Sequence[str]) -> Predicted:
        """The predictions of keyframes."""
        loader = DataLoader(
            _PreparedFrames(read, tokens, self.spec),
            batch_size=self.batch,
            num_workers=self.model.config.data.workers if self.batch > 1 else 0,
            collate_fn=list,
            generator=torch.Generator(),  # else a validation would advance the random state of a training
        )
        for samples in loaded(loader):
            frames, seen, arrays = zip(*samples, strict=True)
            yield from zip(frames, self._predict(seen, arrays), strict=True)

    @torch.inference_mode()
    def _predict(self, frames: Sequence[Frame], arrays: Sequence[Arrays]) -> list[Prediction]:
        """The predictions of frames with these inputs."""
        inputs = {name: value.to(self.device) for name, value in batch_inputs(arrays).items()}
        outputs = self.model.predict(inputs, [frame.conditions for frame in frames])
        found = {name: value.cpu().numpy() for name, value in outputs.items()}
        return [
            to_prediction(self.model.tasks, {name: value[i : i + 1] for name, value in found.items()}).require_finite(
                frame.token
            )
            for i, frame in enumerate(frames)
        ]


class _PreparedFrames(Dataset[tuple[Frame, Frame, Arrays]]):
    """Keyframes as recorded and as the model sees them, with the model's inputs."""

    def __init__(self, read: Reader, tokens: Sequence[str], spec: InputSpec) -> None:
        self.read, self.tokens, self.spec = read, tokens, spec

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, position: int) -> tuple[Frame, Frame, Arrays]:
        frame, seen = self.read(self.tokens[position])
        return frame, seen, prepare(seen, self.spec)
