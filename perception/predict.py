"""A trained model as a predictor from frames to predictions."""

from __future__ import annotations

from pathlib import Path

import torch

from perception.frame import Frame, Prediction
from perception.model import PerceptionModel
from perception.rig import Rig
from perception.sensors.inputs import InputSpec, prepare, without_padding
from perception.tasks.result import to_prediction
from perception.training.checkpoint import load_model


class TorchPredictor:
    """Runs a PerceptionModel frame by frame, routed by the frame's conditions."""

    def __init__(self, model: PerceptionModel) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model, self.spec = model.eval().to(self.device), InputSpec.of(model.config)
        self.taxonomy = model.config.taxonomy

    @staticmethod
    def load(checkpoint: Path, rig: Rig | None = None) -> TorchPredictor:
        """The predictor of a run or of one of its checkpoints.

        Args:
            rig: of the vehicle to run it on, instead of the one that it was trained on.

        Raises:
            InputError: no checkpoint, or a damaged one.
        """
        model, _ = load_model(checkpoint, rig)
        return TorchPredictor(model)

    @torch.inference_mode()
    def __call__(self, frame: Frame) -> Prediction:
        arrays = without_padding(prepare(frame, self.spec))
        inputs = {name: torch.from_numpy(array).to(self.device) for name, array in arrays.items()}
        outputs = self.model.predict(inputs, [frame.conditions])
        found = {name: value.cpu().numpy() for name, value in outputs.items()}
        return to_prediction(self.model.tasks, found).require_finite(frame.token)
