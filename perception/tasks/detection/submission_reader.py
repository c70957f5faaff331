"""Reads a nuScenes submission sample by sample, holding one at a time as Python objects, without the devkit."""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from perception.errors import InputError
from perception.tasks.detection.submission import MAX_BOXES

_WHITESPACE = re.compile(rb"[ \t\n\r]*")
_OBJECTS, _END_OF_OBJECTS = re.compile(rb"\[[ \t\n\r]*\{"), re.compile(rb"\}[ \t\n\r]*\]")
_FIRST_READ = 1 << 12  # bytes of a value that is read without orjson


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
    seen = False
    with ExitStack() as opened:
        try:
            content = _content(opened.enter_context(path.open("rb")), opened)
        except OSError as error:
            raise InputError(f"{path}: cannot read the submission ({error.strerror})") from None
        try:
            reader = _Json(content)
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


def _content(file: BinaryIO, opened: ExitStack) -> bytes | mmap.mmap:
    """A file mapped into memory, until `opened` is closed; an empty one and a pipe, which cannot be, are read."""
    try:
        return opened.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError):
        return file.read()


class _Json:
    """Reads JSON in UTF-8 value by value, parsing each once."""

    def __init__(self, content: bytes | mmap.mmap) -> None:
        self.content, self.position = content, 0
        self._decoder = json.JSONDecoder()

    def value(self) -> Any:
        """The next value; ValueError if there is none."""
        start = self.position
        # orjson is five times as fast, but must be told where a value ends. The first }] ends a list of objects, unless
        # it is in a text or in a list of objects within.
        end = _END_OF_OBJECTS.search(self.content, start) if _OBJECTS.match(self.content, start) else None
        if end is not None:
            try:
                value = orjson.loads(self.content[start : end.end()])
            except orjson.JSONDecodeError:
                return self._any_value()
            self.position = end.end()
            return value
        return self._any_value()

    def _any_value(self) -> Any:
        """The next value, of any kind: in ever more of the content."""
        start, length = self.position, _FIRST_READ
        while True:
            part = self.content[start : start + length]
            whole = start + len(part) == len(self.content)
            # A character may be cut at the end of a part.
            text = part.decode("utf-8", "strict" if whole else "ignore")
            try:
                value, end = self._decoder.raw_decode(text)
            except ValueError:
                if whole:
                    raise
            else:
                if whole or end < len(text):  # else a number may go on
                    self.position = start + len(text[:end].encode())
                    return value
            length *= 16

    def members(self) -> Iterator[str]:
        """Keys of the next object; after each its value must be read."""
        self._pass(b"{")
        if self.content[self.position : self.position + 1] == b"}":
            self.position += 1
            return
        while True:
            key = self._any_value()
            if not isinstance(key, str):
                raise ValueError("a key is expected")
            self._pass(b":")
            yield key
            if self._pass(b",}") == b"}":
                return

    def _pass(self, expected: bytes) -> bytes:
        """The next of these characters; moves past it and the white space around it."""
        self._skip()
        found = self.content[self.position : self.position + 1]
        if not found or found not in expected:
            raise ValueError(f"one of {expected.decode()} is expected")
        self.position += 1
        self._skip()
        return found

    def _skip(self) -> None:
        match = _WHITESPACE.match(self.content, self.position)
        self.position = self.position if match is None else match.end()
