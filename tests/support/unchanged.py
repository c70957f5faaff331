"""Outputs that an added task must not change."""

import torch
from networks import assert_same, frame_inputs

from perception.frame import Conditions
from perception.model import PerceptionModel
from perception.modules.base_weights import base_hash

EVERY = (Conditions(), Conditions(weather="rain", city="boston"), Conditions(city="boston"))


@torch.no_grad()
def assert_kept(before: PerceptionModel, after: PerceptionModel) -> None:
    """Every tensor, the base's hash and, whatever the conditions, every output."""
    state = after.state_dict()
    assert [name for name, value in before.state_dict().items() if not torch.equal(value, state[name])] == []
    assert base_hash(before) == base_hash(after)
    inputs = frame_inputs(before, 1, 2)
    for conditions in EVERY:
        old, new = before.predict(inputs, [conditions] * 2), after.predict(inputs, [conditions] * 2)
        assert old.keys() <= new.keys()
        assert_same(old, {name: new[name] for name in old})
