"""The golden frames in the files of a bundle: those for the engine, and one that goes end to end. No torch here."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from deploy.engine import sampled
from deploy.golden import CLOSE, GREY_LEVELS, ROUNDED, GoldenFrame
from deploy.integrity import Content
from deploy.manifest import Manifest, TensorInfo
from deploy.tolerances import REMEDY
from perception.errors import InputError
from perception.frame import Arrays, Camera, Frame, Scan
from perception.grid import Reference
from perception.sensors.inputs import PILLARS, no_sensors, prepare, without_padding
from perception.session import follow
from perception.state import MOTION_INPUTS, Moment, states_of
from perception.tasks.task import Task, add_prefix, to_prediction

# Each frame has tensors `NAME.inputs.*` and, for each graph, `NAME.GRAPH.outputs.*` and `NAME.GRAPH.compared.*`.
# Pillars are stored without padding, which would be most of the file. One frame also has `NAME.sensors.*` and, for
# each graph, `NAME.GRAPH.results.TASK/*`. Those of a network with a memory have `NAME.moment.*` and are a sequence, in
# the order of their names; a name without its number is a drive.

_SHORT = {"model.onnx": "model", "model.cpu.onnx": "cpu"}  # graph -> GRAPH in the keys


def golden_content(frames: Sequence[GoldenFrame]) -> bytes:
    """The file's content. Frames with the same name, for different graphs, share their inputs."""
    tensors: dict[str, np.ndarray] = {}
    for frame in frames:
        graph = f"{frame.name}.{_SHORT[frame.graph]}"
        tensors |= {f"{frame.name}.inputs.{name}": each for name, each in without_padding(frame.inputs).items()}
        if frame.moment is not None:
            tensors[f"{frame.name}.moment.timestamp"] = np.array([frame.moment.timestamp], np.int64)
            tensors[f"{frame.name}.moment.global_from_reference"] = frame.moment.global_from_reference
        tensors |= {f"{graph}.outputs.{name}": each for name, each in frame.outputs.items()}
        tensors |= {f"{graph}.compared.{task}": each for task, each in frame.compared.items()}
        tensors |= {f"{frame.name}.sensors.{name}": each for name, each in frame.sensors.items()}
        tensors |= {f"{graph}.results.{name}": each for name, each in frame.results.items()}
    return save({name: np.ascontiguousarray(array) for name, array in tensors.items()})


def read_golden(content: Content, manifest: Manifest, graph: str) -> tuple[GoldenFrame, ...]:
    """The frames with the outputs of one graph, ordered by name."""
    file = content.path
    try:
        tensors = load(content.data)
    except (SafetensorError, KeyError) as error:  # KeyError: a type that numpy does not have
        raise InputError(f"{file}: cannot read the golden frames ({error})") from None
    frames = []
    ranked = [name for name, task in manifest.heads.items() if task.ranked]
    described = [_stored(each) for each in manifest.outputs]
    shapes = {each.name: each.shape for each in described}
    listed = [TensorInfo(name=task, shape=shapes[f"{task}/scores"], dtype="bool", unit="") for task in ranked]
    for name in sorted({key.split(".")[0] for key in tensors}):
        prefix = f"{name}.{_SHORT[graph]}"
        outputs = {each.name: _read_tensor(file, tensors, f"{prefix}.outputs", each) for each in described}
        compared = {each.name: _read_tensor(file, tensors, f"{prefix}.compared", each) for each in listed}
        inputs = _pad_inputs(file, tensors, f"{name}.inputs", manifest)
        sensors, results = (_below(tensors, start) for start in (f"{name}.sensors.", f"{prefix}.results."))
        moment = None if manifest.state is None else _read_moment(file, tensors, name)
        frames.append(GoldenFrame(name, inputs, outputs, compared, graph, sensors, results, moment))
    return tuple(frames)


def drive_of(name: str) -> str:
    """The drive that the golden frame of this name is of."""
    return name.rstrip("-0123456789")


def _stored(output: TensorInfo) -> TensorInfo:
    if not states_of([output.name]):
        return output
    return output.model_copy(update={"shape": sampled(np.broadcast_to(np.float32(0), output.shape)).shape})


def _read_moment(file: Path, tensors: Mapping[str, np.ndarray], name: str) -> Moment:
    time, pose = (
        _read_tensor(file, tensors, f"{name}.moment", TensorInfo(name=part, shape=shape, dtype=dtype, unit=""))
        for part, shape, dtype in (("timestamp", (1,), "int64"), ("global_from_reference", (4, 4), "float64"))
    )
    return Moment(drive_of(name), int(time[0]), pose)


def _below(tensors: Mapping[str, np.ndarray], start: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(start): each for name, each in tensors.items() if name.startswith(start)}


def _pad_inputs(file: Path, tensors: Mapping[str, np.ndarray], side: str, manifest: Manifest) -> dict[str, np.ndarray]:
    inputs = {}
    padding, states = no_sensors(manifest.spec), states_of(each.name for each in manifest.outputs)
    for described in manifest.inputs:
        if described.name in states:
            continue
        if described.name in PILLARS:
            stored = tensors.get(f"{side}.{described.name}", np.zeros((0, 0)))
            pillars = min(stored.shape[1], described.shape[1])
            short = described.model_copy(update={"shape": (described.shape[0], pillars, *described.shape[2:])})
            inputs[described.name] = padding[described.name]
            inputs[described.name][:, :pillars] = _read_tensor(file, tensors, side, short)
        else:
            inputs[described.name] = _read_tensor(file, tensors, side, described)
    return inputs


