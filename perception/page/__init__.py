"""HTML pages as single files: styles and scripts are in them, and the data as JSON in a script element."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main></main>
<script id="data" type="application/json">{data}</script>
<script>
"use strict";
{script}</script>
</body>
</html>
"""


def as_script(data: Mapping[str, Any]) -> str:
    """JSON for a script element, without "<", so that no name can end the element."""
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def single_file(package: str, title: str, data: Mapping[str, Any]) -> str:
    """The page that the scripts in the folder `page` of a package make of the data, in the order of their names."""
    folders = files("perception.page"), files(package).joinpath("page")
    found = [file for folder in folders for file in sorted(folder.iterdir(), key=lambda file: file.name)]
    style, script = (
        "".join(file.read_text(encoding="utf-8") for file in found if file.name.endswith(suffix))
        for suffix in (".css", ".js")
    )
    return _PAGE.format(title=title, style=style, data=as_script(data), script=script)
