"""Faults of the network instead of a sensor: the objects of a class are no longer in its results.

Such a fault is written hidden:CLASS[@START-END], as hidden:car@2.0-4.0. All else goes on as if the bundle had lost the
class: tracks end, and the occupancy, which still sees it, disagrees.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from deploy.replay.faults import Fault, window
from perception.errors import InputError
from perception.frame import Boxes, Prediction
from perception.rig import Sensors
from perception.taxonomy import Taxonomy

HIDDEN = "hidden:"  # begins the text
_TEXT = re.compile(r"hidden:(?P<class>[^@]*)(?:@(?P<start>[^-]*)-(?P<end>.*))?")


@dataclass(frozen=True)
class HiddenClass:
    text: str  # as written
    name: str  # of the class
    label: int
    start: float  # s since the first frame of the drive
    end: float  # s; the fault ends before it

    @staticmethod
    def parse(text: str, taxonomy: Taxonomy) -> HiddenClass:
        """Parse hidden:CLASS[@START-END].

        Raises:
            InputError: there is no such class, or the window is empty.
        """
        match = _TEXT.fullmatch(text)
        if match is None:
            raise InputError(f"--fault {text}: write hidden:CLASS@START-END, as hidden:car@2.0-4.0")
        name, known = match["class"], taxonomy.class_names
        if name not in known:
            raise InputError(f"--fault {text}: no class {name!r}; one of {', '.join(known)}")
        start, end = window(text, match["start"], match["end"])
        return HiddenClass(text, name, taxonomy.label(name), start, end)


def parse_faults(texts: Sequence[str], sensors: Sensors, taxonomy: Taxonomy) -> tuple[list[Fault], list[HiddenClass]]:
    """Faults of sensors and of classes, each in the order of their texts; InputError for one that does not parse."""
    faults = [Fault.parse(text, sensors) for text in texts if not text.startswith(HIDDEN)]
    return faults, [HiddenClass.parse(text, taxonomy) for text in texts if text.startswith(HIDDEN)]


def hide(prediction: Prediction, faults: Sequence[HiddenClass], seconds: float) -> Prediction:
    """The prediction without the boxes of the classes that are hidden so many seconds after the start of the drive."""
    results = dict(prediction.results)
    for fault in faults:
        if fault.start <= seconds < fault.end:
            for name, result in results.items():
                if isinstance(result, Boxes):
                    results[name] = result.select(result.labels != fault.label)
    return replace(prediction, results=results)
