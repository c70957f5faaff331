"""The data of the report's page: JSON in a script element, in which the verdict can be replaced."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_START, _END = '<script id="data" type="application/json">', "</script>"


def as_script(data: Mapping[str, Any]) -> str:
    """JSON for a script element, without "<", so that no name can end the element."""
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def with_verdict(page: str, verdict: Mapping[str, Any]) -> str:
    """The page with this verdict (Verdict.as_dict()); unchanged if it has no data element."""
    before, start, rest = page.partition(_START)
    data, end, after = rest.partition(_END)
    if not end:
        return page
    return before + start + as_script(json.loads(data) | {"verdict": verdict}) + end + after
