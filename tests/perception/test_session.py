"""When the state of a network is used, replaced, kept and forgotten on the frames of a drive."""

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from perception.session import KeptState, Session, follow
from perception.state import Limits, Moment, reset_reason, state_inputs

LIMITS = Limits(seconds=1.0, speed=50.0)
INPUTS = {"lidar": "pillar_counts", "cameras": "image_from_reference"}
SENSORS = st.sets(st.sampled_from([*INPUTS]))
STEPS = st.sampled_from([0.3, 0.3, 0.6, 1.1, -0.1])  # s; the last one is a clock that was set back
JUMPS = st.sampled_from([0.0, 0.0, 40.0])  # m, as far as the vehicle comes in 0.8 s
EVENTS = st.sampled_from(["", "", "", "no pose", "not finite", "failure"])


def moment(time: float, jump: float) -> Moment:
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_euler("z", 0.1 * time).as_matrix()
    pose[:3, 3] = [2e6 + 5 * time + jump, 7e5, 1.0]
    return Moment("a", round(1e6 * time), pose)


def inputs(sensors: set[str]) -> dict[str, np.ndarray]:
    return {name: np.array([sensor in sensors]) for sensor, name in INPUTS.items()}


class Numbered:
    """A network whose state is the number of its frame."""

    def __init__(self) -> None:
        self.frames, self.event = 0, ""
        self.told: tuple[Any, Any] = {}, None  # inputs and state of the latest frame

    def __call__(self, told: Any, state: KeptState) -> dict[str, np.ndarray]:
        self.frames += 1
        self.told = told, state.read()["number"]
        if self.event == "failure":
            raise ArithmeticError
        outputs = {"scores": np.array([np.nan if self.event == "not finite" else 1.0]), "next_number": self.frames}
        state.replace(outputs)
        return outputs


def require_told(network: Numbered, expected: Any, state: int) -> None:
    inputs, kept = network.told
    assert kept == state
    assert inputs.keys() == expected.keys()
    assert all(np.array_equal(array, expected[name]) for name, array in inputs.items())


@given(st.lists(st.tuples(STEPS, JUMPS, SENSORS, EVENTS), max_size=12))
def test_a_frame_has_the_state_of_the_latest_one_that_none_behind_it_has_replaced(frames: Any) -> None:
    """Compares each frame with all frames before it.

    The drive must go on from the frame before and from the frame of the state. A frame without a pose neither uses a
    state nor leaves one. After an output that is not finite the network begins anew. A frame on which the network fails
    changes nothing, unless it could not use the state, which is then cleared.
    """
    network, session, time = Numbered(), Session(LIMITS, KeptState({"number": 0})), 0.0
    last: Moment | None = None
    of: tuple[int, Moment | None, set[str]] | None = None  # number, moment and sensors of the frame of the state
    for number, (step, jump, sensors, network.event) in enumerate(frames, 1):
        time += step
        now = None if network.event == "no pose" else moment(time, jump)
        of_state = None if of is None else of[1]
        used = now is not None and not any(reset_reason(before, now, LIMITS) for before in (last, of_state))
        expected = inputs(sensors) | state_inputs(of_state if used else None, now, LIMITS)
        with pytest.raises(ArithmeticError) if network.event == "failure" else nullcontext():
            session.step(network, inputs(sensors), now)
        require_told(network, expected, of[0] if used and of is not None else 0)
        if network.event == "failure":
            of, last = (of, last) if used else (None, None)
        elif network.event:
            of = last = None
        else:
            last = now
            of = (number, now, sensors) if not used or of is None or sensors >= of[2] else of


@given(st.lists(st.tuples(STEPS, JUMPS, SENSORS), max_size=12))
def test_a_clip_tells_its_network_what_a_drive_does(frames: Any) -> None:
    times = np.cumsum([step for step, _, _ in frames])
    clip = [(moment(t, jump), inputs(sensors)) for t, (_, jump, sensors) in zip(times, frames, strict=True)]
    network, session, state = Numbered(), Session(LIMITS, KeptState({"number": 0})), 0
    for (now, seen), (told, replaces) in zip(clip, follow(clip, LIMITS), strict=True):
        session.step(network, seen, now)
        require_told(network, told, state if told["state_valid"].any() else 0)
        state = network.frames if replaces else state


def test_a_network_without_a_memory_gets_its_inputs_alone() -> None:
    seen = inputs({"lidar"})
    assert Session(None).step(lambda given, state: {"a": given, "b": state}, seen, None) == {"a": seen, "b": None}
    assert follow([(moment(0, 0), seen)], None) == [(seen, True)]
