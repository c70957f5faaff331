"""Faults that are put into an engine's outputs, and in how many golden frames of a bundle each is found."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from deploy.bundle import Bundle
from deploy.engines import open_engine
from deploy.golden import Arrays, GoldenFrame, differences
from perception.taxonomy import load_taxonomy

CLASSES = load_taxonomy("nuscenes").class_names
MAP_CLASSES = load_taxonomy("nuscenes").map_names

BOXES, MAP, CONDITIONS = "detection/boxes", "map/probabilities", "conditions/probabilities"
Fault = Callable[[Arrays, GoldenFrame], dict[str, np.ndarray]]


def moved(columns: slice, by: float) -> Fault:
    """Add to these numbers of all boxes."""

    def fault(outputs: Arrays, frame: GoldenFrame) -> dict[str, np.ndarray]:
        boxes = outputs[BOXES].copy()
        boxes[..., columns] += np.float32(by)
        return {**outputs, BOXES: boxes}

    return fault


def every_twelfth(by: float) -> Fault:
    """Move a box in twelve along x."""

    def fault(outputs: Arrays, frame: GoldenFrame) -> dict[str, np.ndarray]:
        boxes = outputs[BOXES].copy()
        boxes.reshape(-1, boxes.shape[-1])[::12, 0] += np.float32(by)
        return {**outputs, BOXES: boxes}

    return fault


def turned(degrees: float) -> Fault:
    """Rotate all headings."""

    def fault(outputs: Arrays, frame: GoldenFrame) -> dict[str, np.ndarray]:
        boxes, angle = outputs[BOXES].copy(), np.float32(np.radians(degrees))
        sin, cos = boxes[..., 6].copy(), boxes[..., 7].copy()
        boxes[..., 6] = sin * np.cos(angle) + cos * np.sin(angle)
        boxes[..., 7] = cos * np.cos(angle) - sin * np.sin(angle)
        return {**outputs, BOXES: boxes}

    return fault


def scaled(name: str, factor: float) -> Fault:
    """Scale all numbers of one output."""
    return lambda outputs, frame: {**outputs, name: outputs[name] * np.float32(factor)}


def other(name: str, count: int, most: bool = False) -> Fault:
    """Change the label or attribute of the best compared detection; most: of all detections."""

    def fault(outputs: Arrays, frame: GoldenFrame) -> dict[str, np.ndarray]:
        values = outputs[name].copy()
        if most:
            values[...] = 0
        elif (compared := np.argwhere(frame.compared["detection"])).size:
            best = tuple(max(compared, key=lambda at: frame.outputs["detection/scores"][tuple(at)]))
            box = frame.outputs[BOXES][best][:3]
            here = np.argwhere(outputs[name] == frame.outputs[name][best])
            nearest = min(here, key=lambda at: float(np.linalg.norm(outputs[BOXES][tuple(at)][:3] - box)))
            values[tuple(nearest)] = (values[tuple(nearest)] + 1) % count
        return {**outputs, name: values}

    return fault


def gone(index: int) -> Fault:
    """Remove one class of the map."""

    def fault(outputs: Arrays, frame: GoldenFrame) -> dict[str, np.ndarray]:
        zeroed = outputs[MAP].copy()
        zeroed[:, index] = 0
        return {**outputs, MAP: zeroed}

    return fault


def faults(outputs: Arrays) -> Mapping[str, Fault]:
    """The faults that these outputs can have, by name."""
    found: dict[str, Fault] = {"none": lambda outputs, frame: dict(outputs)}
    found |= {f"boxes +{by:g} m": moved(slice(0, 1), by) for by in (0.1, 0.3, 1, 10)}
    found["every 12th box +20 m"] = every_twelfth(20)
    found |= {f"sizes x {by:g}": _sized(by) for by in (1.1, 1.3)}
    found |= {f"headings +{by:g} deg": turned(by) for by in (5, 20)}
    found |= {f"velocities +{by:g} m/s": moved(slice(8, 9), by) for by in (0.3, 1)}
    found |= {f"scores x {by:g}": scaled("detection/scores", by) for by in (0.95, 0.9, 0.8)}
    labels, attributes = "detection/labels", "detection/attributes"
    found["one label"], found["all labels"] = other(labels, len(CLASSES)), other(labels, 1, most=True)
    found["one attribute"], found["all attributes"] = other(attributes, 8), other(attributes, 1, most=True)
    if MAP in outputs:
        found |= {f"no {name}": gone(i) for i, name in enumerate(MAP_CLASSES)}
        found |= {f"map x {by:g}": scaled(MAP, by) for by in (0.99, 0.9)}
    if CONDITIONS in outputs:
        found["conditions inverted"] = lambda outputs, frame: {**outputs, CONDITIONS: 1 - outputs[CONDITIONS]}
    return found


def _sized(factor: float) -> Fault:
    def fault(outputs: Arrays, frame: GoldenFrame) -> dict[str, np.ndarray]:
        boxes = outputs[BOXES].copy()
        boxes[..., 3:6] *= np.float32(factor)
        return {**outputs, BOXES: boxes}

    return fault


def count_found(bundle: Bundle) -> dict[str, int]:
    """Fault -> number of golden frames that find it, with the bundle's tolerances."""
    frames = bundle.golden_frames(bundle.cpu_onnx.name)
    run, allowed = open_engine(bundle).run, bundle.manifest.tolerances
    computed = [(frame, run(frame.inputs)) for frame in frames]
    return {
        name: sum(bool(differences(f.outputs, fault(actual, f), allowed, f.compared)) for f, actual in computed)
        for name, fault in faults(frames[0].outputs).items()
    }
