"""A confidence interval of a score, or of a difference of scores, over few scenes of unequal size.

Scenes are the clusters: frames of one scene are alike, so each scene is one observation. The scores are not means over
scenes (AP and IoU divide sums over all of them), so their variance is estimated by the jackknife: the score without
each scene in turn (Miller, "The jackknife - a review", Biometrika 61, 1974; Efron and Tibshirani, "An
introduction to the bootstrap", 1993, chapter 11). The deviations are taken from the score of all scenes, which is CV3
of MacKinnon, Nielsen and Webb ("Fast and reliable jackknife and bootstrap methods for cluster-robust inference", 2023).

The interval is Student's t. Its degrees of freedom are the effective number of scenes minus one, since one large scene
among small ones is hardly more than one observation: (sum of sizes)^2 / (sum of squares), Kish, "Survey sampling",
1965; Carter, Schnepel and Steigerwald, "Asymptotic behavior of a t-test robust to cluster heterogeneity", 2017. A
percentile bootstrap, by contrast, is too narrow with few clusters (Cameron, Gelbach and Miller, "Bootstrap-based
improvements for inference with clustered errors", 2008).

If few scenes have most of the change, t alone passes losses too often. Therefore the end on the side of the long tail
is moved out by the skewness term of the Cornish-Fisher expansion of a studentised score, (1 + 2 t^2) / 6 times the
skewness over the root of the number of scenes (Johnson, "Modified t tests and confidence intervals for asymmetrical
populations", 1978; Hall, "On the removal of skewness by transformation", 1992). The other end never moves in.

With few scenes and strong skewness more than the nominal share of losses still passes (docs/interval.md), and
no interval excludes a rare loss that occurs in none of the scenes.
"""

from __future__ import annotations

import numpy as np
from scipy.special import stdtrit

LEAST_SCENES = 3  # that have something to score
LEAST_EFFECTIVE = 2.0  # of their effective number
_ROUNDING = 1e-9


def effective_number(sizes: np.ndarray) -> np.ndarray:
    """The effective number (...) of scenes of the sizes (..., N); 0 if all are empty."""
    total, squares = sizes.sum(axis=-1), np.square(sizes).sum(axis=-1)
    return np.asarray(np.divide(np.square(total), squares, out=np.zeros_like(squares), where=squares > 0))


def too_few(sizes: np.ndarray) -> str:
    """The reason why scenes of the sizes (N,) give no interval; empty if they give one."""
    if (sizes > 0).sum() < LEAST_SCENES:
        return f"that takes at least {LEAST_SCENES} scenes with something to score"
    if effective_number(sizes) < LEAST_EFFECTIVE - _ROUNDING:
        return f"most of what is scored is in one of them, so that they count as {effective_number(sizes):.1f}"
    return ""


def jackknife_interval(scores: np.ndarray, sizes: np.ndarray, confidence: float) -> np.ndarray:
    """The lower and upper end (..., 2); NaN if there are too few scenes.

    Args:
        scores: (..., N + 1) of all scenes, then without each of them, as with the draws of `leave_one_out`.
        sizes: (..., N) amount to score in each scene, in any unit.
        confidence: share of such intervals that contain the score of infinitely many such scenes.
    """
    sizes = np.asarray(sizes, np.float64)
    whole, scenes = scores[..., 0], sizes.shape[-1]
    effective = effective_number(sizes)
    enough = ((sizes > 0).sum(axis=-1) >= LEAST_SCENES) & (effective >= LEAST_EFFECTIVE - _ROUNDING)
    deviations = scores[..., 1:] - whole[..., None]
    error = np.sqrt((scenes - 1) / max(scenes, 1) * np.square(deviations).sum(axis=-1))
    effective = np.where(enough, effective, LEAST_EFFECTIVE)
    t = stdtrit(effective - 1, (1 + confidence) / 2)
    tail = _skewness(-deviations) * (1 + 2 * t**2) / (6 * np.sqrt(effective))
    low, high = whole - error * (t + np.maximum(0, -tail)), whole + error * (t + np.maximum(0, tail))
    return np.asarray(np.where(enough[..., None], np.stack([low, high], axis=-1), np.nan))


def _skewness(values: np.ndarray) -> np.ndarray:
    """The skewness (...) of (..., N); 0 if all values are equal."""
    deviations = values - values.mean(axis=-1, keepdims=True)
    scale = np.sqrt(np.square(deviations).mean(axis=-1, keepdims=True))
    return np.asarray((np.divide(deviations, scale, out=np.zeros_like(deviations), where=scale > 0) ** 3).mean(axis=-1))
