"""The files in requirements/: ranges, and the versions that `make lock` chose."""

import re
from pathlib import Path

from packaging.requirements import Requirement


def requirements(file: Path) -> dict[str, Requirement]:
    """Requirement by distribution."""
    lines = [line.split("#")[0].strip() for line in file.read_text().splitlines()]
    return {requirement.name: requirement for requirement in map(Requirement, filter(None, lines))}


def pinned(lock: Path) -> dict[str, str]:
    """Version by distribution, in lower case; hashes are left out."""
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", lock.read_text(), re.MULTILINE))
