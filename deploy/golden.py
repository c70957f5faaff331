"""Golden frames: frames with known outputs, to check that an engine computes the exported network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from deploy.tolerances import Ranked, Spread, Tolerances
from perception.errors import InputError
from perception.frame import Arrays, Camera, Frame
from perception.grid import Reference
from perception.rig import Rig
from perception.state import Moment, states_of
from perception.tasks.outputs import DETECTIONS
from perception.tasks.task import part_of

_NAMES = ("labels", "attributes")  # of a detection
QUANTITIES = ("center", "size", "heading", "velocity")  # of boxes
AROUND = 4.0  # m, where another peak takes the place of one that rounding lowers
_PAIRS = 1 << 14  # compared at once, or one detection with all


@dataclass(frozen=True)
class Matches:
    """The compared detections of one frame, matched between the outputs of two engines.

    Attributes:
        compared: their number.
        lost: ranks of those without a match.
        gone: ranks of lost ones that stand clear of the list's end, without any of their class around.
        relabelled: ranks of lost ones with an unexpected detection of another class in their place.
        offsets: quantity -> (N, n) signed differences of the matches.
    """

    compared: int
    lost: np.ndarray
    gone: np.ndarray
    relabelled: np.ndarray
    offsets: Mapping[str, np.ndarray]

    def spread(self, quantity: str, errors: float = 0) -> Spread:
        """The largest difference, and the mean one plus this many of its standard errors."""
        offsets = self.offsets[quantity]
        if not len(offsets):
            return Spread(each=0, mean=0)
        error = np.linalg.norm(offsets.std(axis=0)) / np.sqrt(len(offsets))
        mean = np.linalg.norm(offsets.mean(axis=0)) + errors * error
        return Spread(each=float(np.linalg.norm(offsets, axis=1).max()), mean=float(mean))


def clear_detections(outputs: Arrays, score: float) -> np.ndarray:
    """The detections (bool, like scores) that stay in their list if engines differ by this score at most.

    Where scores tie at the end of a list, engines are free to choose which detections are in it.
    """
    last = _without_zeros(outputs["scores"], _lowest(outputs["scores"]))[..., -1:]
    return outputs["scores"] > last + 2 * score


def ranked_differences(expected: Arrays, actual: Arrays, allowed: Ranked, compared: np.ndarray) -> list[str]:
    """Compare two lists of detections.

    Sorted scores are compared one by one, because they depend continuously on the network's maps. The order of the
    detections does not: each compared one must have a match with its label, attribute and box, at any rank.
    """
    problems = []
    scores = score_spread(expected["scores"], actual["scores"], allowed.lost)
    if scores.each > allowed.score.each:
        problems.append(f"scores is off by {scores.each:.2g}")
    elif scores.mean > allowed.score.mean:
        problems.append(f"scores is off by {scores.mean:.2%} in the mean")
    for i, chosen in enumerate(compared):
        found = match_detections(expected, actual, i, chosen, allowed)
        if len(found.relabelled):
            problems.append(f"{len(found.relabelled)} labels differ, first rank {found.relabelled[0]}")
        if len(found.gone):
            problems.append(f"{len(found.gone)} compared detections are gone, first rank {found.gone[0]}")
        if len(found.lost) > allowed.lost * found.compared:
            problems.append(
                f"{len(found.lost)} of {found.compared} compared detections differ, first rank {found.lost[0]}"
            )
        for quantity in QUANTITIES:
            mean = found.spread(quantity).mean
            if mean > getattr(allowed, quantity).mean:
                problems.append(f"{quantity} is off by {mean:.2g} in the mean")
    return problems


def match_detections(expected: Arrays, actual: Arrays, index: int, compared: np.ndarray, allowed: Ranked) -> Matches:
    """Match each compared detection of one frame of the batch to the nearest that agrees within the tolerances."""
    mine, other = (
        {k: side[k][index].reshape(compared.size, *side[k].shape[1 + compared.ndim :]) for k in DETECTIONS}
        for side in (expected, actual)
    )
    ranks = np.flatnonzero(compared)
    usual = float(np.median(np.linalg.norm(mine["boxes"][:, 6:8].astype(np.float64), axis=1))) if compared.size else 0.0
    parts = [(ranks[:0], _offsets(mine, other, np.zeros((2, 0), np.intp), usual))]
    for pairs in _near(mine, other, ranks, allowed):
        parts.append(_nearest_matches(mine, other, pairs, allowed, usual))
    lost = np.setdiff1d(ranks, np.concatenate([matched for matched, _ in parts]))
    clear = clear_detections({"scores": expected["scores"][index]}, allowed.score.each).reshape(-1)
    around = [
        np.unique(i[(mine["labels"][i] == other["labels"][j]) & (other["scores"][j] > 0)])
        for i, j in _neighbours(mine, other, lost[clear[lost]], AROUND)
    ]
    return Matches(
        compared=len(ranks),
        lost=lost,
        gone=np.setdiff1d(lost[clear[lost]], np.concatenate([lost[:0], *around])),
        relabelled=_relabelled(mine, other, lost, allowed),
        offsets={name: np.concatenate([offsets[name] for _, offsets in parts]) for name in parts[0][1]},
    )


def _nearest_matches(
    mine: Arrays, other: Arrays, pairs: np.ndarray, allowed: Ranked, usual: float
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Detections (N,) with a match among these pairs, and the offsets to the match with the nearest center."""
    pairs = pairs[:, np.all([mine[name][pairs[0]] == other[name][pairs[1]] for name in _NAMES], axis=0)]
    offsets = _offsets(mine, other, pairs, usual)
    size = {name: np.linalg.norm(values, axis=-1) for name, values in offsets.items()}
    within = [size[name] <= getattr(allowed, name).each for name in ("size", "heading", "velocity")]
    alike = np.flatnonzero(np.all(within, axis=0))
    alike = alike[np.lexsort((size["center"][alike], pairs[0, alike]))]
    matched, first = np.unique(pairs[0, alike], return_index=True)
    return matched, {name: values[alike[first]] for name, values in offsets.items()}


