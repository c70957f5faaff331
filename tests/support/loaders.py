"""A small configuration for tests of the loader."""

from typing import Any

import torch
from repository import ROOT

from perception.config import Config, load_config, parse_config
from perception.training.loader import Batch

TINY = load_config(ROOT / "configs" / "tiny.yaml").model_dump()


def _config(train: dict[str, Any] | None = None, **data: Any) -> Config:
    content = {**TINY, "train": {**TINY["train"], "steps": 6, **(train or {})}, "data": {**TINY["data"], **data}}
    return parse_config(content, "test")


def _assert_equal(a: Batch, b: Batch) -> None:
    assert a.tokens == b.tokens
    assert a.inputs.keys() == b.inputs.keys()
    for name in a.inputs:
        assert torch.equal(a.inputs[name], b.inputs[name])
    assert {task: labels.keys() for task, labels in a.labels.items()} == {
        task: labels.keys() for task, labels in b.labels.items()
    }
    for task, labels in a.labels.items():
        for name, values in labels.items():
            torch.testing.assert_close(values, b.labels[task][name], rtol=0, atol=0, equal_nan=True)
