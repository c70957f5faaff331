"""What a kind of sensor is: a folder with its configuration, its inputs of the network and its branch. numpy only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import numpy as np

from perception.frame import Frame, Scan
from perception.grid import BevGrid
from perception.io.section import Section
from perception.rig import Rig

Config = TypeVar("Config", bound=Section)


class InputArray(NamedTuple):
    """An input of the network for one frame."""

    shape: tuple[int, ...]  # the first dimension, of the batch, is 1
    dtype: Any  # numpy's
    unit: str  # unit and meaning of the numbers
    absent: int = 0  # each of its numbers where the sensor is missing


class Sensor(Generic[Config]):
    """The sensors of one kind in a vehicle, which one branch of the network reads; see CONTRIBUTING.md.

    Args:
        config: of the branch.
        grid: of the model.
        points: places for single points of the keyframe; 0: no task reads them.

    Those of further kinds than LiDAR and camera are in `Frame.scans`, and their `fact` is their name in `SENSORS`.

    Attributes:
        Config: class of the configuration.
        fact: the word for it in `when` of modules.
        presence: name of the input whose numbers are all zero where the network sees nothing of the sensor.
        inputs: by name, in the order of the network.
    """

    Config: ClassVar[Any]
    fact: ClassVar[str]
    presence: ClassVar[str]
    inputs: Mapping[str, InputArray]

    def __init__(self, config: Config, grid: BevGrid, rig: Rig, points: int = 0) -> None:
        self.config, self.grid, self.rig, self.points = config, grid, rig, points

    def fill(self, frame: Frame, inputs: Mapping[str, np.ndarray], affines: Mapping[str, np.ndarray]) -> None:
        """Overwrite all numbers of the sensor's `inputs` with those of a frame, which may lack the sensor.

        Args:
            affines: camera -> (3, 3) network pixels from recorded pixels, of an augmented picture.
        """
        raise NotImplementedError

    @classmethod
    def sees(cls, frame: Frame) -> bool:
        """Whether the frame has data of a sensor of the kind."""
        return any(scan.kind == cls.fact for scan in frame.scans.values())

    @classmethod
    def hidden(cls, frame: Frame) -> Frame:
        """The frame without the data of all sensors of the kind."""
        return replace(frame, scans={name: scan for name, scan in frame.scans.items() if scan.kind != cls.fact})

    @classmethod
    def moved(cls, scan: Scan, similarity: np.ndarray) -> Scan:
        """The scan under a similarity (4, 4), possibly with a reflection, as points are (`Frame.transformed`)."""
        raise NotImplementedError

    @classmethod
    def received(cls, message: Any) -> Mapping[str, np.ndarray]:
        """The arrays of a scan, in the sensor's frame, from a recorded message with the fields of its schema.

        AttributeError, TypeError or ValueError if it is none.
        """
        raise NotImplementedError

    def example(self, rng: np.random.Generator) -> Mapping[str, Scan]:
        """Scans of the golden frame by sensor, on which engines are compared."""
        return {}

    def rules(self) -> dict[str, Section]:
        """What the manifest's `preprocessing` tells other runtimes of `fill`, by the section's name; empty: their host
        fills the inputs."""
        return {}

    def network(self) -> Any:
        """The branch of the network, a `SensorNetwork` with initial weights."""
        raise NotImplementedError

    def labels(
        self, frame: Frame, inputs: Mapping[str, np.ndarray], similarity: np.ndarray, needs: Any
    ) -> dict[str, np.ndarray]:
        """The labels of the branch's losses, for a branch that has some.

        Args:
            frame: as recorded, with the LiDAR even if the network does not get it.
            inputs: of the augmented frame.
            similarity: (4, 4) augmented_from_reference.
            needs: what the branch says of them (`SensorNetwork.supervision`).
        """
        raise NotImplementedError
