"""The data of the report's page: JSON in a script element, in which the verdict can be replaced."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from perception.page.single_file import as_script

_START, _END = '<script id="data" type="application/json">', "</script>"


def with_verdict(page: str, verdict: Mapping[str, Any]) -> str:
    """The page with this verdict (Verdict.as_dict()); unchanged if it has no data element."""
    before, start, rest = page.partition(_START)
    data, end, after = rest.partition(_END)
    if not end:
        return page
    return before + start + as_script(json.loads(data) | {"verdict": verdict}) + end + after
