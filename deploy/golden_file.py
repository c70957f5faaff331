"""Read and write golden.safetensors, the golden frames of a bundle. No torch here.

Each frame has tensors `NAME.inputs.*` and, for each graph, `NAME.GRAPH.outputs.*` and `NAME.GRAPH.compared.*`. Pillars
are stored without padding, which would be most of the file. One frame also has `NAME.sensors.*` and, for each graph,
`NAME.GRAPH.prediction.*`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from deploy.golden import GoldenFrame, require_enough
from deploy.integrity import Content
from deploy.manifest import Manifest, TensorInfo
from perception.errors import InputError
from perception.sensors.inputs import PILLARS, no_sensors, without_padding

_SHORT = {"model.onnx": "model", "model.cpu.onnx": "cpu"}  # graph -> GRAPH in the keys


def golden_content(frames: Sequence[GoldenFrame]) -> bytes:
    """The file's content. Frames with the same name, for different graphs, share their inputs."""
    tensors: dict[str, np.ndarray] = {}
    for frame in frames:
        graph = f"{frame.name}.{_SHORT[frame.graph]}"
        tensors |= {f"{frame.name}.inputs.{name}": each for name, each in without_padding(frame.inputs).items()}
        tensors |= {f"{graph}.outputs.{name}": each for name, each in frame.outputs.items()}
        tensors |= {f"{graph}.compared.{task}": each for task, each in frame.compared.items()}
        tensors |= {f"{frame.name}.sensors.{name}": each for name, each in frame.sensors.items()}
        tensors |= {f"{graph}.prediction.{name}": each for name, each in frame.prediction.items()}
    return save({name: np.ascontiguousarray(array) for name, array in tensors.items()})


def read_golden(content: Content, manifest: Manifest, graph: str) -> tuple[GoldenFrame, ...]:
    """The frames with the outputs of one graph, ordered by name.

    Raises:
        InputError: the tensors are not those that the manifest describes, or too few detections can be compared.
    """
    file = content.path
    try:
        tensors = load(content.data)
    except (SafetensorError, KeyError) as error:  # KeyError: a type that numpy does not have
        raise InputError(f"{file}: cannot read the golden frames ({error})") from None
    frames = []
    ranked = [name for name, task in manifest.heads.items() if task.ranked]
    shapes = {each.name: each.shape for each in manifest.outputs}
    listed = [TensorInfo(name=task, shape=shapes[f"{task}/scores"], dtype="bool", unit="") for task in ranked]
    for name in sorted({key.split(".")[0] for key in tensors}):
        prefix = f"{name}.{_SHORT[graph]}"
        outputs = {each.name: _checked(file, tensors, f"{prefix}.outputs", each) for each in manifest.outputs}
        compared = {each.name: _checked(file, tensors, f"{prefix}.compared", each) for each in listed}
        inputs = _padded(file, tensors, f"{name}.inputs", manifest)
        more = (_below(tensors, start) for start in (f"{name}.sensors.", f"{prefix}.prediction."))
        frames.append(GoldenFrame(name, inputs, outputs, compared, graph, *more))
    require_enough(frames, str(file))
    return tuple(frames)


def _below(tensors: Mapping[str, np.ndarray], start: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(start): each for name, each in tensors.items() if name.startswith(start)}


def _padded(file: Path, tensors: Mapping[str, np.ndarray], side: str, manifest: Manifest) -> dict[str, np.ndarray]:
    inputs = {}
    padding = no_sensors(manifest.spec)
    for described in manifest.inputs:
        if described.name in PILLARS:
            stored = tensors.get(f"{side}.{described.name}", np.zeros((0, 0)))
            pillars = min(stored.shape[1], described.shape[1])
            short = described.model_copy(update={"shape": (described.shape[0], pillars, *described.shape[2:])})
            inputs[described.name] = padding[described.name]
            inputs[described.name][:, :pillars] = _checked(file, tensors, side, short)
        else:
            inputs[described.name] = _checked(file, tensors, side, described)
    return inputs


def _checked(file: Path, tensors: Mapping[str, np.ndarray], side: str, described: TensorInfo) -> np.ndarray:
    array, name = tensors.get(f"{side}.{described.name}"), f"{side}.{described.name}"
    if array is None or (array.shape, array.dtype.name) != (described.shape, described.dtype):
        found = "is missing" if array is None else f"is {array.dtype.name} {array.shape}"
        raise InputError(f"{file}: {name} {found}, the manifest says {described.dtype} {described.shape}")
    return array
