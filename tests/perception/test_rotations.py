"""Rotations as pyquaternion has them, at every angle and to the last digits."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyquaternion import Quaternion

from perception.rotations import quaternion, quaternions, rotation_matrices, turned

components = st.floats(-1, 1)
some = st.tuples(components, components, components, components).filter(lambda q: np.linalg.norm(q) > 1e-3)


@given(some)
def test_quaternion_is_pyquaternions(elements: tuple[float, ...]) -> None:
    expected = Quaternion(elements).unit
    for found in (quaternions(expected.rotation_matrix[None])[0], quaternion(expected.rotation_matrix)):
        assert found[0] >= 0
        assert Quaternion.absolute_distance(expected, Quaternion(found)) < 1e-12
        np.testing.assert_allclose(Quaternion(found).rotation_matrix, expected.rotation_matrix, atol=1e-14)


@pytest.mark.parametrize("axis", np.vstack([np.eye(3), [1, 1, 0], [1, -1, 1]]))
def test_quaternion_of_half_a_turn(axis: np.ndarray) -> None:
    # w is zero here, which defeats the formula that divides by it.
    half = Quaternion(axis=axis, radians=np.pi).rotation_matrix
    for found in (quaternions(half[None])[0], np.array(quaternion(half))):
        np.testing.assert_allclose(np.abs(found[1:]), np.abs(axis) / np.linalg.norm(axis), atol=1e-15)


def test_quaternions_of_no_boxes() -> None:
    assert quaternions(np.zeros((0, 3, 3))).shape == (0, 4)


@given(st.lists(some, min_size=1, max_size=4))
def test_matrices_are_pyquaternions(elements: list[tuple[float, ...]]) -> None:
    expected = [Quaternion(each).unit.rotation_matrix for each in elements]
    np.testing.assert_allclose(rotation_matrices(np.array(elements)), expected, atol=1e-14)


@given(some, st.floats(-math.pi, math.pi))
def test_a_turn_about_an_axis_is_pyquaternions(elements: tuple[float, ...], angle: float) -> None:
    axis = Quaternion(elements).unit.elements[1:]
    if np.linalg.norm(axis) > 1e-3:
        expected = Quaternion(axis=axis, radians=angle).rotation_matrix
        np.testing.assert_allclose(turned(axis / np.linalg.norm(axis), angle), expected, atol=1e-14)
