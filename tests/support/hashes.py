"""Hashes of simulated drives."""

from __future__ import annotations

import hashlib
from pathlib import Path

from vocabulary import RIG

# Pictures that are the left fifth of the real ones, from the sky to the ground: rendering takes most of a drive.
NARROW = RIG.model_copy(
    update={
        "cameras": tuple(each.model_copy(update={"size": (each.size[0] // 5, each.size[1])}) for each in RIG.cameras)
    }
)


def hashes(root: Path, pattern: str = "**/*") -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.glob(pattern))
        if path.is_file()
    }
