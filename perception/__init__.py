"""Camera and LiDAR perception for automated driving: the names below are stable, all other modules may change.

    import perception

    network = perception.load("demo")  # a run, a bundle, or a network that comes along
    for drive in perception.open_drives("drives", network):
        for frame, result in network.follow(drive):
            print(len(result.boxes), result.recognised)
    perception.plot(frame, result).save("frame.html")

| name | what it is |
|---|---|
| `load` | opens a network |
| `open_drives` | opens recordings, data sets and loose files for a network |
| `plot` | draws a frame with its result as an HTML page |
| `Network` | what `load` returns: `predict(frame)`, `follow(drive)`, `frame(points, images)` |
| `Result` | what a network perceives in a frame: `boxes`, `recognised`, `prediction`, `to_dict()` |
| `Frame`, `Camera` | recorded data of one moment |
| `Boxes` | boxes in three dimensions |
| `Conditions` | weather, light and location of a frame |
"""

from importlib import import_module
from typing import Any

__version__ = "1.0.0"

_MODULES = {
    **dict.fromkeys(("load", "open_drives", "Network", "Result"), "deploy.network"),
    "plot": "deploy.plot",
    **dict.fromkeys(("Frame", "Camera", "Boxes", "Conditions"), "perception.frame"),
}
__all__ = ["__version__", *_MODULES]  # noqa: PLE0604 - all are strings


def __getattr__(name: str) -> Any:
    """Import a name when it is used, so that the import of the package takes no time."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
