"""The report's page, read back."""

import json
import re
from pathlib import Path
from typing import Any


def page_data(path: Path) -> dict[str, Any]:
    content = re.search(r'<script id="data" type="application/json">(.*?)</script>', path.read_text(), re.DOTALL)
    assert content
    return json.loads(content[1])