def _relabelled(mine: Arrays, other: Arrays, lost: np.ndarray, allowed: Ranked) -> np.ndarray:
    """Lost detections near one of another label, near which none of that label is expected."""
    least = mine["scores"][lost].min(initial=np.inf) - 2 * allowed.score.each  # of what is near the same detection
    wanted, found = np.zeros(len(other["labels"]), bool), [lost[:0]]
    for i, j in _near(mine, other, np.flatnonzero(mine["scores"] >= least), allowed):
        wanted[j[mine["labels"][i] == other["labels"][j]]] = True
    for i, j in _near(mine, other, lost, allowed):
        found.append(np.unique(i[(mine["labels"][i] != other["labels"][j]) & ~wanted[j]]))
    return np.concatenate(found)


def _near(mine: Arrays, other: Arrays, rows: np.ndarray, allowed: Ranked) -> Iterator[np.ndarray]:
    """Indices (2, P) of the pairs whose scores and centers are within the tolerances, in parts as `_neighbours`."""
    for i, j in _neighbours(mine, other, rows, allowed.center.each):
        off = mine["boxes"][i, :3].astype(np.float64) - other["boxes"][j, :3]
        near = np.linalg.norm(off, axis=1) <= allowed.center.each
        near &= np.abs(mine["scores"][i].astype(np.float64) - other["scores"][j]) <= allowed.score.each
        yield np.stack([i[near], j[near]])


