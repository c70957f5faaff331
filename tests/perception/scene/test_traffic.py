"""What keeps vehicles apart: boxes that overlap, distances along a heading, velocities of the vehicles around."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import make_boxes
from shapely.geometry import Point, Polygon
from vocabulary import CLASSES

from perception.frame import Boxes
from perception.tasks.detection import traffic
from perception.tasks.detection.tracker import _TRACK
from perception.tasks.detection.traffic import cover, drop_doubles, gains, select_strongest

CAR, PEDESTRIAN = CLASSES.index("car"), CLASSES.index("pedestrian")


def crowd(seed: int, n: int) -> Boxes:
    rng = np.random.default_rng(seed)
    centers, sizes, yaws = rng.uniform(-6, 6, (n, 3)), rng.uniform(0.5, 5, (n, 3)), rng.uniform(-4, 4, n)
    return make_boxes(centers, sizes, yaws, labels=rng.integers(0, 2, n), scores=rng.permutation(n) / n)


def tracks_at(places: np.ndarray, yaws: np.ndarray | float = 0.0, label: int = CAR) -> np.ndarray:
    tracks = np.zeros(len(places), _TRACK)
    tracks["centers"][:, :2], tracks["label"], tracks["hits"] = places, label, 9
    tracks["size"] = [1.9, 4.6, 1.6] if label == CAR else [0.7, 0.7, 1.7]
    tracks["heading"] = np.stack(np.broadcast_arrays(np.sin(yaws), np.cos(yaws)), axis=-1)
    return tracks


@given(st.integers(0, 2**32 - 1), st.integers(0, 12))
@settings(max_examples=40, deadline=None)
def test_places_in_boxes_are_those_of_shapely(seed: int, n: int) -> None:
    boxes = crowd(seed, n)
    found = cover(boxes.centers, boxes.labels, boxes.centers, boxes.labels, boxes.sizes, boxes.headings)
    corners = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]]) / 2
    for j in range(n):
        turn = boxes.rotations[j, :2, :2]
        polygon = Polygon(boxes.centers[j, :2] + (corners * boxes.sizes[j, [1, 0]]) @ turn.T)
        for i in range(n):
            inside = polygon.contains(Point(boxes.centers[i, :2])) and boxes.labels[i] == boxes.labels[j]
            assert found[i, j] == inside


@given(st.integers(0, 2**32 - 1), st.integers(0, 12))
@settings(max_examples=40, deadline=None)
def test_of_boxes_on_one_object_the_strongest_remains(seed: int, n: int) -> None:
    boxes = crowd(seed, n)
    inside = cover(boxes.centers, boxes.labels, boxes.centers, boxes.labels, boxes.sizes, boxes.headings)
    remaining: list[int] = []
    for i in sorted(range(n), key=lambda k: -boxes.scores[k]):
        if not any(inside[i, j] for j in remaining):
            remaining.append(i)
    assert select_strongest(boxes).scores.tolist() == boxes.scores[sorted(remaining)].tolist()


def test_a_known_velocity_makes_all_directions_alike_and_an_unknown_one_those_along_the_heading() -> None:
    tracks = tracks_at(np.zeros((2, 2)), yaws=np.pi / 2)
    tracks["covariances"][:, 0] = 0.16
    tracks["covariances"][1, 0] += 0.25 * 25  # of a velocity of 5 m/s in 0.5 s
    tracks["covariances"][1, 2] = 25
    gain, allowed = gains(tracks, np.array([[0.0, 1, 0], [1, 0, 0]]), 0.5, 0.3, 5.0)
    assert gain[0] == pytest.approx([4, 4])
    narrow = np.sqrt((0.25 * 25 + 0.25) / (0.1 * 0.25 * 25 + 0.25))
    assert gain[1] == pytest.approx([4, 5 - narrow])
    assert allowed.all()
    pedestrians = tracks_at(np.zeros((1, 2)), label=PEDESTRIAN)
    pedestrians["covariances"] = tracks["covariances"][1]
    assert gains(pedestrians, np.array([[0.0, 1, 0]]), 0.5, 0.3, 5.0)[0] == pytest.approx(4)


def test_the_gate_is_wider_for_a_track_of_one_detection_and_narrow_for_a_certain_one() -> None:
    tracks = tracks_at(np.zeros((3, 2)))
    tracks["covariances"] = [[6.25, 0, 25], [6.25, 0, 25], [0.16, 0, 0]]
    tracks["hits"] = [1, 2, 9]
    limits = [7.5, 5.0, traffic.LIKELY * np.sqrt(0.16 + 0.09)]
    for shift, expected in ((-1e-6, True), (1e-6, False)):
        centers = np.column_stack([np.array(limits) + shift, np.zeros((3, 2))])
        assert gains(tracks, centers, 0.5, 0.3, 5.0)[1].diagonal().tolist() == [expected] * 3


def test_an_undetected_track_in_the_box_of_an_older_one_is_dropped() -> None:
    """Older is who was detected more often, then who began first; a detected track stays, and one of another class."""
    cases = [  # hits, and when they were seen, of a track and of one 2 m behind it; whether the second one stays
        ((5, 2), (9, 8), False), ((5, 5), (9, 8), False), ((2, 5), (9, 8), True), ((5, 2), (9, 9), True),
        ((5, 2), (8, 8), True),
    ]  # fmt: skip
    for hits, seen, stays in cases:
        tracks = tracks_at(np.array([[0.0, 0], [-2, 0.5]]))
        tracks["id"], tracks["hits"], tracks["seen"] = [1, 2], hits, seen
        assert drop_doubles(tracks, 9)["id"].tolist() == ([1, 2] if stays else [1]), (hits, seen)
    tracks["hits"], tracks["seen"], tracks["label"] = (5, 2), (9, 8), (CAR, PEDESTRIAN)
    assert len(drop_doubles(tracks, 9)) == 2
