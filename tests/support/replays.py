"""Replays of the tiny drive, and what must be equal in two of them."""

import json
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import networks
from exported import QUIET, checkpoint_of
from once import once

from deploy.export import export
from deploy.replay.run import replay
from deploy.replay.settings import Settings, Source
from deploy.replay.sources import open_drives
from deploy.runtime import Runtime
from perception.config import find_config, load_config
from perception.frame import Frame

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


def replayed(drive: Path, out: Path, **options: Any) -> dict[str, Any]:
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
    """The name of the sweep of a keyframe of the drive, which has a byte too few for so long."""
    file = sorted((drive / "samples" / "LIDAR_TOP").iterdir())[number]
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    try:
        yield file.name
    finally:
        file.write_bytes(content)


def assert_same(out: Path, expected: Path) -> None:
    for name in SAME:
        assert (out / name).read_bytes() == (expected / name).read_bytes(), name


def record_of(journal: Path, number: int) -> bytes:
    with closing(sqlite3.connect(journal)) as database:
        (content,) = database.execute("SELECT content FROM records WHERE number = ?", (number,)).fetchone()
        return bytes(content)


def change(journal: Path, statement: str, *values: bytes) -> int:
    """How many records it changed."""
    with closing(sqlite3.connect(journal)) as database, database:
        return database.execute(statement, values).rowcount


def begun(journal: Path) -> dict[str, Any]:
    """What its first record says that it was begun with."""
    return dict(json.loads(zlib.decompress(record_of(journal, 0))))
