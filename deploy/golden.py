"""Golden frames: frames whose outputs are known, to prove that an engine computes the trained network.

They find what matters to the outputs, such as the wrong sign of the largest weight of any convolution
(tests/test_golden_sensitivity.py). They cannot find a weight that no golden frame uses, or a change too small to move
an output by the tolerance: that no byte has changed is for the hashes to say, and who made the bundle for a signature.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from deploy.tolerances import REMEDY, Ranked, Spread, Tolerances
from perception.errors import InputError
from perception.frame import CAMERAS, Camera, Frame
from perception.grid import Reference
from perception.tasks.task import part_of

Arrays = Mapping[str, np.ndarray]
_DETECTIONS = ("boxes", "scores", "labels", "attributes")
STANDING = 0.05  # score above the last of the list
LEAST_COMPARED, LEAST_SHARE = 10, 0.1  # of the detections that stand out
QUANTITIES = ("center", "size", "heading", "velocity")  # of boxes


def synthetic_frame(reference: Reference, seed: int = 0) -> Frame:
    """A frame of a flat street with a few blocks in it, seen by LiDAR and six cameras; the same for every seed.

    It resembles a drive enough to fill every input with values of their usual size: returns are weak, and the more
    the nearer, as those of a LiDAR that turns. On others a network's maps, and with them the rounding errors of
    engines, can be ten times as large as on drives. Pictures are blocks of colour with noise, so that no two cells of
    the network see the same and scores do not tie.
    """
    rng = np.random.default_rng(seed)
    distance, azimuth = np.exp(rng.uniform(np.log(2.5), np.log(50), 12000)), rng.uniform(-np.pi, np.pi, 12000)
    ground = np.column_stack([distance * np.cos(azimuth), distance * np.sin(azimuth), rng.normal(0, 0.03, 12000)])
    blocks = np.repeat(np.column_stack([rng.uniform(-40, 40, (40, 2)), rng.uniform(0.5, 1.5, 40)]), 100, axis=0)
    xyz = np.concatenate([ground, blocks + rng.uniform(-1, 1, blocks.shape) * [2.0, 1.0, 0.5]])
    n = len(xyz)
    intensity = np.minimum(rng.exponential(20, n), 255)  # nuScenes' mean is 17
    points = np.column_stack([xyz, intensity, rng.choice([0.0, 0.05, 0.1], n)]).astype(np.float32)
    cameras = {}
    for name, yaw in zip(CAMERAS, np.radians([0, -55, 55, 180, 110, -110]), strict=True):
        ego_from_camera = np.eye(4)
        # Columns are the camera's axes in the vehicle: right, down, along the optical axis.
        ego_from_camera[:3, :3] = np.array([[np.sin(yaw), 0, np.cos(yaw)], [-np.cos(yaw), 0, np.sin(yaw)], [0, -1, 0]])
        ego_from_camera[:3, 3] = [np.cos(yaw), np.sin(yaw), 1.5]
        coarse = rng.integers(0, 200, (9, 16, 3))
        image = coarse.repeat(100, axis=0).repeat(100, axis=1) + rng.integers(0, 56, (900, 1600, 1))
        intrinsics = np.array([[1260.0, 0, 800], [0, 1260, 450], [0, 0, 1]])
        cameras[name] = Camera(image.astype(np.uint8), intrinsics, ego_from_camera, np.eye(4), 0)
    return Frame(
        token=f"synthetic-{seed}",
        timestamp=0,
        reference=reference,
        global_from_reference=np.eye(4),
        global_from_ego=np.eye(4),
        points=points,
        cameras=cameras,
    )


class WrongEngine(InputError):
    """An engine computes something else than the exported network: nothing that it gave can be relied on."""


@dataclass(frozen=True)
class GoldenFrame:
    """One frame with the outputs that the exported network gave for it.

    Attributes:
        outputs: in FP32 and FP16 those of the trained network in torch, in INT8 those of the graph in ONNX Runtime.
        compared: by task with detections, (B, K) or (B, groups, K) bool, as `scores`: those that an engine must find.
            Rounding does not decide about them: of two peaks that score nearly the same, it may make either the peak.
        graph: the file whose outputs they are: INT8 has one for TensorRT and one for ONNX Runtime.
    """

    name: str
    inputs: Arrays
    outputs: Arrays
    compared: Arrays
    graph: str = "model.onnx"


@dataclass(frozen=True)
class Matched:
    """The detections of one frame of two engines' outputs, as far as they are compared.

    Attributes:
        asked: how many are compared.
        lost: ranks of those without a counterpart.
        relabelled: ranks of those in whose place stands a detection of another class that is not expected.
        off: quantity -> (N, n) of each counterpart: how far it is from what is expected, with its sign.
    """

    asked: int
    lost: np.ndarray
    relabelled: np.ndarray
    off: Mapping[str, np.ndarray]

    def spread(self, quantity: str, errors: float = 0) -> Spread:
        """How far the counterparts are off in the largest case, and in the mean with so many of its standard errors."""
        off = self.off[quantity]
        if not len(off):
            return Spread(each=0, mean=0)
        mean = np.linalg.norm(off.mean(axis=0)) + errors * np.linalg.norm(off.std(axis=0)) / np.sqrt(len(off))
        return Spread(each=float(np.linalg.norm(off, axis=1).max()), mean=float(mean))


def distinct(outputs: Arrays, score: float) -> np.ndarray:
    """Which of a task's detections score clearly above the last of their list, if engines differ by this at most.

    Engines order equal scores as they please, and where scores tie at the end of the list they are free to choose who
    is in it. Where classes are in groups, each has its own list.
    """
    last = _listed(outputs["scores"], _least(outputs["scores"]))[..., -1:]
    return outputs["scores"] > last + 2 * score


def require_enough(frames: Sequence[GoldenFrame], where: str) -> None:
    """Raise InputError where too few are compared of the detections that stand out, by `STANDING`, in their lists.

    Ten are, where there are forty, and a tenth in any case. A network that is not trained gives all the same score:
    none stands out, and its boxes cannot be compared.
    """
    if not frames:
        raise InputError(f"{where}: holds no golden frame; {REMEDY}")
    for task in frames[0].compared:
        outputs = [part_of(task, frame.outputs) for frame in frames]
        standing = sum(int(distinct(each, STANDING / 2).sum()) for each in outputs)
        compared = sum(int(frame.compared[task].sum()) for frame in frames)
        least = max(LEAST_COMPARED * (standing >= 4 * LEAST_COMPARED), int(LEAST_SHARE * standing))
        if compared < least:
            raise InputError(f"{where}: compares {compared} of {standing} detections, {least} are needed; {REMEDY}")


def differences(expected: Arrays, actual: Arrays, allowed: Tolerances, compared: Arrays | None = None) -> list[str]:
    """What is off between two engines' outputs for the same frame; empty when they agree.

    Args:
        compared: as `GoldenFrame.compared`; None: all that are `distinct`.
    """
    if problems := _malformed(expected, actual):
        return problems
    for task, ranked in allowed.ranked.items():
        mine, other = part_of(task, expected), part_of(task, actual)
        asked = distinct(mine, ranked.score.each) if compared is None else compared[task]
        problems += _ranked_differences(mine, other, ranked, asked)
    for name, channels in allowed.dense.items():
        found = dense_spreads(expected[name], actual[name])
        for (channel, most), off in zip(channels.items(), found, strict=True):
            if off.each > most.each:
                problems.append(f"{name} is off by {off.each:.2g} ({channel})")
            elif off.mean > most.mean:
                problems.append(f"{name} is off by {off.mean:.2%} of {channel} in the mean")
    return problems


def _ranked_differences(expected: Arrays, actual: Arrays, allowed: Ranked, compared: np.ndarray) -> list[str]:
    """What is off between two lists of detections.

    The sorted scores are compared number by number: sorting is continuous, so equal networks give equal sorted scores.
    Which detection stands at which rank is not: every expected detection that is compared must be found, with its
    label, attribute and box, among those that score the same within the tolerance.
    """
    problems = []
    scores = score_spread(expected["scores"], actual["scores"], allowed.lost)
    if scores.each > allowed.score.each:
        problems.append(f"scores is off by {scores.each:.2g}")
    elif scores.mean > allowed.score.mean:
        problems.append(f"scores is off by {scores.mean:.2%} in the mean")
    for i, asked in enumerate(compared):
        found = matched(*sides(expected, actual, i), asked, allowed)
        if len(found.relabelled):
            problems.append(f"{len(found.relabelled)} labels differ, first rank {found.relabelled[0]}")
        if len(found.lost) > allowed.lost * found.asked:
            problems.append(
                f"{len(found.lost)} of {found.asked} compared detections differ, first rank {found.lost[0]}"
            )
        for quantity in QUANTITIES:
            mean = found.spread(quantity).mean
            if mean > getattr(allowed, quantity).mean:
                problems.append(f"{quantity} is off by {mean:.2g} in the mean")
    return problems


def matched(expected: Arrays, actual: Arrays, asked: np.ndarray, allowed: Ranked) -> Matched:
    """Find the counterparts of one frame's detections (arrays without batch dimension): alike in all, and nearest."""
    mine, other = (
        {k: v.reshape(asked.size, *v.shape[asked.ndim :]) for k, v in side.items()} for side in (expected, actual)
    )
    ranks, (i, j) = np.flatnonzero(asked), _neighbours(mine["boxes"], other["boxes"], allowed.center.each)
    off = _offsets({k: v[i] for k, v in mine.items()}, {k: v[j] for k, v in other.items()})
    size = {name: np.linalg.norm(values, axis=-1) for name, values in off.items()}
    there = (size["score"] <= allowed.score.each) & (size["center"] <= allowed.center.each)
    label = there & (mine["labels"][i] == other["labels"][j])
    alike = label & (mine["attributes"][i] == other["attributes"][j])
    for name in ("size", "heading", "velocity"):
        alike &= size[name] <= getattr(allowed, name).each
    lost = np.setdiff1d(ranks, i[alike])
    relabelled = np.intersect1d(lost, i[there & ~label & ~np.isin(j, j[label])])
    pairs = np.flatnonzero(alike & asked.reshape(-1)[i])
    pairs = pairs[np.lexsort((size["center"][pairs], i[pairs]))]
    nearest = pairs[np.unique(i[pairs], return_index=True)[1]]
    return Matched(
        asked=len(ranks),
        lost=lost,
        relabelled=relabelled,
        off={name: values[nearest] for name, values in off.items()},
    )