def _neighbours(mine: Arrays, other: Arrays, rows: np.ndarray, reach: float) -> Iterator[np.ndarray]:
    """Indices (2, P) of the pairs of these rows whose x and y differ by at most `reach` (m).

    They come in parts, so that memory does not grow with the number of pairs; the pairs of a row are in one part.
    """
    order, x = np.argsort(other["boxes"][:, 0], kind="stable"), mine["boxes"][rows, 0].astype(np.float64)
    ordered = other["boxes"][order, 0].astype(np.float64)
    start = np.searchsorted(ordered, x - reach, "left")
    counts = np.searchsorted(ordered, x + reach, "right") - start
    parts = np.cumsum(counts) // max(_PAIRS, len(order))
    for part in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(parts)) + 1):
        count = counts[part]
        place = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        i, j = np.repeat(rows[part], count), order[np.repeat(start[part], count) + place]
        near = np.abs(mine["boxes"][i, 1].astype(np.float64) - other["boxes"][j, 1]) <= reach
        yield np.stack([i[near], j[near]])


def _offsets(mine: Arrays, other: Arrays, pairs: np.ndarray, usual: float) -> dict[str, np.ndarray]:
    """Quantity -> (P, n) signed differences of paired detections, given the usual length of a heading's vector.

    A shorter one is uncertain: rounding changes its yaw a lot, the vector not. Its difference has two components, along
    the expected heading and across: so detections that all turn the same way add up, wherever they head.
    """
    a, b = (side["boxes"][rows].astype(np.float64) for side, rows in zip((mine, other), pairs, strict=True))
    ahead, other_ahead = (
        side[:, 6:8] / np.maximum(np.linalg.norm(side[:, 6:8], axis=1, keepdims=True), max(usual, 1e-9))
        for side in (a, b)
    )
    turned = other_ahead - ahead
    length = np.hypot(*a[:, 6:8].T)
    sine, cosine = np.where(length > 0, a[:, 6:8].T / np.maximum(length, 1e-300), [[0.0], [1.0]])
    along, across = turned[:, 0] * sine + turned[:, 1] * cosine, turned[:, 0] * cosine - turned[:, 1] * sine
    return {
        "score": (other["scores"][pairs[1]].astype(np.float64) - mine["scores"][pairs[0]])[:, None],
        "center": b[:, 0:3] - a[:, 0:3],
        "size": (b[:, 3:6] - a[:, 3:6]) / np.maximum(np.abs(a[:, 3:6]), 0.1),
        "heading": np.stack([along, across], axis=1),
        "velocity": b[:, 8:10] - a[:, 8:10],
    }


def score_spread(expected: np.ndarray, actual: np.ndarray, lost: float) -> Spread:
    """The largest difference of the sorted scores, and the mean one as a share of the mean score.

    A share `lost` may differ more: rounding can change which anchors are candidates, by their greatest score, and with
    them all their scores.
    """
    lowest = min(_lowest(expected), _lowest(actual))
    off = _without_zeros(actual, lowest).astype(np.float64) - _without_zeros(expected, lowest)
    mean = abs(off.mean()) / max(float(expected.mean(dtype=np.float64)), 1e-9)
    kept = np.sort(np.abs(off), axis=None)[: off.size - int(lost * np.count_nonzero(expected))]
    return Spread(each=float(kept.max(initial=0)), mean=float(mean))


def _lowest(scores: np.ndarray) -> float:
    """The lowest score of a detection; a network with a threshold fills its lists with zeros."""
    return float(scores[scores > 0].min(initial=1))


def _without_zeros(scores: np.ndarray, lowest: float) -> np.ndarray:
    """Scores with `lowest` instead of zeros, so that sorted scores stay continuous at the threshold."""
    return np.where(scores > 0, scores, np.float32(lowest))


# Of the frame with sensor data: builds of decoders and maths libraries may round differently.
GREY_LEVELS, ROUNDED = 1, 0.02  # by which a pixel may differ, and the share of a picture's pixels that may differ more
CLOSE = 1e-5  # relative and absolute difference of other numbers


