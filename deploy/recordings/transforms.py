"""Poses of the vehicle and its sensors, from the transforms of a recording, in bounded memory."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import deque

import numpy as np

from deploy.recordings.messages import CorruptMessage, Transform
from deploy.recordings.stamps import ClockSet, Leaps
from deploy.recordings.topics import Topics
from perception.datasets.sweeps import SweepMotion
from perception.geometry import rigid
from perception.rig import Rig, RigSensor

MOST_FRAMES = 64  # those that came first are dropped, but for static ones and those that a pose was asked through
MOST_POSES = 4096  # of one frame; then up to half of them are dropped, at the end further from the latest to arrive
_LONGEST_GAP = 1_000_000  # us between two poses that are interpolated
_LONGEST_HOLD = 50_000  # us for which the nearest pose is used before the first pose, after the last or in a gap
STALE = 20_000  # us for which a pose is held that make it a finding: at 50 km/h the vehicle drives 0.28 m
_Pose = tuple[np.ndarray, np.ndarray]  # translation (m), quaternion w x y z


class Transforms:
    """The tree of frames of reference. Damaged messages can add a second parent; then any path to the root is used.

    `clock_set` says whether the transform that was added last shows that the clock was set, and a pose is asked
    through it. `extrapolated` says for how long (us) the latest pose was held to answer the last question.
    """

    def __init__(self) -> None:
        self.clock_set: ClockSet | None = None
        self.extrapolated = 0
        self._edges: dict[str, dict[str, _Edge]] = {}  # by child and parent

    def add(self, transform: Transform, time: int | None) -> bool:
        """Add a transform, static without a time (us) of recording; returns whether it was new.

        Raises:
            CorruptMessage: there is no room for another frame.
        """
        self.clock_set = None
        edge = self._edges.get(transform.child, {}).get(transform.parent)
        if edge is None:
            self._make_room()
            edge = self._edges.setdefault(transform.child, {})[transform.parent] = _Edge()
        added = edge.add(transform, time)
        self.clock_set = edge.clock_set if edge.needed else None
        return added

    def _make_room(self) -> None:
        if sum(map(len, self._edges.values())) < MOST_FRAMES:
            return
        every = ((child, parent, edge) for child, parents in self._edges.items() for parent, edge in parents.items())
        child, parent = next(((child, parent) for child, parent, edge in every if not edge.needed), (None, None))
        if child is None or parent is None:
            raise CorruptMessage(f"more than {MOST_FRAMES} frames of reference")
        del self._edges[child][parent]
        if not self._edges[child]:
            del self._edges[child]

    def between(self, child: str, first: int, last: int) -> list[int]:
        """The times (us), ascending, at which the pose of a frame or of its parents was recorded, after the first and
        before the last."""
        frames, stamps = [child], set[int]()
        for frame in frames:  # which grows: each frame is visited once
            for parent, edge in self._edges.get(frame, {}).items():
                stamps.update(edge.between(first, last))
                frames += [] if parent in frames else [parent]
        return sorted(stamps)

    def until(self, parent: str, child: str) -> float:
        """The time (us) until which the pose is recorded; infinite between fixed frames, -infinite if there is none."""
        found, queue = {child: math.inf}, deque([child])
        while queue and parent not in found:
            frame = queue.popleft()
            for above, edge in self._edges.get(frame, {}).items():
                if above not in found:
                    found[above] = min(found[frame], edge.until())
                    queue.append(above)
        return found.get(parent, -math.inf)

    def pose(self, root: str, child: str, stamp: int | None) -> np.ndarray | None:
        """The (4, 4) root_from_child at a time (us); None: the latest, of frames that are rigidly mounted.

        A pose recorded at exactly that time is returned unchanged. Between two poses the translation is interpolated
        linearly and the rotation spherically (slerp: Shoemake, "Animating rotation with quaternion curves", 1985).
        None if the poses before and after are more than 1 s apart and the nearest one is more than 50 ms away.
        """
        # Breadth first, and each frame once, since a damaged tree can have cycles.
        found: dict[str, np.ndarray | None] = {child: None}  # frame_from_child; None for the child itself
        queue, self.extrapolated = deque([child]), 0
        while queue and root not in found:
            frame = queue.popleft()
            for parent, edge in self._edges.get(frame, {}).items():
                edge.needed, matrix = True, edge.last() if stamp is None else edge.at(stamp)
                if parent not in found and matrix is not None:
                    below = found[frame]
                    found[parent] = matrix if below is None else matrix @ below
                    self.extrapolated = max(self.extrapolated, 0 if stamp is None else edge.beyond(stamp))
                    queue.append(parent)
        return np.eye(4) if root == child else found.get(root)


class _Edge:
    """The poses of one frame in its parent, over time."""

    def __init__(self) -> None:
        self._stamps: list[int] = []
        self._poses: list[_Pose] = []
        self._latest: _Pose | None = None  # in order of arrival
        self._until = math.inf  # its time (us), if it is not static
        self._static = self.needed = False
        self._leaps = Leaps()
        self._doubted: Transform | None = None  # the one before, if its stamp leapt

    @property
    def clock_set(self) -> ClockSet | None:
        """See `Leaps`; None if the latest transform was static."""
        return None if self._static else self._leaps.clock_set

    def add(self, transform: Transform, time: int | None) -> bool:
        if time is None:
            self._static = self.needed = True
        else:
            may_be_right, doubted = self._leaps.add(transform.stamp, time), self._doubted
            self._doubted = None if may_be_right else transform
            if (new := self._leaps.clock_set) is not None:
                self._begin_anew(new.stamp, doubted)
            if not self._insert(transform):
                return False
        self._latest = transform.translation, transform.rotation
        return True

    def _begin_anew(self, stamp: int, first: Transform | None) -> None:
        """Drop poses from before the clock was set that would lie among those after it, of which this is the first."""
        later = bisect_left(self._stamps, stamp)
        del self._stamps[later:], self._poses[later:]
        if first is not None:
            self._insert(first)

    def _insert(self, transform: Transform) -> bool:
        place = bisect_left(self._stamps, transform.stamp)
        if place < len(self._stamps) and self._stamps[place] == transform.stamp:
            return False
        self._until = transform.stamp
        self._stamps.insert(place, transform.stamp)
        self._poses.insert(place, (transform.translation, transform.rotation))
        if len(self._stamps) > MOST_POSES:
            half, later = MOST_POSES // 2, self._stamps[-1] - transform.stamp > transform.stamp - self._stamps[0]
            far = slice(max(half, place + 1), None) if later else slice(min(half, place))
            del self._stamps[far], self._poses[far]
        return True

    def last(self) -> np.ndarray | None:
        return None if self._latest is None else rigid(*self._latest)

    def until(self) -> float:
        """The time (us) of the pose that came last, since a later one may be damaged; infinite if it is static."""
        return math.inf if self._static else self._until

    def at(self, stamp: int) -> np.ndarray | None:
        if self._static:
            return self.last()
        place = bisect_left(self._stamps, stamp)
        if place < len(self._stamps) and self._stamps[place] == stamp:
            return rigid(*self._poses[place])
        if 0 < place < len(self._stamps):
            before, after = self._stamps[place - 1], self._stamps[place]
            if after - before <= _LONGEST_GAP:
                return _between(self._poses[place - 1], self._poses[place], (stamp - before) / (after - before))
        near = [i for i in (place - 1, place) if 0 <= i < len(self._stamps)]
        nearest = min(near, key=lambda i: self._distance(i, stamp))
        return rigid(*self._poses[nearest]) if self._distance(nearest, stamp) <= _LONGEST_HOLD else None

    def beyond(self, stamp: int) -> int:
        """How long (us) after its last pose a time is; 0 if it is not after it, or static."""
        return 0 if self._static else max(0, stamp - self._stamps[-1])

    def between(self, first: int, last: int) -> list[int]:
        """Its times after the first and before the last; none if it is static."""
        inner = slice(bisect_right(self._stamps, first), bisect_left(self._stamps, last))
        return [] if self._static else self._stamps[inner]

    def _distance(self, place: int, stamp: int) -> int:
        return abs(self._stamps[place] - stamp)


def _between(first: _Pose, second: _Pose, share: float) -> np.ndarray:
    (t0, q0), (t1, q1) = first, second
    cosine = float(q0 @ q1)
    if cosine < 0:  # q and -q are the same rotation; take the shorter arc
        q1, cosine = -q1, -cosine
    angle = np.arccos(min(cosine, 1.0))
    if angle < 1e-6:
        rotation = q0 + share * (q1 - q0)
    else:
        rotation = (np.sin((1 - share) * angle) * q0 + np.sin(share * angle) * q1) / np.sin(angle)
    return rigid(t0 + share * (t1 - t0), rotation)


class Placement:
    """Poses of the vehicle, and mountings of its sensors, those of the rig if the topics say so.

    `extrapolated` is the longest time (us) for which the vehicle's latest pose was held, since it was set to 0.
    """

    def __init__(self, topics: Topics, rig: Rig) -> None:
        self._topics, self._transforms, self.extrapolated = topics, Transforms(), 0
        self._mounts: dict[str, np.ndarray] = {}  # by sensor, where they are not those of the recording
        if topics.calibration == "rig":
            sensors: tuple[RigSensor, ...] = (*rig.lidars, *rig.cameras, *rig.scanners)
            self._mounts = {each.name: each.ego_from_sensor for each in sensors}

    def add(self, topic: str, transform: Transform, time: int) -> bool:
        """Add a transform that was recorded at this time (us); returns whether it was new.

        With odometry, other topics do not tell the vehicle's pose.
        """
        if self._topics.odometry not in (None, topic) and transform.child == self._topics.ego_frame:
            return True
        return self._transforms.add(transform, None if topic == self._topics.static_transforms else time)

    @property
    def clock_set(self) -> ClockSet | None:
        """See `Transforms`."""
        return self._transforms.clock_set

    def pose(self, stamp: int) -> np.ndarray | None:
        """(4, 4) global_from_ego at a time (us); None if it is not known."""
        found = self._transforms.pose(self._topics.global_frame, self._topics.ego_frame, stamp)
        if found is not None:
            self.extrapolated = max(self.extrapolated, self._transforms.extrapolated)
        return found

    def posed_until(self) -> float:
        """The time (us) until which the vehicle's pose is known; -infinite if it is not."""
        return self._transforms.until(self._topics.global_frame, self._topics.ego_frame)

    def motion(self, stamp: int, point_times: np.ndarray) -> SweepMotion | None:
        """The motion during a sweep, by all poses that were recorded meanwhile; None if it is not known.

        The stamp of the sweep is in us, the times of its points (N,) in s after it.
        """
        first = stamp + int(np.floor(1e6 * point_times.min()))
        last = max(stamp + int(np.ceil(1e6 * point_times.max())), first + 1)
        stamps = [first, *self._transforms.between(self._topics.ego_frame, first, last), last]
        poses = [self.pose(each) for each in stamps]
        known = [pose for pose in poses if pose is not None]
        if len(known) < len(poses):
            return None
        return SweepMotion(point_times, 1e-6 * (np.array(stamps) - stamp), np.stack(known))

    def mounting(self, sensor: str, frame: str) -> np.ndarray | None:
        """(4, 4) ego_from_sensor, of the rig or by the transforms of a frame; None if it is not known."""
        if sensor in self._mounts:
            return self._mounts[sensor]
        return self._transforms.pose(self._topics.ego_frame, frame, None)
