"""What every kind of recording gives: raw messages in the order of the file."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from deploy.replay.sources.messages import Content


class Raw(NamedTuple):
    """A message as recorded."""

    topic: str
    time: int  # us, when it was recorded
    data: bytes
    decode: Callable[[bytes], list[Content]]  # raises Corrupt


@dataclass(frozen=True)
class Held:
    """What a recording says of itself."""

    counts: Mapping[str, int]  # messages by topic; 0 where the recording does not say
    duration: int  # us; 0 where the recording does not say
    scene: str  # name of the drive; the file's name where none is given
    location: str = ""
    description: str = ""


class Recording(Protocol):
    """A file or folder of messages."""

    held: Held

    def read(self, topics: Collection[str], damage: Callable[[str], None]) -> Iterator[Raw]:
        """The messages of these topics from the beginning, in constant memory.

        Args:
            damage: told each place that cannot be read, in a line; reading goes on after it where it can.
        """
        ...
