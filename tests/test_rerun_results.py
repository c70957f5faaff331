"""results.rrd, read back by Rerun itself: boxes, points and words are those of the replay."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exported import QUIET, bundle

from deploy.replay.run import replay
from deploy.replay.settings import Settings, Source
from deploy.runtime import Runtime
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.errors import InputError

pyarrow = pytest.importorskip("pyarrow", reason="rerun-sdk is not installed")
pytest.importorskip("rerun", reason="rerun-sdk is not installed")
SCENE = "scene-0001"


# How a recording calls a component, before rerun 0.24 and since.
NAMES = {
    "centers": ("Translation3D", "Boxes3D:centers"),
    "half sizes": ("HalfSize3D", "Boxes3D:half_sizes"),
    "positions": ("Position3D", "Points3D:positions"),
    "point colours": ("Color", "Points3D:colors"),
    "box colours": ("Color", "Boxes3D:colors"),
    "text": ("Text", "TextDocument:text"),
}


@pytest.fixture(scope="module")
def recording(sim_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rerun")
    summary = replay(
        Source(sim_root, "v1.0-sim", [SCENE]), bundle().path, out, Settings(viewers=["rerun"]), console=QUIET
    )
    assert summary["viewers"] == {"rerun": str(out / "results.rrd")}
    return out / "results.rrd"


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


def test_boxes_and_points_are_those_of_the_replay(recording: Path, sim_root: Path) -> None:
    tables, runtime = NuScenesTables(sim_root, "v1.0-sim"), Runtime(bundle().path)
    spec = bundle().spec
    frames = [tables.frame(sample, spec.grid.reference, spec.sweeps) for sample in tables.samples(selectors=[SCENE])]
    for i, frame in enumerate(frames):
        seen = runtime.step(frame)
        detections, tracks = seen.prediction.results["detection"], seen.states["detection"]
        confirmed = tracks.boxes.select(tracks.confirmed)
        for entity, boxes in (("world/vehicle/detections", detections), ("world/tracks", confirmed)):
            shown = boxes.select(boxes.scores >= 0.1)
            centers = column(recording, entity, "centers")[i]
            np.testing.assert_allclose(np.reshape(centers, (-1, 3)), shown.centers, rtol=1e-6, atol=1e-3)
            half = np.reshape(column(recording, entity, "half sizes")[i], (-1, 3))
            np.testing.assert_allclose(2 * half, shown.sizes[:, [1, 0, 2]], rtol=1e-5)
        points = column(recording, "world/vehicle/points", "positions")[i]
        np.testing.assert_array_equal(np.reshape(points, (-1, 3)).astype(np.float32), frame.points[:, :3])


def test_an_unknown_viewer_is_refused_before_the_replay(sim_root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="rviz: no file is written for this viewer; choose from foxglove, rerun"):
        replay(Source(sim_root, "v1.0-sim"), bundle().path, tmp_path / "out", Settings(viewers=["rviz"]), console=QUIET)
    assert not (tmp_path / "out").exists()


def test_words_say_what_is_believed(recording: Path) -> None:
    text = column(recording, "conditions", "text")[0]
    assert "weather: clear (clear since 0.0 s by tags: 1 of 1 frames)" in json.dumps(text)
