"""A small configuration for tests of the loader."""

from typing import Any

import torch

from perception.config import Config, find_config, load_config, parse_config
from perception.training.loader import Batch

TINY = load_config(find_config("tiny")).model_dump()


def _config(train: dict[str, Any] | None = None, **data: Any) -> Config:
    content = {**TINY, "train": {**TINY["train"], "steps": 6, **(train or {})}, "data": {**TINY["data"], **data}}
    return parse_config(content, "test")


def _assert_equal(a: Batch, b: Batch) -> None:
    assert a.tokens == b.tokens
    torch.testing.assert_close((a.inputs, a.labels), (b.inputs, b.labels), rtol=0, atol=0, equal_nan=True)