def _neighbours(mine: np.ndarray, other: np.ndarray, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """Indices (P,), (P,) of the pairs of boxes whose x and y differ by this much (m) at most: few of all there are."""
    order, x = np.argsort(other[:, 0], kind="stable"), mine[:, 0].astype(np.float64)
    ordered = other[order, 0].astype(np.float64)
    start = np.searchsorted(ordered, x - reach, "left")
    counts = np.searchsorted(ordered, x + reach, "right") - start
    place = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    i, j = np.repeat(np.arange(len(mine)), counts), order[np.repeat(start, counts) + place]
    near = np.abs(mine[i, 1].astype(np.float64) - other[j, 1]) <= reach
    return i[near], j[near]


def sides(expected: Arrays, actual: Arrays, index: int) -> tuple[Arrays, Arrays]:
    """The detections of one frame of both."""
    mine, other = ({name: side[name][index] for name in _DETECTIONS} for side in (expected, actual))
    return mine, other


def _offsets(mine: Arrays, other: Arrays) -> dict[str, np.ndarray]:
    """Quantity -> (P, n): how far each of the other detections is from mine."""
    a, b = (side["boxes"].astype(np.float64) for side in (mine, other))
    yaws = np.arctan2(b[:, 6], b[:, 7]) - np.arctan2(a[:, 6], a[:, 7])
    return {
        "score": (other["scores"].astype(np.float64) - mine["scores"])[:, None],
        "center": b[:, 0:3] - a[:, 0:3],
        "size": (b[:, 3:6] - a[:, 3:6]) / np.maximum(np.abs(a[:, 3:6]), 0.1),
        "heading": ((yaws + np.pi) % (2 * np.pi) - np.pi)[:, None],
        "velocity": b[:, 8:10] - a[:, 8:10],
    }


def dense_spreads(expected: np.ndarray, actual: np.ndarray) -> list[Spread]:
    """How far an output (B, channels, ...) is off in each channel: in one number, and in the mean of its cells.

    The mean is of differences with their signs, so that rounding cancels: what is left is a share of the channel's mean
    size. To that 0.001 is added, so that a class that is nowhere has no large share. Without cells it is 0.
    """
    off = (actual.astype(np.float64) - expected).swapaxes(0, 1).reshape(expected.shape[1], -1)
    there = np.abs(expected).swapaxes(0, 1).reshape(off.shape).mean(axis=1, dtype=np.float64) + 1e-3
    mean = np.abs(off.mean(axis=1)) / there if expected.ndim > 2 else np.zeros(len(off))
    return [
        Spread(each=float(most), mean=float(share)) for most, share in zip(np.abs(off).max(axis=1), mean, strict=True)
    ]


def score_spread(expected: np.ndarray, actual: np.ndarray, lost: float) -> Spread:
    """How far the sorted scores are off: in any one, and in the mean of all, as a share of the mean score.

    Args:
        lost: share of the scores that may be further off than any one: which anchors are candidates is for the greatest
            of their scores to say, so that one that rounding makes a candidate has other scores, too.
    """
    least = min(_least(expected), _least(actual))
    off = _listed(actual, least).astype(np.float64) - _listed(expected, least)
    mean = abs(off.mean()) / max(float(expected.mean(dtype=np.float64)), 1e-9)
    left = np.sort(np.abs(off), axis=None)[: off.size - int(lost * np.count_nonzero(expected))]
    return Spread(each=float(left.max(initial=0)), mean=float(mean))


def _least(scores: np.ndarray) -> float:
    """The least score of a detection; a network with a threshold fills its lists with zeros."""
    return float(scores[scores > 0].min(initial=1))


def _listed(scores: np.ndarray, least: float) -> np.ndarray:
    """Scores with the least in place of zeros: sorted scores are continuous again, also at the threshold."""
    return np.where(scores > 0, scores, np.float32(least))


def _malformed(expected: Arrays, actual: Arrays) -> list[str]:
    problems = []
    for name in expected:
        if name not in actual:
            problems.append(f"{name} is missing")
        elif actual[name].shape != expected[name].shape:
            problems.append(f"{name} has shape {actual[name].shape} instead of {expected[name].shape}")
        elif not np.isfinite(actual[name]).all():
            problems.append(f"{name} is not finite")
    return problems


def require_golden(
    frames: Sequence[GoldenFrame], run: Callable[[Arrays], Arrays], who: str, allowed: Tolerances
) -> None:
    """Raise WrongEngine unless `run` gives the outputs of the golden frames, as exactly as allowed."""
    for frame in frames:
        actual = run(frame.inputs)
        require_agreement(frame.outputs, actual, f"{who}, golden frame {frame.name}:", allowed, frame.compared)


def require_agreement(
    expected: Arrays, actual: Arrays, who: str, allowed: Tolerances, compared: Arrays | None = None
) -> None:
    """Raise WrongEngine unless `who`'s outputs for a golden frame are the expected ones, see `differences`."""
    if problems := differences(expected, actual, allowed, compared):
        raise WrongEngine(f"{who} does not compute the exported network: {'; '.join(problems)}")
