"""The settings of a replay: its drives, and how they are replayed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field

from deploy.recordings.choice import Selection
from deploy.trust import Trust
from perception.frame import Conditions
from perception.io.section import Section, load_section
from perception.io.shipped import named_file


@dataclass(frozen=True)
class Source:
    """Recorded drives, as `open_drives` opens them."""

    path: Path
    version: str | None = None
    scenes: Sequence[str] = ()
    topics: Path | None = None


@dataclass(frozen=True)
class Settings:
    """How drives are replayed.

    Args:
        trust: who must have signed the bundle, and how old it may be; None accepts it unsigned and of any age.
        faults: as `Fault.parse` and `HiddenClass.parse` take them, injected in this order.
        conditions: used for every frame instead of the drive's tags; None: the tags.
        evidence: YAML file of the sources of evidence for the conditions; None: tags, then what is recognised.
        real_time: whether frames are replayed at the recorded pace.
        viewer: whether to write results.mcap for Foxglove and Rerun.
    """

    target: str = "cpu"
    trust: Trust | None = None
    faults: Sequence[str] = ()
    conditions: Conditions | None = None
    evidence: Path | None = None
    selection: Selection = field(default_factory=Selection)
    real_time: bool = False
    viewer: bool = False


_File = Annotated[Path, Field(strict=False)]


class ReplayFile(Section):
    """The YAML file of `perception replay --config`; docs/replay.md explains its keys."""

    # instead of the drive's tags; none in the list: only what the network recognises
    conditions: Annotated[tuple[str, ...] | None, Field(strict=False)] = None
    evidence: _File | None = None  # file of the sources of evidence for the conditions, or its name
    start: float = 0.0  # s
    end: float | None = None  # s
    every: int = 1  # replay one frame of so many
    real_time: bool = False  # replay at the recorded pace
    viewer: bool = False  # write results.mcap for Foxglove and Rerun
    ray: str | None = None  # address of a cluster
    # public keys (PEM), one of which must have signed the bundle
    keys: Annotated[tuple[_File, ...], Field(strict=False)] = ()
    state: _File | None = None  # folder that remembers the highest release that ran here
    allow_older: bool = False  # accept an older release than one that ran here

    @staticmethod
    def load(path: Path) -> ReplayFile:
        """Read the file, to whose folder its paths are relative. InputError if it cannot be used."""
        found, folder = load_section(ReplayFile, path, "the settings of the replay"), path.parent
        return found.model_copy(
            update={
                "evidence": found.evidence and named_file("evidence", found.evidence, folder),
                "keys": tuple(folder / key for key in found.keys),
                "state": found.state and folder / found.state,
            }
        )
