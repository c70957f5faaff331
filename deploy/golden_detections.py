"""Detections of two engines for one golden frame: which of them to compare, and how far they differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from deploy.tolerances import Ranked, Spread

Arrays = Mapping[str, np.ndarray]
_DETECTIONS = ("boxes", "scores", "labels", "attributes")
QUANTITIES = ("center", "size", "heading", "velocity")  # of boxes
AROUND = 4.0  # m, where another peak takes the place of one that rounding lowers


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
        {k: side[k][index].reshape(compared.size, *side[k].shape[1 + compared.ndim :]) for k in _DETECTIONS}
        for side in (expected, actual)
    )
    ranks, (i, j) = np.flatnonzero(compared), _neighbours(mine["boxes"], other["boxes"], allowed.center.each)
    usual = float(np.median(np.linalg.norm(mine["boxes"][:, 6:8].astype(np.float64), axis=1))) if compared.size else 0.0
    offsets = _offsets({k: v[i] for k, v in mine.items()}, {k: v[j] for k, v in other.items()}, max(usual, 1e-9))
    size = {name: np.linalg.norm(values, axis=-1) for name, values in offsets.items()}
    near = (size["score"] <= allowed.score.each) & (size["center"] <= allowed.center.each)
    labelled = near & (mine["labels"][i] == other["labels"][j])
    alike = labelled & (mine["attributes"][i] == other["attributes"][j])
    for name in ("size", "heading", "velocity"):
        alike &= size[name] <= getattr(allowed, name).each
    lost = np.setdiff1d(ranks, i[alike])
    clear = clear_detections({"scores": expected["scores"][index]}, allowed.score.each).reshape(-1)
    around, there = _neighbours(mine["boxes"], other["boxes"], AROUND)
    around = around[(mine["labels"][around] == other["labels"][there]) & (other["scores"][there] > 0)]
    pairs = np.flatnonzero(alike & compared.reshape(-1)[i])
    pairs = pairs[np.lexsort((size["center"][pairs], i[pairs]))]
    nearest = pairs[np.unique(i[pairs], return_index=True)[1]]
    return Matches(
        compared=len(ranks),
        lost=lost,
        gone=np.setdiff1d(lost[clear[lost]], around),
        relabelled=np.intersect1d(lost, i[near & ~labelled & ~np.isin(j, j[labelled])]),
        offsets={name: values[nearest] for name, values in offsets.items()},
    )


def _neighbours(mine: np.ndarray, other: np.ndarray, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """Indices (P,), (P,) of the pairs of boxes whose x and y differ by at most `reach` (m)."""
    order, x = np.argsort(other[:, 0], kind="stable"), mine[:, 0].astype(np.float64)
    ordered = other[order, 0].astype(np.float64)
    start = np.searchsorted(ordered, x - reach, "left")
    counts = np.searchsorted(ordered, x + reach, "right") - start
    place = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    i, j = np.repeat(np.arange(len(mine)), counts), order[np.repeat(start, counts) + place]
    near = np.abs(mine[i, 1].astype(np.float64) - other[j, 1]) <= reach
    return i[near], j[near]


def _offsets(mine: Arrays, other: Arrays, usual: float) -> dict[str, np.ndarray]:
    """Quantity -> (P, n) signed differences of paired detections.

    Args:
        usual: length of a heading's vector. A shorter one is uncertain: rounding changes its yaw a lot, the vector not.
    """
    a, b = (side["boxes"].astype(np.float64) for side in (mine, other))
    ahead, other_ahead = (
        side[:, 6:8] / np.maximum(np.linalg.norm(side[:, 6:8], axis=1, keepdims=True), usual) for side in (a, b)
    )
    return {
        "score": (other["scores"].astype(np.float64) - mine["scores"])[:, None],
        "center": b[:, 0:3] - a[:, 0:3],
        "size": (b[:, 3:6] - a[:, 3:6]) / np.maximum(np.abs(a[:, 3:6]), 0.1),
        "heading": other_ahead - ahead,
        "velocity": b[:, 8:10] - a[:, 8:10],
    }


def score_spread(expected: np.ndarray, actual: np.ndarray, lost: float) -> Spread:
    """The largest difference of the sorted scores, and the mean one as a share of the mean score.

    Args:
        lost: share of the scores that may differ more. Rounding can change which anchors are candidates, by their
            greatest score, and with them all their scores.
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
