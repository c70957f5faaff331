"""Check that two replays can be compared: same frames, annotations, sensor data, faults and settings."""

from __future__ import annotations

from pathlib import Path

from deploy.replay.provenance import ReplayProvenance
from deploy.replay.results import ReplayResults
from perception.errors import InputError


def require_different(out: Path, baseline: Path) -> None:
    """Raise InputError if the baseline is the judged replay itself."""
    if out.resolve() == baseline.resolve():
        raise InputError(f"{baseline}: is the replay that is judged; give the folder of another one with --baseline")


def common_frames(run: ReplayResults, baseline: ReplayResults, least: float) -> list[str]:
    """The tokens of the frames that both replays have, in the order of the run.

    Args:
        least: the least share of the run's frames that the baseline must have.

    Raises:
        InputError: the baseline has fewer, or the two replays differ in data or settings.
    """
    require_different(run.folder, baseline.folder)
    _require_same_settings(run.folder, baseline.folder)
    theirs = set(baseline.tokens)
    common = [token for token in run.tokens if token in theirs]
    if not common:
        raise InputError(f"{baseline.folder}: has no frame of this replay; give a replay of the same drives")
    if len(common) < least * len(run):
        raise InputError(
            f"{baseline.folder}: has {len(common)} of the {len(run)} frames of this replay "
            f"({len(common) / len(run):.0%}, at least {least:.0%} are needed); replay the same drives, or set a lower "
            "`common` in the gates"
        )
    _require_same_truth(run.only(common), baseline.only(common))
    return common


def _require_same_settings(run: Path, baseline: Path) -> None:
    ours, theirs = ReplayProvenance.load(run), ReplayProvenance.load(baseline)
    here, there = ({"topics": each.topics_sha256 or "none"} | each.brief() for each in (ours, theirs))
    for what in ("faults", "conditions", "evidence", "selection", "topics"):
        if here[what] != there[what]:
            raise InputError(
                f"{baseline}: was replayed with {what} {there[what]}, this replay with {here[what]}; replay the "
                "baseline with the same settings"
            )
    if ours.taxonomy != theirs.taxonomy:
        raise InputError(f"{baseline}: its network has other classes or conditions; give a replay of a like network")


def _require_same_truth(run: ReplayResults, baseline: ReplayResults) -> None:
    names = {"scene": "scene", "timestamp": "time", "ego": "vehicle pose", "conditions": "condition"}
    names["sensors"] = "sweep or picture"  # last, because it also depends on the others
    for ours, theirs in zip(run.lines, baseline.lines, strict=True):
        different = [what for key, what in names.items() if ours[key] != theirs[key]]
        tasks = ours["tasks"].keys() & theirs["tasks"].keys()
        if any(ours["tasks"][name].get("truth") != theirs["tasks"][name].get("truth") for name in tasks):
            different.insert(0, "annotation")
        if different:
            raise InputError(
                f"{baseline.folder}: frame {ours['token']} has another {different[0]} than in this replay; "
                "replay the baseline on the same data set"
            )
