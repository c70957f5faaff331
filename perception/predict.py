"""A trained model as a predictor from frames to predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from perception.checkpoint import load_model
from perception.datasets.keyframes import Keyframes, Reads
from perception.errors import InputError
from perception.evaluation.predictions import Predicted
from perception.frame import Frame, Prediction
from perception.io.workers import iterate
from perception.model import PerceptionModel, Trace, batch_inputs
from perception.modules.route import Route
from perception.modules.spec import NEXT_STATE
from perception.rig import Rig
from perception.sensors.inputs import InputSpec, prepare, seen_sensors
from perception.sensors.state import Limits, Moment, StateFrame
from perception.tasks.network import Axis
from perception.tasks.task import to_prediction

Arrays = dict[str, np.ndarray]
Tensors = dict[str, torch.Tensor]
Mirror = tuple[Axis, ...]  # the axes whose signs a mirror image changes


class TorchPredictor:
    """Runs a PerceptionModel, routed by the frames' conditions.

    A network with a memory remembers from frame to frame of `predictions`, which are in order, and computes one at a
    time; a frame that is predicted alone has no memory.

    Args:
        batch: number of frames that `predictions` reads at once and, without a memory, computes in a forward pass. With
            several, the loader's workers of the model's configuration read them.
        flip: average the dense outputs over the mirror images of a frame in x, y and both (CenterPoint, Yin et al.,
            2021, section 5); four forward passes.
    """

    def __init__(self, model: PerceptionModel, batch: int = 1, flip: bool = False) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model, self.spec = model.eval().to(self.device), InputSpec.of(model.config)
        self.taxonomy, self.batch = model.config.taxonomy, batch
        self.remembers = Limits.of(model.bank.modules.values()) is not None
        self.mirrors: tuple[Mirror, ...] = ((), ("x",), ("y",), ("x", "y")) if flip else ((),)
        grid = self.spec.grid
        if flip and (sum(grid.x), sum(grid.y)) != (0, 0):
            raise InputError(f"--flip: the area of {model.config.name} is not symmetric: x {grid.x} m, y {grid.y} m")

    @staticmethod
    def load(checkpoint: Path, rig: Rig | None = None, batch: int = 1, flip: bool = False) -> TorchPredictor:
        """The predictor of a run or of one of its checkpoints."""
        model, _ = load_model(checkpoint, rig)
        return TorchPredictor(model, batch, flip)

    def __call__(self, frame: Frame) -> Prediction:
        return self._predict([frame], [_prepare_mirrors(frame, self.spec, self.mirrors)], _States(self.model))[0]

    @torch.inference_mode()
    def routes(self, frame: Frame) -> list[Route]:
        """The route of each group of tasks on the frame."""
        inputs, trace = batch_inputs([prepare(frame, self.spec)]), Trace()
        self.model({name: value.to(self.device) for name, value in inputs.items()}, [frame.conditions], trace=trace)
        return trace.routes

    def predictions(self, keyframes: Keyframes, reads: Reads, tokens: Sequence[str]) -> Predicted:
        """The predictions of keyframes."""
        loader = DataLoader(
            _PreparedFrames(partial(keyframes.frame, reads=reads), tokens, self.spec, self.mirrors),
            batch_size=self.batch,
            num_workers=self.model.config.data.workers if self.batch > 1 else 0,
            collate_fn=list,
        )
        states = _States(self.model)
        for samples in iterate(loader):
            for part in [[each] for each in samples] if self.remembers else [samples]:
                frames, arrays = zip(*part, strict=True)
                yield from zip(frames, self._predict(frames, arrays, states), strict=True)

    @torch.inference_mode()
    def _predict(
        self, frames: Sequence[Frame], arrays: Sequence[Sequence[Arrays]], states: _States
    ) -> list[Prediction]:
        """The predictions of frames, from the inputs of each and of its mirror images; a single one with a memory."""
        conditions, dense = [frame.conditions for frame in frames], list[dict[str, Any]]()
        for mirror, images in zip(self.mirrors, zip(*arrays, strict=True), strict=True):
            inputs = {name: value.to(self.device) for name, value in batch_inputs(images).items()}
            found = states.run(partial(self.model, conditions=conditions), frames[0], mirror, images[0], inputs)
            for axis in mirror:
                found = self.model.unflipped(found, axis)
            dense.append(found)
        mean = {name: sum(each[name] for each in dense) / len(dense) for name in dense[0]}
        outputs = {name: value.cpu().numpy() for name, value in self.model.decode(mean).items()}
        return [
            to_prediction(self.model.tasks, {name: value[i : i + 1] for name, value in outputs.items()}).require_finite(
                frame.token
            )
            for i, frame in enumerate(frames)
        ]


class _States:
    """The states of a network with a memory, by mirror image."""

    def __init__(self, model: PerceptionModel) -> None:
        self.limits, self._no_state = Limits.of(model.bank.modules.values()), model.no_state(1)
        self._states: dict[Mirror, tuple[StateFrame, torch.Tensor]] = {}

    def run(
        self, network: Callable[[Tensors], Tensors], frame: Frame, mirror: Mirror, arrays: Arrays, inputs: Tensors
    ) -> Tensors:
        """The network's outputs on the next frame, with the state if it has a memory.

        Args:
            arrays: the frame's inputs; `inputs` has them on the network's device.
        """
        if self.limits is None:
            return network(inputs)
        latest, state = self._states.get(mirror, (StateFrame(self.limits), self._no_state))
        moment, signs = Moment.of(frame), _signs(mirror)
        more = latest.inputs(moment)
        more["current_from_previous"] *= np.outer(signs, signs).astype(np.float32)
        memory = {name: torch.from_numpy(each).to(state.device) for name, each in more.items()}
        outputs = network({**inputs, **memory, "state": state})
        following = outputs.pop(NEXT_STATE)
        replaces = latest.advance(moment, more, seen_sensors(arrays))
        self._states[mirror] = latest, following if replaces else state
        return outputs


def _signs(mirror: Mirror) -> list[float]:
    return [-1.0 if axis in mirror else 1.0 for axis in ("x", "y", "z", "w")]


def _prepare_mirrors(frame: Frame, spec: InputSpec, mirrors: Sequence[Mirror]) -> list[Arrays]:
    signs = [_signs(mirror) for mirror in mirrors]
    return [prepare(frame.transformed(np.diag(each)) if min(each) < 0 else frame, spec) for each in signs]


class _PreparedFrames(Dataset[tuple[Frame, list[Arrays]]]):
    def __init__(
        self, read: Callable[[str], Frame], tokens: Sequence[str], spec: InputSpec, mirrors: Sequence[Mirror]
    ) -> None:
        self.read, self.tokens, self.spec, self.mirrors = read, tokens, spec, mirrors

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, position: int) -> tuple[Frame, list[Arrays]]:
        frame = self.read(self.tokens[position])
        return frame, _prepare_mirrors(frame, self.spec, self.mirrors)