def _read_tensor(file: Path, tensors: Mapping[str, np.ndarray], side: str, described: TensorInfo) -> np.ndarray:
    array, name = tensors.get(f"{side}.{described.name}"), f"{side}.{described.name}"
    if array is None or (array.shape, array.dtype.name) != (described.shape, described.dtype):
        found = "is missing" if array is None else f"is {array.dtype.name} {array.shape}"
        raise InputError(f"{file}: {name} {found}, the manifest says {described.dtype} {described.shape}")
    return array


_FIELDS = [each.name for each in fields(Frame)]
_MATRICES = ("intrinsics", "ego_from_camera", "global_from_ego")  # of a camera
_UNUSABLE = (AttributeError, IndexError, KeyError, TypeError, ValueError, zlib.error)


def with_sensors(golden: GoldenFrame, frame: Frame, tasks: Mapping[str, Task[Any]]) -> GoldenFrame:
    """The golden frame with the sensor data that its inputs are of, and the results of its outputs.

    Pictures are compressed by zlib, which a runtime in another language has, and lose nothing.
    """
    arrays = {name: value for name in _FIELDS if isinstance(value := getattr(frame, name), np.ndarray)}
    for name, camera in frame.cameras.items():
        arrays[f"cameras/{name}/rgb"] = np.frombuffer(zlib.compress(camera.image.tobytes(), 9), np.uint8)
        arrays[f"cameras/{name}/size"] = np.array(camera.image.shape[:2], np.int64)
        arrays |= {f"cameras/{name}/{matrix}": getattr(camera, matrix) for matrix in _MATRICES}
    for name, scan in frame.scans.items():
        arrays |= {f"scans/{name}/{scan.kind}/{part}": array for part, array in scan.arrays.items()}
        arrays[f"scan_times/{name}"] = np.array([scan.timestamp - frame.timestamp], np.int64)
    return replace(golden, sensors=arrays, results=_results(tasks, golden.outputs))


def _frame(sensors: Arrays, reference: Reference) -> Frame:
    """The inverse of `with_sensors`."""
    cameras = {}
    for name in [key.split("/")[1] for key in sensors if key.endswith("/rgb")]:
        size, packed = sensors[f"cameras/{name}/size"].tolist(), sensors[f"cameras/{name}/rgb"]
        picture = np.frombuffer(zlib.decompress(packed.tobytes()), np.uint8).reshape(*size, 3)
        matrices: dict[str, Any] = {matrix: sensors[f"cameras/{name}/{matrix}"] for matrix in _MATRICES}
        cameras[name] = Camera(image=picture, timestamp=0, **matrices)
    scans: dict[str, Scan] = {}
    for key, array in sensors.items():
        if key.startswith("scans/"):
            _, name, kind, part = key.split("/", 3)
            known = scans[name].arrays if name in scans else {}
            scans[name] = Scan(kind, int(sensors[f"scan_times/{name}"][0]), {**known, part: array})
    arrays: dict[str, Any] = {"points": None, **{name: each for name, each in sensors.items() if name in _FIELDS}}
    return Frame(token="golden", timestamp=0, reference=reference, cameras=cameras, scans=scans, **arrays)


def _results(tasks: Mapping[str, Task[Any]], outputs: Arrays) -> dict[str, np.ndarray]:
    """TASK/NAME -> an array of the results."""
    arrays: dict[str, np.ndarray] = {}
    for name, result in to_prediction(tasks, outputs).results.items():
        arrays |= add_prefix(name, tasks[name].arrays(result))
    return arrays


def require_end_to_end(golden: Sequence[GoldenFrame], manifest: Manifest, file: object) -> None:
    """Raise InputError unless preprocessing and decoding give here what they gave at the export."""
    whole = next((frame for frame in golden if frame.sensors), None)
    if whole is None:
        raise InputError(f"{file}: no golden frame has sensor data; {REMEDY}")
    try:
        off = [*_differing(whole, manifest), *_differing_motions(golden, manifest)]
    except _UNUSABLE as error:
        raise InputError(f"{file}: cannot be used here ({error!r}); {REMEDY}") from None
    if off:
        raise InputError(f"{file}: {whole.name}: {', '.join(off)} not as at the export; {REMEDY}, with this version")


def _differing(golden: GoldenFrame, manifest: Manifest) -> list[str]:
    """Names of the inputs that the sensor data do not give, and of the results that the outputs do not give."""
    frame = _frame(golden.sensors, manifest.grid.reference)
    found = prepare(frame, manifest.spec) | _results(manifest.heads, golden.outputs)
    steering = ("route", "conditions", *MOTION_INPUTS)
    stored = {name: each for name, each in golden.inputs.items() if name not in steering} | {**golden.results}
    return [name for name, expected in stored.items() if not _is_same(name, expected, found[name])]


def _differing_motions(golden: Sequence[GoldenFrame], manifest: Manifest) -> list[str]:
    """Names of the inputs of the memory that the moments of the golden frames do not give."""
    followed = follow([(frame.moment, frame.inputs) for frame in golden], manifest.spec.memory)
    return [
        f"{name} of {frame.name}"
        for frame, (inputs, _) in zip(golden, followed, strict=True)
        for name in MOTION_INPUTS
        if name in inputs and not _is_same(name, frame.inputs[name], inputs[name])
    ]


def _is_same(name: str, expected: np.ndarray, actual: np.ndarray) -> bool:
    if expected.shape != actual.shape:
        return False
    if name == "images":
        off = np.abs(actual.astype(np.int16) - expected) > GREY_LEVELS
        return bool(off.mean(axis=(0, 2, 3, 4)).max() <= ROUNDED)
    close = CLOSE if expected.dtype.kind == "f" else 0
    return np.allclose(actual, expected, rtol=close, atol=close, equal_nan=True)
