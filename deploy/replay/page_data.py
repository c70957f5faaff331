"""The data that the report's page shows: JSON in a script element, in which a later verdict replaces an earlier one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_START, _END = '<script id="data" type="application/json">', "</script>"


def as_script(data: Mapping[str, Any]) -> str:
    """JSON for a script element, which neither "</script>" nor "<!--" in a name can end or change."""
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def with_verdict(page: str, verdict: Mapping[str, Any]) -> str:
    """The page with another verdict (Verdict.as_dict()); as it is where it holds no data of a report."""
    before, start, rest = page.partition(_START)
    data, end, after = rest.partition(_END)
    if not end:
        return page
    return before + start + as_script(json.loads(data) | {"verdict": verdict}) + end + after
