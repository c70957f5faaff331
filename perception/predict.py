"""A trained model as a predictor from frames to predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

from perception.checkpoint import load_model
from perception.datasets.keyframes import Keyframes, Reads
from perception.evaluation.predictions import Predicted
from perception.frame import Arrays, Frame, Prediction
from perception.io.workers import iterate
from perception.model import PerceptionModel, Trace, batch_inputs
from perception.modules.route import Route
from perception.modules.spec import NEXT_STATE
from perception.rig import Rig
from perception.sensors.inputs import InputSpec, prepare, seen_sensors
from perception.sensors.state import Limits, Moment, StateFrame
from perception.tasks.task import to_prediction

Tensors = dict[str, torch.Tensor]


class TorchPredictor:
    """Runs a PerceptionModel, routed by the frames' conditions.

    A network with a memory remembers from frame to frame of `predictions`, which are in order, and computes one at a
    time; a frame that is predicted alone has no memory.

    Args:
        batch: number of frames that `predictions` reads at once and, without a memory, computes in a forward pass. With
            several, the loader's workers of the model's configuration read them.
    """

    def __init__(self, model: PerceptionModel, batch: int = 1) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model, self.spec = model.eval().to(self.device), model.config.spec
        self.taxonomy, self.batch = model.config.taxonomy, batch
        self.remembers = Limits.of(model.bank.modules.values()) is not None

    @staticmethod
    def load(checkpoint: Path, rig: Rig | None = None, batch: int = 1) -> TorchPredictor:
        """The predictor of a run or of one of its checkpoints, for the rig that it was trained on or another one."""
        model, _ = load_model(checkpoint, rig)
        return TorchPredictor(model, batch)

    def __call__(self, frame: Frame) -> Prediction:
        return self._predict([frame], [prepare(frame, self.spec)], _State(self.model))[0]

    @torch.inference_mode()
    def routes(self, frame: Frame) -> list[Route]:
        """The route of each group of tasks on the frame."""
        inputs, trace = batch_inputs([prepare(frame, self.spec)]), Trace()
        self.model({name: value.to(self.device) for name, value in inputs.items()}, [frame.conditions], trace=trace)
        return trace.routes

    def predictions(self, keyframes: Keyframes, reads: Reads, tokens: Sequence[str]) -> Predicted:
        loader = DataLoader(
            _PreparedFrames(partial(keyframes.frame, reads=reads), tokens, self.spec),
            batch_size=self.batch,
            num_workers=self.model.config.data.workers if self.batch > 1 else 0,
            collate_fn=list,
        )
        state = _State(self.model)
        for samples in iterate(loader):
            for part in [[each] for each in samples] if self.remembers else [samples]:
                frames, arrays = zip(*part, strict=True)
                yield from zip(frames, self._predict(frames, arrays, state), strict=True)

    @torch.inference_mode()
    def _predict(self, frames: Sequence[Frame], arrays: Sequence[Arrays], state: _State) -> list[Prediction]:
        """The predictions of frames, from the inputs of each; a single one with a memory."""
        network = partial(self.model, conditions=[frame.conditions for frame in frames])
        inputs = {name: value.to(self.device) for name, value in batch_inputs(arrays).items()}
        dense = state.run(network, frames[0], arrays[0], inputs)
        outputs = {name: value.cpu().numpy() for name, value in self.model.decode(dense).items()}
        return [
            to_prediction(self.model.tasks, {name: value[i : i + 1] for name, value in outputs.items()}).require_finite(
                frame.token
            )
            for i, frame in enumerate(frames)
        ]


class _State:
    """The state of a network with a memory."""

    def __init__(self, model: PerceptionModel) -> None:
        limits = Limits.of(model.bank.modules.values())
        self._latest, self._state = limits and StateFrame(limits), model.no_state(1)

    def run(self, network: Callable[[Tensors], Tensors], frame: Frame, arrays: Arrays, inputs: Tensors) -> Tensors:
        """The network's outputs on the next frame, with the state if it has a memory.

        Args:
            arrays: the frame's inputs; `inputs` has them on the network's device.
        """
        if self._latest is None:
            return network(inputs)
        moment = Moment.of(frame)
        more = self._latest.inputs(moment)
        memory = {name: torch.from_numpy(each).to(self._state.device) for name, each in more.items()}
        outputs = network({**inputs, **memory, "state": self._state})
        following = outputs.pop(NEXT_STATE)
        if self._latest.advance(moment, more, seen_sensors(arrays)):
            self._state = following
        return outputs


class _PreparedFrames(Dataset[tuple[Frame, Arrays]]):
    def __init__(self, read: Callable[[str], Frame], tokens: Sequence[str], spec: InputSpec) -> None:
        self.read, self.tokens, self.spec = read, tokens, spec

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, position: int) -> tuple[Frame, Arrays]:
        frame = self.read(self.tokens[position])
        return frame, prepare(frame, self.spec)
