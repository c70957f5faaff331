"""A database of the annotated objects of keyframes: their boxes, points and pictures.

FOLDER/KEY/
    objects.json           what it was built of, number of objects, sizes of the files
    objects.safetensors    boxes in the reference frame of their keyframes, and where the parts of the others start
    points.bin             (N, 6) float32 x y z (m, reference frame), intensity, dt, number of the sweep
    pictures.bin           PNG of each object in each camera

KEY is a hash of everything that the content depends on, so a complete folder is never out of date.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from safetensors.numpy import load_file, save_file
from torch.utils.data import DataLoader, Dataset

from perception.config import Config
from perception.datasets.keyframes import Keyframes, Reads
from perception.errors import InputError
from perception.frame import Boxes, Frame
from perception.io.files import atomic_folder, make_folder
from perception.io.workers import iterate
from perception.training.placement import places, points_of

SCHEMA = 2
_STORED = ("centers", "sizes", "rotations", "velocities", "labels", "attributes", "num_points")  # of Boxes
_BINARY = ("points.bin", "pictures.bin")


@dataclass(frozen=True)
class Objects:
    """The objects of a database, by number."""

    folder: Path
    boxes: Boxes
    parts: dict[str, np.ndarray]  # the other tensors of objects.safetensors

    def points(self, number: int) -> np.ndarray:
        """(N, 6) float32 of all sweeps: x y z in the reference frame of the object's keyframe, intensity, dt, and the
        number of the sweep as in `Frame.sweep_of_point`."""
        start, stop = self.parts["points"][number : number + 2]
        part = np.fromfile(self.folder / "points.bin", np.float32, 6 * (stop - start), offset=24 * start)
        return part.reshape(-1, 6)

    def cameras(self, number: int) -> set[int]:
        return set(self.parts["cameras"][self._crops(number)].tolist())

    def crop(self, number: int, camera: int) -> np.ndarray | None:
        """(H, W, 3) uint8 RGB, the object's rectangle in the picture of a camera; None if that did not see it."""
        for crop in range(*self._crops(number).indices(len(self.parts["cameras"]))):
            if self.parts["cameras"][crop] == camera:
                start, stop = self.parts["pictures"][crop : crop + 2]
                png = np.fromfile(self.folder / "pictures.bin", np.uint8, stop - start, offset=start)
                return np.ascontiguousarray(cv2.imdecode(png, cv2.IMREAD_COLOR)[..., ::-1])
        return None

    def _crops(self, number: int) -> slice:
        return slice(*self.parts["crops"][number : number + 2].tolist())


def objects_of(tables: Keyframes, tokens: Sequence[str], config: Config, folder: Path) -> Objects:
    """The objects of these keyframes, from the database in the folder, which is built if it is not there."""
    key = key_of(tables, tokens, config)
    own = folder / key[:16]
    if not own.exists():
        make_folder(folder)
        with atomic_folder(own, "the database of objects") as fresh:
            _build(tables, tokens, config, fresh, key)
    return _open_objects(own)


def _reads(config: Config) -> Reads:
    """What of a keyframe is read: its boxes, and the sensor data that is stored."""
    reads, paste = config.spec.reads, config.data.paste
    pictures = paste is not None and paste.pictures == "paste"
    return reads._replace(annotations=True, cameras=pictures and reads.cameras)


def key_of(tables: Keyframes, tokens: Sequence[str], config: Config) -> str:
    """A hash of what the content depends on: keyframes and annotations, names, sensors, sweeps and reference."""
    reads, annotations = _reads(config), hashlib.sha256()
    for token in tokens:
        boxes = tables.recording(token).annotated("boxes")
        for name in _STORED if boxes is not None else ():
            annotations.update(np.ascontiguousarray(getattr(boxes, name)).tobytes())
    content = {
        "schema": SCHEMA,
        "version": tables.version,
        "keyframes": list(tokens),
        "annotations": annotations.hexdigest(),
        "taxonomy": config.taxonomy.without_ros_classes().model_dump(mode="json"),
        "rig": config.rig.model_dump(mode="json"),
        "reference": reads.reference,
        "sweeps": reads.sweeps,
        "lidar": reads.lidar,
        "pictures": reads.cameras,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _open_objects(folder: Path) -> Objects:
    try:
        facts = json.loads((folder / "objects.json").read_text(encoding="utf-8"))
        whole = all((folder / name).stat().st_size == facts["bytes"][name] for name in _BINARY)
        tensors = load_file(folder / "objects.safetensors")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder}: a damaged database of objects ({error}); delete it") from None
    if not whole:
        raise InputError(f"{folder}: a damaged database of objects (files cut short); delete it")
    stored = {name: tensors.pop(name) for name in _STORED}
    count = len(stored["labels"])
    boxes = Boxes(**stored, scores=np.ones(count), instances=np.full(count, "", "U32"))
    return Objects(folder, boxes, tensors)


