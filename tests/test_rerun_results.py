"""results.rrd, read back by Rerun itself: boxes, points and words are those of the replay."""

import json
from pathlib import Path

import numpy as np
import pytest
from exported import QUIET, bundle

from deploy.replay.player import replay
from deploy.replay.settings import Settings, Source
from deploy.runtime import Runtime
from perception.data.nuscenes import NuScenesTables
from perception.errors import InputError

rerun = pytest.importorskip("rerun", reason="rerun-sdk is not installed")
SCENE = "scene-0001"


@pytest.fixture(scope="module")
def recording(sim_root: Path, tmp_path_factory: pytest.TempPathFactory) -> object:
    out = tmp_path_factory.mktemp("rerun")
    summary = replay(
        Source(sim_root, "v1.0-sim", [SCENE]), bundle().path, out, Settings(viewers=["rerun"]), console=QUIET
    )
    assert summary["viewers"] == {"rerun": str(out / "results.rrd")}
    from rerun.dataframe import load_recording

    return load_recording(out / "results.rrd")


def column(recording: object, entity: str, component: str) -> list[object]:
    """The component's values at every time that has one."""
    view = recording.view(index="time", contents=entity)  # type: ignore[attr-defined]
    table = view.select().read_all()
    (name,) = [name for name in table.column_names if name.endswith(component)]
    return [value for value in table[name].to_pylist() if value is not None]


def test_boxes_and_points_are_those_of_the_replay(recording: object, sim_root: Path) -> None:
    tables, runtime = NuScenesTables(sim_root, "v1.0-sim"), Runtime(bundle().path)
    spec = bundle().spec
    frames = [tables.frame(sample, spec.grid.reference, spec.sweeps) for sample in tables.samples(selectors=[SCENE])]
    for i, frame in enumerate(frames):
        seen = runtime.step(frame)
        for entity, boxes in (("world/vehicle/detections", seen.prediction.boxes), ("world/tracks", seen.tracks.boxes)):
            shown = boxes.select(boxes.scores >= 0.1)
            centers = column(recording, entity, "Translation3D")[i]
            np.testing.assert_allclose(np.reshape(centers, (-1, 3)), shown.centers, rtol=1e-6, atol=1e-3)
            half = np.reshape(column(recording, entity, "HalfSize3D")[i], (-1, 3))
            np.testing.assert_allclose(2 * half, shown.sizes[:, [1, 0, 2]], rtol=1e-5)
        points = column(recording, "world/vehicle/points", "Position3D")[i]
        np.testing.assert_array_equal(np.reshape(points, (-1, 3)).astype(np.float32), frame.points[:, :3])


def test_an_unknown_viewer_is_refused_before_the_replay(sim_root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="rviz: no file is written for this viewer; choose from foxglove, rerun"):
        replay(Source(sim_root, "v1.0-sim"), bundle().path, tmp_path / "out", Settings(viewers=["rviz"]), console=QUIET)
    assert not (tmp_path / "out").exists()


def test_words_say_what_is_believed(recording: object) -> None:
    text = column(recording, "conditions", "Text")[0]
    assert "weather: clear (clear since 0.0 s: 1 of 1 frames)" in json.dumps(text)
