"""The end of a replay: the files that need all of it, and the summary."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from deploy.manifest import Manifest
from deploy.replay.collected import Collected
from deploy.replay.folder import REPORT, SCENES, SOURCES, VIEWERS
from deploy.replay.provenance import PROVENANCE, ReplayProvenance
from deploy.replay.results import LATENCY
from perception.files import write_atomically
from perception.stores import remove_folder


@dataclass(frozen=True)
class Concluded:
    """A finished replay.

    Attributes:
        behind: s that it was behind real time at most; None: it was not in real time.
    """

    out: Path
    collected: Collected
    provenance: ReplayProvenance
    behind: float | None = None

    def summary(self, manifest: Manifest) -> dict[str, Any]:
        """Counts, latencies and files, for `--json`."""
        latency = self.collected.latency.summary()
        names = {what: file for task in manifest.heads.values() for what, file in task.files.items()}
        names |= {"sources": SOURCES, "latency": LATENCY, "report": REPORT, "provenance": PROVENANCE}
        return {
            "frames": latency["frames"],
            "resumed_at_frame": self.provenance.resumed_at_frame,
            "not_finite": self.collected.not_finite,
            "latency_ms": latency["stages"],
            **{name: str(self.out / file) for name, file in names.items()},
            "viewers": {name: str(self.out / file) for name, file in VIEWERS.items() if (self.out / file).exists()},
        }


def conclude(out: Path, collected: Collected, begun: ReplayProvenance, behind: float | None = None) -> Concluded:
    """Write latency.json, sources.json, report.html and, last, replay.json; remove what was for this alone.

    Args:
        begun: from before the first frame.
        behind: as in `Concluded`.
    """
    latency = collected.latency.summary()
    late = {} if behind is None else {"behind": round(1e3 * behind, 3)}
    write_atomically(out / LATENCY, json.dumps(latency | late, indent=2).encode())
    write_atomically(out / SOURCES, json.dumps([summary for summary, _ in collected.counts], indent=2).encode())
    provenance = begun.model_copy(
        update={
            "drives": tuple(collected.drives),
            "frames": len(collected.latency),
            "resumed_at_frame": collected.recalled,
            "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
    )
    page = collected.report.html(latency, provenance.brief(), collected.faults.listed())
    write_atomically(out / REPORT, page.encode())
    provenance.write(out)
    remove_folder(out / SCENES)
    return Concluded(out, collected, provenance, behind)