class _Found(NamedTuple):
    boxes: Boxes
    points: list[np.ndarray]
    crops: list[dict[int, bytes]]  # index of the camera -> PNG


class _Extraction(Dataset[_Found]):
    """The objects of each keyframe, for the workers of a loader."""

    def __init__(self, tables: Keyframes, tokens: Sequence[str], config: Config) -> None:
        self.tables, self.tokens = tables, list(tokens)
        self.reads, self.cameras = _reads(config), config.rig.sensors.cameras

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> _Found:
        frame = self.tables.frame(self.tokens[index], self.reads)
        boxes = Boxes.none() if frame.boxes is None else frame.boxes
        boxes = boxes.select(boxes.num_points > 0)
        points = [np.zeros((0, 6), np.float32)] * len(boxes)
        if frame.points is not None and frame.sweep_of_point is not None:
            numbered = np.column_stack([frame.points, frame.sweep_of_point]).astype(np.float32)
            points = [numbered[i] for i in points_of(frame.points, boxes)]
        crops = self._crops(frame, boxes)
        # An object is evidence only for a sensor that has seen it.
        seen = [bool(len(p)) if self.reads.lidar else bool(c) for p, c in zip(points, crops, strict=True)]
        kept = np.flatnonzero(seen)
        return _Found(boxes.select(kept), [points[i] for i in kept], [crops[i] for i in kept])

    def _crops(self, frame: Frame, boxes: Boxes) -> list[dict[int, bytes]]:
        crops: list[dict[int, bytes]] = [{} for _ in range(len(boxes))]
        for camera, name in enumerate(self.cameras):
            if name in frame.cameras:
                picture = frame.cameras[name].image
                for crop, place in zip(
                    crops, places(boxes, frame.image_from_reference(name), picture.shape), strict=True
                ):
                    if place is not None:
                        crop[camera] = cv2.imencode(".png", place.of(picture)[..., ::-1])[1].tobytes()
        return crops


def _build(tables: Keyframes, tokens: Sequence[str], config: Config, folder: Path, key: str) -> None:
    """Write a database; the number of workers does not change its bytes."""
    loader = DataLoader(
        _Extraction(tables, tokens, config),
        batch_size=None,
        num_workers=config.data.workers,
        collate_fn=_identity,
        generator=torch.Generator(),  # else the training would depend on whether the database was there
    )
    with (folder / "points.bin").open("wb") as points, (folder / "pictures.bin").open("wb") as pictures:
        columns = _write_sensors(
            track(iterate(loader), "objects", len(tokens), console=Console(stderr=True)), points, pictures
        )
    if not len(columns["labels"]):
        raise InputError(
            f"{tables.dataroot}: no annotated object with points in {len(tokens)} keyframes; remove data.paste"
        )
    save_file(columns, folder / "objects.safetensors")
    names = config.taxonomy.class_names
    facts = {
        "key": key,
        "objects": len(columns["labels"]),
        "classes": dict(zip(names, np.bincount(columns["labels"], minlength=len(names)).tolist(), strict=True)),
        "bytes": {name: (folder / name).stat().st_size for name in _BINARY},
    }
    (folder / "objects.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")


def _identity(found: Any) -> Any:
    return found


def _write_sensors(found: Iterable[_Found], points: BinaryIO, pictures: BinaryIO) -> dict[str, np.ndarray]:
    """Write points and pictures; returns the tensors of objects.safetensors."""
    boxes: dict[str, list[np.ndarray]] = {name: [] for name in _STORED}
    starts: dict[str, list[int]] = {"points": [0], "crops": [0], "pictures": [0]}
    cameras: list[int] = []
    for each in found:
        for name in _STORED:
            boxes[name].append(getattr(each.boxes, name))
        for part, crops in zip(each.points, each.crops, strict=True):
            points.write(part.tobytes())
            starts["points"].append(starts["points"][-1] + len(part))
            starts["crops"].append(starts["crops"][-1] + len(crops))
            for camera, png in crops.items():
                cameras.append(camera)
                pictures.write(png)
                starts["pictures"].append(starts["pictures"][-1] + len(png))
    numbers = {name: np.array(values, np.int64) for name, values in {**starts, "cameras": cameras}.items()}
    return {**{name: np.ascontiguousarray(np.concatenate(parts)) for name, parts in boxes.items()}, **numbers}
