"""What Rerun reads back."""

from pathlib import Path
from typing import Any

import pytest

pyarrow = pytest.importorskip("pyarrow", reason="rerun-sdk is not installed")

# How a recording calls a component, before rerun 0.24 and since.
NAMES = {
    "centers": ("Translation3D", "Boxes3D:centers"),
    "half sizes": ("HalfSize3D", "Boxes3D:half_sizes"),
    "positions": ("Position3D", "Points3D:positions"),
    "point colours": ("Color", "Points3D:colors"),
    "box colours": ("Color", "Boxes3D:colors"),
    "text": ("Text", "TextDocument:text"),
}


def column(recording: Path, entity: str, component: str) -> list[Any]:
    """The component's values at every time that has one."""
    rows: list[tuple[Any, Any]] = []
    for table in tables_of(recording, entity):
        found = [name for name in table.column_names if name.endswith(NAMES[component])]
        rows += [row for name in found for row in zip(table["time"].to_pylist(), table[name].to_pylist(), strict=True)]
    return [value for _, value in sorted(rows, key=lambda row: row[0]) if value is not None]


def tables_of(recording: Path, entity: str) -> list[pyarrow.Table]:
    try:
        from rerun.chunk import RrdReader
    except ImportError:  # rerun 0.23
        from rerun.dataframe import load_recording

        return [load_recording(recording).view(index="time", contents=entity).select().read_all()]
    chunks = [chunk for chunk in RrdReader(recording).stream().to_chunks() if chunk.entity_path == f"/{entity}"]
    return [pyarrow.Table.from_batches([chunk.to_record_batch()]) for chunk in chunks]
