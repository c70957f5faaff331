"""The street grid of a city in plan coordinates (u, v), and the bend and rotation to global metres.

In the plan all streets are straight and all blocks are rectangles with rounded corners, for simple geometry.
`StreetPlan.to_global` bends them, so that headings, curves and junction angles vary as in a real city.
"""

from __future__ import annotations

import numpy as np
import shapely
from shapely.geometry import Polygon, box

from perception.simulate.parameters import Streets

# Directions of travel and arms of a junction: +u, +v, -u, -v.
DIRECTIONS = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])
CROSSING_WIDTH = 4.0  # m along the street
STOP_LINE_DEPTH = 1.0  # m along the street
FRAME = 34.0  # m of land outside the outermost streets
FURNITURE = 0.9  # m, width of the strip next to the kerb for trees, lamps, parked cycles and people who wait


class StreetPlan:
    """Streets, junctions and blocks of a city in plan coordinates, and their transformation to global metres."""

    def __init__(self, style: Streets) -> None:
        self.style = style
        self.u = FRAME + 16.0 + np.arange(len(style.columns)) * style.spacing[0]
        self.v = FRAME + 16.0 + np.arange(len(style.rows)) * style.spacing[1]
        self.column_half = np.array([self._half(lanes) for lanes in style.columns])
        self.row_half = np.array([self._half(lanes) for lanes in style.rows])
        inner = (self.u[0] - self.column_half[0], self.v[0] - self.row_half[0])
        outer = (self.u[-1] + self.column_half[-1], self.v[-1] + self.row_half[-1])
        self.street_rectangle = box(*inner, *outer)
        self._offset = np.zeros(2)
        edge = np.array(self.street_rectangle.buffer(FRAME, join_style="mitre").segmentize(2.0).exterior.coords)
        bent = self.to_global(edge)
        self._offset = 5.0 - bent.min(axis=0)
        self.canvas = tuple(float(x) for x in np.ceil(bent.max(axis=0) - bent.min(axis=0) + 10.0))

    def _half(self, lanes: int) -> float:
        return lanes * self.style.lane_width + self.style.parking

    # -- junctions --------------------------------------------------------------------------------------------

    def junctions(self) -> list[tuple[int, int]]:
        """(column, row) of every junction."""
        return [(i, j) for i in range(len(self.u)) for j in range(len(self.v))]

    def neighbour(self, i: int, j: int, arm: int) -> tuple[int, int] | None:
        """The junction at the other end of the arm; None at the edge of the city."""
        k, m = i + DIRECTIONS[arm][0], j + DIRECTIONS[arm][1]
        return (int(k), int(m)) if 0 <= k < len(self.u) and 0 <= m < len(self.v) else None

    def centre(self, i: int, j: int) -> np.ndarray:
        return np.array([self.u[i], self.v[j]])

    def lanes(self, i: int, j: int, arm: int) -> int:
        """Lanes per direction of the arm's street."""
        return self.style.rows[j] if arm % 2 == 0 else self.style.columns[i]

    def half_width(self, i: int, j: int, arm: int) -> float:
        """m from the middle of the arm's street to its kerb."""
        return float(self.row_half[j] if arm % 2 == 0 else self.column_half[i])

    def crossing_start(self, i: int, j: int, arm: int) -> float:
        """m from the junction's centre, along the arm, to the near edge of its crossing."""
        return self.half_width(i, j, arm + 1) + self.style.corner + 0.4

    def reach(self, i: int, j: int, arm: int) -> float:
        """m from the junction's centre to the end of the lanes, just outside the stop line."""
        return self.crossing_start(i, j, arm) + CROSSING_WIDTH + 1.0 + STOP_LINE_DEPTH

    def on_arm(self, i: int, j: int, arm: int, along: np.ndarray, left: np.ndarray) -> np.ndarray:
        """(..., 2) plan points `along` m from the junction's centre and `left` m to the left, looking outwards."""
        direction = DIRECTIONS[arm].astype(float)
        left_of = np.array([-direction[1], direction[0]])
        return self.centre(i, j) + np.multiply.outer(along, direction) + np.multiply.outer(left, left_of)

    def rectangle(self, i: int, j: int, arm: int, along: tuple[float, float], left: tuple[float, float]) -> Polygon:
        """A rectangle on an arm, in plan coordinates; intervals as in `on_arm`."""
        corners = [(along[0], left[0]), (along[1], left[0]), (along[1], left[1]), (along[0], left[1])]
        return Polygon([self.on_arm(i, j, arm, np.array(a), np.array(b)) for a, b in corners])

    # -- blocks -----------------------------------------------------------------------------------------------

    def blocks(self) -> list[Polygon]:
        """The land between streets, up to the kerb, with rounded corners."""
        radius = self.style.corner
        return [
            box(
                self.u[i] + self.column_half[i],
                self.v[j] + self.row_half[j],
                self.u[i + 1] - self.column_half[i + 1],
                self.v[j + 1] - self.row_half[j + 1],
            )
            .buffer(-radius, join_style="mitre")
            .buffer(radius)
            for i in range(len(self.u) - 1)
            for j in range(len(self.v) - 1)
        ]

    def kerb_sides(self) -> list[tuple[int, int, int, float]]:
        """(column, row, arm, side) of every stretch of kerb: arm 0 or 1 out of a junction, side +1 left or -1 right."""
        return [
            (i, j, arm, side)
            for i, j in self.junctions()
            for arm in (0, 1)
            if self.neighbour(i, j, arm) is not None
            for side in (1.0, -1.0)
        ]

    def stretch(self, i: int, j: int, arm: int) -> tuple[float, float]:
        """Start and end of the lanes between two junctions, m along the arm from this junction's centre."""
        other = self.neighbour(i, j, arm)
        assert other is not None
        span = float(np.abs(self.centre(*other) - self.centre(i, j)).sum())
        return self.reach(i, j, arm), span - self.reach(*other, (arm + 2) % 4)

    # -- to the global frame ----------------------------------------------------------------------------------

    def to_global(self, uv: np.ndarray) -> np.ndarray:
        """(..., 2) global metres of plan points (..., 2)."""
        amplitude, wavelength = self.style.bend
        k = 2 * np.pi / wavelength
        bent_u = uv[..., 0] + amplitude * np.sin(k * uv[..., 1] + 0.7)
        bent_v = uv[..., 1] + amplitude * np.sin(k * uv[..., 0] + 2.1)
        cos, sin = np.cos(self.style.rotation), np.sin(self.style.rotation)
        return np.stack([cos * bent_u - sin * bent_v, sin * bent_u + cos * bent_v], axis=-1) + self._offset

    def heading(self, uv: np.ndarray, direction: np.ndarray) -> np.ndarray:
        """(...) global heading (rad) of the plan direction (2,) or (..., 2) at plan points (..., 2)."""
        step = self.to_global(uv + 0.5 * direction) - self.to_global(uv - 0.5 * direction)
        return np.arctan2(step[..., 1], step[..., 0])

    def bend(self, shape: Polygon) -> Polygon:
        """A plan polygon in global metres; long edges follow the bend."""
        return shapely.transform(shape.segmentize(3.0), self.to_global)
