"""Replays of the tiny drive, what must be equal in two of them, and gates and records made by hand."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import networks
import numpy as np
from exported import QUIET, checkpoint_of
from once import once
from vocabulary import NUSCENES

from deploy.export import export
from deploy.recordings.drives import open_drives
from deploy.replay.gates import Gates
from deploy.replay.outcome import Case, Verdict
from deploy.replay.provenance import ReplayProvenance
from deploy.replay.run import replay
from deploy.replay.settings import Settings, Source
from deploy.runtime import Runtime
from perception.config import find_config, load_config
from perception.frame import Frame, Prediction

FRAMES, VERSION = 40, "v1.0-tiny"
SAME = ("results.json", "tracks.json", "statistics.jsonl", "sources.json")
# Both show earlier frames, which a replay that goes on must have as well.
FAULTS = ["delay:lidar,seconds=1.2@2-8", "freeze:lidar@10-16"]


@cache
def small() -> Path:
    """A LiDAR network with a view of 26 m and a module for rain, for routes with and without it."""
    tiny, config = load_config(find_config("tiny")), networks.config()
    model = config.model.model_copy(update={"camera": None})
    tasks = config.tasks | {"detection": config.tasks["detection"].model_copy(update={"top_k": 30})}
    config = config.model_copy(update={"name": "small", "modules": tiny.modules, "model": model, "tasks": tasks})
    return once("small", lambda out: export(checkpoint_of(config), out, [[], ["rain"]], console=QUIET))


def replay_with_faults(drive: Path, out: Path, **options: Any) -> dict[str, Any]:
    """With FAULTS; the options are those of Source, Settings and replay."""
    source = Source(drive, VERSION, options.pop("scenes", []))
    given = {name: options.pop(name) for name in ("bundle", "baseline", "gates", "console") if name in options}
    settings = Settings(**({"faults": FAULTS} | options))
    return replay(source, out=out, settings=settings, **({"bundle": small(), "console": QUIET} | given))


def frames(drive: Path) -> list[Frame]:
    (source,) = open_drives(drive, VERSION, ["scene-0001"], Runtime(small()).bundle.spec, None)
    return list(source.frames())


@contextmanager
def unreadable(drive: Path, number: int) -> Iterator[str]:
    """The name of the picture of a keyframe of the drive, which is of another size than its calibration for so long."""
    file = sorted((drive / "samples" / "CAM_FRONT").iterdir())[number]
    content = file.read_bytes()
    file.write_bytes(cv2.imencode(".jpg", np.zeros((9, 9, 3), np.uint8))[1].tobytes())
    try:
        yield file.name
    finally:
        file.write_bytes(content)


def assert_same(out: Path, expected: Path) -> None:
    for name in SAME:
        assert (out / name).read_bytes() == (expected / name).read_bytes(), name


REPLAYED = {
    "bundle": {"name": "by hand", "sums_sha256": "0" * 64}, "taxonomy": NUSCENES.model_dump(mode="json"),
    "engine": {"target": "cpu", "compiler": "none"}, "software": {}, "path": "drives", "version": "v1.0-sim",
    "machine": {"processor": "any", "cores": 1, "platform": "any"}, "scenes": (), "topics_sha256": None, "faults": (),
    "conditions": None, "selection": {"start": 0.0, "end": None, "every": 1}, "real_time": False,
}  # fmt: skip


def gates(*each: dict[str, Any], **options: Any) -> Gates:
    return Gates.model_validate({"gates": each, **options})


def only(verdict: Verdict) -> Case:
    assert len(verdict.cases) == 1
    return verdict.cases[0]


def record(out: Path, **changes: Any) -> Path:
    """The folder, with a replay.json of these settings."""
    ReplayProvenance.model_validate(REPLAYED | changes).write(out)
    return out


def instead(prediction: Prediction, **results: Any) -> Prediction:
    """With other results of these tasks."""
    return replace(prediction, results={**prediction.results, **results})
