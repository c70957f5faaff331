"""What all recording formats provide: messages in the order of the file."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from deploy.replay.sources.messages import Content


class RawMessage(NamedTuple):
    """A message before decoding."""

    topic: str
    time: int  # us, when it was recorded, by the recorder's clock
    data: bytes
    decode: Callable[[bytes], list[Content]]  # raises CorruptMessage
    parse: Callable[[bytes], Any]  # into an object with the fields of its schema; raises CorruptMessage


@dataclass(frozen=True)
class RecordingInfo:
    """Metadata of a recording."""

    counts: Mapping[str, int]  # number of messages by topic; 0 if not known
    duration: int  # us; 0 if not known
    scene: str  # name of the drive, or of the file
    location: str = ""
    description: str = ""


class Recording(Protocol):
    """A recorded file or folder."""

    info: RecordingInfo

    def read(self, topics: Collection[str], damage: Callable[[str], None]) -> Iterator[RawMessage]:
        """Yield the messages of these topics, in constant memory.

        Args:
            damage: called with a line of text for each part that cannot be read; reading goes on after it if possible.
        """
        ...
