"""HTML pages as single files: a template with styles and scripts in it, and the data as JSON in a script element."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any


def as_script(data: Mapping[str, Any]) -> str:
    """JSON for a script element, without "<", so that no name can end the element."""
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def single_file(package: str, data: Mapping[str, Any]) -> str:
    """The page.html in the folder `page` of a package, with its data.

    __data__ is replaced by the data, and each other __FILE__ by the content of that file, beside page.html or here.
    """
    own, shared = files(package).joinpath("page"), files("perception.page")

    def content(found: re.Match[str]) -> str:
        name = found[1]
        if name == "data":
            return as_script(data)
        file = own.joinpath(name)
        return (file if file.is_file() else shared.joinpath(name)).read_text(encoding="utf-8")

    return re.sub(r"__([\w.]+?)__", content, own.joinpath("page.html").read_text(encoding="utf-8"))