def synthetic_frame(reference: Reference, rig: Rig, seed: int = 0) -> Frame:
    """A flat street with a few blocks, seen by LiDAR and the cameras of a rig; equal seeds give equal frames.

    The inputs are as large as on a drive; with others, rounding errors of engines can be ten times as large. Pictures
    are blocks of colour with noise, so that scores do not tie. Cameras look where the rig has them, to 5 degrees.
    """
    rng = np.random.default_rng(seed)
    distance, azimuth = np.exp(rng.uniform(np.log(2.5), np.log(50), 12000)), rng.uniform(-np.pi, np.pi, 12000)
    ground = np.column_stack([distance * np.cos(azimuth), distance * np.sin(azimuth), rng.normal(0, 0.03, 12000)])
    blocks = np.repeat(np.column_stack([rng.uniform(-40, 40, (40, 2)), rng.uniform(0.5, 1.5, 40)]), 100, axis=0)
    xyz = np.concatenate([ground, blocks + rng.uniform(-1, 1, blocks.shape) * [2.0, 1.0, 0.5]])
    n = len(xyz)
    intensity = np.minimum(rng.exponential(20, n), 255)  # nuScenes' mean is 17
    sweeps = rng.choice(3, n)
    points = np.column_stack([xyz, intensity, 0.05 * sweeps]).astype(np.float32)
    cameras = {}
    for camera in rig.calibrate().cameras:
        assert camera.mount is not None
        yaw = np.radians(5 * round(camera.mount.yaw / 5))
        ego_from_camera = np.eye(4)
        # Columns are the camera's axes in the vehicle: right, down, along the optical axis.
        ego_from_camera[:3, :3] = np.array([[np.sin(yaw), 0, np.cos(yaw)], [-np.cos(yaw), 0, np.sin(yaw)], [0, -1, 0]])
        ego_from_camera[:3, 3] = [np.cos(yaw), np.sin(yaw), 1.5]
        coarse = rng.integers(0, 200, (9, 16, 3))
        image = coarse.repeat(100, axis=0).repeat(100, axis=1) + rng.integers(0, 56, (900, 1600, 1))
        intrinsics = np.array([[1260.0, 0, 800], [0, 1260, 450], [0, 0, 1]])
        cameras[camera.name] = Camera(image.astype(np.uint8), intrinsics, ego_from_camera, np.eye(4), 0)
    return Frame(
        token=f"synthetic-{seed}",
        timestamp=0,
        reference=reference,
        global_from_reference=np.eye(4),
        global_from_ego=np.eye(4),
        points=points,
        sweep_of_point=sweeps.astype(np.uint8),
        cameras=cameras,
    )


class WrongEngine(InputError):
    """An engine does not compute the exported network; none of its outputs can be relied on."""


@dataclass(frozen=True)
class GoldenFrame:
    """One frame with the expected outputs.

    Attributes:
        outputs: in FP32 and FP16 those of the trained network in torch, in INT8 those of the graph in ONNX Runtime.
        compared: by task with detections, (B, K) or (B, groups, K) bool, as `scores`: the detections that an engine
            must find. It excludes those that depend on rounding, such as one of two peaks with nearly equal scores.
        graph: the file whose outputs they are; INT8 has one for TensorRT and one for ONNX Runtime.
        sensors: what its inputs are made of; only the frame of `deploy.golden_file` has it.
        results: what is made of its outputs, TASK/NAME; of that frame too.
        moment: where and when it was recorded; of a network with a memory. Its inputs then have no states, which are
            what the network made of the frame before, and its outputs have the next ones as `sampled`.
    """

    name: str
    inputs: Arrays
    outputs: Arrays
    compared: Arrays
    graph: str = "model.onnx"
    sensors: Arrays = field(default_factory=dict)
    results: Arrays = field(default_factory=dict)
    moment: Moment | None = None


