"""Pastes objects of other keyframes into frames (GT sampling).

Yan et al., "SECOND: Sparsely embedded convolutional detection", Sensors 2018, section 3.4.2; in pictures as Wang et
al., "PointAugmenting", CVPR 2021. An object is pasted where its own keyframe had it, relative to the vehicle. Points
that it would hide stay, and neither ground nor map is consulted: it may stand off the road.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from perception.config import Config
from perception.frame import Boxes, Camera, Frame
from perception.training.objects import Objects
from perception.training.placement import Layer, footprints, overlapping, paint, places, points_of


class Paster:
    """Fills frames with the objects of a database, as `data.paste` is configured."""

    def __init__(self, objects: Objects, config: Config) -> None:
        settings = config.data.paste
        assert settings is not None
        self._objects, self._pictures = objects, settings.pictures == "paste"
        self._cameras = config.rig.sensors.cameras
        self._footprints = footprints(objects.boxes)
        place, (rows, columns) = config.grid.build().continuous(objects.boxes.centers), config.grid.build().shape
        usable = ((place >= 0) & (place < (columns, rows))).all(axis=1) & (objects.boxes.num_points >= settings.points)
        labels = {config.taxonomy.class_names.index(name): count for name, count in settings.classes.items()}
        # label -> up to how many objects a frame is filled, and numbers of the objects to draw from
        self._classes = {
            label: (count, np.flatnonzero(usable & (objects.boxes.labels == label))) for label, count in labels.items()
        }

    def __call__(self, frame: Frame, rng: np.random.Generator) -> Frame:
        """The frame with more objects; the same one if it has no annotations or nothing shows the objects.

        Points are in the order of their age again. Those of objects have no annotated class, and the LiDARs of all are
        lost.
        """
        if frame.boxes is None or (frame.points is None and not (self._pictures and frame.cameras)):
            return frame
        chosen = self._choose(frame, frame.boxes, rng)
        if not len(chosen):
            return frame
        pasted = self._objects.boxes.select(chosen)
        cameras = self._with_pictures(frame, frame.boxes, chosen, pasted)
        changed = frame if frame.points is None else self._with_points(frame, frame.points, chosen, pasted)
        joined = Boxes.joined(frame.truth["boxes"], pasted.transformed(frame.global_from_reference))
        return replace(changed, truth={**frame.truth, "boxes": joined}, pasted=len(pasted), cameras=cameras)

    def _choose(self, frame: Frame, boxes: Boxes, rng: np.random.Generator) -> np.ndarray:
        """Numbers of drawn objects whose footprints overlap neither the boxes nor each other."""
        taken, chosen = footprints(boxes), list[int]()
        there = {i for i, name in enumerate(self._cameras) if name in frame.cameras}
        for label, (count, candidates) in self._classes.items():
            missing = count - int((boxes.labels == label).sum())
            if missing <= 0 or not len(candidates):
                continue
            for number in candidates[rng.integers(len(candidates), size=missing)].tolist():
                own = self._footprints[number]
                unseen = frame.points is None and not self._objects.cameras(number) & there
                if not unseen and not overlapping(own, taken).any():
                    taken = np.concatenate([taken, own[None]])
                    chosen.append(number)
        return np.array(chosen, np.int64)

    def _with_points(self, frame: Frame, points: np.ndarray, chosen: np.ndarray, pasted: Boxes) -> Frame:
        """Points in the boxes, where these are now or were at the points' times, are replaced by the objects'."""
        outside = np.ones(len(points), bool)
        for moving in (True, False):
            for inside in points_of(points, pasted, moving):
                outside[inside] = False
        added = np.concatenate([*map(self._objects.points, chosen)])
        classes = None if frame.class_of_point is None else np.full(len(added), -1, frame.class_of_point.dtype)
        sweeps = added[:, 5].astype(np.uint8)
        own = replace(frame.without_points(), points=added[:, :5], sweep_of_point=sweeps, class_of_point=classes)
        return own.with_further_points(frame.select_points(outside))

    def _with_pictures(self, frame: Frame, boxes: Boxes, chosen: np.ndarray, pasted: Boxes) -> Mapping[str, Camera]:
        cameras = dict(frame.cameras)
        for index, name in enumerate(self._cameras):
            if name not in cameras:
                continue
            picture, projection = cameras[name].image, frame.image_from_reference(name)
            layers = [
                Layer(place, self._objects.crop(number, index) if self._pictures else None)
                for number, place in zip(chosen, places(pasted, projection, picture.shape), strict=True)
                if place is not None
            ]
            if layers:
                # The frame's own objects are painted as well, for those that are nearer than a pasted one.
                own = places(boxes, projection, picture.shape)
                layers += [Layer(place, place.of(picture)) for place in own if place is not None]
                cameras[name] = replace(cameras[name], image=paint(picture, layers))
        return cameras
