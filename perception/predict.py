"""A trained model as a predictor from frames to predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from perception.checkpoint import load_model
from perception.datasets.keyframes import Keyframes, Reads
from perception.evaluation.predictions import Predicted
from perception.frame import Arrays, Conditions, Frame, Prediction
from perception.io.workers import iterate
from perception.model import PerceptionModel, Trace, join_inputs, to_tensors
from perception.modules.memories import limits_of
from perception.modules.route import Route
from perception.rig import Rig
from perception.sensors.inputs import InputSpec, prepare
from perception.session import KeptState, Session
from perception.state import Moment
from perception.tasks.task import to_prediction


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
        self._limits = limits_of(model.bank.modules.values())

    @staticmethod
    def load(checkpoint: Path, rig: Rig | None = None, batch: int = 1) -> TorchPredictor:
        """The predictor of a run or of one of its checkpoints, for the rig that it was trained on or another one."""
        model, _ = load_model(checkpoint, rig)
        return TorchPredictor(model, batch)

    def __call__(self, frame: Frame) -> Prediction:
        return self._predict([frame], [prepare(frame, self.spec)], self._session())[0]

    @torch.inference_mode()
    def routes(self, frame: Frame) -> list[Route]:
        """The route of each group of tasks on the frame."""
        trace = Trace()
        self.model(self._tensors(prepare(frame, self.spec)), [frame.conditions], trace=trace)
        return trace.routes

    def predictions(self, keyframes: Keyframes, reads: Reads, tokens: Sequence[str]) -> Predicted:
        loader = DataLoader(
            _PreparedFrames(partial(keyframes.frame, reads=reads), tokens, self.spec),
            batch_size=self.batch,
            num_workers=self.model.config.data.workers if self.batch > 1 else 0,
            collate_fn=list,
        )
        session = self._session()
        for samples in iterate(loader):
            for part in [samples] if self._limits is None else [[sample] for sample in samples]:
                frames, arrays = zip(*part, strict=True)
                yield from zip(frames, self._predict(frames, arrays, session), strict=True)

    def follow(self, frames: Iterable[Frame]) -> Predicted:
        """The predictions of a drive's frames in order of time, with the memory."""
        session = self._session()
        for frame in frames:
            yield frame, self._predict([frame], [prepare(frame, self.spec)], session)[0]

    def _session(self) -> Session:
        return Session(self._limits, KeptState(self.model.no_states(1)))

    def _predict(self, frames: Sequence[Frame], arrays: Sequence[Arrays], session: Session) -> list[Prediction]:
        """The predictions of frames, from the inputs of each; a single one with a memory."""
        run = partial(self._run, [frame.conditions for frame in frames])
        outputs = session.step(run, join_inputs(arrays), Moment.of(frames[0]))
        return [
            to_prediction(self.model.tasks, {name: value[i : i + 1] for name, value in outputs.items()}).require_finite(
                frame.token
            )
            for i, frame in enumerate(frames)
        ]

    @torch.inference_mode()
    def _run(self, conditions: Sequence[Conditions], inputs: Arrays, state: KeptState | None) -> dict[str, np.ndarray]:
        states = {} if state is None else state.read()
        outputs = self.model.predict(self._tensors(inputs) | states, conditions)
        if state is not None:
            state.replace(outputs)
        return {name: value.cpu().numpy() for name, value in outputs.items()}

    def _tensors(self, inputs: Arrays) -> dict[str, torch.Tensor]:
        return {name: value.to(self.device) for name, value in to_tensors(inputs).items()}


class _PreparedFrames(Dataset[tuple[Frame, Arrays]]):
    def __init__(self, read: Callable[[str], Frame], tokens: Sequence[str], spec: InputSpec) -> None:
        self.read, self.tokens, self.spec = read, tokens, spec

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, position: int) -> tuple[Frame, Arrays]:
        frame = self.read(self.tokens[position])
        return frame, prepare(frame, self.spec)
