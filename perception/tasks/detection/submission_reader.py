"""Reads a nuScenes submission sample by sample, holding one at a time as Python objects, without the devkit."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from perception.errors import InputError
from perception.tasks.detection.submission import MAX_BOXES

_WHITESPACE = re.compile(r"[ \t\n\r]*")


def read_samples(path: Path, wanted: Collection[str]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Token and boxes of each sample in `wanted`, in the order of the file; others are skipped.

    Raises:
        InputError: the file is no submission, or a sample is absent or has more than 500 boxes.
    """
    missing = set(wanted)
    for token, boxes in _samples(path):
        if token in wanted:
            missing.discard(token)
            if len(boxes) > MAX_BOXES:
                raise InputError(f"{path}: sample {token} has {len(boxes)} boxes; {MAX_BOXES} are allowed")
            yield token, boxes
    if missing:
        raise InputError(
            f"{path}: no prediction for {len(missing)} of {len(wanted)} samples, such as {min(missing)}; "
            "predict them (an empty list counts) or select fewer"
        )


def _samples(path: Path) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Token and boxes of each sample, parsed one after the other."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot read the submission ({error.strerror})") from None
    except UnicodeDecodeError:
        text = ""
    reader, seen = _Json(text), False
    try:
        for key in reader.members():
            if key == "results":
                seen = True
                for token in reader.members():
                    boxes = reader.value()
                    if not isinstance(boxes, list):
                        raise ValueError("the boxes of a sample are a list")
                    yield token, boxes
            else:
                reader.value()
    except ValueError:
        seen = False
    if not seen:
        raise InputError(
            f"{path}: not a nuScenes submission: no JSON object with an object `results` of lists of boxes"
        ) from None


class _Json:
    """Reads a JSON text value by value, parsing each once."""

    def __init__(self, text: str) -> None:
        self.text, self.position = text, 0
        self._decoder = json.JSONDecoder()

    def value(self) -> Any:
        """The next value."""
        value, self.position = self._decoder.raw_decode(self.text, self.position)
        return value

    def members(self) -> Iterator[str]:
        """Keys of the next object; after each its value must be read."""
        self._pass("{")
        if self.text.startswith("}", self.position):
            self.position += 1
            return
        while True:
            key = self.value()
            if not isinstance(key, str):
                raise ValueError("a key is expected")
            self._pass(":")
            yield key
            if self._pass(",}") == "}":
                return

    def _pass(self, expected: str) -> str:
        """The next of these characters; moves past it and the white space around it."""
        self._skip()
        found = self.text[self.position : self.position + 1]
        if not found or found not in expected:
            raise ValueError(f"one of {expected} is expected")
        self.position += 1
        self._skip()
        return found

    def _skip(self) -> None:
        match = _WHITESPACE.match(self.text, self.position)
        self.position = self.position if match is None else match.end()
