"""The folder of a replay: which files it holds at the start, at the end, and after a failure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree as xml

from deploy.replay.journal import OccupiedError
from deploy.replay.provenance import PROVENANCE
from deploy.replay.results import LATENCY, STATISTICS
from perception.atomic import made, write_atomically
from perception.errors import InputError
from perception.tasks import TASKS

VERDICT, JUNIT, REPORT, SOURCES = "verdict.json", "junit.xml", "report.html", "sources.json"
JUDGED = (VERDICT, JUNIT)
VIEWERS = {"foxglove": "results.mcap", "rerun": "results.rrd"}  # files that others' viewers open


def concluded() -> tuple[str, ...]:
    """Files that a replay has written when it is done; what is unfinished is in the journal."""
    common = (*JUDGED, PROVENANCE, STATISTICS, SOURCES, LATENCY, REPORT, *VIEWERS.values())
    scores = [name for task in TASKS.values() if task.judge for name in task.judge.files]
    return *common, *scores, *_files_of_tasks()


def _files_of_tasks() -> list[str]:
    return [name for task in TASKS.values() for name in task.files.values()]


def remove(folder: Path, names: Sequence[str]) -> None:
    """Remove the files that are there; raises InputError where one cannot be removed."""
    for name in names:
        try:
            (folder / name).unlink(missing_ok=True)
        except NotADirectoryError:
            return  # nothing is there
        except OSError as error:
            remedy = "remove it, or choose another --out"
            raise InputError(f"{folder / name}: cannot remove ({error.strerror}); {remedy}") from None


def require_apart(out: Path, baseline: Path | None) -> None:
    """Raise InputError where replaying into `out` would change the baseline, links followed."""
    if baseline is None:
        return
    there, here = baseline.resolve(), out.resolve()
    remedy = "choose another --out"
    if here == there or there in here.parents:
        raise InputError(f"{out}: is the folder of the baseline itself, or in it; {remedy}")
    for name in (*_files_of_tasks(), STATISTICS, LATENCY, PROVENANCE):
        if (there / name).resolve() == (here / name).resolve():
            raise InputError(f"{baseline / name}: is a link to {here / name}, which the replay replaces; {remedy}")


@contextmanager
def judged_or_broken(folder: Path, judged: bool) -> Iterator[None]:
    """A block that replays and, if `judged`, writes a verdict.

    It removes an earlier verdict first. If the block fails before there is a new one, junit.xml gets an <error>, so
    that a CI system does not take a missing verdict for a pass.
    """
    remove(folder, JUDGED)
    try:
        yield
    except OccupiedError:
        raise  # the folder is another's
    except BaseException as error:
        if judged:
            _write_error(folder, error)
        raise


def _write_error(folder: Path, error: BaseException) -> None:
    kind, message = type(error).__name__, str(error) or "the replay was interrupted"
    counts = {"tests": "1", "failures": "0", "errors": "1", "time": "0"}
    root = xml.Element("testsuites", {"name": "perception replay", **counts})
    suite = xml.SubElement(root, "testsuite", {"name": "verdict", "skipped": "0", **counts})
    case = xml.SubElement(suite, "testcase", {"classname": "verdict.replay", "name": "replay", "time": "0"})
    text = "".join(each if each.isprintable() else " " for each in message)  # XML has no control characters
    xml.SubElement(case, "error", {"message": text, "type": kind}).text = text
    xml.indent(root)
    try:
        content = bytes(xml.tostring(root, encoding="utf-8", xml_declaration=True))
        write_atomically(made(folder) / JUNIT, content + b"\n")
    except InputError:
        pass  # the folder cannot be written, which the error says that is on its way
