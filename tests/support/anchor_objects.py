"""Objects near anchors."""

import numpy as np

from perception.frame import Boxes


def objects(seed: int, n: int) -> Boxes:
    """Random ones of about the anchors' sizes, away from each other."""
    rng = np.random.default_rng(seed)
    places = rng.choice(16, n, replace=False)
    centers = np.stack([places % 4 * 6.0 - 9, places // 4 * 6.0 - 9, rng.uniform(-1.5, 0, n)], 1)
    centers[:, :2] += rng.uniform(-1, 1, (n, 2))
    sizes = np.array([[1.9, 4.6, 1.7], [0.7, 0.7, 1.8], [2.5, 0.5, 1.0]])[rng.integers(0, 3, n)]
    return Boxes.from_yaws(
        centers, sizes * rng.uniform(0.9, 1.1, (n, 3)), rng.uniform(-np.pi, np.pi, n), rng.normal(0, 3, (n, 2)),
        rng.integers(0, 10, n), np.full(n, -1), np.ones(n),
    )  # fmt: skip
