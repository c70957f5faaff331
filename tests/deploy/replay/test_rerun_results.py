"""results.rrd, read back by Rerun itself: boxes, points and words are those of the replay."""

import json
from pathlib import Path

import numpy as np
import pytest
from exported import QUIET, bundle
from rerun_tables import SCENE, column

from deploy.replay.run import replay
from deploy.replay.settings import Settings, Source
from deploy.runtime import Runtime
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.errors import InputError

pytest.importorskip("rerun", reason="rerun-sdk is not installed")


@pytest.fixture(scope="module")
def recording(sim_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rerun")
    summary = replay(
        Source(sim_root, "v1.0-sim", [SCENE]), bundle().path, out, Settings(viewers=["rerun"]), console=QUIET
    )
    assert summary["viewers"] == {"rerun": str(out / "results.rrd")}
    return out / "results.rrd"


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
