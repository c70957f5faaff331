"""Outputs that an added task must not change."""

import torch
from networks import assert_same, frame_inputs

from perception.frame import Conditions
from perception.model import PerceptionModel
from perception.modules.base import base_hash

RAIN = Conditions(weather="rain", city="boston")
EVERY = (Conditions(), RAIN, Conditions(city="boston"))


@torch.no_grad()
def assert_kept(before: PerceptionModel, after: PerceptionModel) -> set[str]:
    """Every tensor, the base's hash and, whatever the conditions, every output; the names of the new outputs."""
    state = after.state_dict()
    assert_same(before.state_dict(), {name: state[name] for name in before.state_dict()})
    assert base_hash(before) == base_hash(after)
    inputs = frame_inputs(after, 1, 2)
    for conditions in EVERY:
        old, new = before.predict(inputs, [conditions] * 2), after.predict(inputs, [conditions] * 2)
        assert_same(old, {name: new[name] for name in old})
    return new.keys() - old.keys()