def differences(expected: Arrays, actual: Arrays, allowed: Tolerances, compared: Arrays | None = None) -> list[str]:
    """Compare the outputs of two engines for the same frame; returns what is out of tolerance.

    Only the detections marked in `compared` count (`GoldenFrame.compared`), by default all `clear_detections`.
    """
    if problems := _describe_malformed(expected, actual):
        return problems
    for task, ranked in allowed.ranked.items():
        mine, other = part_of(task, expected), part_of(task, actual)
        chosen = clear_detections(mine, ranked.score.each) if compared is None else compared[task]
        problems += ranked_differences(mine, other, ranked, chosen)
    for name, channels in allowed.dense.items():
        found = dense_spreads(expected[name], actual[name], allowed.scales.get(name, 1.0))
        for (channel, most), off in zip(channels.items(), found, strict=True):
            if off.each > most.each:
                problems.append(f"{name} is off by {off.each:.2g} ({channel})")
            elif off.mean > most.mean:
                problems.append(f"{name} is off by {off.mean:.2%} of {channel} in the mean")
    if allowed.state is not None:
        for name in states_of(expected).values():
            apart = state_difference(expected[name], actual[name])
            if apart > allowed.state:
                problems.append(f"{name} is off by {apart:.2%}")
    for name, most_differing in allowed.labels.items():
        share = differing(expected[name], actual[name])
        if share > most_differing:
            problems.append(f"{name} differs in {share:.2%} of its elements")
    return problems


def dense_spreads(expected: np.ndarray, actual: np.ndarray, scale: float) -> list[Spread]:
    """The largest and the mean difference of each channel of an output (B, channels, ...) of this `Output.scale`.

    The mean is signed, so that rounding errors cancel, and relative to the channel's mean size plus a thousandth of the
    scale, so that it is small for a class that is nowhere. It is 0 for an output without cells.
    """
    off = (actual.astype(np.float64) - expected).swapaxes(0, 1).reshape(expected.shape[1], -1)
    size = np.abs(expected).swapaxes(0, 1).reshape(off.shape).mean(axis=1, dtype=np.float64) + 1e-3 * scale
    mean = np.abs(off.mean(axis=1)) / size if expected.ndim > 2 else np.zeros(len(off))
    return [Spread(each=a, mean=b) for a, b in zip(np.abs(off).max(axis=1).tolist(), mean.tolist(), strict=True)]


def state_difference(expected: np.ndarray, actual: np.ndarray) -> float:
    """The root mean square difference of two states, as a share of that of the expected one."""
    size = np.sqrt(np.square(expected, dtype=np.float64).mean())
    off = np.sqrt(np.square(actual.astype(np.float64) - expected).mean())
    return float(off / max(size, 1e-9))


def differing(expected: np.ndarray, actual: np.ndarray) -> float:
    """The share of the class indices that differ."""
    return float(np.mean(expected != actual))


def _describe_malformed(expected: Arrays, actual: Arrays) -> list[str]:
    problems = []
    for name, wanted in expected.items():
        if name not in actual:
            problems.append(f"{name} is missing")
        elif actual[name].shape != wanted.shape:
            problems.append(f"{name} has shape {actual[name].shape} instead of {wanted.shape}")
        elif not np.isfinite(actual[name]).all():
            problems.append(f"{name} is not finite")
    return problems


def require_golden(
    frames: Sequence[GoldenFrame], run: Callable[[Arrays], Arrays], engine: str, allowed: Tolerances
) -> None:
    """Raise WrongEngine unless `run`, of a network with a memory `in_sequence`, gives the golden frames' outputs."""
    for frame in frames:
        name = f"{engine}, golden frame {frame.name}:"
        require_agreement(frame.outputs, run(frame.inputs), name, allowed, frame.compared)


def require_agreement(
    expected: Arrays, actual: Arrays, engine: str, allowed: Tolerances, compared: Arrays | None = None
) -> None:
    """Raise WrongEngine unless an engine's outputs are the expected ones, see `differences`."""
    if problems := differences(expected, actual, allowed, compared):
        raise WrongEngine(f"{engine} does not compute the exported network: {'; '.join(problems)}")
