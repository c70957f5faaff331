"""What a memory is told of the frame before, and when it is told nothing."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from perception.config import load_config
from perception.modules.memories import limits_of
from perception.modules.spec import ModuleUnion, parse_module
from perception.state import Limits, Moment, reset_reason, state_inputs

LIMITS = Limits(seconds=1.0, speed=50.0)


def pose(x: float = 0.0, y: float = 0.0, z: float = 0.0, yaw: float = 0.0, tilt: float = 0.0) -> np.ndarray:
    """(4, 4) of metres and radians, far from the origin as in a map of a city."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("zyx", [yaw, tilt, -tilt]).as_matrix()
    matrix[:3, 3] = [2e6 + x, 7e5 + y, z]
    return matrix


BEFORE = Moment("a", 10_000_000, pose())
NAN, STRETCHED, NOTHING = pose(1), pose(1), np.zeros((4, 4))
NAN[0, 1] = np.nan
STRETCHED[:3, :3] *= 1.1


@pytest.mark.parametrize(
    ("before", "now", "reason"),
    [
        (None, Moment("a", 10_500_000, pose(5)), "first frame"),
        (BEFORE, Moment("a", 10_500_000, pose(5)), None),
        (BEFORE, Moment("a", 11_000_000, pose(5)), None),
        (BEFORE, Moment("b", 10_500_000, pose(5)), "another drive"),
        (BEFORE, Moment("a", 10_000_000, pose(0)), "time does not go on"),
        (BEFORE, Moment("a", 9_500_000, pose(5)), "time does not go on"),
        (BEFORE, Moment("a", 11_000_001, pose(5)), "gap"),
        (BEFORE, Moment("a", 10_500_000, pose(24.9)), None),
        (BEFORE, Moment("a", 10_500_000, pose(0, 25.1)), "impossible motion"),
        (BEFORE, Moment("a", 10_500_000, NAN), "impossible motion"),
        (BEFORE._replace(global_from_reference=NAN), Moment("a", 10_500_000, pose(5)), "impossible motion"),
        (BEFORE, Moment("a", 10_500_000, pose(np.inf)), "impossible motion"),
        (BEFORE, Moment("a", 10_500_000, STRETCHED), "impossible motion"),
        (BEFORE, Moment("a", 10_500_000, NOTHING), "impossible motion"),
    ],
)
def test_the_state_is_used_within_a_drive_that_goes_on(before, now, reason):
    assert reset_reason(before, now, LIMITS) == reason
    inputs = state_inputs(before, now, LIMITS)
    assert {name: (each.shape, each.dtype) for name, each in inputs.items()} == {
        "current_from_previous": ((1, 4, 4), np.float32),
        "state_valid": ((1,), np.float32),
        "elapsed": ((1,), np.float32),
    }
    assert all(np.isfinite(each).all() for each in inputs.values())
    assert inputs["state_valid"] == (reason is None)
    if reason is not None:
        assert inputs["elapsed"] == 0
        np.testing.assert_array_equal(inputs["current_from_previous"][0], np.eye(4))
    else:
        assert inputs["elapsed"] == np.float32((now.timestamp - before.timestamp) / 1e6)


meters, angles = st.floats(-20, 20), st.floats(-0.2, 0.2)


@given(meters, meters, angles, angles, st.floats(-3, 3))
def test_the_motion_moves_points_at_rest_from_where_they_were_to_where_they_are(x, y, turn, tilt, yaw):
    """To single precision, although the poses are thousands of kilometres from their origin."""
    before, now = pose(yaw=yaw), pose(x, y, 0.1, yaw + turn, tilt)
    at_rest = np.array([[2e6 + 12, 7e5 - 30, 1.5, 1.0], [2e6 - 3, 7e5 + 4, 0.0, 1.0]])
    then, here = (np.stack([np.linalg.solve(each, point) for point in at_rest]) for each in (before, now))
    motion = state_inputs(Moment("a", 0, before), Moment("a", 1_000_000, now), LIMITS)["current_from_previous"][0]
    np.testing.assert_allclose(then @ motion.T, here, atol=1e-4)


def test_the_strictest_memory_of_a_network_sets_the_limits():
    slow, near = (
        parse_module({"kind": "memory", "name": name, **limits})
        for name, limits in (("slow", {"speed": 20.0, "seconds": 3.0}), ("near", {"seconds": 0.4}))
    )
    assert limits_of([]) is None
    assert limits_of([slow]) == (3.0, 20.0)
    both = ModuleUnion(name="both", parts=(slow, {"kind": "rescale", "name": "r"}))
    assert limits_of([both, near]) == (0.4, 20.0)


def test_the_inputs_of_a_configuration_tell_of_its_memory(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("name: a\nmodules: [{name: m, kind: memory, seconds: 0.7}]\n")
    spec = load_config(path).spec
    assert spec.memory == (0.7, 70.0)
    assert load_config(path, ["modules=[]"]).spec == replace(spec, memory=None)
