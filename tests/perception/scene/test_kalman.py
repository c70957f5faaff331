"""The filter of many objects against the textbook's matrices, one object at a time."""

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perception.tasks.detection.kalman import Motion, Noise

MEASURED = np.eye(5)  # of the state x y z vx vy


def noise_of(n: int, rng: np.random.Generator) -> Noise:
    return Noise(*(rng.uniform(0.1, 3, n) for _ in fields(Noise)))


class Textbook:
    """One object in float64 matrices: x' = F x with noise Q, z = H x with noise R, gain K, Joseph's form."""

    def __init__(self, center: np.ndarray, velocity: np.ndarray, noise: Noise, i: int) -> None:
        self.noise = {f.name: float(getattr(noise, f.name)[i]) for f in fields(Noise)}
        spread = self.noise["position"] ** 2
        self.x = np.array([*center, 0, 0])
        self.p = np.diag([spread, spread, spread, *[self.noise["speed"] ** 2] * 2])
        self.correct(MEASURED[3:], velocity, [self.noise["velocity"]] * 2)

    def predict(self, seconds: float) -> None:
        move = np.eye(5)
        move[0, 3] = move[1, 4] = seconds
        q = np.zeros((5, 5))
        for place, speed in ((0, 3), (1, 4)):
            q[place, place] = seconds**3 / 3
            q[place, speed] = q[speed, place] = seconds**2 / 2
            q[speed, speed] = seconds
        q *= self.noise["acceleration"] ** 2
        q[2, 2] = self.noise["climb"] ** 2 * seconds
        self.x, self.p = move @ self.x, move @ self.p @ move.T + q

    def update(self, center: np.ndarray, velocity: np.ndarray) -> None:
        errors = [self.noise["position"]] * 3 + [self.noise["velocity"]] * 2
        measured = np.isfinite([*center, *velocity])
        measured[3:] = measured[3:].all()
        self.correct(MEASURED[measured], np.array([*center, *velocity])[measured], np.array(errors)[measured])

    def correct(self, h: np.ndarray, z: np.ndarray, errors: list[float] | np.ndarray) -> None:
        if not np.isfinite(z).all():
            return
        r = np.diag(np.square(errors))
        k = self.p @ h.T @ np.linalg.inv(h @ self.p @ h.T + r)
        self.x = self.x + k @ (z - h @ self.x)
        rest = np.eye(5) - k @ h
        self.p = rest @ self.p @ rest.T + k @ r @ k.T


def assert_equal(motion: Motion, books: list[Textbook]) -> None:
    for i, book in enumerate(books):
        np.testing.assert_allclose(motion.centers[i], book.x[:3], rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(motion.velocities[i], book.x[3:], rtol=1e-9, atol=1e-9)
        position, both, velocity = motion.covariances[i]
        covariance = np.zeros((5, 5))
        covariance[[0, 1, 3, 4], [0, 1, 3, 4]] = position, position, velocity, velocity
        covariance[[0, 1, 3, 4], [3, 4, 0, 1]] = both
        covariance[2, 2] = motion.height_variances[i]
        np.testing.assert_allclose(covariance, book.p, rtol=1e-9, atol=1e-9)


@given(st.integers(0, 2**32 - 1), st.lists(st.sampled_from([0.0, 1e-6, 0.05, 0.5, 0.51, 3.0]), max_size=20))
@settings(max_examples=60, deadline=None)
def test_the_filter_is_the_textbooks(seed: int, steps: list[float]) -> None:
    rng, n = np.random.default_rng(seed), 4
    noise = noise_of(n, rng)

    def measurement() -> tuple[np.ndarray, np.ndarray]:
        velocities = rng.normal(0, 10, (n, 2))
        velocities[rng.random((n, 2)) < 0.2] = np.nan
        return rng.normal(0, 50, (n, 3)), velocities

    centers, velocities = measurement()
    motion = Motion.begun(centers, velocities, noise)
    books = [Textbook(centers[i], velocities[i], noise, i) for i in range(n)]
    assert_equal(motion, books)
    for seconds in steps:
        motion = motion.predicted(seconds, noise)
        for book in books:
            book.predict(seconds)
        assert_equal(motion, books)
        if rng.random() < 0.7:
            centers, velocities = measurement()
            motion = motion.updated(centers, velocities, noise)
            for i, book in enumerate(books):
                book.update(centers[i], velocities[i])
            assert_equal(motion, books)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 13, 64])
def test_an_object_is_filtered_the_same_alone_to_the_last_bit(n: int) -> None:
    rng = np.random.default_rng(n)
    noise, (centers, velocities) = noise_of(n, rng), (rng.normal(0, 50, (n, 3)), rng.normal(0, 10, (n, 2)))

    def filtered(index: slice) -> Motion:
        own = Noise(*(getattr(noise, f.name)[index] for f in fields(Noise)))
        motion = Motion.begun(centers[index], velocities[index], own)
        for k in range(10):
            motion = motion.predicted(0.1 * k, own).updated(centers[index] + k, velocities[index] - k, own)
        return motion

    together = filtered(slice(None))
    for i in range(n):
        alone = filtered(slice(i, i + 1))
        for f in fields(Motion):
            assert getattr(alone, f.name).tobytes() == getattr(together, f.name)[i : i + 1].tobytes()
