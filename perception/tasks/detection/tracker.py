"""Tracks detections over time with a Kalman filter. numpy and scipy only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from perception.frame import Boxes
from perception.geometry import unit_headings
from perception.tasks.association import associate_in_stages
from perception.tasks.detection.motion import Motion, Noise, is_known
from perception.tasks.detection.traffic import drop_doubles, expected_velocity, gains, select_strongest
from perception.tasks.published import ScoreThresholds, Tracks
from perception.taxonomy import RosClass, Taxonomy

# Multi-object tracking: detections of single frames become tracks with persistent ids. numpy and scipy only.
#
# Each class is tracked separately with a constant-velocity Kalman filter, as in AB3DMOT (Weng et al., "3D Multi-Object
# Tracking", IROS 2020). Detections are associated by the distance of centres in the ground plane, as in CenterPoint
# (Yin et al., CVPR 2021), in the stages of ByteTrack (Zhang et al., ECCV 2022). `traffic` has what keeps the ids of
# vehicles in a queue apart. docs/tracking.md compares variants.

FLOOR = 0.05  # minimum score of detections, in [0, 1]
BIRTH = 0.15  # minimum score of an unassociated detection to begin a track
SURE = 0.3  # minimum score of detections in the first stage of association
HITS = 2  # detections with the scores of `ScoreThresholds` that confirm a track
FADED = 0.5  # a track is not confirmed while its score is below this share of the threshold
LIFETIME = 3.0  # s without a detection, after which a track ends
FADING = 1.0  # s without a detection, in which a track's score falls to a half
MAX_TRACKS = 1000  # at once; where there are more, those with the lowest scores end
DOUBTFUL = 3  # a track of at most so many detections may have taken one of another object, and tells no velocity
MAJORITY = 0.2  # a track turns round when the share of detections that face back is larger by this
CLIMB = 0.3  # m, what the height of an object changes by within 1 s
ORIGIN = np.zeros(2)
DRIFT = np.array([0.02, 1.0])  # how much the variance of size and heading grows in 1 s, in variances of a measured one


# Highest speed (m/s) by the class in ROS; a track that is faster is not confirmed. Pedestrians: 100 m in 9.58 s (the
# record of 2009). Bicycles: 90 km/h, as racing cyclists downhill. Cars, and trucks, which pickups are in nuScenes:
# the 250 km/h to which German makers limit them; motorcycles likewise 299 km/h. Buses and trailers: 85 mph, the highest
# speed limit for them.
FASTEST: Mapping[RosClass, float] = {
    "pedestrian": 10.4, "bicycle": 25.0, "motorcycle": 83.0, "car": 70.0, "truck": 70.0, "bus": 38.0, "trailer": 38.0
}  # fmt: skip


class Motions:
    """The `motion` of the classes of a taxonomy."""

    def __init__(self, taxonomy: Taxonomy) -> None:
        motions = [each.motion for each in taxonomy.classes]
        names = ("gate", "acceleration", "position", "velocity", "speed")
        self.gate, self.acceleration, self.position, self.velocity, self.speed = (
            np.array([getattr(each, name) for each in motions]) for name in names
        )
        self.fastest = np.array([FASTEST.get(each.ros_class or "unknown", np.inf) for each in taxonomy.classes])

    def noise(self, labels: np.ndarray) -> Noise:
        return Noise(
            self.acceleration[labels],
            np.full(len(labels), CLIMB),
            self.position[labels],
            self.velocity[labels],
        )


# The state of a track.
_TRACK = np.dtype(
    [
        ("id", np.int64),
        ("label", np.int64),
        ("attribute", np.int64),  # of the latest detection
        ("score", np.float64),  # mean of its detections' scores
        ("hits", np.int64),  # detections
        ("confirming", np.int64),  # those with the scores of `ScoreThresholds`
        ("born", np.int64),  # us
        ("seen", np.int64),  # us
        ("backed", np.int64),  # us, time of the latest detection with the score to begin a track
        ("size", np.float64, 3),  # m
        ("heading", np.float64, 2),  # unit vector in the ground plane: sine and cosine of the yaw
        ("forward", np.float64),  # share of the detections with this heading minus that of the opposite heading
        ("shape", np.float64, 2),  # variances of size and heading relative to those of a measurement
        ("centers", np.float64, 3),  # these four as in Motion
        ("velocities", np.float64, 2),
        ("covariances", np.float64, 3),
        ("height_variances", np.float64),
    ]
)


class Tracker:
    """Tracks the objects of one drive.

    A track begins with an unassociated detection, is confirmed by HITS detections with the scores of `thresholds`
    while its score has not faded and it is not faster than its class can be, and ends after LIFETIME without a
    detection with a score that could have begun it. All durations are in seconds, so that frames may come at any, also
    irregular, rate. At most MAX_TRACKS are kept. The same frames give bit-identical tracks.

    The score of a track is the mean of its detections' scores and a zero, so that of two tracks with equal detections
    the one seen more often is first; it decays while the track is not detected.
    """

    def __init__(self, taxonomy: Taxonomy, thresholds: ScoreThresholds = ScoreThresholds()) -> None:  # noqa: B008 - immutable
        self._taxonomy, self._thresholds, self._motions = taxonomy, thresholds, Motions(taxonomy)
        self._tracks = np.zeros(0, _TRACK)
        self._time = 0  # us, of the latest frame
        self._next_id = 1

    def update(self, boxes_global: Boxes, timestamp: int, place: np.ndarray = ORIGIN) -> Tracks:
        """The tracks after one more frame at `timestamp` (us); detections that are not finite are ignored.

        `place` (2,) is where the vehicle is, from which the ranges of the thresholds count.

        A frame that is late by up to LIFETIME counts as simultaneous with the latest one; if it is later still, the
        clock was set back, and all tracks end.
        """
        if not len(self._tracks) or timestamp < self._time - 1e6 * LIFETIME:
            self._tracks, self._time = self._tracks[:0], timestamp
        now = max(timestamp, self._time)
        seconds = 1e-6 * (now - self._time)
        before = self._tracks[self._tracks["backed"] >= now - 1e6 * LIFETIME]
        tracks = _predict(before, seconds, self._motions)
        boxes = select_strongest(boxes_global.select(_finite(boxes_global) & (boxes_global.scores >= FLOOR)))
        confirming = self._thresholds.reached(boxes, place, self._taxonomy)
        rows, columns = _associate(tracks, boxes, seconds, self._motions)
        tracks[rows] = _update_tracks(tracks[rows], boxes.select(columns), confirming[columns], now, self._motions)
        new = boxes.scores >= BIRTH
        new[columns] = False

        # Young tracks whose velocity led to no detection are tried again, by detections that say nothing of velocity.
        doubtful = np.setdiff1d(np.flatnonzero((before["hits"] <= DOUBTFUL) & (before["seen"] == self._time)), rows)
        again = _begin_anew(before[doubtful], before, seconds, self._motions)
        silent = np.flatnonzero(new & ~is_known(boxes.velocities[:, :2]))
        rows, columns = _associate(again, boxes.select(silent), seconds, self._motions)
        columns = silent[columns]
        tracks[doubtful[rows]] = _update_tracks(
            again[rows], boxes.select(columns), confirming[columns], now, self._motions
        )
        new[columns] = False

        # What is left begins tracks.
        tracks = drop_doubles(tracks, now)
        born = _start_tracks(boxes.select(new), confirming[new], tracks, now, self._motions)
        born["id"] = np.arange(self._next_id, self._next_id + len(born))
        self._next_id += len(born)
        self._tracks = _select_best(np.concatenate([tracks, born]), now)
        self._time = now
        found = _output(self._tracks, now, self._motions)
        likely = replace(found.boxes, scores=found.boxes.scores / FADED)
        return replace(found, confirmed=found.confirmed & self._thresholds.reached(likely, place, self._taxonomy))


def _associate(tracks: np.ndarray, boxes: Boxes, seconds: float, motions: Motions) -> tuple[np.ndarray, np.ndarray]:
    """`associate_in_stages` for each class separately."""
    own, theirs = [np.zeros(0, np.intp)], [np.zeros(0, np.intp)]
    confirmed, sure = tracks["hits"] >= HITS, boxes.scores >= SURE
    for label in np.intersect1d(tracks["label"], boxes.labels).tolist():
        old, new = np.flatnonzero(tracks["label"] == label), np.flatnonzero(boxes.labels == label)
        gain, allowed = gains(tracks[old], boxes.centers[new], seconds, motions.position[label], motions.gate[label])
        rows, columns = associate_in_stages(gain, allowed, confirmed[old], sure[new])
        own.append(old[rows])
        theirs.append(new[columns])
    return np.concatenate(own), np.concatenate(theirs)


def _begin_anew(tracks: np.ndarray, around: np.ndarray, seconds: float, motions: Motions) -> np.ndarray:
    """The tracks at their latest place as if their velocity were not known, predicted by `seconds`.

    A track that once took a detection of the next vehicle has a velocity that leads nowhere; it would stay behind, and
    take each vehicle that comes by.
    """
    tracks = tracks.copy()
    tracks["confirming"] = np.minimum(tracks["confirming"], 1)
    tracks["hits"] = 1
    noise = motions.noise(tracks["label"])
    expected = expected_velocity(tracks, around[around["hits"] > DOUBTFUL], motions.speed[tracks["label"]])
    _put(tracks, Motion.begin(tracks["centers"], np.full((len(tracks), 2), np.nan), noise, expected))
    return _predict(tracks, seconds, motions)


def _predict(tracks: np.ndarray, seconds: float, motions: Motions) -> np.ndarray:
    tracks = tracks.copy()
    _put(tracks, _motion(tracks).predict(seconds, motions.noise(tracks["label"])))
    tracks["shape"] += DRIFT * seconds
    return tracks


def _update_tracks(tracks: np.ndarray, boxes: Boxes, confirming: np.ndarray, now: int, motions: Motions) -> np.ndarray:
    tracks = tracks.copy()
    _put(tracks, _motion(tracks).update(boxes.centers, boxes.velocities[:, :2], motions.noise(tracks["label"])))
    tracks["shape"] /= tracks["shape"] + 1
    size_gain, heading_gain = tracks["shape"][:, :1], tracks["shape"][:, 1:]
    tracks["size"] += size_gain * (boxes.sizes - tracks["size"])

    # Detectors confuse front and rear: the axis is filtered, and the majority decides the direction.
    measured = boxes.headings
    same = np.where((measured * tracks["heading"]).sum(axis=1) < 0, -1.0, 1.0)
    tracks["forward"] += size_gain[:, 0] * (same - tracks["forward"])
    sense = np.where(tracks["forward"] < -MAJORITY, -1.0, 1.0)
    heading = tracks["heading"] + heading_gain * (same[:, None] * measured - tracks["heading"])
    tracks["heading"] = unit_headings(sense[:, None] * heading)
    tracks["forward"] *= sense

    tracks["hits"] += 1
    tracks["confirming"] += confirming
    tracks["score"] += (boxes.scores - tracks["score"]) / tracks["hits"]
    tracks["attribute"], tracks["seen"] = boxes.attributes, now
    tracks["backed"] = np.where(boxes.scores >= BIRTH, now, tracks["backed"])
    return tracks


def _start_tracks(boxes: Boxes, confirming: np.ndarray, around: np.ndarray, now: int, motions: Motions) -> np.ndarray:
    """A track of each detection; `around`: tracks that were there before."""
    tracks = np.zeros(len(boxes), _TRACK)
    tracks["label"], tracks["attribute"], tracks["score"] = boxes.labels, boxes.attributes, boxes.scores
    tracks["hits"], tracks["confirming"] = 1, confirming
    tracks["born"] = tracks["seen"] = tracks["backed"] = now
    tracks["centers"], tracks["size"], tracks["heading"] = boxes.centers, boxes.sizes, boxes.headings
    tracks["forward"], tracks["shape"] = 1, 1
    noise, measured = motions.noise(boxes.labels), boxes.velocities[:, :2]
    speed = motions.speed[boxes.labels]
    mean, variance = expected_velocity(tracks, around[around["hits"] > DOUBTFUL], speed)
    told = is_known(measured)
    expected = np.where(told[:, None], 0.0, mean), np.where(told, speed**2, variance)
    _put(tracks, Motion.begin(boxes.centers, measured, noise, expected))
    return tracks


def _scores(tracks: np.ndarray, now: int) -> np.ndarray:
    """(N,) scores of the tracks as they are returned."""
    often = tracks["hits"] / (tracks["hits"] + 1)
    unseen = 1e-6 * (now - tracks["seen"])
    return (
        often * tracks["score"] * FADING / (FADING + unseen)
    )  # not an exponential, whose last bit may differ in numpy


def _select_best(tracks: np.ndarray, now: int) -> np.ndarray:
    best = np.argsort(-_scores(tracks, now), kind="stable")[:MAX_TRACKS]
    return tracks[np.sort(best)]


def _output(tracks: np.ndarray, now: int, motions: Motions) -> Tracks:
    speeds = np.hypot(*tracks["velocities"].T)
    return Tracks(
        ids=tracks["id"].copy(),
        boxes=Boxes.from_headings(
            centers=tracks["centers"].copy(),
            sizes=tracks["size"].copy(),
            headings=tracks["heading"],
            velocities=tracks["velocities"],
            labels=tracks["label"].copy(),
            attributes=tracks["attribute"].copy(),
            scores=_scores(tracks, now),
        ),
        age=1e-6 * (now - tracks["born"]),
        unseen=1e-6 * (now - tracks["seen"]),
        confirmed=(tracks["confirming"] >= HITS) & (speeds <= motions.fastest[tracks["label"]]),
        variances=np.column_stack(
            [tracks["covariances"][:, 0], tracks["height_variances"], tracks["covariances"][:, 2]]
        ),
    )


def _finite(boxes: Boxes) -> np.ndarray:
    numbers = [boxes.centers, boxes.sizes, boxes.rotations.reshape(len(boxes), 9), boxes.scores]
    return np.isfinite(np.column_stack(numbers)).all(axis=1)


def _motion(tracks: np.ndarray) -> Motion:
    return Motion(*(tracks[name] for name in ("centers", "velocities", "covariances", "height_variances")))


def _put(tracks: np.ndarray, motion: Motion) -> None:
    for name in ("centers", "velocities", "covariances", "height_variances"):
        tracks[name] = getattr(motion, name)
