"""The attributes of detections, where the network predicts none that fit. numpy only."""

from __future__ import annotations

import numpy as np

from perception.taxonomy import Taxonomy

MOVING_SPEED = 0.2  # m/s; faster objects are moving


def fitting_attributes(
    labels: np.ndarray, attributes: np.ndarray, speeds: np.ndarray, taxonomy: Taxonomy
) -> np.ndarray:
    """(N,) the predicted attributes where the class can have them, else the default ones by speed.

    Args:
        labels: (N,) indices of the classes.
        attributes: (N,) indices of the attributes; -1 where none was predicted.
        speeds: (N,) m/s in the ground plane; NaN counts as at rest.

    Returns:
        Indices of the attributes; -1 for classes without any.
    """
    possible = np.array([[*taxonomy.possible_attributes(label), False] for label in range(len(taxonomy.classes))])
    default = np.array(taxonomy.default_attributes())
    return np.where(possible[labels, attributes], attributes, default[labels, (speeds > MOVING_SPEED).astype(int)])
