"""The cameras of a vehicle: pictures of the network's size, and projections to them. numpy only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from perception.frame import Frame
from perception.geometry import product
from perception.io.section import Section
from perception.rig import require_cameras
from perception.sensors import native
from perception.sensors.camera.config import CameraBranch, Image
from perception.sensors.camera.picture import STEPS, depth_labels, fit_width, warp
from perception.sensors.sensor import InputArray, Sensor


class PictureRules(Section):
    """How recorded pictures become the network's."""

    cameras: tuple[str, ...]  # in the order of the input `images`
    height: int
    width: int
    steps: int  # of a pixel, to which places between pixels are rounded


class CameraSensor(Sensor[CameraBranch]):
    Config = CameraBranch
    fact = "cameras"
    presence = "image_from_reference"

    @cached_property
    def inputs(self) -> Mapping[str, InputArray]:  # type: ignore[override]
        size, cameras = self.config.image, (1, len(self.rig.cameras))
        return {
            "images": InputArray(
                (*cameras, size.height, size.width, 3),
                np.uint8,
                "RGB 0-255, in the order of `rig.cameras`; zeros where missing",
            ),
            "image_from_reference": InputArray(
                (*cameras, 3, 4), np.float32, "pixels of the network's picture per m; zeros where missing"
            ),
        }

    def fill(self, frame: Frame, inputs: Mapping[str, np.ndarray], affines: Mapping[str, np.ndarray]) -> None:
        require_cameras(list(frame.cameras), self.rig, f"frame {frame.token}")
        size = self.config.image
        images, projections = inputs["images"][0], inputs["image_from_reference"][0]
        for i, name in enumerate(self.rig.sensors.cameras):
            if name not in frame.cameras:
                images[i].fill(0)
                projections[i].fill(0)
                continue
            camera = frame.cameras[name]
            affine = affines[name] if name in affines else fit_width(camera.image.shape, size)
            projections[i] = product(affine, frame.image_from_reference(name))
            if name in affines:
                warp(camera.image, affine, size, into=images[i])
            elif camera.warped is not None and camera.warped.shape == images[i].shape:
                images[i] = camera.warped
            else:
                fit_picture(camera.image, size, into=images[i])

    @classmethod
    def sees(cls, frame: Frame) -> bool:
        return len(frame.cameras) > 0

    @classmethod
    def hidden(cls, frame: Frame) -> Frame:
        return replace(frame, cameras={})

    def rules(self) -> dict[str, Section]:
        size, cameras = self.config.image, self.rig.sensors.cameras
        return {"pictures": PictureRules(cameras=cameras, height=size.height, width=size.width, steps=STEPS)}

    def network(self) -> Any:
        from perception.sensors.camera.network import CameraNetwork

        return CameraNetwork(self.config, self.grid)

    def labels(
        self, frame: Frame, inputs: Mapping[str, np.ndarray], similarity: np.ndarray, cells: tuple[int, int]
    ) -> dict[str, np.ndarray]:
        """`depth_labels` in (h, w) cells, from the points of the frame, whether or not the network gets them."""
        points, projections = None if frame.points is None else frame.keyframe_points, inputs["image_from_reference"][0]
        return {"depth": depth_labels(points, projections @ similarity, self.config.image, cells, self.config.depth)}


def fit_picture(recorded: np.ndarray, size: Image, into: np.ndarray | None = None) -> np.ndarray:
    """(height, width, 3) uint8: the network's picture of a recorded one (H, W, 3) uint8, by `fit_width`; `into` is
    filled."""
    picture = np.empty((size.height, size.width, 3), np.uint8) if into is None else into
    if native.NATIVE:
        native.NATIVE.fill_picture(recorded, picture, STEPS)
    else:
        warp(recorded, fit_width(recorded.shape, size), size, into=picture)
    return picture
