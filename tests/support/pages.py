"""The report's page, read back."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np


def page_data(path: Path) -> dict[str, Any]:
    content = re.search(r'<script id="data" type="application/json">(.*?)</script>', path.read_text(), re.DOTALL)
    assert content
    return json.loads(content[1])


def picture(uri: str) -> np.ndarray:
    """The picture of a data URI, in the order of OpenCV."""
    content = np.frombuffer(base64.b64decode(uri.split(",", 1)[1]), np.uint8)
    return cv2.imdecode(content, cv2.IMREAD_UNCHANGED)


def timeless(out: Path) -> dict[str, Any]:
    """What the report in a replay's folder shows, without times and the frames that are shown for their time alone."""
    data = page_data(out / "report.html")
    worst = [each for each in data["worst"] if each["measure"] != "slowest"]
    shown = [each for each in data["frames"] if each["number"] in {each["number"] for each in worst}]
    times = {"latency", "milliseconds", "bundle"}
    return {name: each for name, each in data.items() if name not in times} | {"frames": shown, "worst": worst}
