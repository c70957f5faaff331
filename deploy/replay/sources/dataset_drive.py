"""Scenes of a data set, as drives to replay."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from deploy.replay.sources.counts import Counts
from deploy.replay.undecoded import UNREAD, Known, nothing_known, undecoded
from perception.datasets.keyframes import Keyframes, Reads
from perception.errors import DAMAGE
from perception.frame import Frame
from perception.sensors.inputs import InputSpec


class DatasetDrive:
    """The keyframes of one scene of a data set, recorded or simulated, in order of time.

    All sensors are read, even those that the network does not take, because the report shows them. A sensor whose file
    does not exist, or is damaged, is missing in the frame; damaged ones are counted.

    Args:
        scene: its name, or `scene-0103:0-4` for its keyframes 0 to 3.
        spec: gives the frame of reference and the number of LiDAR sweeps.

    Raises:
        InputError: there is no such scene.
    """

    def __init__(self, tables: Keyframes, scene: str, spec: InputSpec) -> None:
        self.tables = tables
        self._spec = spec
        self.counts = Counts(spec.rig.sensors)
        self._samples = tables.samples(selectors=[scene])

    @property
    def seconds(self) -> float:
        """The time from the first keyframe to the last."""
        return 1e-6 * (self.tables.timestamp(self._samples[-1]) - self.tables.timestamp(self._samples[0]))

    def __len__(self) -> int:
        return len(self._samples)

    def frames(self, known: Known = nothing_known) -> Iterator[Frame]:
        """The frames. Of those that are known only the kinds of sensors are read of which one was missing, since its
        file may be damaged, which is counted again."""
        self.counts = Counts(self._spec.rig.sensors)
        count = cache(self.counts.add_damage)  # a file once, although several frames read it
        cameras = {*self._spec.rig.sensors.cameras}
        for sample in self._samples:
            sizes = known(sample)
            lidar = sizes is None or (sizes is not UNREAD and sizes.sweeps is None)
            pictures = sizes is None or (sizes is not UNREAD and not cameras <= sizes.cameras.keys())
            before = DAMAGE.set(count)
            try:
                reads = Reads(self._spec.grid.reference, self._spec.sweeps, sizes is None, lidar, pictures)
                frame = self.tables.frame(sample, reads)
            finally:
                DAMAGE.reset(before)
            if sizes is not None:
                frame = undecoded(frame, sizes)
            if sizes is not UNREAD:
                self.counts.add_frame(frame)
            yield frame
