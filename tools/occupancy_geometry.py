"""How well occupied voxels fit returns of LiDARs that were not used to make them; needs no annotation. numpy only."""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np
from scipy.ndimage import binary_dilation

from perception.voxel_rays import traverse
from perception.voxels import VoxelGrid


@dataclass(frozen=True)
class GeometricFigures:
    """Counts, to be summed over frames."""

    returns: int = 0  # scored, in the grid
    in_occupied: int = 0  # of these in an occupied voxel
    near_occupied: int = 0  # in an occupied voxel or one of its 26 neighbours
    crossings: int = 0  # pairs of a ray and a voxel that it crosses before the one of its return
    violations: int = 0  # of these with an occupied voxel: the ray shows that it is free
    rays: int = 0  # with at least one crossing
    violating_rays: int = 0  # of these with at least one violation

    def __add__(self, other: GeometricFigures) -> GeometricFigures:
        return GeometricFigures(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def shares(self) -> dict[str, float | int]:
        """The counts and their shares; NaN of nothing."""

        def share(part: int, whole: int) -> float:
            return part / whole if whole else float("nan")

        return {
            "returns": self.returns,
            "in_occupied": share(self.in_occupied, self.returns),
            "near_occupied": share(self.near_occupied, self.returns),
            "rays": self.rays,
            "violations": share(self.violations, self.crossings),
            "violating_rays": share(self.violating_rays, self.rays),
        }


def geometric_figures(
    occupied: np.ndarray,
    grid: VoxelGrid,
    origins: np.ndarray,
    returns: np.ndarray,
    scored: np.ndarray | None = None,
    ignored: np.ndarray | None = None,
) -> GeometricFigures:
    """Compare occupied voxels with rays; all in the grid's frame of reference.

    The voxel that a return is in never counts against its own ray. A ray that meets the ground at a small angle crosses
    some voxels of the ground before, so that even voxels made of the returns themselves have violations.

    Args:
        occupied: (levels, rows, columns) bool.
        origins: (3,) or (N, 3) m, where the rays begin.
        returns: (N, 3) m, where they end.
        scored: (N,) bool, which returns should lie in occupied voxels, such as those of what stands still; None: all.
            The rays of all take part.
        ignored: (levels, rows, columns) bool, voxels whose crossings are not counted, such as those of moving objects.
    """
    last, inside = grid.indices(returns)
    last[~inside] = -1
    found = last[inside if scored is None else inside & scored]
    near = binary_dilation(occupied, np.ones((3, 3, 3), bool))
    flat, left_out = occupied.reshape(-1), np.zeros(occupied.size, bool) if ignored is None else ignored.reshape(-1)
    crossings, violations = (np.zeros(len(returns), np.int64) for _ in range(2))
    for rays, voxels in traverse(np.broadcast_to(origins, returns.shape), returns, grid):
        counted = (voxels != last[rays]) & ~left_out[voxels]
        crossings[rays] += counted
        violations[rays] += counted & flat[voxels]
    return GeometricFigures(
        returns=len(found),
        in_occupied=int(np.count_nonzero(flat[found])),
        near_occupied=int(np.count_nonzero(near.reshape(-1)[found])),
        crossings=int(crossings.sum()),
        violations=int(violations.sum()),
        rays=int(np.count_nonzero(crossings)),
        violating_rays=int(np.count_nonzero(violations)),
    )
