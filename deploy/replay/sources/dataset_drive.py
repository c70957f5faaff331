"""Scenes of a data set, as drives to replay."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

from deploy.replay.selection import FrameChoice
from deploy.replay.sources.counts import Counts
from perception.datasets.keyframes import Keyframes
from perception.errors import DAMAGE
from perception.frame import Frame
from perception.sensors.inputs import InputSpec


class DatasetDrive:
    """The keyframes of one scene of a data set, recorded or simulated, in order of time.

    All sensors are read, even those that the network does not take, because the report shows them. A sensor whose file
    does not exist, or is damaged, is missing in the frame; damaged ones are counted.

    Args:
        selectors: name of the scene, or parts of it such as `scene-0103:0-4`, its keyframes 0 to 3.
        spec: gives the frame of reference and the number of LiDAR sweeps.

    Raises:
        InputError: there is no such scene.
    """

    def __init__(self, tables: Keyframes, selectors: Sequence[str], spec: InputSpec) -> None:
        self.tables, self.name = tables, selectors[0].partition(":")[0]
        self._spec = spec
        self.counts = Counts(spec.rig.sensors)
        self._samples = tables.samples(selectors=selectors)

    @property
    def seconds(self) -> float:
        """The time from the first keyframe to the last."""
        return 1e-6 * (self.tables.timestamp(self._samples[-1]) - self.tables.timestamp(self._samples[0]))

    def __len__(self) -> int:
        return len(self._samples)

    def frames(self, choice: FrameChoice | None = None) -> Iterator[Frame]:
        self.counts = Counts(self._spec.rig.sensors)
        count, choice = cache(self.counts.add_damage), choice or FrameChoice()  # a file once, although several read it
        for sample in self._samples:
            if choice(self.name, self.tables.timestamp(sample)):
                before = DAMAGE.set(count)
                try:
                    frame = self.tables.frame(sample, self._spec.grid.reference, self._spec.sweeps)
                finally:
                    DAMAGE.reset(before)
                self.counts.add_frame(frame)
                yield frame
            elif choice.over:
                return
